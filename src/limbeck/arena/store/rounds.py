"""Rounds in the store: their states, participants, evidence, verdicts, reigns and weights.

A round goes `planned → measuring → decided → crowned → closed`, each arrow one transaction with its event. A change
that finds the round in another state than it should be in writes nothing: another process acts on the same store.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, select

from limbeck.arena.chain.interface import Receipt
from limbeck.arena.database import Database
from limbeck.arena.decision import CandidateEvidence, Outcome, PromptEvidence, Role, RoundEvidence, Verdict
from limbeck.arena.evaluation import RoundPrompt
from limbeck.arena.identity import BlockNumber, CommitmentId, Uid
from limbeck.arena.store import tables
from limbeck.arena.store.commitments import CommitmentState, set_state
from limbeck.arena.store.events import append_event
from limbeck.errors import LimbeckError
from limbeck.files import canonical_json, digest_of


class RoundState(StrEnum):
    """How far a round has come."""

    PLANNED = "planned"
    MEASURING = "measuring"
    DECIDED = "decided"
    CROWNED = "crowned"
    CLOSED = "closed"


@dataclass(frozen=True)
class RoundRow:
    """A round: its block, the version of the configuration it runs by, and who was king when it was planned."""

    id: BlockNumber
    block_hash: str
    config: int
    king: CommitmentId | None
    evaluator: str
    state: RoundState


@dataclass(frozen=True)
class ParticipantRow:
    """A model in a round; `evaluated` says that its evidence, or its failure, is recorded."""

    commitment: CommitmentId
    role: Role
    evaluated: bool
    failure: str | None
    fault: str | None


@dataclass(frozen=True)
class Reign:
    """A king's time on the throne; `to_round` is None for the one who sits on it."""

    commitment: CommitmentId
    from_round: BlockNumber
    to_round: BlockNumber | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """Who takes part in a round to come."""

    id: BlockNumber
    block_hash: str
    config: int
    evaluator: str
    king: CommitmentId | None
    challengers: tuple[CommitmentId, ...]


