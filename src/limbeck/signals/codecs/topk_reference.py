"""Codec `topk` in plain Python: bits to integers and back, one position at a time.

Written to be read: together with `docs/signals.md` it is the definition of the bitstream. The compiled path makes the
same bytes about a thousand times faster and is held to this one by tests; where it can't be had, this one is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.signals.codecs import topk_layout as fields
from limbeck.signals.codecs.topk_layout import Layout


@dataclass(frozen=True)
class Entries:
    """What one run of positions holds, in integers.

    Attributes:
        starts: int64 `[N + 1]`; the entries of position n are `starts[n]..starts[n + 1]`; none: nothing is known there.
        ids: int64 `[E]`, distinct within a position, in any order.
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
        bits = self.zeros() + order
        return (1 << bits) + self.take(bits) - (1 << order)

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
        for position in range(first, last):
            _put_position(writer, entries, position, layout)
        encoded.append(writer.finish())
    return encoded


def _put_position(writer: BitWriter, entries: Entries, position: int, layout: Layout) -> None:
    part = slice(int(entries.starts[position]), int(entries.starts[position + 1]))
    pairs = sorted(zip(entries.ids[part].tolist(), entries.levels[part].tolist(), strict=True))
    count = len(pairs)
    writer.put(int(count == layout.cap), 1)
    if count != layout.cap:
        writer.put_exp_golomb(count, fields.COUNT_ORDER)
    if count == 0:
        return
    symbols = [symbol_of(level) for _, level in pairs]
    costs = layout.codes.lengths[:, symbols].sum(1)
    code = int(costs.argmin())
    writer.put(code, fields.CODE_BITS)
    if layout.with_base:
        writer.put_exp_golomb(int(entries.bases[position]), fields.BASE_ORDER)
    writer.put(int(entries.tails[position]), fields.TAIL_BITS)
    if entries.tails[position]:
        for ratio in entries.ratios[position].tolist():
            writer.put(ratio, fields.RATIO_BITS)
    rice, previous = int(layout.rice[count]), -1
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
    counts = np.zeros(total, dtype=np.int64)
    bases, tails = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    ratios = np.zeros((total, len(layout.ratios)), dtype=np.int64)
    pairs: list[tuple[int, int]] = []
    for group, data in enumerate(encoded):
        reader = BitReader(data)
        position = int(groups[group])
        try:
            for position in range(int(groups[group]), int(groups[group + 1])):
                found = _take_position(reader, position, layout, bases, tails, ratios)
                counts[position] = len(found)
                pairs += sorted(found, key=lambda pair: (-pair[1], pair[0]))
            reader.finish()
        except BadBitsError as error:
            raise BadBitsError(str(error), position) from None
    ids = np.array([token for token, _ in pairs], dtype=np.int64)
    levels = np.array([level for _, level in pairs], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    return Entries(starts, ids, levels, bases, tails, ratios)


def _take_position(
    reader: BitReader,
    position: int,
    layout: Layout,
    bases: NDArray[np.int64],
    tails: NDArray[np.int64],
    ratios: NDArray[np.int64],
) -> list[tuple[int, int]]:
    """Read one position into the arrays; return its (id, level) pairs by rising id."""
    count = layout.cap if reader.take(1) else reader.take_exp_golomb(fields.COUNT_ORDER)
    if count > layout.cap:
        raise BadBitsError(f"{count} entries, more than {layout.cap}")
    if count == 0:
        return []
    code = reader.take(fields.CODE_BITS)
    if layout.with_base:
        bases[position] = reader.take_exp_golomb(fields.BASE_ORDER)
    tails[position] = reader.take(fields.TAIL_BITS)
    if tails[position]:
        ratios[position] = [reader.take(fields.RATIO_BITS) for _ in layout.ratios]
    rice, token = int(layout.rice[count]), -1
    tokens = []
    for _ in range(count):
        token += 1 + (reader.zeros() << rice) + reader.take(rice)
        tokens.append(token)
    if token >= layout.vocabulary:
        raise BadBitsError(f"token {token} is outside the vocabulary of {layout.vocabulary}")
    levels = []
    for _ in range(count):
        entry = int(layout.codes.table[code, reader.peek(12)])
        reader.take(entry & 15)
        symbol = entry >> 4
        levels.append(int(layout.codes.first_level[symbol]) + reader.take(int(layout.codes.raw_bits[symbol])))
    if max(levels) + int(bases[position]) >= len(layout.low):
        raise BadBitsError(f"level {max(levels) + int(bases[position])} is above the highest")
    return list(zip(tokens, levels, strict=True))
