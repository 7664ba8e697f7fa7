"""The event log: append-only, each event carrying the hash of the one before.

    hash = SHA-256(canonical JSON {"body", "kind", "number", "previous"})        previous of event 1: 64 zeros

An event is written in the transaction that makes the change it tells of. Events hold no wall-clock times: two arenas
that see the same chain and the same measurements have the same log.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from limbeck.arena.store import tables
from limbeck.errors import IntegrityError
from limbeck.files import canonical_json, digest_of

FIRST_PREVIOUS = "0" * 64


@dataclass(frozen=True)
class Event:
    """One entry of the log."""

    number: int
    kind: str
    body: Mapping[str, Any]
    previous: str
    hash: str


def append_event(connection: Connection, kind: str, body: Mapping[str, Any]) -> None:
    """Append an event within the caller's transaction."""
    newest = select(tables.events.c.number, tables.events.c.hash).order_by(tables.events.c.number.desc()).limit(1)
    last = connection.execute(newest).first()
    number, previous = (last.number + 1, last.hash) if last else (1, FIRST_PREVIOUS)
    connection.execute(
        tables.events.insert().values(
            number=number,
            kind=kind,
            body=canonical_json(body).decode(),
            previous=previous,
            hash=event_hash(number, kind, body, previous),
        )
    )


def event_hash(number: int, kind: str, body: Mapping[str, Any], previous: str) -> str:
    """Return the hash of an event."""
    return digest_of({"body": body, "kind": kind, "number": number, "previous": previous})


def read_events(connection: Connection, after: int = 0) -> list[Event]:
    """Return the events after number `after`, in order, each held to its hash and to the one before.

    Raises:
        IntegrityError: naming the first event that is missing or was altered.
    """
    rows = connection.execute(
        select(tables.events).where(tables.events.c.number >= after).order_by(tables.events.c.number)
    ).all()
    read: list[Event] = []
    expected, previous = (1, FIRST_PREVIOUS) if after == 0 else (after, None)
    for row in rows:
        if row.number != expected:
            raise IntegrityError(f"event {expected} is missing from the log.")
        try:
            body = json.loads(row.body)
            sound = event_hash(row.number, row.kind, body, row.previous) == row.hash
        except ValueError:
            sound = False
        if not sound:
            raise IntegrityError(f"event {row.number} was altered: its contents do not have its hash.")
        if previous is not None and row.previous != previous:
            raise IntegrityError(f"event {row.number} was altered: it does not follow event {row.number - 1}.")
        read.append(Event(row.number, row.kind, body, row.previous, row.hash))
        expected, previous = row.number + 1, row.hash
    return [event for event in read if event.number > after]
