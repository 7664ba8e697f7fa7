"""Columns of bytes: what a codec makes of the positions of some rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """One string of bytes a row, laid end to end.

    Attributes:
        data: uint8.
        offsets: int64 `[R + 1]`; row `r` is `data[offsets[r]:offsets[r + 1]]`.
    """

    data: Bytes
    offsets: Integers

    def row(self, index: int) -> Bytes:
        """Return the bytes of one row, as a view."""
        return self.data[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: Sequence[int]) -> "Column":
        """Return the column of some rows, in the order given."""
        sizes = [int(self.offsets[row + 1] - self.offsets[row]) for row in rows]
        parts = [self.row(row) for row in rows]
        return Column(np.concatenate(parts) if parts else self.data[:0], offsets_of(sizes))


Columns: TypeAlias = dict[str, Column]


def offsets_of(sizes: Sequence[int] | Integers) -> Integers:
    """Return where strings of these sizes start when they are laid end to end, and where the last one ends."""
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(np.asarray(sizes, dtype=np.int64), out=offsets[1:])
    return offsets


def fixed_column(values: Bytes, lengths: Sequence[int]) -> Column:
    """Return a column of fixed-size positions: `values` is `[N, W]`, rows are `lengths` positions long."""
    width = values.shape[1]
    return Column(np.ascontiguousarray(values).reshape(-1), offsets_of([length * width for length in lengths]))