class Rounds:
    """Reads and changes of rounds; every change is one transaction with its event."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Reads

    def all(self) -> list[RoundRow]:
        """Return all rounds, oldest first."""
        with self._database.read() as connection:
            return [_round(row) for row in connection.execute(select(tables.rounds).order_by(tables.rounds.c.id))]

    def get(self, number: BlockNumber) -> RoundRow | None:
        """Return a round, or None."""
        with self._database.read() as connection:
            row = connection.execute(select(tables.rounds).where(tables.rounds.c.id == number)).first()
        return _round(row) if row else None

    def open_round(self) -> RoundRow | None:
        """Return the round that was begun and not closed."""
        with self._database.read() as connection:
            row = connection.execute(select(tables.rounds).where(tables.rounds.c.state != RoundState.CLOSED)).first()
        return _round(row) if row else None

    def participants(self, number: BlockNumber) -> list[ParticipantRow]:
        """Return a round's models: the king first, then challengers as they were committed."""
        table = tables.participants
        with self._database.read() as connection:
            rows = connection.execute(select(table).where(table.c.round == number)).all()
        found = [
            ParticipantRow(CommitmentId.parse(row.commitment), Role(row.role), row.evaluated, row.failure, row.fault)
            for row in rows
        ]
        return sorted(found, key=lambda entry: (entry.role is not Role.KING, entry.commitment))

    def prompts(self, number: BlockNumber) -> list[RoundPrompt]:
        """Return a round's prompts."""
        table = tables.prompts
        query = select(table).where(table.c.round == number).order_by(table.c.prompt)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [RoundPrompt(index=row.prompt, digest=row.digest, tokens=row.tokens) for row in rows]

    def evidence(self, number: BlockNumber) -> RoundEvidence:
        """Return what is recorded of a round, as the decision reads it.

        Raises:
            LimbeckError: there is no such round.
        """
        row = self.get(number)
        if row is None:
            raise LimbeckError(f"round {number}: not in the store.")
        table = tables.evidence
        with self._database.read() as connection:
            measured = connection.execute(select(table).where(table.c.round == number)).all()
        by_commitment: dict[str, list[PromptEvidence]] = {}
        for entry in measured:
            by_commitment.setdefault(entry.commitment, []).append(_prompt_evidence(entry))
        candidates = tuple(
            candidate_evidence(
                entry.commitment,
                entry.role,
                by_commitment.get(str(entry.commitment), ()),
                entry.failure,
                entry.fault,
            )
            for entry in self.participants(number)
        )
        prompts = tuple(prompt.index for prompt in self.prompts(number))
        return RoundEvidence(round_id=number, block_hash=row.block_hash, prompts=prompts, candidates=candidates)

    def verdict(self, number: BlockNumber) -> Verdict | None:
        """Return the recorded verdict."""
        body = self.verdict_text(number)
        return Verdict.model_validate(json.loads(body)) if body is not None else None

    def verdict_text(self, number: BlockNumber) -> str | None:
        """Return the recorded verdict's canonical JSON, as it was written."""
        with self._database.read() as connection:
            return connection.execute(select(tables.verdicts.c.body).where(tables.verdicts.c.round == number)).scalar()

    def weights(self, number: BlockNumber) -> dict[Uid, int] | None:
        """Return the weights that were set after a round."""
        with self._database.read() as connection:
            body = connection.execute(select(tables.weights.c.body).where(tables.weights.c.round == number)).scalar()
        return {Uid(uid): weight for uid, weight in json.loads(body)} if body is not None else None

    def reigns(self) -> list[Reign]:
        """Return all reigns, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(tables.reigns).order_by(tables.reigns.c.from_round)).all()
        return [Reign(CommitmentId.parse(row.commitment), row.from_round, row.to_round, row.reason) for row in rows]

    def king(self) -> Reign | None:
        """Return the reign that lasts."""
        return next((reign for reign in self.reigns() if reign.to_round is None), None)

    # Changes

    def plan(self, plan: Plan) -> None:
        """Begin a round."""
        members = [(plan.king, Role.KING)] if plan.king else []
        members += [(challenger, Role.CHALLENGER) for challenger in plan.challengers]
        with self._database.write() as connection:
            connection.execute(
                tables.rounds.insert().values(
                    id=plan.id,
                    block_hash=plan.block_hash,
                    config=plan.config,
                    king=str(plan.king) if plan.king else None,
                    evaluator=plan.evaluator,
                    state=RoundState.PLANNED,
                )
            )
            for commitment, role in members:
                connection.execute(
                    tables.participants.insert().values(
                        round=plan.id, commitment=str(commitment), role=role, evaluated=False
                    )
                )
            body = {
                "block_hash": plan.block_hash,
                "challengers": [str(challenger) for challenger in plan.challengers],
                "config": plan.config,
                "evaluator": plan.evaluator,
                "king": str(plan.king) if plan.king else None,
                "round": plan.id,
            }
            append_event(connection, "round planned", body)

    def start_measuring(self, number: BlockNumber, prompts: Sequence[RoundPrompt]) -> None:
        """Record the round's prompts: from here on they are fixed."""
        with self._database.write() as connection:
            _advance(connection, number, RoundState.PLANNED, RoundState.MEASURING)
            for prompt in prompts:
                connection.execute(
                    tables.prompts.insert().values(
                        round=number, prompt=prompt.index, digest=prompt.digest, tokens=prompt.tokens
                    )
                )
            digest = prompts_digest(prompts)
            append_event(connection, "prompts", {"count": len(prompts), "digest": digest, "round": number})

    def record_evidence(self, number: BlockNumber, evidence: CandidateEvidence) -> None:
        """Record one model's measurements, or its failure; once, and never again."""
        with self._database.write() as connection:
            table = tables.participants
            _changed_one(
                connection.execute(
                    table.update()
                    .where(
                        table.c.round == number,
                        table.c.commitment == evidence.commitment,
                        table.c.evaluated.is_(False),
                    )
                    .values(evaluated=True, failure=evidence.failure, fault=evidence.fault)
                ).rowcount,
                number,
            )
            for entry in evidence.prompts:
                values = entry.model_dump(mode="json")
                connection.execute(
                    tables.evidence.insert().values(round=number, commitment=evidence.commitment, **values)
                )
            body = {
                "commitment": evidence.commitment,
                "digest": digest_of(evidence.model_dump(mode="json")),
                "failure": evidence.failure,
                "round": number,
            }
            append_event(connection, "evidence", body)

    def record_verdict(self, verdict: Verdict) -> None:
        """Record what was decided."""
        number = BlockNumber(verdict.round_id)
        with self._database.write() as connection:
            _advance(connection, number, RoundState.MEASURING, RoundState.DECIDED)
            connection.execute(
                tables.verdicts.insert().values(round=number, digest=verdict.digest, body=verdict.canonical.decode())
            )
            body = {"digest": verdict.digest, "round": number, "words": verdict.words}
            append_event(connection, "verdict", body)

    def crown(self, verdict: Verdict) -> None:
        """Carry out a verdict: the reign it ends, the reign it begins, and what it makes of each commitment."""
        number = BlockNumber(verdict.round_id)
        with self._database.write() as connection:
            _advance(connection, number, RoundState.DECIDED, RoundState.CROWNED)
            for standing in verdict.standings:
                if standing.outcome is Outcome.DISQUALIFIED:
                    set_state(connection, standing.commitment, CommitmentState.DISQUALIFIED, standing.reason)
                elif standing.outcome is not Outcome.VOID:
                    set_state(connection, standing.commitment, CommitmentState.EVALUATED)
            if verdict.crown_moved:
                connection.execute(
                    tables.reigns.update()
                    .where(tables.reigns.c.to_round.is_(None))
                    .values(to_round=number, reason=verdict.words)
                )
                if verdict.king_after is not None:
                    connection.execute(tables.reigns.insert().values(from_round=number, commitment=verdict.king_after))
            body = {"after": verdict.king_after, "before": verdict.king_before, "round": number}
            append_event(connection, "crown" if verdict.crown_moved else "crown kept", body)

    def close(self, number: BlockNumber, weights: dict[Uid, int], receipt: Receipt) -> None:
        """Record the weights that the chain took, and end the round."""
        listed = sorted(weights.items())
        with self._database.write() as connection:
            _advance(connection, number, RoundState.CROWNED, RoundState.CLOSED)
            connection.execute(
                tables.weights.insert().values(
                    round=number,
                    body=canonical_json(listed).decode(),
                    block=receipt.block,
                    block_hash=receipt.block_hash,
                    tx_hash=receipt.tx_hash,
                )
            )
            body = {"block": receipt.block, "round": number, "tx": receipt.tx_hash, "weights": listed}
            append_event(connection, "weights", body)


