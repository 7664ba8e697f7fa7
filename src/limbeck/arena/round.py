"""A validator's round: commitments → admission → plan → measurement → verdict → crown → weights.

Everything that a step needs is in the store or on the chain, and everything that it does is one transaction there; so
a process that is killed between any two goes on where it stopped, measures nothing twice that was recorded, and ends
with the same verdict. A round that was begun is finished before anything new is looked at.

The plan depends on the store and a finalized block alone: the round's number is the block's, and its randomness comes
from the block's hash. Where the chain can't tell that hash, there is no round.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.arena.admission import Report, Rules, Submission, run_checks
from limbeck.arena.chain.interface import MAX_WEIGHT, Block, Chain, ChainError, ErrorCode, Receipt
from limbeck.arena.config import ArenaConfig
from limbeck.arena.decision import CandidateEvidence, PromptEvidence, Verdict, decide
from limbeck.arena.evaluation import Evaluator, RoundMeasurement, RoundPrompt, RoundSpec
from limbeck.arena.faults import CandidateError, Fault, ForeignError
from limbeck.arena.identity import BlockNumber, Coldkey, CommitmentId, CommitPayload, Uid
from limbeck.arena.models import ModelStore
from limbeck.arena.store import CommitmentRow, CommitmentState, ParticipantRow, RoundRow, RoundState, Store
from limbeck.arena.store.rounds import Plan, candidate_evidence
from limbeck.arena.wallet import Key
from limbeck.errors import LimbeckError, UserError
from limbeck.seeds import derive_seed

RECHECKS = ("repository", "files", "config", "weights", "dtype", "manifest", "duplicate")
"""Checks that are made again right before a model is measured: it may be gone, or have been changed."""

WEIGHT_ATTEMPTS = 3
_BLOCK_HASH = re.compile(r"0x[0-9a-f]{64}")


@dataclass(frozen=True)
class Validator:
    """What a validator works with.

    Attributes:
        chain: where commitments are read and weights are set.
        store: what it knows.
        models: where models are fetched.
        key: the hotkey that sets weights.
        tokenizer: folder with the teacher's tokenizer files.
        teacher: the teacher's folder; None is enough where nothing is measured.
        work: folder for what evaluators keep between calls.
    """

    chain: Chain
    store: Store
    models: ModelStore
    key: Key
    tokenizer: Path
    teacher: Path | None
    work: Path


def run_round(validator: Validator, evaluator: Evaluator) -> Verdict | None:
    """Finish the open round, or plan and run a new one; None where nobody challenges.

    Raises:
        ChainError: the chain doesn't know the block's hash, or doesn't take the weights. The round stays open.
        LimbeckError: the evaluator is not the one that began the round, or another process works on the store.
    """
    store = validator.store
    row = store.rounds.open_round()
    if row is None:
        block = finalized_block(validator.chain)
        take_in_commitments(validator, block)
        admit_pending(validator)
        row = plan_round(validator, block, evaluator.description)
    if row is None:
        return None
    if row.state in (RoundState.PLANNED, RoundState.MEASURING):
        _measure(validator, row, evaluator)
        policy = store.config_version(row.config).policy
        store.rounds.record_verdict(decide(store.rounds.evidence(row.id), policy))
    verdict = store.rounds.verdict(row.id)
    if verdict is None:
        raise LimbeckError(f"round {row.id}: its verdict is not in the store, though it was decided.")
    if _state(store, row) is RoundState.DECIDED:
        store.rounds.crown(verdict)
    if _state(store, row) is RoundState.CROWNED:
        weights = weights_for(validator.chain, verdict.king_after)
        store.rounds.close(row.id, weights, _set_weights(validator, weights))
    return verdict


def finalized_block(chain: Chain) -> Block:
    """Return the newest finalized block, its hash asked for by number and held to its form.

    Raises:
        ChainError: the chain doesn't know the hash. There is no stand-in for it.
    """
    block = chain.head(finalized=True)
    hashed = chain.block_hash(block.number)
    if not _BLOCK_HASH.fullmatch(hashed) or int(hashed, 16) == 0:
        raise ChainError(
            ErrorCode.REJECTED, f"block {block.number}: {hashed!r} is not a block hash; no round is begun."
        )
    return Block(block.number, hashed, block.time_ms)


def take_in_commitments(validator: Validator, block: Block) -> int:
    """Record the commitments of a finalized block; return how many were new.

    A hotkey's first well-formed commitment is the one that counts, for ever: later ones are not taken in. Bytes that
    are no payload are not a commitment.
    """
    owners = {neuron.hotkey: neuron.coldkey for neuron in validator.chain.neurons(block.number)}
    found: list[tuple[CommitmentId, Coldkey, CommitPayload]] = []
    for entry in validator.chain.commitments(block.number):
        if entry.hotkey not in owners:
            continue
        try:
            payload = CommitPayload.decode(entry.data)
        except UserError:
            continue
        found.append((CommitmentId(entry.hotkey, entry.block), owners[entry.hotkey], payload))
    return validator.store.commitments.take_in(found, block.number)


def admit_pending(validator: Validator) -> None:
    """Run the checks on every commitment that waits for them, first committed first.

    A check that could not be made, by whosever fault but the candidate's, leaves the commitment waiting.
    """
    commitments = validator.store.commitments
    config = _newest_config(validator.store)[1]
    for row in commitments.all(CommitmentState.PENDING):
        try:
            report = check_commitment(validator, row, config)
        except ForeignError as error:
            body: dict[str, object] = {"commitment": str(row.id), "fault": error.fault, "reason": str(error)}
            validator.store.note("admission put off", body)
            continue
        commitments.admit(row.id, report)


def check_commitment(
    validator: Validator, row: CommitmentRow, config: ArenaConfig, names: Sequence[str] | None = None
) -> Report:
    """Run checks on a committed model up to the first failure; raises `ForeignError` where they can't be made."""
    rules = Rules(
        student=config.student,
        tokenizer=config.teacher.tokenizer,
        teacher=validator.tokenizer,
        commitment=row.id,
        manifest=row.payload.manifest,
        first_owner=validator.store.commitments.first_owner,
    )
    submission = Submission(lambda: validator.models.open(row.payload.model))
    return run_checks(submission, rules, names=names, stop_at_failure=True)


