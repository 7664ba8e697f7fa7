"""The entries of one position of codec `topk`, compiled by numba: from bits to ids and levels, and into their order.

Bits are read through a *window*: a 64-bit word whose upper `valid` bits come next, of bytes before `byte`; filling it
up again takes one load, which does not wait for the numbers that were read last. No look leaves the data by more than
`PADDING` bytes, whatever they are.
"""

from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled
from limbeck.signals.codecs.topk_bits import LOOK, leading_zeros, load_word, look, store_low_first, top
from limbeck.signals.codecs.topk_prefix import LONGEST
from limbeck.signals.codecs.topk_windows import LONG, MOST, TALLIED, WINDOW

ID_BITS = 21  # of the largest vocabulary
ID_TOP = (1 << ID_BITS) - 1
ROOM = 64 + MOST  # what buffers of entries have beyond the greatest number of them
PACKED = 255  # the most entries that are counted in bytes
_I: Any = np.int64
_U: Any = np.uint64
_FULL = _U(56)  # bits that are valid at least after filling up


@compiled()
def _take_wide(data: Any, at: int, limit: int, raw: int, token: int) -> tuple[int, int]:
    """Read a gap of any size."""
    quotient = _I(0)
    while at <= limit:
        zeros = _I(leading_zeros(look(data, at)))
        if zeros < LOOK - 1:
            at += zeros + 1
            return at + raw, token + 1 + ((quotient + zeros) << raw) + top(look(data, at), raw)
        at += LOOK - 1
        quotient += LOOK - 1
    return at, token


@compiled()
def take_ids(data: Any, at: int, limit: int, raw: int, count: int, tokens: Any) -> int:
    """Read `count` gaps in the Rice code of parameter `raw` into rising ids; return where they end, or -1."""
    low = _U(raw + 1)
    token, entry = _I(-1), 0
    while entry < count:
        byte = at >> 3
        window, valid = load_word(data, byte) << _U(at & 7), _FULL - _U(at & 7)
        byte += 7
        while entry < count:
            window |= load_word(data, byte) >> valid
            byte += _I((_U(63) - valid) >> _U(3))
            valid |= _FULL
            if 8 * byte > limit + 128:
                return -1
            zeros = leading_zeros(window)
            size = zeros + low
            coded, rest = window >> (_U(64) - size & _U(63)), window << (size & _U(63))
            if entry + 3 <= count:
                zeros_2 = leading_zeros(rest)
                size_2 = zeros_2 + low
                coded_2, rest_2 = rest >> (_U(64) - size_2 & _U(63)), rest << (size_2 & _U(63))
                zeros_3 = leading_zeros(rest_2)
                size_3 = zeros_3 + low
                together = size + size_2 + size_3
                if together <= _FULL:
                    coded_3 = rest_2 >> (_U(64) - size_3 & _U(63))
                    window = rest_2 << (size_3 & _U(63))
                    valid -= together
                    token += _I(coded) + ((_I(zeros) - 1) << raw) + 1
                    tokens[entry] = token
                    token += _I(coded_2) + ((_I(zeros_2) - 1) << raw) + 1
                    tokens[entry + 1] = token
                    token += _I(coded_3) + ((_I(zeros_3) - 1) << raw) + 1
                    tokens[entry + 2] = token
                    entry += 3
                    continue
            if size > _FULL:
                break
            window = rest
            valid -= size
            token += _I(coded) + ((_I(zeros) - 1) << raw) + 1
            tokens[entry] = token
            entry += 1
        at = 8 * byte - _I(valid)
        if entry < count:
            at, token = _take_wide(data, at, limit, raw, token)
            if at > limit:
                return -1
            tokens[entry] = token
            entry += 1
    return at


