"""Arrays of small numbers in few bits.

A number x in the Rice code of width r is its quotient `x >> r` and its r low bits. An array is kept as two strings of
bits, each filled up with zero bits to a byte: the quotients in unary (as many zeros, then a one), and the low bits,
most significant first. That is as many bits as codes laid end to end take, but all quotients are found by one search
for ones. In bytes an array is: varint, the bytes of the quotients; the quotients; the low bits.

A *varint* is a number in seven bits a byte, lowest first; the top bit of a byte says that another follows.
"""

from functools import cache
from types import ModuleType

import numpy as np

from limbeck.errors import IntegrityError
from limbeck.signals.codecs.columns import Bytes, Integers

WIDEST = 24  # one more than the most low bits of a number


def write_varint(value: int) -> bytes:
    """Return the bytes of a number from 0 up."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def write_array(values: Integers, widths: Integers) -> bytes:
    """Return the bytes of `values` `[n]`, from 0 up, each in the Rice code of its own width."""
    quotients = np.zeros((int((values >> widths).sum()) + len(values) + 7) // 8, dtype=np.uint8)
    _kernels().write_unary(values, widths, quotients)
    return write_varint(len(quotients)) + quotients.tobytes() + write_fields(values, widths)


def write_fitted(values: Integers) -> bytes:
    """Return a byte, the one width that makes the array shortest, and the array."""
    width = int(_kernels().best_width(values, WIDEST))
    return bytes([width]) + write_array(values, np.full(len(values), width, dtype=np.int64))


def write_fields(values: Integers, widths: Integers) -> bytes:
    """Return the low `widths` bits of `values`, end to end, most significant first, filled up to a byte."""
    out = np.zeros((int(widths.sum()) + 7) // 8, dtype=np.uint8)
    _kernels().write_bits(values, widths, out)
    return out.tobytes()


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
        numbers = np.empty(len(widths), dtype=np.int64)
        if not _kernels().read_unary(self._take(self.varint()), numbers):
            raise self._broken()
        return self._completed(numbers, widths)

    def fitted(self, count: int) -> Integers:
        """Return `count` numbers, all of the width that stands before them."""
        width = int(self._take(1)[0])
        if width >= WIDEST:
            raise self._broken()
        return self.array(np.full(count, width, dtype=np.int64))

    def fields(self, widths: Integers) -> Integers:
        """Return one number of each width."""
        return self._completed(np.zeros(len(widths), dtype=np.int64), widths)

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise self._broken()

    def _completed(self, numbers: Integers, widths: Integers) -> Integers:
        _kernels().read_bits(self._take((int(widths.sum()) + 7) // 8), widths, numbers)
        return numbers

    def _take(self, count: int) -> Bytes:
        if self._at + count > len(self._data):
            raise self._broken()
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def _broken(self) -> IntegrityError:
        return IntegrityError(f"{self._name}: these are not the bytes of a row.")


@cache
def _kernels() -> ModuleType:
    from limbeck.signals.codecs import rice_kernels  # numba takes half a second to import

    return rice_kernels
