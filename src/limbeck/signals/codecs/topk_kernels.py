"""Codec `topk` compiled by numba, the writing half: the same bits as `topk_reference`, many groups at a time.

Every kernel works on a range of groups and lets go of Python's lock, so that threads can share the work. Importing this
module compiles nothing; the first call does (once for an installation: the result is cached on disk).
"""

from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled
from limbeck.signals.codecs.topk_layout import (
    BASE_ORDER,
    CODE_BITS,
    COUNT_ORDER,
    GOLOMB_MODES,
    GROUP,
    MODE_BITS,
    RATIO_ORDER,
    TAIL_ORDER,
)
from limbeck.signals.codecs.topk_prefix import CODES, SYMBOLS


@compiled()
def _put(out: Any, at: int, value: int, bits: int) -> int:
    """Write up to 64 bits at bit `at` of 64-bit words whose most significant bit comes first."""
    if bits == 0:
        return at
    word, room = at >> 6, 64 - (at & 63)
    if bits <= room:
        out[word] |= np.uint64(value) << np.uint64(room - bits)
    else:
        out[word] |= np.uint64(value) >> np.uint64(bits - room)
        out[word + 1] |= np.uint64(value) << np.uint64(64 - bits + room)
    return at + bits


@compiled()
def _width(value: int) -> int:
    bits = 0
    while value >> bits:
        bits += 1
    return bits


@compiled()
def _put_exp_golomb(out: Any, at: int, value: int, order: int) -> int:
    shifted = value + (1 << order)
    bits = _width(shifted)
    return _put(out, at + bits - order - 1, shifted, bits)


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
    at = _put(out, at, mode, MODE_BITS)
    for index in range(count):
        if mode < GOLOMB_MODES:
            at = _put_exp_golomb(out, at, numbers[index], mode)
        else:
            at = _put(out, at, numbers[index], mode - GOLOMB_MODES)
    return at


@compiled()
def _symbol(level: int) -> int:
    if level < 8:
        return level
    octave = 3
    while level >> (octave + 1):
        octave += 1
    return 8 + 4 * (octave - 3) + ((level >> (octave - 2)) & 3)


@compiled()
def _put_fields(
    out: Any, at: int, starts: Any, bases: Any, tails: Any, ratios: Any, first: int, last: int, with_base: bool
) -> int:
    numbers = np.empty(GROUP, dtype=np.int64)
    for position in range(first, last):
        numbers[position - first] = starts[position + 1] - starts[position]
    at = _put_field(out, at, numbers, last - first, COUNT_ORDER)
    for field in range(2 + ratios.shape[1]):
        if field == 0 and not with_base:
            continue
        count = 0
        for position in range(first, last):
            if starts[position + 1] == starts[position] or (field >= 2 and tails[position] == 0):
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


@compiled()
def encode_groups(
    starts: Any, ids: Any, levels: Any, bases: Any, tails: Any, ratios: Any,
    groups: Any, first: int, last: int, with_base: bool, rice: Any,
    lengths: Any, words: Any, raw_bits: Any, first_level: Any,
    regions: Any, out: Any, sizes: Any,
) -> int:  # fmt: skip
    """Write groups `first..last`, each from a word of its own in `out` (zeros); return -1, or a position with twins."""
    costs = np.empty((GROUP, CODES), dtype=np.int64)
    own = np.empty(GROUP, dtype=np.int64)
    tally = np.zeros(SYMBOLS, dtype=np.int64)
    for group in range(first, last):
        here, end = groups[group], groups[group + 1]
        at = _put_fields(out, regions[group] * 64, starts, bases, tails, ratios, here, end, with_base)
        said = 0
        for position in range(here, end):
            row = position - here
            tally[:] = 0
            for entry in range(starts[position], starts[position + 1]):
                tally[_symbol(levels[entry])] += 1
                said += 1
            costs[row] = 0
            for symbol in range(SYMBOLS):
                if tally[symbol]:
                    for code in range(CODES):
                        costs[row, code] += tally[symbol] * lengths[code, symbol]
            own[row] = costs[row].min() + CODE_BITS if starts[position + 1] > starts[position] else 0
        if not said:
            sizes[group] = ((at + 7) >> 3) - regions[group] * 8
            continue
        usual, cheapest = 0, 1 << 60
        for code in range(CODES):
            cost = 0
            for row in range(end - here):
                cost += min(costs[row, code], own[row])
            if cost < cheapest:
                usual, cheapest = code, cost
        at = _put(out, at, usual, CODE_BITS)
        for position in range(here, end):
            row, begin = position - here, starts[position]
            count = starts[position + 1] - begin
            if count == 0:
                continue
            code = usual if costs[row, usual] <= own[row] else int(np.argmin(costs[row]))
            at = _put(out, at, 1 if code == usual else 0, 1)
            if code != usual:
                at = _put(out, at, code, CODE_BITS)
            raw = rice[count]
            low_bits = (1 << raw) - 1
            previous: Any = -1
            for entry in range(begin, begin + count):
                gap = ids[entry] - previous - 1
                if gap < 0:
                    return position
                at = _put(out, at + (gap >> raw), low_bits + 1 | gap & low_bits, raw + 1)
                previous = ids[entry]
            for entry in range(begin, begin + count):
                symbol = _symbol(levels[entry])
                more = raw_bits[symbol]
                coded = words[code, symbol] << more | (levels[entry] - first_level[symbol])
                at = _put(out, at, coded, lengths[code, symbol] + more)
        sizes[group] = ((at + 7) >> 3) - regions[group] * 8
    return -1
