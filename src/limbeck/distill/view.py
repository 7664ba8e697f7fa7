"""What a teacher in process shows of a batch besides its next-token distributions."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from limbeck.signals.types import HiddenSignal


@dataclass(frozen=True)
class Relations:
    """Queries, keys and values of one block, each `[B, heads, T, width of a head]`, after positions were applied."""

    queries: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class OtherTokens:
    """A teacher that reads the same text in tokens of its own.

    Attributes:
        signal: the teacher's final states at P positions where both tokenizations have said the same text.
        rows: `[P]`, int64, the row of the batch of each.
        positions: `[P]`, int64, the student's position in that row.
    """

    signal: HiddenSignal
    rows: Tensor
    positions: Tensor


@dataclass(frozen=True)
class TeacherView:
    """What losses on inner layers, and losses over other tokens, read of the teacher.

    Attributes:
        layers: outputs of the teacher's mapped blocks by their index, each `[B, T, width]`.
        relations: of the blocks that `attention_relation` looks at, by their index.
        other: where the teacher has another tokenizer.
    """

    layers: Mapping[int, Tensor] = field(default_factory=dict)
    relations: Mapping[int, Relations] = field(default_factory=dict)
    other: OtherTokens | None = None
