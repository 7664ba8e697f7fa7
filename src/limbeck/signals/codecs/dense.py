"""Codec `dense`: the log-probabilities of the whole vocabulary, as they are.

One column, `logprobs`: for each position V numbers, little-endian, bfloat16 or float32. A position whose mask is False
is stored as NaN in its first entry, which no log-probability is.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from limbeck.errors import IntegrityError, LimbeckError
from limbeck.settings import Settings
from limbeck.signals.codecs.columns import Columns, fixed_column
from limbeck.signals.codecs.registry import codec, positions_of
from limbeck.signals.types import DenseSignal

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class DenseSpec(Settings):
    """Settings of codec `dense`."""

    codec: Literal["dense"] = "dense"
    version: Literal[1] = 1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


@codec("dense", DenseSpec)
class DenseCodec:
    """Stores `[N, V]` numbers; see the module."""

    kind = "dense"
    columns: tuple[str, ...] = ("logprobs",)

    def __init__(self, spec: DenseSpec, vocabulary: int) -> None:
        self.spec = spec
        self.vocabulary = vocabulary
        self._dtype = DTYPES[spec.dtype]

    def encode(self, signal: DenseSignal, lengths: Sequence[int]) -> Columns:
        """Store each position's log-probabilities, rounded to the nearest of the dtype.

        Raises:
            LimbeckError: another vocabulary, a NaN, or a value above 0; row and position are named.
        """
        logprobs_NV = signal.logprobs.detach().cpu().float()
        mask_N = signal.mask.detach().cpu()
        if logprobs_NV.shape != (sum(lengths), self.vocabulary):
            raise LimbeckError(
                f"codec dense: expected [{sum(lengths)}, {self.vocabulary}], got {list(logprobs_NV.shape)}."
            )
        wrong_NV = ~(logprobs_NV <= 0) & mask_N[:, None]
        if wrong_NV.any():
            index, entry = (int(part) for part in wrong_NV.nonzero()[0])
            value = float(logprobs_NV[index, entry])
            raise LimbeckError(
                f"codec dense: {positions_of(lengths, index)}: token {entry} has the log-probability {value:g}."
            )
        stored = logprobs_NV.to(self._dtype).contiguous()
        stored[~mask_N] = 0.0
        stored[~mask_N, 0] = float("nan")
        return {"logprobs": fixed_column(stored.view(torch.uint8).numpy(), lengths)}

    def decode(self, columns: Columns, lengths: Sequence[int]) -> DenseSignal:
        """Return float32 log-probabilities.

        Raises:
            IntegrityError: a row has another number of bytes than its positions need.
        """
        return self.decode_on(columns, lengths, "cpu")

    def decode_on(self, columns: Columns, lengths: Sequence[int], device: torch.device | str) -> DenseSignal:
        """Return what `decode` does, on `device`: the bytes are moved, not the numbers, which may be twice as many."""
        data = exact_bytes(columns, "logprobs", lengths, self.vocabulary * self._dtype.itemsize, "dense")
        logprobs_NV = torch.from_numpy(data).to(device).view(self._dtype).float()
        mask_N = ~logprobs_NV[:, 0].isnan()
        return DenseSignal(torch.nan_to_num(logprobs_NV, nan=0.0, neginf=float("-inf")), mask_N)


def exact_bytes(
    columns: Columns, name: str, lengths: Sequence[int], width: int, codec: str
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return a copy of a fixed-size column as `[N, width]`.

    Raises:
        IntegrityError: a row has another number of bytes than its positions need.
    """
    column = columns[name]
    sizes = np.diff(column.offsets)
    for row, length in enumerate(lengths):
        if sizes[row] != length * width:
            raise IntegrityError(
                f"codec {codec}: row {row} of {name} has {sizes[row]} bytes, {length} positions need {length * width}."
            )
    return np.array(column.data[column.offsets[0] : column.offsets[-1]]).reshape(sum(lengths), width)
