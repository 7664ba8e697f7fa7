"""Codec `sampled`: tokens drawn from the teacher, with the weights that make them unbiased.

One column, `sampled`: one string of bytes a row, whose arrays `docs/signals.md` specifies and `rice_arrays` writes. Ids
and weights come back exactly, in the order in which `sample_logits` gives them; log-probabilities are those of the
weights in the head, and as coarse as the settings say in the tail. Weights lie on the settings' grids: a signal that
was drawn by other settings is refused, for rounding it here would bias it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.signals.codecs.columns import Column, Columns, Integers, offsets_of
from limbeck.signals.codecs.registry import codec, positions_of
from limbeck.signals.codecs.rice_arrays import ArrayReader, write_array, write_fields, write_fitted
from limbeck.signals.codecs.sampled_spec import (
    LARGEST_UNIT,
    UNIT_STEPS,
    SampledSpec,
    entry_weights,
    head_weights,
    unit_weights,
)
from limbeck.signals.codecs.topk_entries import refuse, repeated_ids
from limbeck.signals.types import SampledSignal

NAME = COLUMN = "sampled"
LARGEST_VOCABULARY = 1 << 21
UNIT_BITS, WEIGHT_BITS = 16, 8
TOLERANCE = 1e-6  # of a float32 weight
HALF_OCTAVE = math.log(2) / 2

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """The entries of some positions, end to end, by rising id within each: the head's or the tail's.

    Attributes:
        counts: `[n]`, entries of each position.
        starts: `[n + 1]`, where each position's entries start, and where the last one's end.
        ids: `[E]`.
        weights: `[E]`, float64.
        logprobs: `[E]`, float64.
    """

    counts: Integers
    starts: Integers
    ids: Integers
    weights: Floats
    logprobs: Floats

    def at(self, first: int, last: int) -> "Part":
        """Return the entries of positions `first` up to, not including, `last`."""
        here = slice(self.starts[first], self.starts[last])
        starts = self.starts[first : last + 1] - self.starts[first]
        return Part(self.counts[first:last], starts, self.ids[here], self.weights[here], self.logprobs[here])


@codec(NAME, SampledSpec)
class SampledCodec:
    """Encodes and decodes `SampledSignal`s; see the module.

    Raises:
        UserError: the vocabulary is larger than 2^21.
    """

    kind = "sampled"
    columns: tuple[str, ...] = (COLUMN,)

    def __init__(self, spec: SampledSpec, vocabulary: int) -> None:
        if vocabulary > LARGEST_VOCABULARY:
            raise UserError(f"codec {NAME}: a vocabulary of {vocabulary} is larger than {LARGEST_VOCABULARY}.")
        self.spec = spec
        self.vocabulary = vocabulary
        self._head_weights = head_weights(spec)

    def encode(self, signal: SampledSignal, lengths: Sequence[int]) -> Columns:
        """Store what was drawn.

        Raises:
            LimbeckError: an id is outside the vocabulary or given twice, or a weight is none that these settings make;
                row and position are named.
        """
        mask, ids, weights, logprobs = self._checked(signal, lengths)
        present = (weights > 0) & mask[:, None]
        in_head = present & (logprobs >= self.spec.edge)
        head, tail = (_part_of(where, ids, weights, logprobs) for where in (in_head, present & ~in_head))
        levels = self._codes(self._head_weights, head, lengths)
        units = self._units(tail)
        tail_codes = self._tail_codes(tail, units, lengths)
        rows, starts = [], offsets_of(lengths)
        for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            rows.append(
                self._write_row(
                    mask[first:last],
                    head.at(first, last), levels[head.starts[first] : head.starts[last]],
                    tail.at(first, last), units[first:last], tail_codes[tail.starts[first] : tail.starts[last]],
                )
            )  # fmt: skip
        data = np.frombuffer(b"".join(rows), dtype=np.uint8)
        return {COLUMN: Column(data, offsets_of([len(row) for row in rows]))}

    def decode(self, columns: Columns, lengths: Sequence[int]) -> SampledSignal:
        """Return what was drawn: the head before the tail, each by rising id.

        Raises:
            IntegrityError: the bytes are none that `encode` writes; the row is named.
        """
        column = columns[COLUMN]
        rows = [self._read_row(column.row(row), length, row) for row, length in enumerate(lengths)]
        masks = [mask for mask, _, _ in rows]
        heads, tails = [head for _, head, _ in rows], [tail for _, _, tail in rows]
        head_counts, tail_counts = (np.concatenate([part.counts for part in parts]) for parts in (heads, tails))
        width = max(int((head_counts + tail_counts).max(initial=0)), 1)
        shape = (len(head_counts), width)
        ids, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        logprobs = np.full(shape, -np.inf, dtype=np.float32)
        place = np.arange(width)
        in_head = place < head_counts[:, None]
        in_tail = ~in_head & (place < (head_counts + tail_counts)[:, None])
        for where, parts in ((in_head, heads), (in_tail, tails)):
            ids[where] = np.concatenate([part.ids for part in parts])
            weights[where] = np.concatenate([part.weights for part in parts])
            logprobs[where] = np.concatenate([part.logprobs for part in parts])
        mask = np.concatenate(masks)
        return SampledSignal(*(torch.from_numpy(part) for part in (ids, weights, logprobs, mask)))

    def _checked(self, signal: SampledSignal, lengths: Sequence[int]) -> tuple[Flags, Integers, Floats, Floats]:
        if signal.ids.shape != signal.weights.shape or signal.ids.shape[:1] != (sum(lengths),):
            raise LimbeckError(
                f"codec {NAME}: ids {list(signal.ids.shape)} and weights {list(signal.weights.shape)}, "
                f"but the rows have {sum(lengths)} positions."
            )
        mask = signal.mask.detach().cpu().numpy()
        ids = signal.ids.detach().cpu().long().numpy()
        weights = signal.weights.detach().cpu().double().numpy()
        logprobs = signal.logprobs.detach().cpu().double().numpy()
        said = mask[:, None]
        wrong = ~(np.isfinite(weights) & (weights >= 0)) & said
        refuse(NAME, lengths, wrong.any(1), lambda n: f"a weight of {weights[n][wrong[n]][0]:g}")
        present = (weights > 0) & said
        unknown = present & ~(logprobs <= 1e-3)
        refuse(NAME, lengths, unknown.any(1), lambda n: f"a log-probability of {logprobs[n][unknown[n]][0]:g}")
        outside = present & ((ids < 0) | (ids >= self.vocabulary))
        refuse(
            NAME, lengths, outside.any(1),
            lambda n: f"token id {ids[n][outside[n]][0]} is outside the vocabulary of {self.vocabulary}",
        )  # fmt: skip
        refuse(NAME, lengths, repeated_ids(ids, present), lambda _: "a token id is given twice")
        return mask, ids, weights, logprobs

    def _units(self, tail: Part) -> Integers:
        """Return the code of a draw's weight at each position; 0 where there is none."""
        if self.spec.mode != "counts" or not self.spec.draws:
            return np.zeros(len(tail.counts), dtype=np.int64)
        sums = np.bincount(np.repeat(np.arange(len(tail.counts)), tail.counts), tail.weights, len(tail.counts))
        codes = np.rint(-UNIT_STEPS * np.log2(np.where(sums > 0, sums / self.spec.draws, 1.0)))
        return np.clip(codes, 0, LARGEST_UNIT).astype(np.int64)

    def _tail_codes(self, tail: Part, units: Integers, lengths: Sequence[int]) -> Integers:
        """Return what says the weight of each entry of the tail: a count less 1, or a code."""
        if self.spec.mode == "weights":
            return self._codes(entry_weights(), tail, lengths)
        unit = np.full(len(tail.ids), self.spec.threshold)
        if self.spec.mode == "counts":
            unit = np.repeat(unit_weights()[units], tail.counts)
        counts = np.rint(tail.weights / unit).astype(np.int64)
        allowed = (counts == 1) if self.spec.mode == "threshold" else (counts >= 1)
        self._refuse_off_grid(tail, allowed & (np.abs(counts * unit / tail.weights - 1) < TOLERANCE), lengths)
        return counts - 1

    def _codes(self, grid: Floats, part: Part, lengths: Sequence[int]) -> Integers:
        """Return which weight of a monotone grid each entry has."""
        order = np.argsort(grid)
        middles = (grid[order][1:] + grid[order][:-1]) / 2
        codes = order[np.searchsorted(middles, part.weights)]
        self._refuse_off_grid(part, np.abs(grid[codes] / part.weights - 1) < TOLERANCE, lengths)
        return np.asarray(codes, dtype=np.int64)

    def _refuse_off_grid(self, part: Part, on_grid: Flags, lengths: Sequence[int]) -> None:
        if not on_grid.all():
            entry = int(np.flatnonzero(~on_grid)[0])
            position = int(np.searchsorted(part.starts, entry, side="right")) - 1
            raise LimbeckError(
                f"codec {NAME}: {positions_of(lengths, position)}: token {part.ids[entry]} has the weight "
                f"{part.weights[entry]:g}, which these settings do not make. Draw with the settings that store."
            )

    def _gap_widths(self, counts: Integers) -> Integers:
        """Return the Rice width of each id's gap."""
        return np.repeat(_rice_widths(self.vocabulary)[np.minimum(counts, self.vocabulary)], counts)

    def _write_row(
        self, mask: Flags, head: Part, levels: Integers, tail: Part, units: Integers, tail_codes: Integers
    ) -> bytes:
        parts = [
            write_fitted(np.where(mask, head.counts + 1, 0)),
            write_fitted(tail.counts[mask]),
            write_array(_gaps_of(head), self._gap_widths(head.counts)),
            write_fitted(levels),
            write_array(_gaps_of(tail), self._gap_widths(tail.counts)),
        ]
        if self.spec.mode == "counts":
            drawn = units[tail.counts > 0]
            parts += [write_fields(drawn, np.full(len(drawn), UNIT_BITS)), write_fitted(tail_codes)]
        elif self.spec.mode == "weights":
            parts.append(write_fields(tail_codes, np.full(len(tail_codes), WEIGHT_BITS)))
        if bits := self.spec.tail_logprob_bits:
            steps = np.floor((self.spec.edge - tail.logprobs) / HALF_OCTAVE)
            parts.append(write_fields(np.clip(steps, 0, (1 << bits) - 1).astype(np.int64), np.full(len(steps), bits)))
        return b"".join(parts)

    def _read_row(self, data: NDArray[np.uint8], length: int, row: int) -> tuple[Flags, Part, Part]:
        reader = ArrayReader(data, f"codec {NAME}: row {row}")
        coded = reader.fitted(length)
        mask = coded > 0
        head_counts, tail_counts = np.maximum(coded - 1, 0), np.zeros(length, dtype=np.int64)
        tail_counts[mask] = reader.fitted(int(mask.sum()))
        if (head_counts + tail_counts > self.vocabulary).any():
            raise IntegrityError(f"codec {NAME}: row {row}: more entries than the vocabulary of {self.vocabulary}.")
        head_ids = self._ids_in(reader, head_counts, row)
        levels = reader.fitted(len(head_ids))
        if (levels >= len(self._head_weights)).any():
            raise IntegrityError(f"codec {NAME}: row {row}: a weight above 1.")
        tail_ids = self._ids_in(reader, tail_counts, row)
        weights: Floats = np.full(len(tail_ids), self.spec.threshold)
        if self.spec.mode == "counts":
            drawn = tail_counts > 0
            units = unit_weights()[reader.fields(np.full(int(drawn.sum()), UNIT_BITS))]
            weights[:] = np.repeat(units, tail_counts[drawn]) * (reader.fitted(len(tail_ids)) + 1)
        elif self.spec.mode == "weights":
            weights = entry_weights()[reader.fields(np.full(len(tail_ids), WEIGHT_BITS))]
        logprobs: Floats = np.full(
            len(tail_ids), np.nextafter(np.float32(self.spec.edge), np.float32(-np.inf)), np.float64
        )
        if bits := self.spec.tail_logprob_bits:
            logprobs[:] = self.spec.edge - HALF_OCTAVE * (reader.fields(np.full(len(tail_ids), bits)) + 0.5)
        reader.finish()
        kept = self._head_weights[levels]
        head = Part(head_counts, offsets_of(head_counts), head_ids, kept, np.clip(np.log(kept), self.spec.edge, 0.0))
        return mask, head, Part(tail_counts, offsets_of(tail_counts), tail_ids, weights, logprobs)

    def _ids_in(self, reader: ArrayReader, counts: Integers, row: int) -> Integers:
        gaps = reader.array(self._gap_widths(counts))
        total = np.concatenate([[0], np.cumsum(gaps + 1)])
        before = np.repeat(total[offsets_of(counts)[:-1]], counts)
        ids = np.asarray(total[1:] - before - 1, dtype=np.int64)
        if (ids >= self.vocabulary).any():
            raise IntegrityError(f"codec {NAME}: row {row}: a token id outside the vocabulary of {self.vocabulary}.")
        return ids


