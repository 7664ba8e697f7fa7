"""The fields of a group of codec `topk`, compiled by numba: reading and writing what `topk_fields` describes."""

from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled
from limbeck.signals.codecs.topk_bits import leading_zeros, look, store_word, top
from limbeck.signals.codecs.topk_fields import MODES, MOST_ZEROS
from limbeck.signals.codecs.topk_layout import (
    BASE_ORDER,
    COUNT_ORDER,
    GOLOMB_MODES,
    MODE_BITS,
    RATIO_ORDER,
    RATIO_TOP,
    TAIL_CODES,
    TAIL_ORDER,
)

_I: Any = np.int64


@compiled()
def _take_exp_golomb(data: Any, at: int, order: int) -> tuple[int, int]:
    """Return where the number ends and the number; -1 if it is none."""
    ahead = look(data, at)
    zeros = _I(leading_zeros(ahead))
    if zeros > MOST_ZEROS:
        return at, -1
    size = 2 * zeros + order + 1
    return at + size, top(ahead, size) - (1 << order)


@compiled()
def _take_field(data: Any, at: int, limit: int, order: int, most: int, count: int, numbers: Any) -> int:
    """Read a field into `numbers`; return where it ends, or -1 if it is none."""
    at, least = _take_exp_golomb(data, at, order)
    if least < 0 or at > limit:
        return -1
    mode = top(look(data, at), MODE_BITS)
    at += MODE_BITS
    if mode >= MODES:
        return -1
    for index in range(count):
        if at > limit:
            return -1
        if mode < GOLOMB_MODES:
            at, above = _take_exp_golomb(data, at, mode)
            if above < 0:
                return -1
        else:
            above = top(look(data, at), mode - GOLOMB_MODES)
            at += mode - GOLOMB_MODES
        if least + above > most:
            return -1
        numbers[index] = least + above
    return at if at <= limit else -1


@compiled()
def take_fields(
    data: Any, at: int, limit: int, first: int, last: int, cap: int, with_base: bool, levels: int,
    counts: Any, bases: Any, tails: Any, ratios: Any,
) -> int:  # fmt: skip
    """Read the fields of positions `first..last`; return where they end, or -1 if they are none.

    Args:
        data: uint8, `PADDING` more than what holds something.
        at: the bit where the group begins.
        limit: the bit where it ends.
        first: a position.
        last: the one behind the group.
        cap: the most entries of a position.
        with_base: whether positions say at which level theirs start.
        levels: how many levels there are.
        counts: `[N]`, of entries, to be filled; `bases`, `tails` and `ratios` `[N, S]` likewise, zeros so far.
    """
    numbers = np.empty(last - first, dtype=np.int64)
    at = _take_field(data, at, limit, COUNT_ORDER, cap, last - first, numbers)
    if at < 0:
        return -1
    counts[first:last] = numbers
    for field in range(2 + ratios.shape[1]):
        if field == 0 and not with_base:
            continue
        count = 0
        for position in range(first, last):
            if counts[position] and (field < 2 or tails[position]):
                count += 1
        if count == 0:
            continue
        if field == 0:
            at = _take_field(data, at, limit, BASE_ORDER, levels - 1, count, numbers)
        elif field == 1:
            at = _take_field(data, at, limit, TAIL_ORDER, TAIL_CODES - 1, count, numbers)
        else:
            at = _take_field(data, at, limit, RATIO_ORDER, RATIO_TOP, count, numbers)
        if at < 0:
            return -1
        count = 0
        for position in range(first, last):
            if counts[position] and (field < 2 or tails[position]):
                if field == 0:
                    bases[position] = numbers[count]
                elif field == 1:
                    tails[position] = numbers[count]
                else:
                    ratios[position, field - 2] = numbers[count]
                count += 1
    return at


@compiled()
def put(out: Any, at: int, value: int, bits: int) -> int:
    """Write up to 56 bits at bit `at` of a uint8 array, and zeros behind them, in eight bytes at most."""
    byte, used = at >> 3, np.uint64(at & 7)
    word = (np.uint64(out[byte]) & np.uint64(0xFF00) >> used) << np.uint64(56)
    if bits:
        word |= np.uint64(value) << np.uint64(64 - bits) >> used
    store_word(out, byte, word)
    return at + bits


@compiled()
def _width(value: int) -> int:
    return 64 - _I(leading_zeros(np.uint64(value)))


@compiled()
def symbol_of(level: int) -> int:
    """Return the symbol of a level."""
    if level < 8:
        return level
    octave = _width(level) - 1
    return 8 + 4 * (octave - 3) + ((level >> (octave - 2)) & 3)


@compiled()
def _put_exp_golomb(out: Any, at: int, value: int, order: int) -> int:
    shifted = value + (1 << order)
    bits = _width(shifted)
    return put(out, at, shifted, 2 * bits - order - 1)


@compiled()
def _put_field(out: Any, at: int, numbers: Any, count: int, order: int) -> int:
    """Write the first `count` numbers, which are lowered by the least of them."""
    least = numbers[:count].min()
    numbers[:count] -= least
    width = _width(numbers[:count].max())
    mode, cheapest = GOLOMB_MODES + width, 1 << 60
    for candidate in range(GOLOMB_MODES):
        cost = 0
        for index in range(count):
            cost += 2 * _width(numbers[index] + (1 << candidate)) - candidate - 1
        if cost < cheapest:
            cheapest = cost
            if cost <= width * count:
                mode = candidate
    at = _put_exp_golomb(out, at, least, order)
    at = put(out, at, mode, MODE_BITS)
    for index in range(count):
        if mode < GOLOMB_MODES:
            at = _put_exp_golomb(out, at, numbers[index], mode)
        else:
            at = put(out, at, numbers[index], mode - GOLOMB_MODES)
    return at


@compiled()
def put_fields(
    out: Any, at: int, counts: Any, bases: Any, tails: Any, ratios: Any, first: int, last: int, with_base: bool
) -> int:
    """Write the fields of positions `first..last`, which `take_fields` reads; return where they end."""
    numbers = np.empty(last - first, dtype=np.int64)
    for position in range(first, last):
        numbers[position - first] = counts[position]
    at = _put_field(out, at, numbers, last - first, COUNT_ORDER)
    for field in range(2 + ratios.shape[1]):
        if field == 0 and not with_base:
            continue
        count = 0
        for position in range(first, last):
            if counts[position] == 0 or (field >= 2 and tails[position] == 0):
                continue
            if field == 0:
                numbers[count] = bases[position]
            elif field == 1:
                numbers[count] = tails[position]
            else:
                numbers[count] = ratios[position, field - 2]
            count += 1
        if count:
            order = BASE_ORDER if field == 0 else (TAIL_ORDER if field == 1 else RATIO_ORDER)
            at = _put_field(out, at, numbers, count, order)
    return at
