"""Codec `topk` in plain Python: bits to integers and back, one group of positions at a time.

Written to be read: together with `docs/signals.md` it is the definition of the bitstream. The compiled path makes the
same bytes about a thousand times faster and is held to this one by tests; where it can't be had, this one is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.signals.codecs import topk_layout as fields
from limbeck.signals.codecs.columns import offsets_of
from limbeck.signals.codecs.topk_fields import MOST_ZEROS, cheapest_mode
from limbeck.signals.codecs.topk_layout import GOLOMB_MODES, MODE_BITS, Layout
from limbeck.signals.codecs.topk_prefix import LONGEST


@dataclass(frozen=True)
class Entries:
    """What one run of positions holds, in integers.

    Attributes:
        starts: int64 `[N + 1]`; the entries of position n are `starts[n]..starts[n + 1]`; none: nothing is known there.
        ids: int64 `[E]`, rising and distinct within a position where they are to be written.
        levels: int64 `[E]`, above the position's base.
        bases: int64 `[N]`, the level that a position's levels are counted from.
        tails: int64 `[N]`, code of the tail mass.
        ratios: int64 `[N, S]`, codes of the tail at the temperatures other than 1.
    """

    starts: NDArray[np.int64]
    ids: NDArray[np.int64]
    levels: NDArray[np.int64]
    bases: NDArray[np.int64]
    tails: NDArray[np.int64]
    ratios: NDArray[np.int64]


class DuplicateIdError(Exception):
    """A position names a token twice; `position` counts from the start of the run."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class BadBitsError(Exception):
    """The bits of a position are not what the encoder writes; `position` counts from the start of the run."""

    def __init__(self, explanation: str, position: int = -1) -> None:
        super().__init__(explanation)
        self.position = position


