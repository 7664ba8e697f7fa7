"""Codec `hidden`: the teacher's final hidden states, from which one matrix product makes the whole distribution.

Column `hidden`: for each position D numbers, little-endian, bfloat16, float32 or int8. With int8 a second column,
`scales`, has one little-endian float32 a position; a state is its integers times that. Where the mask is False, the
first number (or the scale) is NaN. States that are bfloat16 already come back bit for bit.

The output head is not in the columns: `hidden_head` keeps it once, beside the manifest. `attach` reads it; without it
nothing can be decoded.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError, UserError
from limbeck.signals.codecs.columns import Bytes, Columns, fixed_column
from limbeck.signals.codecs.dense import exact_bytes
from limbeck.signals.codecs.hidden_head import HEAD, HiddenSpec, read_head
from limbeck.signals.codecs.registry import codec
from limbeck.signals.codecs.topk_entries import refuse
from limbeck.signals.types import HiddenSignal, OutputHead

NAME = STATES = "hidden"
SCALES = "scales"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
LARGEST_INTEGER = 127


@codec(NAME, HiddenSpec)
class HiddenCodec:
    """Stores `[N, D]` states; see the module.

    Attributes:
        head: the output head that decoded signals refer to; None until `attach`.

    Raises:
        UserError: the settings do not say which head the states belong to.
    """

    kind = "hidden"

    def __init__(self, spec: HiddenSpec, vocabulary: int) -> None:
        if not spec.width or not spec.head_sha256:
            raise UserError(f"codec {NAME}: its settings name no output head. Make them by hidden_spec, from the head.")
        self.spec = spec
        self.vocabulary = vocabulary
        self.columns: tuple[str, ...] = (STATES, SCALES) if spec.dtype == "int8" else (STATES,)
        self.head: OutputHead | None = None

    def attach(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        """Read the output head of the dataset in `folder`, to `device`.

        Raises:
            IntegrityError: it is missing, or is not the one that the settings name.
            UserError: it is over another vocabulary or states of another width.
        """
        head = read_head(folder, self.spec, device)
        if head.weight.shape != (self.vocabulary, self.spec.width):
            raise UserError(
                f"{Path(folder) / HEAD}: a head of {list(head.weight.shape)}, but the dataset has a vocabulary of "
                f"{self.vocabulary} and states of {self.spec.width}."
            )
        self.head = head

    def encode(self, signal: HiddenSignal, lengths: Sequence[int]) -> Columns:
        """Store each position's state, rounded to the nearest of the dtype.

        Raises:
            LimbeckError: states of another width, a state that is not finite in the dtype (row and position are
                named), or a head that is not the attached one.
        """
        hidden_ND, mask_N = signal.hidden.detach().cpu(), signal.mask.detach().cpu()
        if hidden_ND.shape != (sum(lengths), self.spec.width):
            raise LimbeckError(
                f"codec {NAME}: expected [{sum(lengths)}, {self.spec.width}], got {list(hidden_ND.shape)}."
            )
        self._check_head(signal.head)
        hidden_ND = torch.where(mask_N[:, None], hidden_ND.float(), 0.0)
        stored_ND = hidden_ND.to(DTYPES["float32" if self.spec.dtype == "int8" else self.spec.dtype])
        lost_ND = ~stored_ND.isfinite()
        refuse(
            NAME, lengths, lost_ND.any(1),
            lambda n: f"number {int(lost_ND[n].nonzero()[0, 0])} of the state is "
            f"{float(hidden_ND[n][lost_ND[n]][0]):g}, not finite in {self.spec.dtype}",
        )  # fmt: skip
        if self.spec.dtype != "int8":
            stored_ND[~mask_N, 0] = float("nan")
            return {STATES: fixed_column(_bytes_of(stored_ND), lengths)}
        scale_N = stored_ND.abs().amax(1) / LARGEST_INTEGER
        scale_N = scale_N.masked_fill(scale_N < torch.finfo(torch.float32).tiny, 1.0)  # a state of zeros, or as good as
        integers_ND = (stored_ND / scale_N[:, None]).round().clamp(-LARGEST_INTEGER, LARGEST_INTEGER).to(torch.int8)
        scale_N = scale_N.masked_fill(~mask_N, float("nan"))
        return {
            STATES: fixed_column(_bytes_of(integers_ND), lengths),
            SCALES: fixed_column(_bytes_of(scale_N[:, None]), lengths),
        }

    def decode(self, columns: Columns, lengths: Sequence[int]) -> HiddenSignal:
        """Return the states, bfloat16 or float32 as stored, float32 from int8.

        Raises:
            UserError: no head is attached.
            IntegrityError: a row has another number of bytes than its positions need.
        """
        return self.decode_on(columns, lengths, "cpu")

    def decode_on(self, columns: Columns, lengths: Sequence[int], device: torch.device | str) -> HiddenSignal:
        """Return what `decode` does, on `device`: bytes are moved, not numbers, which may be four times as much."""
        if self.head is None:
            raise UserError(f"codec {NAME}: the output head is not read yet. Call attach with the dataset's folder.")
        dtype, head = DTYPES[self.spec.dtype], self.head.to(device)
        data = exact_bytes(columns, STATES, lengths, self.spec.width * dtype.itemsize, NAME)
        stored_ND = torch.from_numpy(data).to(device).view(dtype)
        if self.spec.dtype == "int8":
            scales = exact_bytes(columns, SCALES, lengths, 4, NAME)
            scale_N = torch.from_numpy(scales).to(device).view(torch.float32)[:, 0]
            mask_N = ~scale_N.isnan()
            return HiddenSignal(stored_ND.float() * torch.where(mask_N, scale_N, 0.0)[:, None], head, mask_N)
        mask_N = ~stored_ND[:, 0].isnan()
        return HiddenSignal(stored_ND.masked_fill(~mask_N[:, None], 0.0), head, mask_N)

    def _check_head(self, head: OutputHead) -> None:
        ours = self.head
        if ours is None or head is ours:
            if head.weight.shape != (self.vocabulary, self.spec.width):
                raise LimbeckError(
                    f"codec {NAME}: a head of {list(head.weight.shape)}, expected {[self.vocabulary, self.spec.width]}."
                )
            return
        same = _same(head.weight, ours.weight) and _same(head.bias, ours.bias) and head.soft_cap == ours.soft_cap
        if not same:
            raise LimbeckError(f"codec {NAME}: the signal's output head is not the dataset's. Start another dataset.")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one.detach().cpu(), other.detach().cpu())


def _bytes_of(numbers_NM: Tensor) -> Bytes:
    return np.asarray(numbers_NM.contiguous().view(torch.uint8).numpy())
