"""Integers of a fixed number of bits in strings of bytes, the same number in each row; vectorised.

Two orders are in use. `pack_bits` lays numbers end to end, most significant bit first, and fills the last byte with
zero bits. `pack_words` puts as many whole numbers as fit into each 64-bit word, the first in the lowest bits; words are
little-endian and no number crosses from one to the next.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from limbeck.signals.codecs.columns import Bytes

Unsigned = NDArray[np.uint64]
Number = TypeVar("Number", bound=np.generic)
ALIGNED = 8  # this many numbers of any width end on a byte


def bits_for(size: int) -> int:
    """Return the bits that tell `size` things apart: the least w with `2 ** w >= size`."""
    return (size - 1).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of `count` numbers packed by `pack_bits`."""
    return (count * bits + 7) // 8


def packed_words(count: int, bits: int) -> int:
    """Return the 64-bit words of `count` numbers packed by `pack_words`."""
    return -(-count // (64 // bits))


def pack_bits(values_NK: Unsigned, bits: int) -> Bytes:
    """Return `[N, packed_bytes(K, bits)]`.

    Args:
        values_NK: each less than `2 ** bits`.
        bits: of each number, 1 to 64.
    """
    rows, count = values_NK.shape
    groups = -(-count // ALIGNED)
    values = _padded(values_NK, groups * ALIGNED).reshape(rows, groups, ALIGNED)
    out = np.zeros((rows, groups, bits), dtype=np.uint8)
    for index in range(ALIGNED):
        for byte, shift in _bytes_of(index, bits):
            part = values[:, :, index]
            moved = part >> np.uint64(shift) if shift >= 0 else part << np.uint64(-shift)
            out[:, :, byte] |= (moved & np.uint64(0xFF)).astype(np.uint8)
    return out.reshape(rows, groups * bits)[:, : packed_bytes(count, bits)]


def unpack_bits(data_NW: Bytes, count: int, bits: int) -> Unsigned:
    """Return the `[N, count]` numbers that `pack_bits` packed; the bits that fill the last byte are not looked at."""
    rows = len(data_NW)
    groups = -(-count // ALIGNED)
    data = _padded(data_NW, groups * bits).reshape(rows, groups, bits)
    out = np.empty((rows, groups, ALIGNED), dtype=np.uint64)
    work: Any = np.uint32 if bits <= 32 else np.uint64  # half the memory where it is enough
    mask = work((1 << bits) - 1)
    for index in range(ALIGNED):
        value = np.zeros((rows, groups), dtype=work)
        for byte, shift in _bytes_of(index, bits):
            part = data[:, :, byte].astype(work)
            value |= part << work(shift) if shift >= 0 else part >> work(-shift)
        out[:, :, index] = value & mask
    return out.reshape(rows, groups * ALIGNED)[:, :count]


def pack_words(values_NK: Unsigned, bits: int) -> Unsigned:
    """Return `[N, packed_words(K, bits)]`; each value is less than `2 ** bits`."""
    rows, count = values_NK.shape
    each, words = 64 // bits, packed_words(count, bits)
    values = _padded(values_NK, words * each).reshape(rows, words, each)
    out = np.zeros((rows, words), dtype=np.uint64)
    for index in range(each):
        out |= values[:, :, index] << np.uint64(index * bits)
    return out


def unpack_words(words_NW: Unsigned, count: int, bits: int) -> Unsigned:
    """Return the `[N, count]` numbers that `pack_words` packed."""
    each = 64 // bits
    mask = np.uint64((1 << bits) - 1)
    out = np.empty((*words_NW.shape, each), dtype=np.uint64)
    for index in range(each):
        out[:, :, index] = (words_NW >> np.uint64(index * bits)) & mask
    return out.reshape(len(words_NW), words_NW.shape[1] * each)[:, :count]


def _bytes_of(index: int, bits: int) -> list[tuple[int, int]]:
    """Return which bytes of a group hold bits of its number `index`, and how far left each stands in the number."""
    end = (index + 1) * bits
    first, last = index * bits // 8, (end - 1) // 8
    return [(byte, end - 8 * (byte + 1)) for byte in range(first, last + 1)]


def _padded(values: NDArray[Number], width: int) -> NDArray[Number]:
    if values.shape[1] == width:
        return values
    out = np.zeros((len(values), width), dtype=values.dtype)
    out[:, : values.shape[1]] = values
    return out
