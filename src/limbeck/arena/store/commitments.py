"""Commitments in the store: what was committed, how it was admitted, and who showed a content first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, select

from limbeck.arena.admission import CheckResult, Report, Status
from limbeck.arena.database import Database
from limbeck.arena.faults import Fault
from limbeck.arena.identity import BlockNumber, Coldkey, CommitmentId, CommitPayload, Hotkey, ModelRef
from limbeck.arena.store import tables
from limbeck.arena.store.events import append_event
from limbeck.files import digest_of


class CommitmentState(StrEnum):
    """How far a commitment has come. Only `disqualified` and `evaluated` are final."""

    PENDING = "pending"
    ADMITTED = "admitted"
    EVALUATED = "evaluated"
    DISQUALIFIED = "disqualified"


@dataclass(frozen=True)
class CommitmentRow:
    """A commitment as the store has it; `reason` says why it was disqualified."""

    id: CommitmentId
    coldkey: Coldkey
    payload: CommitPayload
    state: CommitmentState
    reason: str


class Commitments:
    """Reads and changes of commitments; every change is one transaction with its event."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self, state: CommitmentState | None = None) -> list[CommitmentRow]:
        """Return commitments, first committed first; those in `state` alone when it is given."""
        query = select(tables.commitments).order_by(tables.commitments.c.block, tables.commitments.c.hotkey)
        if state is not None:
            query = query.where(tables.commitments.c.state == state)
        with self._database.read() as connection:
            return [_row(row) for row in connection.execute(query)]

    def get(self, commitment: CommitmentId) -> CommitmentRow | None:
        """Return a commitment, or None where the store doesn't know it."""
        with self._database.read() as connection:
            query = select(tables.commitments).where(tables.commitments.c.id == str(commitment))
            row = connection.execute(query).first()
        return _row(row) if row else None

    def of_hotkey(self, hotkey: Hotkey) -> CommitmentRow | None:
        """Return a hotkey's commitment: its first, and the only one that counts."""
        with self._database.read() as connection:
            found = connection.execute(select(tables.commitments).where(tables.commitments.c.hotkey == hotkey)).first()
        return _row(found) if found else None

    def take_in(self, found: Sequence[tuple[CommitmentId, Coldkey, CommitPayload]], block: BlockNumber) -> int:
        """Record commitments of hotkeys that have none yet, in one transaction; return how many were new."""
        with self._database.write() as connection:
            known = set(connection.execute(select(tables.commitments.c.hotkey)).scalars())
            fresh = sorted((entry for entry in found if entry[0].hotkey not in known), key=lambda entry: entry[0])
            if not fresh:
                return 0
            for commitment, coldkey, payload in fresh:
                connection.execute(
                    tables.commitments.insert().values(
                        id=str(commitment),
                        hotkey=commitment.hotkey,
                        coldkey=coldkey,
                        block=commitment.block,
                        repo=payload.model.repo,
                        revision=payload.model.revision,
                        manifest=payload.manifest,
                        state=CommitmentState.PENDING,
                    )
                )
            listed = [{"commitment": str(entry[0]), "repo": entry[2].model.repo} for entry in fresh]
            append_event(connection, "commitments", {"block": block, "new": listed})
        return len(fresh)

    def admit(self, commitment: CommitmentId, report: Report) -> None:
        """Record the outcome of the checks: admitted, or disqualified with the first failure's reason."""
        failure = report.failure
        state = CommitmentState.DISQUALIFIED if failure else CommitmentState.ADMITTED
        reason = f"{failure.name}: {failure.why}" if failure else ""
        with self._database.write() as connection:
            connection.execute(
                tables.commitments.update()
                .where(
                    tables.commitments.c.id == str(commitment), tables.commitments.c.state == CommitmentState.PENDING
                )
                .values(state=state, reason=reason)
            )
            for position, result in enumerate(report.results):
                connection.execute(
                    tables.admissions.insert().values(
                        commitment=str(commitment),
                        position=position,
                        name=result.name,
                        status=result.status,
                        why=result.why,
                        mend=result.mend,
                        fault=result.fault,
                    )
                )
            for kind, digest in sorted(report.contents.items()):
                connection.execute(
                    tables.contents.insert().values(kind=kind, digest=digest, commitment=str(commitment))
                )
            append_event(connection, "admission", _admission_event(commitment, state, reason, report))

    def admission(self, commitment: CommitmentId) -> list[CheckResult]:
        """Return the results of a commitment's checks."""
        query = select(tables.admissions).where(tables.admissions.c.commitment == str(commitment))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(tables.admissions.c.position)).all()
        return [
            CheckResult(row.name, Status(row.status), row.why, row.mend, Fault(row.fault) if row.fault else None)
            for row in rows
        ]

    def first_owner(self, kind: str, digest: str) -> CommitmentId | None:
        """Return the earliest commitment that showed a content."""
        query = select(tables.contents.c.commitment).where(
            tables.contents.c.kind == kind, tables.contents.c.digest == digest
        )
        with self._database.read() as connection:
            return min((CommitmentId.parse(text) for text in connection.execute(query).scalars()), default=None)


def set_state(connection: Connection, commitment: str, state: CommitmentState, reason: str = "") -> None:
    """Change a commitment's state within the caller's transaction, which also writes the event."""
    connection.execute(
        tables.commitments.update().where(tables.commitments.c.id == commitment).values(state=state, reason=reason)
    )


def _admission_event(
    commitment: CommitmentId, state: CommitmentState, reason: str, report: Report
) -> Mapping[str, object]:
    results = [[result.name, result.status, result.why] for result in report.results]
    return {
        "commitment": str(commitment),
        "contents": dict(report.contents),
        "reason": reason,
        "results": digest_of(results),
        "state": state,
    }


def _row(row: Row[Any]) -> CommitmentRow:
    return CommitmentRow(
        id=CommitmentId(Hotkey(row.hotkey), BlockNumber(row.block)),
        coldkey=Coldkey(row.coldkey),
        payload=CommitPayload(ModelRef(row.repo, row.revision), row.manifest),
        state=CommitmentState(row.state),
        reason=row.reason,
    )
