"""Policy `kl_duel`: the lowest divergence from the teacher reigns, and a challenger must win by a margin.

A model's KL is the mean over the round's prompts of its mean forward KL a token, in nats. In this order:

1. A model whose KL is above `max_kl`, or not above `copied_kl` (it is the teacher, or it reads the answers), or that
   lacks one measurement by its own fault, is disqualified. A king who is disqualified leaves an empty throne.
2. A model that lacks a measurement by another's fault is void: its attempt does not count, and can be made again. If
   that model is the king, the round is void and nothing changes: a challenger can't win because the king was not heard.
3. With a king on the throne a challenger needs KL < king's KL * (1 - margin), strictly. With an empty throne any valid
   model will do. Among those, the lowest KL takes the crown; equal ones are decided by the earlier commitment.

The interval of the paired difference is recorded beside the verdict and decides nothing: this is the first regime's
rule, kept as it is. It bounds no error rate (equal models with noisy prompts pass a 1 % margin often); the policies
that do are others.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from limbeck.arena.decision.evidence import CandidateEvidence, Role, RoundEvidence
from limbeck.arena.decision.intervals import mean, paired_difference
from limbeck.arena.decision.registry import Policy, policy
from limbeck.arena.decision.verdict import Difference, Outcome, Standing, Verdict
from limbeck.arena.faults import Fault


class KlDuel(Policy):
    """Settings of `kl_duel`.

    Attributes:
        margin: share of the king's KL by which a challenger must be lower.
        max_kl: KL above which a model is disqualified, in nats a token.
        copied_kl: KL up to which a model is taken for the teacher itself, in nats a token.
    """

    name: Literal["kl_duel"] = "kl_duel"
    margin: float = Field(0.01, ge=0, lt=1)
    max_kl: float = Field(2.0, gt=0)
    copied_kl: float = Field(1e-6, ge=0)


@policy(KlDuel)
def kl_duel(evidence: RoundEvidence, settings: KlDuel) -> Verdict:
    """Decide a round by mean KL; see the module."""
    standings = {rival.commitment: _valid_or_not(rival, evidence, settings) for rival in evidence.candidates}
    king = evidence.king
    before = king.commitment if king else None
    if king is not None and standings[king.commitment].outcome is Outcome.VOID:
        words = f"Round {evidence.round_id} is void, the king was not measured: {standings[king.commitment].reason}"
        voided = [_void(standing) for standing in standings.values()]
        return _verdict(evidence, settings, before, before, voided, words, void=True)

    measured = {candidate.commitment: _values(candidate) for candidate in evidence.candidates}
    valid = [candidate for candidate in evidence.candidates if standings[candidate.commitment].kl is not None]
    reigning = king if king is not None and king in valid else None
    challengers = [candidate for candidate in valid if candidate.role is Role.CHALLENGER]
    bar = mean(measured[reigning.commitment]) * (1 - settings.margin) if reigning else None
    winners = [rival for rival in challengers if bar is None or mean(measured[rival.commitment]) < bar]
    winner = min(winners, key=lambda rival: (mean(measured[rival.commitment]), rival.block, rival.hotkey), default=None)

    for rival in challengers:
        difference = None
        if reigning is not None:
            difference = paired_difference(measured[rival.commitment], measured[reigning.commitment])
        standing = standings[rival.commitment]
        standings[rival.commitment] = _challenger(standing, difference, bar, rival is winner, rival in winners)
    if reigning is not None:
        standing = standings[reigning.commitment]
        outcome = Outcome.HELD if winner is None else Outcome.DETHRONED
        reason = "No challenger beat the margin." if winner is None else "A challenger beat the margin."
        standings[reigning.commitment] = standing.model_copy(update={"outcome": outcome, "reason": reason})

    seated = winner or reigning
    after = seated.commitment if seated else None
    words = _words(evidence, settings, standings, before, after)
    return _verdict(evidence, settings, before, after, list(standings.values()), words)


def _valid_or_not(candidate: CandidateEvidence, evidence: RoundEvidence, settings: KlDuel) -> Standing:
    """Return a standing that holds a KL exactly when the model may be compared."""

    def out(outcome: Outcome, reason: str) -> Standing:
        return Standing(commitment=candidate.commitment, role=candidate.role, outcome=outcome, reason=reason)

    if candidate.failure is not None:
        own = candidate.fault is Fault.CANDIDATE
        return out(Outcome.DISQUALIFIED if own else Outcome.VOID, candidate.failure)
    measured = {entry.prompt: entry for entry in candidate.prompts}
    failed = [entry for entry in candidate.prompts if entry.error is not None]
    own_failures = [entry for entry in failed if entry.fault is Fault.CANDIDATE]
    missing = [prompt for prompt in evidence.prompts if prompt not in measured]
    if own_failures:
        return out(Outcome.DISQUALIFIED, f"Prompt {own_failures[0].prompt}: {own_failures[0].error}.")
    if failed:
        return out(Outcome.VOID, f"Prompt {failed[0].prompt}: {failed[0].error} ({failed[0].fault}).")
    if missing or not evidence.prompts:
        return out(Outcome.VOID, f"{len(missing)} of {len(evidence.prompts)} prompts were not measured.")
    kl = mean(_values(candidate))
    if kl <= settings.copied_kl:
        return out(Outcome.DISQUALIFIED, f"KL {kl:.3g}, not above {settings.copied_kl:g}: this is the teacher, copied.")
    if kl > settings.max_kl:
        return out(Outcome.DISQUALIFIED, f"KL {kl:.4g} is above {settings.max_kl:g} nats a token.")
    return Standing(
        commitment=candidate.commitment, role=candidate.role, outcome=Outcome.LOST, kl=kl, reason="Not decided."
    )


def _values(candidate: CandidateEvidence) -> list[float]:
    return [entry.kl for entry in candidate.prompts if entry.kl is not None]


def _challenger(
    standing: Standing, difference: Difference | None, bar: float | None, wins: bool, beats_bar: bool
) -> Standing:
    needed = "" if bar is None else f", needed less than {bar:.6g}"
    if wins:
        outcome, reason = Outcome.CROWNED, f"KL {standing.kl:.6g}{needed}: takes the crown."
    elif beats_bar:
        outcome, reason = Outcome.LOST, f"KL {standing.kl:.6g}{needed}: another was lower, or as low and earlier."
    else:
        outcome, reason = Outcome.LOST, f"KL {standing.kl:.6g}{needed}."
    return standing.model_copy(update={"outcome": outcome, "reason": reason, "difference": difference})


def _void(standing: Standing) -> Standing:
    if standing.outcome in (Outcome.DISQUALIFIED, Outcome.VOID):
        return standing
    outcome = Outcome.HELD if standing.role == Role.KING else Outcome.VOID
    return standing.model_copy(update={"outcome": outcome, "reason": "The round is void."})


def _words(
    evidence: RoundEvidence,
    settings: KlDuel,
    standings: dict[str, Standing],
    before: str | None,
    after: str | None,
) -> str:
    if after is None:
        return f"The throne is empty: none of {len(evidence.candidates)} models is valid."
    if after == before:
        rivals = sum(candidate.role is Role.CHALLENGER for candidate in evidence.candidates)
        return f"{after} stays king with KL {standings[after].kl:.6g}: {rivals} challenged, none beat the margin."
    crowned = standings[after]
    if before is None or standings[before].kl is None:
        why = "the throne was empty" if before is None else f"the king fell. {standings[before].reason}"
        return f"{after} takes the crown with KL {crowned.kl:.6g} nats a token: {why.rstrip('.')}."
    king_kl, kl = standings[before].kl or 0.0, crowned.kl or 0.0
    return (
        f"{after} takes the crown from {before}: KL {kl:.6g} against {king_kl:.6g} nats a token,"
        f" {1 - kl / king_kl:.1%} lower (margin {settings.margin:.1%}) over {len(evidence.prompts)} prompts."
    )


def _verdict(
    evidence: RoundEvidence,
    settings: KlDuel,
    before: str | None,
    after: str | None,
    standings: Sequence[Standing],
    words: str,
    *,
    void: bool = False,
) -> Verdict:
    return Verdict(
        round_id=evidence.round_id,
        block_hash=evidence.block_hash,
        policy=settings.name,
        policy_digest=settings.digest,
        evidence_digest=evidence.digest,
        king_before=before,
        king_after=after,
        void=void,
        standings=tuple(standings),
        words=words,
    )
