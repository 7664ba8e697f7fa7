"""Codec `topk`: an adaptive number of entries, ids as a sorted set, probability-weighted steps, and the true tail.

One column, `topk`. `docs/signals.md` specifies its bits; `topk_reference` is the same in plain Python, `topk_compiled`
the fast path. What decoding guarantees:

- the ids are exactly those that `TopkSpec` keeps; log-probabilities never rise along the entries;
- each probability lies within its step; head and tail make 1; the tail's odds are the true ones to within 0.6 %;
- at every temperature of the description the tail's share is stored, not derived from an assumed shape.

What is dropped for good: the order of entries within one step, and all of the tail but its sums.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Literal

import numpy as np
import torch

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.signals.codecs import topk_reference as reference
from limbeck.signals.codecs import topk_values
from limbeck.signals.codecs.columns import Column, Columns, Integers
from limbeck.signals.codecs.registry import codec, positions_of
from limbeck.signals.codecs.topk_layout import layout_of
from limbeck.signals.codecs.topk_prepare import entries_of
from limbeck.signals.codecs.topk_reference import DuplicateIdError
from limbeck.signals.codecs.topk_rows import Groups, check_widths, find_groups, groups_of, join_rows
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import TopkSignal

COLUMN = "topk"
LARGEST_VOCABULARY = 1 << 21


@codec("topk", TopkSpec)
class TopkCodec:
    """Encodes and decodes `TopkSignal`s; see the module.

    Args:
        spec: what is kept, and how exactly.
        vocabulary: V.
        path: `compiled` (numba), `reference` (plain Python), or `auto`: compiled where numba can be imported. All
            write the same bytes, but for numbers that lie within float64's rounding of the edge of a step.

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
        self._compiled = None if path == "reference" else _load_compiled(required=path == "compiled")

    def encode(self, signal: TopkSignal, lengths: Sequence[int]) -> Columns:
        """Store what the description keeps of each position.

        Raises:
            LimbeckError: log-probabilities that are NaN, above 0, not falling, or with a mass far from 1; ids outside
                the vocabulary or given twice; no entry at all. Row and position are named.
            UserError: the signal has no normaliser at one of the description's temperatures.
        """
        groups = groups_of(lengths)
        try:
            written = None
            if self._compiled is not None:
                written = self._compiled.encode(signal, groups.positions, self.spec, self.layout)
            if written is None:  # this path says what is wrong, if anything is
                entries = entries_of(signal, lengths, self.spec, self.layout)
                encoded = reference.encode_groups(entries, groups.positions, self.layout)
                written = encoded, np.diff(entries.starts)
        except DuplicateIdError as error:
            where = positions_of(lengths, error.position)
            raise LimbeckError(f"codec topk: {where}: a token id is given twice.") from None
        return {COLUMN: join_rows(written[0], groups, written[1])}

    def decode(self, columns: Columns, lengths: Sequence[int]) -> TopkSignal:
        """Return the signal: ids int64, log-probabilities float32, K the most entries of any position (at least 1).

        Raises:
            IntegrityError: the bytes are not what `encode` writes; row and position are named where they are known.
        """
        column, groups = columns[COLUMN], groups_of(lengths)
        begins, ends, widths = find_groups(column, groups, self.layout.cap)
        if self._compiled is None:
            counts, ids, values = self._decode_by_reference(column, begins, ends, groups, lengths)
        else:
            width = max(1, int(widths.max(initial=0)))
            counts, ids, values = self._compiled.decode(
                column, begins, ends, groups.positions, width, self.layout, lengths
            )
        check_widths(counts, widths, groups)
        logprobs, log_tail_mass, normalisers = (torch.from_numpy(value) for value in values)
        at_one = self.spec.temperatures.index(1.0)
        zeros = torch.zeros(len(logprobs), 1)
        return TopkSignal(
            ids=torch.from_numpy(ids),
            logprobs=logprobs,
            log_tail_mass=log_tail_mass,
            log_normalisers=torch.cat([normalisers[:, :at_one], zeros, normalisers[:, at_one:]], 1),
            temperatures=self.spec.temperatures,
            mask=torch.from_numpy(counts > 0),
        )

    def _decode_by_reference(
        self, column: Column, begins: Integers, ends: Integers, groups: Groups, lengths: Sequence[int]
    ) -> tuple[Integers, Integers, topk_values.Values]:
        encoded = [column.data[a:b].tobytes() for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
        try:
            entries = reference.decode_groups(encoded, groups.positions, self.layout)
        except reference.BadBitsError as error:
            raise IntegrityError(f"codec topk: {positions_of(lengths, error.position)}: {error}.") from None
        counts = np.diff(entries.starts)
        present = np.arange(max(1, int(counts.max(initial=0)))) < counts[:, None]
        ids, levels = np.zeros(present.shape, dtype=np.int64), np.zeros(present.shape, dtype=np.uint16)
        ids[present], levels[present] = entries.ids, entries.levels
        values = topk_values.rebuild(counts, levels, entries.bases, entries.tails, entries.ratios, self.layout)
        return counts, ids, values


def _load_compiled(*, required: bool) -> ModuleType | None:
    try:
        from limbeck.signals.codecs import topk_compiled  # numba takes half a second to import
    except ImportError:
        if required:
            raise
        return None
    return topk_compiled
