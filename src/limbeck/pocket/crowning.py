"""The demo's fifth step: an arena in a folder, both students committed to its ledger, and a validator's round.

Each student has a hotkey of its own. The hard-label student commits first, so that the distilled one has to win by
being closer to the teacher, and not by coming first.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from limbeck.arena.config import ArenaConfig, load_arena
from limbeck.arena.decision import Verdict
from limbeck.arena.local import LocalArena
from limbeck.errors import LimbeckError
from limbeck.evaluate.statistics import paired_difference
from limbeck.files import read_json, write_json
from limbeck.pocket.evaluator import PocketEvaluator
from limbeck.pocket.world import teacher_folder
from limbeck.progress import say

PROMPT_TOKENS = 64
CONTINUATION_TOKENS = 64


@dataclass(frozen=True)
class Crowning:
    """How the round ended.

    Attributes:
        round_id: its number, which is the block's.
        names: what each commitment's student is called.
        king: the commitment that holds the crown.
        reason: the verdict in one sentence.
        kl: each commitment's mean KL on the round's prompts, in nats a token; None where it has none.
        outcomes: how the round ended for each commitment, and why.
        per_prompt: each commitment's KL on each prompt, in the prompts' order.
        difference: mean of the king's KL minus the other's over the prompts, with its 95 % interval.
        weights: what was set on the ledger, by UID.
        events: length of the hash-chained event log.
        replayed: digest of the verdict, made again from the stored evidence and found identical.
    """

    round_id: int
    names: dict[str, str]
    king: str
    reason: str
    kl: dict[str, float | None]
    outcomes: dict[str, tuple[str, str]]
    per_prompt: dict[str, tuple[float, ...]]
    difference: tuple[float, float | None, float | None]
    weights: dict[str, int]
    events: int
    replayed: str


def run_crowning(folder: Path, students: Mapping[str, Path], *, seed: int, prompts: int) -> Crowning:
    """Register, commit, check, measure, decide, crown and set weights; what is done already is not done again.

    Args:
        folder: the arena's.
        students: the folders of the students by name, in the order in which they commit.
        seed: the keys and the ledger's blocks follow from it.
        prompts: how many prompts the students share in the round.

    Raises:
        LimbeckError: no student was admitted, or the verdict, made again, is not the one that was stored.
    """
    result = folder / "crowning.json"
    if not result.exists():
        write_json(result, asdict(_run(folder, students, seed, prompts)))
    data = read_json(result)
    data["outcomes"] = {commitment: tuple(outcome) for commitment, outcome in data["outcomes"].items()}
    data["per_prompt"] = {commitment: tuple(values) for commitment, values in data["per_prompt"].items()}
    return Crowning(**{**data, "difference": tuple(data["difference"])})


def _run(folder: Path, students: Mapping[str, Path], seed: int, prompts: int) -> Crowning:
    arena = LocalArena.open(folder, _config(prompts), teacher=teacher_folder(), seed=seed)
    try:
        names = {}
        for name, student in students.items():
            hotkey = name.replace(" ", "-")
            arena.register(hotkey)
            model = arena.publish(f"demo/{hotkey}", student)
            names[str(arena.submit(model, hotkey))] = name
            say(f"  {name}: hotkey registered, {model.repo} committed")
        number = arena.last_round()
        if number is None:
            verdict = arena.run_round(PocketEvaluator())
            number = arena.last_round()
            if verdict is None or number is None:
                reasons = "; ".join(f"{row.payload.model.repo}: {row.reason}" for row in arena.store.commitments.all())
                raise LimbeckError(f"{folder}: no student was admitted ({reasons}).")
        stored = arena.store.rounds.verdict(number)
        if stored is None or stored.king_after is None:
            raise LimbeckError(f"{folder}: round {number} crowned nobody ({stored.words if stored else 'no verdict'}).")
        replay = arena.verify(number)
        if not replay.identical:
            raise LimbeckError(f"{folder}: round {number} is not identical when it is replayed: {replay.difference}.")
        say(f"  round {number}: verdict replayed from the stored evidence, identical to the byte")
        return _told(arena, stored, names, replay.digest)
    finally:
        arena.close()


def _config(prompts: int) -> ArenaConfig:
    overrides = (
        f"round.prompts={prompts}",
        f"round.max_prompt_tokens={PROMPT_TOKENS}",
        f"round.max_new_tokens={CONTINUATION_TOKENS}",
    )
    return load_arena("pocket", overrides)


def _told(arena: LocalArena, verdict: Verdict, names: dict[str, str], digest: str) -> Crowning:
    evidence = arena.store.rounds.evidence(arena.last_round() or verdict.round_id)  # type: ignore[arg-type]
    per_prompt = {
        candidate.commitment: tuple(prompt.kl for prompt in candidate.prompts if prompt.kl is not None)
        for candidate in evidence.candidates
    }
    weights = arena.store.rounds.weights(evidence.round_id) or {}  # type: ignore[arg-type]
    king = str(verdict.king_after)
    return Crowning(
        round_id=verdict.round_id,
        names=names,
        king=king,
        reason=_with_names(verdict.words, names),
        kl={standing.commitment: standing.kl for standing in verdict.standings},
        outcomes={
            standing.commitment: (standing.outcome.value, _with_names(standing.reason, names))
            for standing in verdict.standings
        },
        per_prompt=per_prompt,
        difference=_difference(per_prompt, king),
        weights={str(uid): weight for uid, weight in weights.items()},
        events=arena.store.verify_events(),
        replayed=digest,
    )


def _with_names(words: str, names: dict[str, str]) -> str:
    """Return a sentence with what the students are called in place of their commitments."""
    for commitment, name in names.items():
        words = words.replace(commitment, f"the student of {name}" if name == "hard labels" else f"the {name} student")
    return words[:1].upper() + words[1:]


def _difference(per_prompt: dict[str, tuple[float, ...]], king: str) -> tuple[float, float | None, float | None]:
    others = [commitment for commitment in per_prompt if commitment != king]
    if not others or len(per_prompt[king]) != len(per_prompt[others[0]]):
        return (0.0, None, None)
    estimate = paired_difference(per_prompt[king], per_prompt[others[0]], [1.0] * len(per_prompt[king]))
    return (estimate.value, estimate.low, estimate.high)
