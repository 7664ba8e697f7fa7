"""Arrays of small numbers in few bits, written and read without a loop over the numbers.

A number x in the Rice code of width r is its quotient `x >> r` and its r low bits. An array is kept as two strings of
bits, each filled up with zero bits to a byte: the quotients in unary (as many zeros, then a one), and the low bits,
most significant first. That is as many bits as codes laid end to end take, but all quotients are found by one search
for ones. In bytes an array is: varint, the bytes of the quotients; the quotients; the low bits.

A *varint* is a number in seven bits a byte, lowest first; the top bit of a byte says that another follows.
"""

import numpy as np

from limbeck.errors import IntegrityError
from limbeck.signals.codecs.columns import Bytes, Integers, offsets_of

WIDEST = 24  # low bits of a number; they are read through a window of 32 bits
WINDOW_BYTES = 4


def write_varint(value: int) -> bytes:
    """Return the bytes of a number from 0 up."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def write_array(values: Integers, widths: Integers) -> bytes:
    """Return the bytes of `values` `[n]`, from 0 up, each in the Rice code of its own width."""
    ends = np.cumsum((values >> widths) + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    unary[ends - 1] = 1
    quotients = np.packbits(unary).tobytes()
    return write_varint(len(quotients)) + quotients + write_fields(values, widths)


def write_fitted(values: Integers) -> bytes:
    """Return a byte, the one width that makes the array shortest, and the array."""
    costs = [int((values >> width).sum()) + width * len(values) for width in range(WIDEST)]
    width = int(np.argmin(costs))
    return bytes([width]) + write_array(values, np.full(len(values), width, dtype=np.int64))


def write_fields(values: Integers, widths: Integers) -> bytes:
    """Return the low `widths` bits of `values`, end to end, most significant first, filled up to a byte."""
    starts = offsets_of(widths)
    place = np.arange(int(starts[-1])) - np.repeat(starts[:-1], widths)
    shift = np.repeat(widths, widths) - 1 - place
    return np.packbits(((np.repeat(values, widths) >> shift) & 1).astype(np.uint8)).tobytes()


class ArrayReader:
    """Reads what the functions above have written, one thing after the other.

    Args:
        data: the bytes.
        name: what messages call them.

    Raises:
        IntegrityError: (all methods) the bytes end too early, or are none that were written.
    """

    def __init__(self, data: Bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._at = 0

    def varint(self) -> int:
        """Return a number."""
        value = shift = 0
        while True:
            byte = int(self._take(1)[0])
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 28:
                raise self._broken()

    def array(self, widths: Integers) -> Integers:
        """Return as many numbers as there are widths."""
        ones = np.flatnonzero(np.unpackbits(self._take(self.varint())))
        if len(ones) != len(widths):
            raise self._broken()
        quotients = np.diff(ones, prepend=-1) - 1
        return (quotients << widths) | self.fields(widths)

    def fitted(self, count: int) -> Integers:
        """Return `count` numbers, all of the width that stands before them."""
        width = int(self._take(1)[0])
        if width >= WIDEST:
            raise self._broken()
        return self.array(np.full(count, width, dtype=np.int64))

    def fields(self, widths: Integers) -> Integers:
        """Return one number of each width."""
        starts = offsets_of(widths)
        total = int(starts[-1])
        data = np.concatenate([self._take((total + 7) // 8), np.zeros(WINDOW_BYTES, dtype=np.uint8)]).astype(np.int64)
        byte, inside = starts[:-1] >> 3, starts[:-1] & 7
        window = np.zeros(len(widths), dtype=np.int64)
        for index in range(WINDOW_BYTES):
            window = window << 8 | data[byte + index]
        return (window >> (8 * WINDOW_BYTES - inside - widths)) & ((1 << widths) - 1)

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise self._broken()

    def _take(self, count: int) -> Bytes:
        if self._at + count > len(self._data):
            raise self._broken()
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def _broken(self) -> IntegrityError:
        return IntegrityError(f"{self._name}: these are not the bytes of a row.")