@lru_cache(maxsize=8)
def _rice_widths(vocabulary: int) -> Integers:
    """Return `topk_layout.rice_bits` for every number of entries from 0 to the vocabulary."""
    counts = np.arange(vocabulary + 1, dtype=np.int64)
    widths = np.zeros_like(counts)
    for bits in range(1, vocabulary.bit_length() + 1):
        widths += (1 << bits) * 10000 * (counts + 1) <= 9624 * (vocabulary - counts)
    return widths


def _part_of(where: Flags, ids: Integers, weights: Floats, logprobs: Floats) -> Part:
    """Return the chosen entries, those of each position by rising id."""
    position, entry = np.nonzero(where)
    chosen = ids[position, entry]
    if ((chosen[1:] < chosen[:-1]) & (position[1:] == position[:-1])).any():
        order = np.lexsort((chosen, position))
        position, entry, chosen = position[order], entry[order], chosen[order]
    counts = where.sum(1).astype(np.int64)
    return Part(counts, offsets_of(counts), chosen, weights[position, entry], logprobs[position, entry])


def _gaps_of(part: Part) -> Integers:
    """Return each id less the one before it at its position, less 1; the first id of a position as it is."""
    before = np.concatenate([[-1], part.ids[:-1]])
    before[part.starts[:-1][part.counts > 0]] = -1
    return part.ids - before - 1 if len(part.ids) else part.ids
