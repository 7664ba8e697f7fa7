"""What a decision says: who is king, how every model stands, and why, in numbers and in words."""

from enum import StrEnum

from limbeck.files import canonical_json, digest_of
from limbeck.settings import Settings


class Outcome(StrEnum):
    """How a round ended for one model."""

    CROWNED = "crowned"
    HELD = "held"
    LOST = "lost"
    DETHRONED = "dethroned"
    DISQUALIFIED = "disqualified"
    VOID = "void"


class Difference(Settings):
    """Mean of challenger minus king over shared prompts, with a 95 % confidence interval (negative: better).

    `low` and `high` are None when one prompt alone was shared. Twelve significant digits are kept.
    """

    mean: float
    low: float | None
    high: float | None
    prompts: int


class Standing(Settings):
    """One model's part of a verdict.

    Attributes:
        commitment: `hotkey:block`.
        role: king or challenger, before the round.
        outcome: how the round ended for it.
        kl: mean over prompts of its KL(teacher || student), in nats a token; None when it has no valid measurement.
        difference: paired difference from the king, for a challenger that could be compared.
        reason: one sentence.
    """

    commitment: str
    role: str
    outcome: Outcome
    kl: float | None = None
    difference: Difference | None = None
    reason: str


class Verdict(Settings):
    """The outcome of a round, complete enough to be compared bit for bit with one made again.

    Attributes:
        round_id: block number of the round.
        block_hash: the hash that the round's randomness came from.
        policy: name of the policy.
        policy_digest: SHA-256 of the policy's canonical JSON.
        evidence_digest: SHA-256 of the evidence's canonical JSON.
        king_before: commitment of the king who came into the round; None for an empty throne.
        king_after: commitment of the king who leaves it.
        void: whether the round could decide nothing, because a failure was no candidate's fault.
        standings: every model, by block of commitment.
        words: the verdict in one sentence.
    """

    round_id: int
    block_hash: str
    policy: str
    policy_digest: str
    evidence_digest: str
    king_before: str | None
    king_after: str | None
    void: bool = False
    standings: tuple[Standing, ...]
    words: str

    @property
    def crown_moved(self) -> bool:
        """Whether the king who leaves the round is another than the one who came."""
        return self.king_before != self.king_after

    @property
    def canonical(self) -> bytes:
        """The verdict's canonical JSON: what is stored, and compared on replay."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of `canonical`."""
        return digest_of(self.model_dump(mode="json"))
