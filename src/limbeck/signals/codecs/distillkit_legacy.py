"""Codec `distillkit_legacy`: DistillKit's `legacy_logit_compression`, byte for byte.

Three columns, a fixed number of bytes a position in each, all little-endian: `exact_values`, the `exact_k` most
probable log-probabilities as float16; `coeffs`, the coefficients of powers of the rank 1, 2, ... of the others (inverse
powers by default, from 0 up; the square root last); `packed_indices`, the ids in 64-bit words, as many whole ids a word
as fit, the first in the lowest bits.

As in `distillkit`, the tail's mass is 1 less that of the entries, the only temperature is 1, and a position that says
nothing is written as k absent entries. Values are taken to be log-probabilities: DistillKit's stand-alone script, which
centres logits first, writes the same bytes with another meaning, and they can't be told apart.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.signals.codecs.bit_packing import pack_words, packed_words, unpack_words
from limbeck.signals.codecs.columns import Columns, fixed_column
from limbeck.signals.codecs.dense import exact_bytes
from limbeck.signals.codecs.distillkit_fit import fit_of
from limbeck.signals.codecs.distillkit_rows import Path, load_kernels, signal_of_values, take_entries
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec
from limbeck.signals.codecs.distillkit_values import bytes_of, numbers_in
from limbeck.signals.codecs.registry import codec
from limbeck.signals.codecs.topk_entries import refuse
from limbeck.signals.types import TopkSignal

NAME = "distillkit_legacy"
EXACT, COEFFICIENTS, IDS = "exact_values", "coeffs", "packed_indices"
EXACT_DTYPE = "float16"
WORD_BYTES = 8


@codec(NAME, DistillkitLegacySpec)
class DistillkitLegacyCodec:
    """Reads and writes DistillKit's older layout; see the module.

    Args:
        spec: the layout.
        vocabulary: V; ids are checked against it. `vocab_size` may be larger or smaller.
        path: as in `DistillkitCodec`.

    Raises:
        UserError: more entries than the vocabulary has, or a power that `term_dtype` can't hold.
    """

    kind = "topk"
    columns: tuple[str, ...] = (EXACT, COEFFICIENTS, IDS)

    def __init__(self, spec: DistillkitLegacySpec, vocabulary: int, path: Path = "auto") -> None:
        if spec.k > vocabulary:
            raise UserError(f"codec {NAME}: k = {spec.k} entries out of a vocabulary of {vocabulary}. Lower k.")
        self.spec = spec
        self.vocabulary = vocabulary
        self._kernels = load_kernels(path)
        self._fit = fit_of(spec.tail, spec.terms, spec.term_dtype, first=1)
        self._widths = {
            EXACT: 2 * spec.exact_k,
            COEFFICIENTS: len(spec.terms) * self._fit.basis.dtype.itemsize,
            IDS: WORD_BYTES * packed_words(spec.k, spec.id_bits),
        }
        self.bytes_per_position = sum(self._widths.values())

    def encode(self, signal: TopkSignal, lengths: Sequence[int]) -> Columns:
        """Store the first k entries of each position; where all of them are exact, coefficients are 0.

        Raises:
            LimbeckError: an entry is not a number, above 0, out of order, given twice, outside `vocab_size` or the
                vocabulary, or out of the range of its dtype; row and position are named.
        """
        spec = self.spec
        allowed = min(spec.vocab_size, self.vocabulary)
        ids, logprobs_NK = take_entries(signal, lengths, spec.k, allowed, NAME, self._kernels)
        given_NE, tail_NJ = logprobs_NK[:, : spec.exact_k], logprobs_NK[:, spec.exact_k :]
        exact_NE, coefficients_NM = given_NE.to(torch.float16), self._fit.solve(tail_NJ)
        lost_N = (exact_NE.isinf() & given_NE.isfinite()).any(1)
        refuse(NAME, lengths, lost_N, lambda _: "a log-probability is out of the range of float16")
        lost_N = ~self._fit.evaluate(coefficients_NM).isfinite().all(1) & tail_NJ.isfinite().all(1)
        complaint = f"the fitted polynomial is out of the range of term_dtype {spec.term_dtype}"
        refuse(NAME, lengths, lost_N | coefficients_NM.isinf().any(1), lambda _: complaint)
        words = pack_words(ids.astype(np.uint64), spec.id_bits)
        return {
            EXACT: fixed_column(bytes_of(exact_NE), lengths),
            COEFFICIENTS: fixed_column(bytes_of(coefficients_NM), lengths),
            IDS: fixed_column(words.astype("<u8").view(np.uint8), lengths),
        }

    def decode(self, columns: Columns, lengths: Sequence[int]) -> TopkSignal:
        """Return what is stored, k entries a position, with its values in falling order.

        Raises:
            IntegrityError: a row has another number of bytes than its positions need, an id is outside the vocabulary
                or there twice, or a value is `+inf`.
        """
        data = {name: exact_bytes(columns, name, lengths, width, NAME) for name, width in self._widths.items()}
        words = np.ascontiguousarray(data[IDS]).view("<u8")
        ids = unpack_words(words, self.spec.k, self.spec.id_bits).astype(np.int64)

        def values_of(part: slice) -> Tensor:
            exact_NE = numbers_in(data[EXACT][part], EXACT_DTYPE).double()
            tail_NJ = self._fit.evaluate(numbers_in(data[COEFFICIENTS][part], self.spec.term_dtype)).double()
            return torch.cat([exact_NE, tail_NJ], 1)

        return signal_of_values(ids, values_of, lengths, self.vocabulary, NAME, self._kernels)
