"""Codec `distillkit`: DistillKit's `logprob_compressor`, byte for byte.

Two columns, a fixed number of bytes a position in each. `compressed_logprobs` holds the leading log-probabilities as
numbers, a polynomial that stands for the rest, and quantised residuals (`distillkit_values`). `bytepacked_indices`
holds k ids of w bits, most probable first, most significant bit first, w being the least width that holds `d - 1`.

The layout has no tail mass, no normaliser and no mask. Reading makes the tail's mass 1 less that of the entries, which
is as exact as they are; the only temperature is 1. A position that says nothing is written as k absent entries.
"""

from collections.abc import Sequence

from torch import Tensor

from limbeck.errors import UserError
from limbeck.signals.codecs.bit_packing import packed_bytes
from limbeck.signals.codecs.columns import Columns, fixed_column
from limbeck.signals.codecs.dense import exact_bytes
from limbeck.signals.codecs.distillkit_rows import (
    Path,
    load_kernels,
    pack_ids,
    signal_of_values,
    take_entries,
    unpack_ids,
)
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.distillkit_values import decode_values, encode_values, tail_fit, value_bytes
from limbeck.signals.codecs.registry import codec
from limbeck.signals.codecs.topk_entries import refuse
from limbeck.signals.types import TopkSignal

NAME = "distillkit"
VALUES, IDS = "compressed_logprobs", "bytepacked_indices"


@codec(NAME, DistillkitSpec)
class DistillkitCodec:
    """Reads and writes DistillKit's layout; see the module.

    Args:
        spec: the layout.
        vocabulary: V; ids are checked against it. `d` may be larger or smaller.
        path: `compiled` (numba), `plain`, or `auto`: compiled where numba can be imported. All write the same bytes.

    Raises:
        UserError: more entries than the vocabulary has, or a polynomial term that its dtype can't hold.
    """

    kind = "topk"
    columns: tuple[str, ...] = (VALUES, IDS)

    def __init__(self, spec: DistillkitSpec, vocabulary: int, path: Path = "auto") -> None:
        if spec.k > vocabulary:
            raise UserError(f"codec {NAME}: k = {spec.k} entries out of a vocabulary of {vocabulary}. Lower k.")
        tail_fit(spec)
        self.spec = spec
        self.vocabulary = vocabulary
        self._kernels = load_kernels(path)
        self.bytes_per_position = value_bytes(spec) + packed_bytes(spec.k, spec.id_bits)

    def encode(self, signal: TopkSignal, lengths: Sequence[int]) -> Columns:
        """Store the first k entries of each position.

        Raises:
            LimbeckError: an entry is not a number, above 0, out of order, given twice, outside `d` or the vocabulary,
                or out of the range of its dtype; row and position are named.
        """
        spec, kernels = self.spec, self._kernels
        allowed = min(spec.d, self.vocabulary)
        ids, logprobs_NK = take_entries(signal, lengths, spec.k, allowed, NAME, kernels)

        def check(wrong_N: Tensor, complaint: str) -> None:
            refuse(NAME, lengths, wrong_N, lambda _: complaint)

        return {
            VALUES: fixed_column(encode_values(logprobs_NK, spec, check), lengths),
            IDS: fixed_column(pack_ids(ids, spec.id_bits, kernels), lengths),
        }

    def decode(self, columns: Columns, lengths: Sequence[int]) -> TopkSignal:
        """Return what is stored, k entries a position, with its values in falling order.

        Raises:
            IntegrityError: a row has another number of bytes than its positions need, an id is outside the vocabulary
                or there twice, or a value is `+inf`.
        """
        spec = self.spec
        values = exact_bytes(columns, VALUES, lengths, value_bytes(spec), NAME)
        packed = exact_bytes(columns, IDS, lengths, packed_bytes(spec.k, spec.id_bits), NAME)
        ids = unpack_ids(packed, spec.k, spec.id_bits, self._kernels)

        def values_of(part: slice) -> Tensor:
            return decode_values(values[part], spec)

        return signal_of_values(ids, values_of, lengths, self.vocabulary, NAME, self._kernels)
