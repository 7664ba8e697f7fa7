"""The decision: order doesn't matter, failures never help, copies never win, and replays are equal."""

import json
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from limbeck.arena.decision import (
    CandidateEvidence,
    Outcome,
    PromptEvidence,
    Role,
    RoundEvidence,
    Standing,
    Verdict,
    decide,
    parse_policy,
)
from limbeck.arena.decision.intervals import paired_difference
from limbeck.arena.decision.kl_duel import KlDuel
from limbeck.arena.faults import Fault
from limbeck.errors import UserError

POLICY = KlDuel()


def candidate(name: str, kls: list[float], *, block: int = 1, king: bool = False, **more: object) -> CandidateEvidence:
    prompts = tuple(PromptEvidence(prompt=index, tokens=5, kl=kl) for index, kl in enumerate(kls))
    role = Role.KING if king else Role.CHALLENGER
    data = {"commitment": f"{name}:{block}", "hotkey": name, "block": block, "role": role, "prompts": prompts}
    return CandidateEvidence.model_validate(data | more)


def a_round(*candidates: CandidateEvidence, prompts: int = 4) -> RoundEvidence:
    return RoundEvidence(round_id=7, block_hash="0x1", prompts=tuple(range(prompts)), candidates=candidates)


def standing(verdict: Verdict, name: str) -> Standing:
    return next(entry for entry in verdict.standings if entry.commitment.startswith(f"{name}:"))


kls = st.one_of(st.floats(1e-3, 2.5), st.sampled_from([0.0, 1e-7, 0.5, 2.0, math.nan, math.inf, -1.0]))
faults = st.sampled_from(list(Fault))


@st.composite
def rounds(draw: st.DrawFn) -> RoundEvidence:
    prompts = draw(st.integers(1, 4))
    entries = []
    for index in range(draw(st.integers(1, 5))):
        values = draw(st.lists(kls, min_size=prompts, max_size=prompts))
        dropped = draw(st.integers(0, 9)) == 0
        failure = {"failure": "gone", "fault": draw(faults)} if draw(st.integers(0, 9)) == 0 else {}
        block = draw(st.integers(0, 3))
        king = index == 0 and draw(st.booleans())
        entries.append(candidate(f"m{index}", values[dropped:], block=block, king=king, **failure))
    return a_round(*entries, prompts=prompts)


@given(rounds(), st.randoms())
def test_the_order_of_evidence_does_not_matter(evidence: RoundEvidence, random: object) -> None:
    data = evidence.model_dump(mode="json")
    random.shuffle(data["candidates"])  # type: ignore[attr-defined]
    random.shuffle(data["prompts"])  # type: ignore[attr-defined]
    for entry in data["candidates"]:
        random.shuffle(entry["prompts"])  # type: ignore[attr-defined]
    shuffled = RoundEvidence.model_validate(data)
    assert shuffled.digest == evidence.digest
    assert decide(shuffled, POLICY).canonical == decide(evidence, POLICY).canonical


@given(rounds(), st.data())
def test_a_failure_never_helps_the_one_who_fails(evidence: RoundEvidence, data: st.DataObject) -> None:
    before = decide(evidence, POLICY)
    victim = data.draw(st.sampled_from(evidence.candidates))
    fault = data.draw(faults)
    if data.draw(st.booleans()) or not victim.prompts:
        failed = victim.model_copy(update={"failure": "broken", "fault": fault})
    else:
        index = data.draw(st.integers(0, len(victim.prompts) - 1))
        prompts = list(victim.prompts)
        prompts[index] = PromptEvidence(prompt=prompts[index].prompt, tokens=5, kl=math.nan, fault=fault)
        failed = victim.model_copy(update={"prompts": tuple(prompts)})
    others = [entry for entry in evidence.candidates if entry.commitment != victim.commitment]
    after = decide(evidence.model_copy(update={"candidates": (failed, *others)}), POLICY)
    if victim.role is Role.CHALLENGER or fault is Fault.CANDIDATE:
        assert after.king_after != victim.commitment
    else:  # not the king's fault: nothing is decided, so no challenger gains by it either
        kept = standing(after, victim.hotkey).outcome
        assert (after.void and after.king_after == before.king_before) or kept is Outcome.DISQUALIFIED


@given(st.lists(st.floats(1e-3, 2), min_size=1, max_size=4), rounds(), st.integers(0, 1))
def test_a_copy_of_the_king_never_takes_the_crown(values: list[float], others: RoundEvidence, later: int) -> None:
    king, copy = candidate("king", values, king=True), candidate("copy", values, block=1 + later)
    rivals = [candidate(entry.hotkey, [2.5] * len(values)) for entry in others.candidates]
    verdict = decide(a_round(copy, king, *rivals, prompts=len(values)), KlDuel(margin=0.0))
    assert verdict.king_after == king.commitment


@given(rounds())
def test_a_verdict_made_from_its_own_record_is_the_same(evidence: RoundEvidence) -> None:
    live = decide(evidence, POLICY)
    stored = json.loads(json.dumps(evidence.model_dump(mode="json")))
    policy = parse_policy(json.loads(json.dumps(POLICY.model_dump(mode="json"))))
    assert decide(RoundEvidence.model_validate(stored), policy).canonical == live.canonical
    assert Verdict.model_validate(json.loads(live.canonical)) == live