class BitWriter:
    """Appends bits, the most significant first."""

    def __init__(self) -> None:
        self._value = 0
        self._size = 0

    def put(self, value: int, bits: int) -> None:
        """Append the lowest `bits` bits of `value`."""
        self._value = (self._value << bits) | value
        self._size += bits

    def put_exp_golomb(self, value: int, order: int) -> None:
        """Append zeros, as many as `value + 2 ** order` has bits beyond `order + 1`, then that number."""
        shifted = value + (1 << order)
        self.put(shifted, 2 * shifted.bit_length() - order - 1)

    def put_field(self, numbers: Sequence[int], order: int) -> None:
        """Append a field: its least number (Exp-Golomb of this order), its mode, its numbers."""
        least = min(numbers)
        above = [number - least for number in numbers]
        mode = cheapest_mode(above)
        self.put_exp_golomb(least, order)
        self.put(mode, MODE_BITS)
        for number in above:
            if mode < GOLOMB_MODES:
                self.put_exp_golomb(number, mode)
            else:
                self.put(number, mode - GOLOMB_MODES)

    def finish(self) -> bytes:
        """Return the bytes, filled up with zero bits."""
        padding = -self._size % 8
        return (self._value << padding).to_bytes((self._size + padding) // 8, "big")


class BitReader:
    """Takes bits off, the most significant first."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def take(self, bits: int) -> int:
        """Return the next `bits` bits as a number."""
        taken = self._bits[self._at : self._at + bits]
        if len(taken) < bits:
            raise BadBitsError("the bits end in the middle of a position")
        self._at += bits
        return int(taken, 2) if bits else 0

    def zeros(self) -> int:
        """Take zeros and the one that ends them; return the number of zeros."""
        one = self._bits.find("1", self._at)
        if one < 0:
            raise BadBitsError("the bits end in the middle of a position")
        zeros, self._at = one - self._at, one + 1
        return zeros

    def take_exp_golomb(self, order: int) -> int:
        """Return what `put_exp_golomb` wrote."""
        zeros = self.zeros()
        if zeros > MOST_ZEROS:
            raise BadBitsError("a number is too large")
        return (1 << zeros + order) + self.take(zeros + order) - (1 << order)

    def take_field(self, count: int, order: int, top: int) -> list[int]:
        """Return the `count` numbers of a field, none of them above `top`."""
        least = self.take_exp_golomb(order)
        mode = self.take(MODE_BITS)
        numbers = []
        for _ in range(count):
            above = self.take_exp_golomb(mode) if mode < GOLOMB_MODES else self.take(mode - GOLOMB_MODES)
            if least + above > top:
                raise BadBitsError(f"a number is {least + above}, more than {top}")
            numbers.append(least + above)
        return numbers

    def peek(self, bits: int) -> int:
        """Return the next `bits` bits, zeros behind the end, without taking them."""
        return int(self._bits[self._at : self._at + bits].ljust(bits, "0"), 2)

    def finish(self) -> None:
        """Check that nothing but padding is left."""
        rest = self._bits[self._at :]
        if len(rest) > 7 or "1" in rest:
            raise BadBitsError("there are bits behind the last position")


def encode_groups(entries: Entries, groups: NDArray[np.int64], layout: Layout) -> list[bytes]:
    """Return the bytes of each group; group g is positions `groups[g]..groups[g + 1]`.

    Raises:
        DuplicateIdError: a position names a token twice.
    """
    encoded = []
    for first, last in zip(groups[:-1].tolist(), groups[1:].tolist(), strict=True):
        writer = BitWriter()
        _put_group(writer, entries, range(first, last), layout)
        encoded.append(writer.finish())
    return encoded


def _put_group(writer: BitWriter, entries: Entries, positions: range, layout: Layout) -> None:
    counts = np.diff(entries.starts)
    writer.put_field([int(counts[position]) for position in positions], fields.COUNT_ORDER)
    present = [position for position in positions if counts[position]]
    if not present:
        return
    if layout.with_base:
        writer.put_field([int(entries.bases[position]) for position in present], fields.BASE_ORDER)
    writer.put_field([int(entries.tails[position]) for position in present], fields.TAIL_ORDER)
    if tailed := [position for position in present if entries.tails[position]]:
        for index in range(entries.ratios.shape[1]):
            writer.put_field([int(entries.ratios[position, index]) for position in tailed], fields.RATIO_ORDER)

    pairs = [_pairs_of(entries, position) for position in present]
    symbols = [[symbol_of(level) for _, level in of_one] for of_one in pairs]
    costs = np.array([layout.codes.lengths[:, of_one].sum(1) for of_one in symbols])
    own = costs.min(1) + fields.CODE_BITS
    usual = int(np.minimum(costs, own[:, None]).sum(0).argmin())
    writer.put(usual, fields.CODE_BITS)
    for position, of_one, found, cost, least in zip(present, pairs, symbols, costs, own, strict=True):
        code = usual if cost[usual] <= least else int(cost.argmin())
        writer.put(int(code == usual), 1)
        if code != usual:
            writer.put(code, fields.CODE_BITS)
        _put_entries(writer, of_one, found, code, position, layout)


def _pairs_of(entries: Entries, position: int) -> list[tuple[int, int]]:
    part = slice(int(entries.starts[position]), int(entries.starts[position + 1]))
    return list(zip(entries.ids[part].tolist(), entries.levels[part].tolist(), strict=True))


def _put_entries(
    writer: BitWriter, pairs: list[tuple[int, int]], symbols: list[int], code: int, position: int, layout: Layout
) -> None:
    rice, previous = int(layout.rice[len(pairs)]), -1
    for token, _ in pairs:
        gap = token - previous - 1
        if gap < 0:
            raise DuplicateIdError(position)
        writer.put(1, (gap >> rice) + 1)
        writer.put(gap & ((1 << rice) - 1), rice)
        previous = token
    for symbol, (_, level) in zip(symbols, pairs, strict=True):
        writer.put(int(layout.codes.words[code, symbol]), int(layout.codes.lengths[code, symbol]))
        writer.put(level - int(layout.codes.first_level[symbol]), int(layout.codes.raw_bits[symbol]))


def symbol_of(level: int) -> int:
    """Return the symbol of a level."""
    if level < 8:
        return level
    octave = level.bit_length() - 1
    return 8 + 4 * (octave - 3) + ((level >> (octave - 2)) & 3)


def decode_groups(encoded: Sequence[bytes], groups: NDArray[np.int64], layout: Layout) -> Entries:
    """Return what `encode_groups` was given; entries come by falling level, and by id within a level.

    Raises:
        BadBitsError: the bytes are not what it writes.
    """
    total = int(groups[-1])
    into = Entries(
        np.zeros(total, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64),
        np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64),
        np.zeros((total, len(layout.ratios)), dtype=np.int64),
    )  # fmt: skip
    pairs: list[tuple[int, int]] = []
    for data, first, last in zip(encoded, groups[:-1].tolist(), groups[1:].tolist(), strict=True):
        reader = BitReader(data)
        position = first
        try:
            present = _take_fields(reader, range(first, last), layout, into)
            usual = reader.take(fields.CODE_BITS) if present else 0
            for position in present:
                code = usual if reader.take(1) else reader.take(fields.CODE_BITS)
                found = _take_entries(reader, int(into.starts[position]), code, int(into.bases[position]), layout)
                pairs += sorted(found, key=lambda pair: (-pair[1], pair[0]))
            position = last - 1
            reader.finish()
        except BadBitsError as error:
            raise BadBitsError(str(error), position) from None
    ids = np.array([token for token, _ in pairs], dtype=np.int64)
    levels = np.array([level for _, level in pairs], dtype=np.int64)
    return Entries(offsets_of(into.starts), ids, levels, into.bases, into.tails, into.ratios)


def _take_fields(reader: BitReader, positions: range, layout: Layout, into: Entries) -> list[int]:
    """Read a group's fields into the arrays, counts in place of starts; return the positions that say something."""
    counts = reader.take_field(len(positions), fields.COUNT_ORDER, layout.cap)
    into.starts[positions.start : positions.stop] = counts
    present = [position for position, count in zip(positions, counts, strict=True) if count]
    if not present:
        return present
    if layout.with_base:
        into.bases[present] = reader.take_field(len(present), fields.BASE_ORDER, len(layout.low) - 1)
    into.tails[present] = reader.take_field(len(present), fields.TAIL_ORDER, fields.TAIL_CODES - 1)
    if tailed := [position for position in present if into.tails[position]]:
        for index in range(len(layout.ratios)):
            into.ratios[tailed, index] = reader.take_field(len(tailed), fields.RATIO_ORDER, fields.RATIO_TOP)
    return present


def _take_entries(reader: BitReader, count: int, code: int, base: int, layout: Layout) -> list[tuple[int, int]]:
    """Return the (id, level) pairs of one position, by rising id."""
    rice, token = int(layout.rice[count]), -1
    tokens = []
    for _ in range(count):
        token += 1 + (reader.zeros() << rice) + reader.take(rice)
        tokens.append(token)
    if token >= layout.vocabulary:
        raise BadBitsError(f"token {token} is outside the vocabulary of {layout.vocabulary}")
    levels = []
    for _ in range(count):
        entry = int(layout.codes.table[code, reader.peek(LONGEST)])
        reader.take(entry & 15)
        symbol = entry >> 4
        levels.append(int(layout.codes.first_level[symbol]) + reader.take(int(layout.codes.raw_bits[symbol])))
    if max(levels) + base >= len(layout.low):
        raise BadBitsError(f"level {max(levels) + base} is above the highest")
    return list(zip(tokens, levels, strict=True))
