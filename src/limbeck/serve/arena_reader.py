"""The `ArenaReader` of an arena in a folder: its store and its ledger, both opened for reading alone.

Every number comes from a round that is settled (its crown is awarded). Differences are computed here from the stored
evidence, by the arena's own paired interval, against the king who left that round: so they are there also when the
throne was empty before it, where a verdict compares nobody.
"""

import re
import threading
from collections.abc import Sequence
from pathlib import Path

from limbeck.arena.decision import Verdict
from limbeck.arena.decision.intervals import paired_difference
from limbeck.arena.identity import BlockNumber
from limbeck.arena.store import RoundRow, RoundState, Store
from limbeck.errors import LimbeckError, UserError
from limbeck.serve.ledger_reader import LedgerReader
from limbeck.serve.reader import (
    ArenaInfo,
    Commitment,
    King,
    Metagraph,
    PairedDifference,
    Reign,
    Round,
    Score,
)

ABSOLUTE_PATH = re.compile(r"(?<![\w./:])/[\w.~+@-]+(?:/[\w.~+@-]+)+/?")
SETTLED = (RoundState.CROWNED, RoundState.CLOSED)


class FolderArena:
    """An arena's folder, seen through `ArenaReader`. Safe to use from several threads."""

    def __init__(self, store: Store, ledger: LedgerReader) -> None:
        self._store = store
        self._ledger = ledger
        self._closed: dict[BlockNumber, tuple[Score, ...]] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> "FolderArena":
        """Open the arena in `folder`.

        Raises:
            UserError: there is no arena, or a file in it is not what it should be.
        """
        store, ledger = folder / "store.sqlite", folder / "ledger.sqlite"
        if not store.is_file() or not ledger.is_file():
            raise UserError(f"{folder}: there is no arena. Give the folder that holds store.sqlite and ledger.sqlite.")
        return cls(Store(store, read_only=True), LedgerReader(ledger))

    def close(self) -> None:
        """Close both files."""
        self._store.close()
        self._ledger.close()

    def arena(self) -> ArenaInfo:
        """Return what the arena is."""
        saved = self._store.config()
        if saved is None:
            raise LimbeckError(f"{self._store.path}: the arena has no configuration.")
        version, config = saved
        running = self._store.rounds.open_round()
        return ArenaInfo(
            name=config.name,
            policy=config.policy.name,
            teacher=Path(config.teacher.repo).name if Path(config.teacher.repo).is_absolute() else config.teacher.repo,
            config_version=version,
            open_round=running.id if running else None,
            open_round_state=running.state.value if running else None,
        )

    def king(self) -> King | None:
        """Return who reigns."""
        reign = self._store.rounds.king()
        row = self._store.commitments.get(reign.commitment) if reign else None
        if reign is None or row is None:
            return None
        name = str(reign.commitment)
        standings = next((found for found in self._newest_first() if _measured(found, name)), ())
        mine = _measured(standings, name)
        rivals = [score for score in standings if score.from_king is not None and score.kl is not None]
        if mine is None or mine.from_king is not None:
            rivals = []  # it did not leave that round as king: nobody was compared with it
        closest = min(rivals, key=lambda score: score.from_king.mean if score.from_king else 0.0, default=None)
        return King(
            commitment=name,
            hotkey=reign.commitment.hotkey,
            uid=self._uids().get(reign.commitment.hotkey),
            model=row.payload.model.repo,
            revision=row.payload.model.revision,
            since_round=reign.from_round,
            round=mine.round if mine else None,
            kl=mine.kl if mine else None,
            runner_up=closest.commitment if closest else None,
            lead=closest.from_king if closest else None,
        )

    def reigns(self) -> list[Reign]:
        """Return all reigns, newest first."""
        models = self._models()
        return [
            Reign(
                commitment=str(reign.commitment),
                model=models[str(reign.commitment)],
                from_round=reign.from_round,
                to_round=reign.to_round,
                reason=public_text(reign.reason),
            )
            for reign in reversed(self._store.rounds.reigns())
        ]

    def commitments(self) -> list[Commitment]:
        """Return all commitments, first committed first."""
        uids = self._uids()
        return [
            Commitment(
                commitment=str(row.id),
                hotkey=row.id.hotkey,
                uid=uids.get(row.id.hotkey),
                model=row.payload.model.repo,
                revision=row.payload.model.revision,
                block=row.id.block,
                state=row.state.value,
                reason=public_text(row.reason),
            )
            for row in self._store.commitments.all()
        ]

    def scores(self) -> list[Score]:
        """Return each measured commitment's newest standing, best first, those without a KL last."""
        newest: dict[str, Score] = {}
        for standings in self._newest_first():
            for score in standings:
                newest.setdefault(score.commitment, score)
        return sorted(newest.values(), key=lambda score: (score.kl is None, score.kl or 0.0, score.commitment))

    def rounds(self, limit: int) -> list[Round]:
        """Return up to `limit` rounds, newest first."""
        return [self._round(row) for row in reversed(self._store.rounds.all()[-limit:])]

    def metagraph(self) -> Metagraph:
        """Return the registered hotkeys."""
        return self._ledger.metagraph()

    def _round(self, row: RoundRow) -> Round:
        verdict = self._store.rounds.verdict(row.id) if row.state in SETTLED else None
        return Round(
            id=row.id,
            block_hash=row.block_hash,
            state=row.state.value,
            config_version=row.config,
            participants=len(self._store.rounds.participants(row.id)),
            king_before=str(row.king) if row.king else None,
            king_after=verdict.king_after if verdict else None,
            void=verdict.void if verdict else False,
            words=public_text(verdict.words) if verdict else None,
            verdict_digest=verdict.digest if verdict else None,
        )

    def _newest_first(self) -> list[tuple[Score, ...]]:
        """Return the standings of every settled round, newest round first."""
        return [self._standings(row) for row in reversed(self._store.rounds.all()) if row.state in SETTLED]

    def _standings(self, row: RoundRow) -> tuple[Score, ...]:
        with self._lock:
            known = self._closed.get(row.id)
        if known is not None:
            return known
        verdict = self._store.rounds.verdict(row.id)
        standings = self._scored(row.id, verdict) if verdict else ()
        if row.state is RoundState.CLOSED:  # nothing about it can change any more
            with self._lock:
                self._closed[row.id] = standings
        return standings

    def _scored(self, number: BlockNumber, verdict: Verdict) -> tuple[Score, ...]:
        measured = {
            candidate.commitment: {entry.prompt: entry.kl for entry in candidate.prompts if entry.kl is not None}
            for candidate in self._store.rounds.evidence(number).candidates
        }
        models = self._models()
        crowned = measured.get(verdict.king_after or "", {})
        return tuple(
            Score(
                commitment=standing.commitment,
                model=models[standing.commitment],
                round=number,
                outcome=standing.outcome.value,
                kl=standing.kl,
                from_king=_difference(measured.get(standing.commitment, {}), crowned)
                if standing.commitment != verdict.king_after
                else None,
                reason=public_text(standing.reason),
            )
            for standing in verdict.standings
        )

    def _models(self) -> dict[str, str]:
        return {str(row.id): row.payload.model.repo for row in self._store.commitments.all()}

    def _uids(self) -> dict[str, int]:
        return {neuron.hotkey: neuron.uid for neuron in self._ledger.metagraph().neurons}


def public_text(text: str) -> str:
    """Return `text` with absolute paths cut out: a failure of this machine's may name one."""
    return ABSOLUTE_PATH.sub("[path]", text)


def _measured(standings: Sequence[Score], commitment: str) -> Score | None:
    """Return a commitment's standing, if it was measured."""
    return next((score for score in standings if score.commitment == commitment and score.kl is not None), None)


def _difference(model: dict[int, float], king: dict[int, float]) -> PairedDifference | None:
    shared = sorted(model.keys() & king.keys())
    if not shared:
        return None
    found = paired_difference([model[prompt] for prompt in shared], [king[prompt] for prompt in shared])
    return PairedDifference(found.mean, found.low, found.high, found.prompts)