def candidate_evidence(
    commitment: CommitmentId,
    role: Role,
    prompts: Sequence[PromptEvidence] = (),
    failure: str | None = None,
    fault: str | None = None,
) -> CandidateEvidence:
    """Return the evidence of one participant."""
    return CandidateEvidence.model_validate(
        {
            "commitment": str(commitment),
            "hotkey": commitment.hotkey,
            "block": commitment.block,
            "role": role,
            "prompts": tuple(prompts),
            "failure": failure,
            "fault": fault,
        }
    )


def prompts_digest(prompts: Sequence[RoundPrompt]) -> str:
    """Return the digest that stands for a round's prompts in the event log."""
    return digest_of([prompt.model_dump(mode="json") for prompt in prompts])


def _advance(connection: Connection, number: BlockNumber, before: RoundState, after: RoundState) -> None:
    table = tables.rounds
    changed = connection.execute(
        table.update().where(table.c.id == number, table.c.state == before).values(state=after)
    ).rowcount
    _changed_one(changed, number)


def _changed_one(rows: int, number: BlockNumber) -> None:
    if rows != 1:
        raise LimbeckError(
            f"round {number}: another process acts on this store. Let one validator run, and start again."
        )


def _round(row: Row[Any]) -> RoundRow:
    king = CommitmentId.parse(row.king) if row.king else None
    return RoundRow(BlockNumber(row.id), row.block_hash, row.config, king, row.evaluator, RoundState(row.state))


def _prompt_evidence(row: Row[Any]) -> PromptEvidence:
    return PromptEvidence(
        prompt=row.prompt,
        tokens=row.tokens,
        kl=row.kl,
        reverse_kl=row.reverse_kl,
        top1=row.top1,
        error=row.error,
        fault=row.fault,
    )
