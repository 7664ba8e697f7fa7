"""The arena's store: SQLAlchemy over SQLite, every change one transaction with a hash-chained event."""

from limbeck.arena.store.commitments import CommitmentRow, CommitmentState
from limbeck.arena.store.events import Event
from limbeck.arena.store.rounds import ParticipantRow, Reign, RoundRow, RoundState
from limbeck.arena.store.store import Store

__all__ = [
    "CommitmentRow",
    "CommitmentState",
    "Event",
    "ParticipantRow",
    "Reign",
    "RoundRow",
    "RoundState",
    "Store",
]
