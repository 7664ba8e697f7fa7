"""What the arena asks of a chain: integers and bytes at the boundary, never an SDK's objects, floats or decoded text.

Reads raise `ChainError`; writes return a `Receipt` that says whether the chain took them, with an error code that is
the same for every back end. Amounts are in rao (1 TAO = 1e9 rao), times in milliseconds, weights are u16.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from limbeck.arena.identity import BlockNumber, Coldkey, Hotkey, Uid
from limbeck.arena.wallet import Key
from limbeck.errors import LimbeckError

MAX_WEIGHT = 65_535


class ErrorCode(StrEnum):
    """Why a chain refused, in the words that every back end shares."""

    NOT_REGISTERED = "NotRegistered"
    RATE_LIMITED = "RateLimited"
    SPACE_LIMIT_EXCEEDED = "SpaceLimitExceeded"
    TOO_LARGE = "TooLarge"
    COMMIT_REVEAL_ENABLED = "CommitRevealEnabled"
    PRUNED = "Pruned"
    NOT_YET = "NotYet"
    TIMEOUT = "Timeout"
    BAD_SIGNATURE = "BadSignature"
    REJECTED = "Rejected"


class ChainError(LimbeckError):
    """A chain that cannot answer, or would not take a write.

    Attributes:
        code: the shared error code.
        retryable: whether the same request can succeed later.
    """

    def __init__(self, code: ErrorCode, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


@dataclass(frozen=True)
class Block:
    """A block's number, its hash (`0x` and 64 hexadecimal digits) and its time in milliseconds."""

    number: BlockNumber
    hash: str
    time_ms: int


@dataclass(frozen=True)
class SubnetParams:
    """The rules of the subnet.

    Attributes:
        tempo: blocks of an epoch.
        weights_rate_limit: blocks that must pass between two different weight settings of one hotkey.
        commit_reveal: whether weights are committed first and revealed later.
        min_allowed_weights: least number of targets in one setting.
        max_commit_bytes: longest commitment.
        commit_window_bytes: bytes that one hotkey may commit in an epoch.
        min_commit_charge: bytes that even the shortest commitment is charged.
    """

    tempo: int = 360
    weights_rate_limit: int = 0
    commit_reveal: bool = False
    min_allowed_weights: int = 0
    max_commit_bytes: int = 128
    commit_window_bytes: int = 3_100
    min_commit_charge: int = 100


@dataclass(frozen=True)
class Neuron:
    """A registered hotkey."""

    uid: Uid
    hotkey: Hotkey
    coldkey: Coldkey
    stake_rao: int
    validator_permit: bool
    active: bool
    last_update: BlockNumber
    registered_at: BlockNumber


class CommitmentKind(StrEnum):
    """How a commitment's bytes are stored on the chain."""

    RAW = "raw"
    BIG_RAW = "bigraw"
    TIMELOCK = "timelock"
    UNDECODABLE = "undecodable"


@dataclass(frozen=True)
class ChainCommitment:
    """What a hotkey has committed, as bytes; `block` is the block of the write."""

    hotkey: Hotkey
    block: BlockNumber
    data: bytes
    kind: CommitmentKind


@dataclass(frozen=True)
class WeightCommit:
    """A sealed weight setting: `state` is committed, revealed or expired."""

    block: BlockNumber
    digest: str
    state: str


@dataclass(frozen=True)
class Receipt:
    """The chain's answer to a write.

    Attributes:
        ok: whether the write is in a block.
        block: number of that block; None when refused.
        block_hash: its hash.
        tx_hash: hash of the operation, `0x` and 64 hexadecimal digits.
        fee_rao: what it cost.
        error_code: why it was refused.
        detail: the refusal in words: the chain's own name of it, the bytes or blocks it is about.
        retryable: whether the same write can succeed later.
        retry_blocks: after how many blocks, where the chain says so.
    """

    ok: bool
    block: BlockNumber | None = None
    block_hash: str | None = None
    tx_hash: str | None = None
    fee_rao: int = 0
    error_code: ErrorCode | None = None
    detail: str = ""
    retryable: bool = False
    retry_blocks: int = 0

    def required(self, what: str) -> "Receipt":
        """Return the receipt of a write that was taken.

        Raises:
            ChainError: it was refused; the message starts with `what`.
        """
        if not self.ok:
            code = self.error_code or ErrorCode.REJECTED
            message = f"{what}: the chain refused ({code.value}: {self.detail})."
            raise ChainError(code, message, retryable=self.retryable)
        return self


class Chain(Protocol):
    """A chain's subnet. Every `block=None` means the head; a block given by number must not be later than the head."""

    def head(self, *, finalized: bool = True) -> Block:
        """Return the newest block, or the newest one that can no longer be replaced."""
        ...

    def block_hash(self, number: BlockNumber) -> str:
        """Return a block's hash; raise `ChainError` Pruned or NotYet, and never a stand-in."""
        ...

    def params(self, block: BlockNumber | None = None) -> SubnetParams:
        """Return the subnet's rules."""
        ...

    def neurons(self, block: BlockNumber | None = None) -> Sequence[Neuron]:
        """Return the registered hotkeys by UID."""
        ...

    def commitments(self, block: BlockNumber | None = None) -> Sequence[ChainCommitment]:
        """Return each hotkey's live commitment; never raises because of one entry."""
        ...

    def register(self, cold: Key, hot: Hotkey, max_cost_rao: int = 0) -> Receipt:
        """Give `hot` a UID, owned by `cold`."""
        ...

    def publish(self, hot: Key, data: bytes) -> Receipt:
        """Commit `data`, in place of what the hotkey committed before."""
        ...

    def set_weights(self, hot: Key, weights: Mapping[Uid, int], version_key: int = 0) -> Receipt:
        """Set u16 weights; the same weights again in the same epoch are one setting."""
        ...

    def pending_weights(self, hotkey: Hotkey) -> Sequence[WeightCommit]:
        """Return the sealed weight settings of a hotkey."""
        ...

    def weights(self, block: BlockNumber | None = None) -> Mapping[Uid, Mapping[Uid, int]]:
        """Return the weights in force: validator's UID to target's UID to u16."""
        ...

    def blocks_until_epoch(self) -> int:
        """Return how many blocks there are until the next epoch begins."""
        ...

    def wait_block(self, number: BlockNumber, timeout_s: float) -> Block:
        """Return block `number` as soon as it is there; raise `ChainError` Timeout when it does not come."""
        ...