@given(rounds())
def test_whoever_is_king_is_valid_and_one(evidence: RoundEvidence) -> None:
    verdict = decide(evidence, POLICY)
    if verdict.void:
        return
    seated = [entry for entry in verdict.standings if entry.outcome in (Outcome.CROWNED, Outcome.HELD)]
    assert [entry.commitment for entry in seated] == ([verdict.king_after] if verdict.king_after else [])
    assert all(entry.kl is not None and 1e-6 < entry.kl <= 2.0 for entry in seated)
    assert len(verdict.standings) == len(evidence.candidates)


@pytest.mark.parametrize(
    ("challenger", "crowned"), [(0.494, True), (0.4949, True), (0.495, False), (0.4951, False), (0.6, False)]
)
def test_a_challenger_needs_the_margin(challenger: float, crowned: bool) -> None:
    verdict = decide(a_round(candidate("king", [0.5] * 4, king=True), candidate("rival", [challenger] * 4)), POLICY)
    assert (verdict.king_after == "rival:1") is crowned
    assert standing(verdict, "king").outcome is (Outcome.DETHRONED if crowned else Outcome.HELD)


def test_the_first_crown_needs_no_margin() -> None:
    verdict = decide(a_round(candidate("a", [0.5] * 4), candidate("b", [0.499] * 4)), POLICY)
    assert verdict.king_after == "b:1"
    assert verdict.crown_moved


def test_ties_go_to_the_earlier_commitment() -> None:
    late, early = candidate("a", [0.4] * 4, block=9), candidate("b", [0.4] * 4, block=3)
    assert decide(a_round(late, early), POLICY).king_after == "b:3"


def test_too_far_from_the_teacher_and_too_near() -> None:
    far, copied = candidate("far", [2.1] * 4), candidate("copied", [1e-6] * 4)
    verdict = decide(a_round(far, copied), POLICY)
    assert verdict.king_after is None
    assert "above 2" in standing(verdict, "far").reason
    assert "the teacher, copied" in standing(verdict, "copied").reason
    assert {entry.outcome for entry in verdict.standings} == {Outcome.DISQUALIFIED}


def test_a_king_who_is_gone_leaves_the_throne_to_the_best_valid_one() -> None:
    king = candidate("king", [], king=True, failure="repository: gone", fault=Fault.CANDIDATE)
    verdict = decide(a_round(king, candidate("a", [0.9] * 4), candidate("b", [0.8] * 4)), POLICY)
    assert verdict.king_after == "b:1"
    assert standing(verdict, "king").outcome is Outcome.DISQUALIFIED


def test_a_king_who_was_not_measured_makes_the_round_void() -> None:
    king = candidate("king", [0.5] * 3, king=True)
    verdict = decide(a_round(king, candidate("a", [0.1] * 4)), POLICY)
    assert verdict.void
    assert verdict.king_after == verdict.king_before == "king:1"
    assert standing(verdict, "a").outcome is Outcome.VOID


def test_a_king_with_one_measurement_missing_by_his_own_fault_falls() -> None:
    king = candidate("king", [0.5, math.nan, 0.5, 0.5], king=True)
    verdict = decide(a_round(king, candidate("a", [0.9] * 4)), POLICY)
    assert verdict.king_after == "a:1"
    assert "Prompt 1" in standing(verdict, "king").reason
    assert standing(verdict, "king").outcome is Outcome.DISQUALIFIED


def test_words_say_who_and_by_how_much() -> None:
    verdict = decide(a_round(candidate("king", [0.5] * 4, king=True), candidate("rival", [0.4] * 4)), POLICY)
    assert "rival:1 takes the crown from king:1: KL 0.4 against 0.5" in verdict.words
    assert "20.0% lower" in verdict.words


@given(st.lists(st.tuples(st.floats(0.001, 2), st.floats(0.001, 2)), min_size=2, max_size=40))
def test_the_interval_is_the_paired_t_interval(pairs: list[tuple[float, float]]) -> None:
    """Against SciPy's own paired t-test."""
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    assume(max(abs((a - b) - (ours[0] - theirs[0])) for a, b in pairs) > 1e-6)
    difference = paired_difference(ours, theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert difference.low == pytest.approx(expected.low, abs=1e-9)
    assert difference.high == pytest.approx(expected.high, abs=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5, 1e300, None])
def test_what_is_no_divergence_is_a_failure(value: float | None) -> None:
    evidence = PromptEvidence(prompt=0, tokens=5, kl=value)
    assert evidence.kl is None
    assert evidence.error
    assert evidence.fault is Fault.CANDIDATE


def test_evidence_that_contradicts_itself_is_refused() -> None:
    one = candidate("a", [0.5])
    with pytest.raises(ValidationError, match="stands twice"):
        a_round(one, one)
    with pytest.raises(ValidationError, match="at most one king"):
        a_round(candidate("a", [1.0], king=True), candidate("b", [1.0], king=True))
    with pytest.raises(ValidationError, match="not the round's"):
        a_round(candidate("a", [0.5] * 5))


def test_an_unknown_policy_or_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'kl_duel'"):
        parse_policy({"name": "kl_dual"})
    with pytest.raises(UserError, match="Did you mean 'margin'"):
        parse_policy({"name": "kl_duel", "margn": 0.1})