def plan_round(validator: Validator, block: Block, evaluator: str) -> RoundRow | None:
    """Plan the round of a block: king, and challengers first committed first; None where nobody challenges.

    Left out are hotkeys that the chain no longer knows, and those above a coldkey's share.
    """
    store = validator.store
    version, config = _newest_config(store)
    reign = store.rounds.king()
    king = reign.commitment if reign else None
    registered = {neuron.hotkey for neuron in validator.chain.neurons(block.number)}
    taken: Counter[Coldkey] = Counter()
    if king is not None and (crowned := store.commitments.get(king)) is not None:
        taken[crowned.coldkey] += 1
    challengers: list[CommitmentId] = []
    for row in store.commitments.all(CommitmentState.ADMITTED):
        if row.id == king or row.id.hotkey not in registered or len(challengers) == config.round.max_challengers:
            continue
        if taken[row.coldkey] < config.round.challengers_per_coldkey:
            taken[row.coldkey] += 1
            challengers.append(row.id)
    if not challengers or store.rounds.get(block.number) is not None:
        return None
    store.rounds.plan(Plan(block.number, block.hash, version, evaluator, king, tuple(challengers)))
    return store.rounds.get(block.number)


def weights_for(chain: Chain, king: str | None) -> dict[Uid, int]:
    """Return the weights that a verdict asks for: all to the king; none where there is no king, or he is gone."""
    if king is None:
        return {}
    hotkey = CommitmentId.parse(king).hotkey
    return {neuron.uid: MAX_WEIGHT for neuron in chain.neurons() if neuron.hotkey == hotkey}


def settle(chain: Chain, store: Store, timeout_s: float = 60.0) -> None:
    """Wait until every commitment is finalized, and a block that no round has had; on the ledger this seals blocks."""
    newest = max((entry.block for entry in chain.commitments()), default=BlockNumber(0))
    rounds = store.rounds.all()
    wanted = max(newest, rounds[-1].id + 1 if rounds else 0)
    while chain.head(finalized=True).number < wanted:
        chain.wait_block(BlockNumber(chain.head(finalized=False).number + 1), timeout_s)


