"""What the public pages and the API are told about an arena: plain values behind one small port.

`ArenaReader` is all that the web side knows. Texts in these values may come from miners (names of repositories) or
from measuring their models (reasons): whoever shows them treats them as text and nothing else. Divergences are in
nats a token; a commitment is named `hotkey:block`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class PairedDifference:
    """Mean over shared prompts of one model's KL minus the king's, with its 95 % interval.

    Positive: the king is closer to the teacher.

    `low` and `high` are None when one prompt alone was shared.
    """

    mean: float
    low: float | None
    high: float | None
    prompts: int


@dataclass(frozen=True)
class ArenaInfo:
    """The arena as its configuration says, and the round that runs."""

    name: str
    policy: str
    teacher: str
    config_version: int
    open_round: int | None
    open_round_state: str | None


@dataclass(frozen=True)
class Reign:
    """A king's time on the throne; `to_round` is None for the one who sits on it."""

    commitment: str
    model: str
    from_round: int
    to_round: int | None
    reason: str


@dataclass(frozen=True)
class King:
    """Who reigns.

    Attributes:
        commitment: `hotkey:block`.
        hotkey: who committed the model.
        uid: its slot on the chain, where it is registered.
        model: the repository.
        revision: its pinned revision.
        since_round: the round that crowned it.
        round: the newest round it was measured in.
        kl: its KL in that round.
        runner_up: the commitment that came closest in that round.
        lead: how far the runner-up lies behind, over the prompts both were measured on.
    """

    commitment: str
    hotkey: str
    uid: int | None
    model: str
    revision: str
    since_round: int
    round: int | None
    kl: float | None
    runner_up: str | None
    lead: PairedDifference | None


@dataclass(frozen=True)
class Commitment:
    """What a miner committed; `state` is pending, admitted, evaluated or disqualified, and `reason` says why."""

    commitment: str
    hotkey: str
    uid: int | None
    model: str
    revision: str
    block: int
    state: str
    reason: str


@dataclass(frozen=True)
class Score:
    """A commitment's newest standing.

    Attributes:
        commitment: `hotkey:block`.
        model: the repository.
        round: the round of the standing.
        outcome: crowned, held, lost, dethroned, disqualified or void.
        kl: mean forward KL in that round; None when there is no valid measurement.
        from_king: difference from the king who left that round; None for that king himself.
        reason: one sentence.
    """

    commitment: str
    model: str
    round: int
    outcome: str
    kl: float | None
    from_king: PairedDifference | None
    reason: str


@dataclass(frozen=True)
class Round:
    """A round; `words`, `king_after` and `digest` are None until it is decided."""

    id: int
    block_hash: str
    state: str
    config_version: int
    participants: int
    king_before: str | None
    king_after: str | None
    void: bool
    words: str | None
    verdict_digest: str | None


@dataclass(frozen=True)
class Neuron:
    """A registered hotkey; `incentive` is its share of the weights in force, validators counting alike."""

    uid: int
    hotkey: str
    coldkey: str
    stake_rao: int
    validator_permit: bool
    active: bool
    last_update: int
    incentive: float


@dataclass(frozen=True)
class Metagraph:
    """The subnet at its newest block."""

    netuid: int
    block: int
    block_hash: str
    neurons: Sequence[Neuron]


class ArenaReader(Protocol):
    """Reads an arena; never changes it. Methods raise `LimbeckError` when the data can't be read."""

    def arena(self) -> ArenaInfo:
        """Return what the arena is."""
        ...

    def king(self) -> King | None:
        """Return who reigns; None for an empty throne."""
        ...

    def reigns(self) -> Sequence[Reign]:
        """Return all reigns, newest first."""
        ...

    def commitments(self) -> Sequence[Commitment]:
        """Return all commitments, first committed first."""
        ...

    def scores(self) -> Sequence[Score]:
        """Return each measured commitment's newest standing, best first, those without a KL last."""
        ...

    def rounds(self, limit: int) -> Sequence[Round]:
        """Return up to `limit` rounds, newest first."""
        ...

    def metagraph(self) -> Metagraph:
        """Return the registered hotkeys."""
        ...