@compiled()
def take_levels(
    data: Any, at: int, limit: int, found: Any, ends: Any, table: Any, raw_bits: Any, first_level: Any, count: int,
    levels: Any, longer: Any,
) -> tuple[int, Any]:  # fmt: skip
    """Read `count` levels in one prefix code; return where they end, or -1, and how often there is each.

    Args:
        data: uint8.
        at: the bit where they begin.
        limit: the bit where the group ends.
        found: `[1024, 2]`, what windows hold; `ends` `[1024]` (`topk_windows`).
        table: `[4096]`, what the next 12 bits are (`topk_prefix`); `raw_bits` and `first_level` `[60]`.
        count: how many there are.
        levels: uint8, to be filled; `LONG` where one does not fit.
        longer: those that do not fit, in their order.
    """
    byte = at >> 3
    window, valid = load_word(data, byte) << _U(at & 7), _FULL - _U(at & 7)
    byte += 7
    entry, long = 0, 0
    tally = _U(0)
    while entry < count:
        window |= load_word(data, byte) >> valid
        byte += _I((_U(63) - valid) >> _U(3))
        valid |= _FULL
        if 8 * byte > limit + 128:
            return -1, tally
        index = window >> _U(64 - WINDOW)
        packed = found[index, 0]
        several = _I(packed >> _U(48) & _U(255))
        size = packed >> _U(56)
        if several and entry + several <= count:
            store_low_first(levels, entry, packed)
            tally += found[index, 1]
            entry += several
            window <<= size
            valid -= size
            if entry + MOST > count:
                continue
            index = window >> _U(64 - WINDOW)
            packed = found[index, 0]
            store_low_first(levels, entry, packed)
            tally += found[index, 1]
            entry += _I(packed >> _U(48) & _U(255))
            size = packed >> _U(56)
        elif several:  # the last ones, and what belongs to another position
            several = count - entry
            size = ends[index] >> _U(4 * several) & _U(15)
            store_low_first(levels, entry, packed)
            for place in range(MOST):
                level = min(packed >> _U(8 * place) & _U(255), _U(TALLIED))
                tally += _U(place < several) << _U(8) * level
            entry = count
        else:
            coded = _I(table[window >> _U(64 - LONGEST)])
            symbol, length = coded >> 4, coded & 15
            more = raw_bits[symbol]
            one = first_level[symbol] + top(window << _U(length), more)
            levels[entry] = min(one, LONG)
            if one >= LONG:
                longer[long] = one
                long += 1
            tally += _U(1) << _U(8 * min(one, TALLIED))
            entry += 1
            size = _U(length + more)
        window <<= size
        valid -= size
    return 8 * byte - _I(valid), tally


@compiled()
def put_in_order(
    tokens: Any, levels: Any, longer: Any, count: int, tally: Any, ids: Any, keys: Any, sizes: Any
) -> int:  # fmt: skip
    """Fill `ids` by falling level, and by rising id within one; return how many entries have a level from 7 up.

    Args:
        tokens: rising ids; `levels` and `longer` as `take_levels` makes them.
        tokens: see there.
        levels: see there.
        longer: see there.
        count: of entries.
        tally: how many levels there are of each; means nothing where there are more than `PACKED`.
        ids: to be filled.
        keys: to be filled for the entries from level 7 up, in order: the level above the lowest 21 bits.
        sizes: `[8]`, to be filled: how many levels there are of each.
    """
    high = 0
    if count <= PACKED:
        places, before = _U(0), _U(0)
        for down in range(TALLIED + 1):
            shift = _U(8 * (TALLIED - down))
            here = tally >> shift & _U(255)
            sizes[TALLIED - down] = _I(here)
            places |= before << shift
            before += here
        for entry in range(count):
            level = levels[entry]
            shift = _U(min(level, np.uint8(TALLIED))) << _U(3)
            ids[places >> shift & _U(255)] = tokens[entry]
            places += _U(1) << shift
            keys[_U(high)] = entry
            high += level >= TALLIED
    else:
        sizes[:] = 0
        for entry in range(count):
            sizes[min(levels[entry], TALLIED)] += 1
        opens = np.empty(TALLIED + 1, dtype=np.int64)
        start = 0
        for down in range(TALLIED + 1):
            opens[TALLIED - down] = start
            start += sizes[TALLIED - down]
        for entry in range(count):
            level = min(levels[entry], TALLIED)
            ids[opens[level]] = tokens[entry]
            opens[level] += 1
            if level == TALLIED:
                keys[high] = entry
                high += 1
    long = 0
    for rank in range(high):
        entry = keys[rank]
        level = _I(levels[entry])
        if level == LONG:
            level = longer[long]
            long += 1
        key = level << ID_BITS | ID_TOP - tokens[entry]
        place = rank
        while place > 0 and keys[place - 1] < key:
            keys[place] = keys[place - 1]
            ids[place] = ids[place - 1]
            place -= 1
        keys[place] = key
        ids[place] = tokens[entry]
    return high
