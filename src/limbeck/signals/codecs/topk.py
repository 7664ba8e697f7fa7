"""Codec `topk`: an adaptive number of entries, ids as a sorted set, probability-weighted steps, and the true tail.

One column, `topk`. `docs/signals.md` specifies its bits; `topk_reference` is the same in plain Python, `topk_kernels`
the fast path. What decoding guarantees:

- the ids are exactly those that `TopkSpec` keeps; log-probabilities never rise along the entries;
- each probability lies within its step; head and tail make 1; the tail's odds are the true ones to within 0.6 %;
- at every temperature of the description the tail's share is stored, not derived from an assumed shape.

What is dropped for good: the order of entries within one step, and all of the tail but its sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.signals.codecs import topk_reference as reference
from limbeck.signals.codecs import topk_values
from limbeck.signals.codecs.columns import Column, Columns, Integers, offsets_of
from limbeck.signals.codecs.registry import codec, positions_of
from limbeck.signals.codecs.topk_layout import layout_of, ratio_spans, tail_table
from limbeck.signals.codecs.topk_prepare import entries_of
from limbeck.signals.codecs.topk_reference import DuplicateIdError, Entries
from limbeck.signals.codecs.topk_rows import check_widths, find_groups, groups_of, in_threads, join_rows
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import TopkSignal

COLUMN = "topk"
LARGEST_VOCABULARY = 1 << 21
BYTES_A_GROUP, BYTES_A_POSITION, BYTES_AN_ENTRY = 64, 32, 7  # more than any of them takes


@dataclass(frozen=True)
class Decoded:
    """The integers of N positions, in arrays that threads fill.

    Attributes:
        counts: `[N]`, entries of each position.
        ids: `[N, K]`.
        levels: uint16 `[N, K]`, above the base, falling.
        bases: `[N]`.
        tails: `[N]`.
        ratios: `[N, S]`.
    """

    counts: Integers
    ids: Integers
    levels: NDArray[np.uint16]
    bases: Integers
    tails: Integers
    ratios: Integers


@dataclass(frozen=True)
class Kernels:
    """The compiled path: a module that writes and one that reads."""

    writing: ModuleType
    reading: ModuleType


@codec("topk", TopkSpec)
class TopkCodec:
    """Encodes and decodes `TopkSignal`s; see the module.

    Args:
        spec: what is kept, and how exactly.
        vocabulary: V.
        path: `compiled` (numba), `reference` (plain Python), or `auto`: compiled where numba can be imported. All
            write the same bytes.

    Raises:
        UserError: the vocabulary is larger than 2^21.
    """

    kind = "topk"
    columns: tuple[str, ...] = (COLUMN,)

    def __init__(
        self, spec: TopkSpec, vocabulary: int, path: Literal["auto", "compiled", "reference"] = "auto"
    ) -> None:
        if vocabulary > LARGEST_VOCABULARY:
            raise UserError(f"codec topk: a vocabulary of {vocabulary} is larger than {LARGEST_VOCABULARY}.")
        self.spec = spec
        self.vocabulary = vocabulary
        self.layout = layout_of(spec, vocabulary)
        self._kernels = None if path == "reference" else _load_kernels(required=path == "compiled")

    def encode(self, signal: TopkSignal, lengths: Sequence[int]) -> Columns:
        """Store what the description keeps of each position.

        Raises:
            LimbeckError: log-probabilities that are NaN, above 0, not falling, or with a mass far from 1; ids outside
                the vocabulary or given twice; no entry at all. Row and position are named.
            UserError: the signal has no normaliser at one of the description's temperatures.
        """
        entries = entries_of(signal, lengths, self.spec, self.layout)
        groups = groups_of(lengths)
        try:
            if self._kernels is None:
                encoded = reference.encode_groups(entries, groups.positions, self.layout)
            else:
                encoded = self._encode_compiled(self._kernels, entries, groups.positions)
        except DuplicateIdError as error:
            where = positions_of(lengths, error.position)
            raise LimbeckError(f"codec topk: {where}: a token id is given twice.") from None
        return {COLUMN: join_rows(encoded, groups, np.diff(entries.starts))}

    def decode(self, columns: Columns, lengths: Sequence[int]) -> TopkSignal:
        """Return the signal: ids int64, log-probabilities float32, K the most entries of any position (at least 1).

        Raises:
            IntegrityError: the bytes are not what `encode` writes; row and position are named where they are known.
        """
        column, groups = columns[COLUMN], groups_of(lengths)
        begins, ends, widths = find_groups(column, groups, self.layout.cap)
        if self._kernels is None:
            decoded = self._decode_by_reference(column, begins, ends, groups.positions, lengths)
            values = topk_values.rebuild(
                decoded.counts, decoded.levels, decoded.bases, decoded.tails, decoded.ratios, self.layout
            )
        else:
            decoded = self._empty(sum(lengths), int(widths.max(initial=0)))
            values = self._decode_compiled(self._kernels, column, begins, ends, groups.positions, decoded, lengths)
        check_widths(decoded.counts, widths, groups)
        logprobs, log_tail_mass, normalisers = (torch.from_numpy(value) for value in values)
        at_one = self.spec.temperatures.index(1.0)
        zeros = torch.zeros(len(logprobs), 1)
        return TopkSignal(
            ids=torch.from_numpy(decoded.ids),
            logprobs=logprobs,
            log_tail_mass=log_tail_mass,
            log_normalisers=torch.cat([normalisers[:, :at_one], zeros, normalisers[:, at_one:]], 1),
            temperatures=self.spec.temperatures,
            mask=torch.from_numpy(decoded.counts > 0),
        )

    def _empty(self, total: int, width: int) -> Decoded:
        def zeros(*shape: int) -> Integers:
            return np.zeros(shape, dtype=np.int64)

        width = max(width, 1)
        levels = np.zeros((total, width), dtype=np.uint16)
        return Decoded(
            zeros(total), zeros(total, width), levels, zeros(total), zeros(total),
            zeros(total, len(self.layout.ratios)),
        )  # fmt: skip

    def _encode_compiled(self, kernels: Kernels, entries: Entries, groups: Integers) -> list[bytes]:
        layout, codes = self.layout, self.layout.codes
        fields = 3 + entries.ratios.shape[1]
        room = BYTES_A_POSITION + 3 * fields + BYTES_AN_ENTRY * np.diff(entries.starts)
        regions = offsets_of(room)[groups] + np.arange(len(groups)) * (BYTES_A_GROUP + 8 * fields)
        regions = (regions + 7) // 8 + np.arange(len(groups))  # each group starts in a word of its own
        out = np.zeros(int(regions[-1]) + 1, dtype=np.uint64)
        sizes = np.zeros(len(groups) - 1, dtype=np.int64)

        def work(first: int, last: int) -> int:
            twin: int = kernels.writing.encode_groups(
                entries.starts, entries.ids, entries.levels, entries.bases, entries.tails, entries.ratios,
                groups, first, last, layout.with_base, layout.rice,
                codes.lengths, codes.words, codes.raw_bits, codes.first_level, regions, out, sizes,
            )  # fmt: skip
            return twin

        if twins := [position for position in in_threads(work, len(sizes)) if position >= 0]:
            raise DuplicateIdError(min(twins))
        data = out.astype(">u8").tobytes()
        return [data[8 * at : 8 * at + size] for at, size in zip(regions.tolist(), sizes.tolist(), strict=False)]

    def _decode_compiled(
        self,
        kernels: Kernels,
        column: Column,
        begins: Integers,
        ends: Integers,
        groups: Integers,
        into: Decoded,
        lengths: Sequence[int],
    ) -> topk_values.Values:
        """Fill the integer arrays and return the values made of them."""
        layout, codes = self.layout, self.layout.codes
        data = np.zeros(len(column.data) // 8 + kernels.reading.PADDING, dtype=">u8")
        data.view(np.uint8)[: len(column.data)] = column.data
        words = data.astype(np.uint64)
        tails = tail_table()
        temperatures = np.array(layout.ratios, dtype=np.float64)
        spare_logprobs: NDArray[np.float32] = np.full(into.ids.shape, -np.inf, dtype=np.float32)
        log_tail = np.zeros(len(into.counts), dtype=np.float32)
        normalisers = np.zeros(into.ratios.shape, dtype=np.float32)

        def work(first: int, last: int) -> int:
            bad: int = kernels.reading.decode_groups(
                words, begins, ends, groups, first, last, layout.cap, layout.vocabulary, layout.with_base,
                layout.rice, codes.table, codes.raw_bits, codes.first_level, len(layout.low),
                into.counts, into.ids, into.levels, into.bases, into.tails, into.ratios,
            )  # fmt: skip
            if bad < 0:
                here = slice(int(groups[first]), int(groups[last]))
                spans = ratio_spans(layout.ratios, layout.vocabulary - into.counts[here])
                kernels.reading.rebuild(
                    into.counts[here], into.levels[here], into.bases[here], into.tails[here],
                    tails.log, tails.mass, tails.least, tails.most,
                    layout.low, layout.high, layout.centre, temperatures, spans, into.ratios[here],
                    spare_logprobs[here], log_tail[here], normalisers[here],
                )  # fmt: skip
            return bad

        if bad := [position for position in in_threads(work, len(begins)) if position >= 0]:
            where = positions_of(lengths, min(bad))
            raise IntegrityError(f"codec topk: {where}: these are not the bits of a position.")
        return spare_logprobs, log_tail, normalisers

    def _decode_by_reference(
        self, column: Column, begins: Integers, ends: Integers, groups: Integers, lengths: Sequence[int]
    ) -> Decoded:
        encoded = [column.data[a:b].tobytes() for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
        try:
            entries = reference.decode_groups(encoded, groups, self.layout)
        except reference.BadBitsError as error:
            raise IntegrityError(f"codec topk: {positions_of(lengths, error.position)}: {error}.") from None
        counts = np.diff(entries.starts)
        decoded = self._empty(len(counts), int(counts.max(initial=0)))
        present = np.arange(decoded.ids.shape[1]) < counts[:, None]
        decoded.ids[present], decoded.levels[present] = entries.ids, entries.levels
        return Decoded(counts, decoded.ids, decoded.levels, entries.bases, entries.tails, entries.ratios)


def _load_kernels(*, required: bool) -> Kernels | None:
    try:
        from limbeck.signals.codecs import topk_decode_kernels, topk_kernels  # numba takes half a second to import
    except ImportError:
        if required:
            raise
        return None
    return Kernels(topk_kernels, topk_decode_kernels)