def _measure(validator: Validator, row: RoundRow, evaluator: Evaluator) -> None:
    """Record evidence for each participant that has none; the teacher is measured once, before them."""
    rounds = validator.store.rounds
    waiting = [entry for entry in rounds.participants(row.id) if not entry.evaluated]
    if not waiting and row.state is RoundState.MEASURING:
        return
    if evaluator.description != row.evaluator:
        raise LimbeckError(
            f"round {row.id} was begun by the evaluator {row.evaluator!r}, and this is {evaluator.description!r}."
            " Finish it with the one that began it."
        )
    if validator.teacher is None:
        raise UserError(f"round {row.id}: nothing can be measured without the teacher. Give its folder: --teacher DIR.")
    config = validator.store.config_version(row.config)
    measurement = evaluator.prepare(_spec(validator, row, config, validator.teacher))
    prompts = sorted(measurement.prompts, key=lambda prompt: prompt.index)
    if [prompt.index for prompt in prompts] != list(range(len(prompts))) or not prompts:
        raise LimbeckError(f"round {row.id}: the evaluator drew no prompts, or did not number them 0, 1, ….")
    if row.state is RoundState.PLANNED:
        rounds.start_measuring(row.id, prompts)
    elif rounds.prompts(row.id) != prompts:
        raise LimbeckError(f"round {row.id}: the evaluator draws other prompts than when the round was begun.")
    for entry in waiting:
        rounds.record_evidence(row.id, _evidence(validator, config, entry, measurement, prompts))


def _spec(validator: Validator, row: RoundRow, config: ArenaConfig, teacher: Path) -> RoundSpec:
    work = validator.work / f"round-{row.id}"
    work.mkdir(parents=True, exist_ok=True)
    return RoundSpec(
        round_id=row.id,
        seed=derive_seed(row.block_hash, "arena", config.name, "round"),
        teacher=teacher,
        prompts=config.round.prompts,
        max_prompt_tokens=config.round.max_prompt_tokens,
        max_new_tokens=config.round.max_new_tokens,
        work=work,
    )


def _evidence(
    validator: Validator,
    config: ArenaConfig,
    entry: ParticipantRow,
    measurement: RoundMeasurement,
    prompts: Sequence[RoundPrompt],
) -> CandidateEvidence:
    """Look once more whether the model is the committed one, measure it, and say whose fault a failure is."""
    row = validator.store.commitments.get(entry.commitment)
    if row is None:
        raise LimbeckError(f"{entry.commitment}: takes part in a round, and is not in the store.")
    try:
        report = check_commitment(validator, row, config, RECHECKS)
        if report.failure is not None:
            raise CandidateError(f"{report.failure.name}: {report.failure.why}")
        folder = validator.models.open(row.payload.model).folder()
        measured = {found.prompt: found for found in measurement.evaluate(folder)}
    except CandidateError as error:
        return candidate_evidence(entry.commitment, entry.role, (), str(error), error.fault)
    except ForeignError as error:
        return candidate_evidence(entry.commitment, entry.role, (), str(error), error.fault)
    complete = [_complete(measured.pop(prompt.index, None), prompt) for prompt in prompts]
    if measured:
        raise LimbeckError(f"{entry.commitment}: the evaluator measured prompts that are not the round's.")
    return candidate_evidence(entry.commitment, entry.role, complete)


def _complete(found: PromptEvidence | None, prompt: RoundPrompt) -> PromptEvidence:
    """Put a stated failure of ours in the place of what the evaluator left out, or measured on other tokens."""
    if found is None:
        return PromptEvidence(prompt=prompt.index, tokens=0, error="was not measured", fault=Fault.HOST)
    if found.error is None and found.tokens != prompt.tokens:
        error = f"{found.tokens} tokens were compared, not {prompt.tokens}"
        return PromptEvidence(prompt=prompt.index, tokens=found.tokens, error=error, fault=Fault.HOST)
    return found


def _set_weights(validator: Validator, weights: dict[Uid, int]) -> Receipt:
    """Set weights, waiting as long as the chain asks for between attempts."""
    chain = validator.chain
    receipt = chain.set_weights(validator.key, weights)
    for _ in range(WEIGHT_ATTEMPTS - 1):
        if receipt.ok or not receipt.retryable:
            break
        chain.wait_block(BlockNumber(chain.head(finalized=False).number + max(1, receipt.retry_blocks)), 600.0)
        receipt = chain.set_weights(validator.key, weights)
    return receipt.required("the weights were not set")


def _newest_config(store: Store) -> tuple[int, ArenaConfig]:
    found = store.config()
    if found is None:
        raise UserError(f"{store.path}: the arena has no configuration. Give one: --arena FILE.")
    return found


def _state(store: Store, row: RoundRow) -> RoundState:
    now = store.rounds.get(row.id)
    if now is None:
        raise LimbeckError(f"round {row.id}: has vanished from the store.")
    return now.state
