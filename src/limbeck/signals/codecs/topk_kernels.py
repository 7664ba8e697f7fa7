"""Codec `topk` compiled by numba: the same bits as `topk_reference`, many positions at a time.

Every kernel works on a range of groups or positions and lets go of Python's lock, so that threads can share the work.
Importing this module compiles nothing; the first call does (once for an installation: the result is cached on disk).
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from limbeck.signals.codecs.topk_layout import (
    BASE_ORDER,
    CODE_BITS,
    COUNT_ORDER,
    RATIO_BITS,
    TAIL_BITS,
)
from limbeck.signals.codecs.topk_prefix import CODES, LONGEST, SYMBOLS

F = TypeVar("F", bound=Callable[..., Any])

WINDOW = 56  # bits that a look ahead returns; at least 49 of them are there wherever it starts
PADDING = 16  # bytes that must follow the data, so that a look ahead never leaves it
LEADING_ZEROS = np.array([8] + [8 - value.bit_length() for value in range(1, 256)], dtype=np.int64)
MANY = 24  # what _leading_zeros says when there are at least so many


def compiled(function: F) -> F:
    """Compile on first use; cached on disk where there is a place for it."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return cast(F, numba.njit(nogil=True)(function))


@compiled
def _put(out: Any, at: int, value: int, bits: int) -> int:
    while bits > 0:
        room = 8 - (at & 7)
        step = min(room, bits)
        piece = (value >> (bits - step)) & ((1 << step) - 1)
        out[at >> 3] |= np.uint8(piece << (room - step))
        at += step
        bits -= step
    return at


@compiled
def _put_exp_golomb(out: Any, at: int, value: int, order: int) -> int:
    shifted = value + (1 << order)
    bits = 0
    while shifted >> bits:
        bits += 1
    return _put(out, at + bits - order - 1, shifted, bits)


@compiled
def _symbol(level: int) -> int:
    if level < 8:
        return level
    octave = 3
    while level >> (octave + 1):
        octave += 1
    return 8 + 4 * (octave - 3) + ((level >> (octave - 2)) & 3)


@compiled
def encode_groups(
    starts: Any, ids: Any, levels: Any, bases: Any, tails: Any, ratios: Any,
    groups: Any, first: int, last: int, cap: int, with_base: bool, rice: Any,
    lengths: Any, words: Any, raw_bits: Any, first_level: Any,
    regions: Any, out: Any, sizes: Any,
) -> int:  # fmt: skip
    """Write groups `first..last`, each into its own region of `out` (zeros); return -1, or a position with twins."""
    work = np.empty(cap, dtype=np.int64)
    symbols = np.empty(cap, dtype=np.int64)
    tally = np.zeros(SYMBOLS, dtype=np.int64)
    for group in range(first, last):
        at = regions[group] * 8
        for position in range(groups[group], groups[group + 1]):
            begin = starts[position]
            count = starts[position + 1] - begin
            at = _put(out, at, 1 if count == cap else 0, 1)
            if count != cap:
                at = _put_exp_golomb(out, at, count, COUNT_ORDER)
            if count == 0:
                continue
            for entry in range(count):
                work[entry] = (ids[begin + entry] << 16) | levels[begin + entry]
            work[:count].sort()
            tally[:] = 0
            for entry in range(count):
                symbols[entry] = _symbol(work[entry] & 0xFFFF)
                tally[symbols[entry]] += 1
            code: Any = 0
            cheapest: Any = 1 << 60
            for candidate in range(CODES):
                cost = 0
                for symbol in range(SYMBOLS):
                    cost += tally[symbol] * lengths[candidate, symbol]
                if cost < cheapest:
                    code, cheapest = candidate, cost
            at = _put(out, at, code, CODE_BITS)
            if with_base:
                at = _put_exp_golomb(out, at, bases[position], BASE_ORDER)
            at = _put(out, at, tails[position], TAIL_BITS)
            if tails[position]:
                for index in range(ratios.shape[1]):
                    at = _put(out, at, ratios[position, index], RATIO_BITS)
            raw = rice[count]
            previous: Any = -1
            for entry in range(count):
                token = work[entry] >> 16
                gap = token - previous - 1
                if gap < 0:
                    return position
                at = _put(out, at + (gap >> raw), 1, 1)
                at = _put(out, at, gap, raw)
                previous = token
            for entry in range(count):
                symbol = symbols[entry]
                at = _put(out, at, words[code, symbol], lengths[code, symbol])
                at = _put(out, at, (work[entry] & 0xFFFF) - first_level[symbol], raw_bits[symbol])
        sizes[group] = ((at + 7) >> 3) - regions[group]
    return -1


@compiled
def _look(data: Any, at: int) -> int:
    """Return the next bits at the top of a 56-bit number."""
    byte = at >> 3
    word: Any = 0
    for index in range(7):
        word = (word << 8) | np.int64(data[byte + index])
    return (word << (at & 7)) & ((1 << WINDOW) - 1)


@compiled
def _leading_zeros(look: int) -> int:
    zeros = LEADING_ZEROS[look >> 48]
    if zeros == 8:
        zeros += LEADING_ZEROS[(look >> 40) & 255]
        if zeros == 16:
            zeros += LEADING_ZEROS[(look >> 32) & 255]
    return zeros


@compiled
def decode_groups(
    data: Any, begins: Any, ends: Any, groups: Any, first: int, last: int, cap: int, vocabulary: int, with_base: bool,
    rice: Any, table: Any, raw_bits: Any, first_level: Any, top: int,
    counts: Any, ids: Any, levels: Any, bases: Any, tails: Any, ratios: Any,
) -> int:  # fmt: skip
    """Read groups `first..last` into `[N, K]` arrays, sorted by falling level; return -1, or the first bad position.

    `data` is followed by `PADDING` spare bytes; group g lies in `begins[g]..ends[g]`.
    """
    width = ids.shape[1]
    tokens = np.empty(width, dtype=np.int64)
    symbols = np.empty(width, dtype=np.int64)
    found = np.empty(width, dtype=np.int64)
    places, opens = np.empty(SYMBOLS, dtype=np.int64), np.empty(SYMBOLS, dtype=np.int64)
    for group in range(first, last):
        at, limit = begins[group] * 8, ends[group] * 8
        for position in range(groups[group], groups[group + 1]):
            if at >= limit:
                return position
            look = _look(data, at)
            at += 1
            count = cap
            if not look >> (WINDOW - 1):
                look = _look(data, at)
                zeros = _leading_zeros(look)
                if zeros >= 17:
                    return position
                size = 2 * zeros + COUNT_ORDER + 1
                count = (look >> (WINDOW - size)) - (1 << COUNT_ORDER)
                at += size
            counts[position] = count
            if count == 0:
                continue
            if count > width:
                return position
            look = _look(data, at)
            code = look >> (WINDOW - CODE_BITS)
            at += CODE_BITS
            if with_base:
                look = _look(data, at)
                zeros = _leading_zeros(look)
                if zeros >= 17:
                    return position
                size = 2 * zeros + BASE_ORDER + 1
                bases[position] = (look >> (WINDOW - size)) - (1 << BASE_ORDER)
                at += size
            tails[position] = _look(data, at) >> (WINDOW - TAIL_BITS)
            at += TAIL_BITS
            if tails[position]:
                for index in range(ratios.shape[1]):
                    ratios[position, index] = _look(data, at) >> (WINDOW - RATIO_BITS)
                    at += RATIO_BITS
            if at > limit:
                return position

            raw = rice[count]
            token: Any = -1
            for entry in range(count):
                look = _look(data, at)
                zeros = _leading_zeros(look)
                quotient = zeros
                while zeros == MANY and at <= limit:
                    at += MANY
                    look = _look(data, at)
                    zeros = _leading_zeros(look)
                    quotient += zeros
                token += 1 + (quotient << raw) + ((look >> (WINDOW - zeros - 1 - raw)) & ((1 << raw) - 1))
                at += zeros + 1 + raw
                tokens[entry] = token
                if at > limit or token >= vocabulary:
                    return position

            places[:] = 0
            for entry in range(count):
                look = _look(data, at)
                coded = np.int64(table[code, look >> (WINDOW - LONGEST)])
                symbol, length = coded >> 4, coded & 15
                raw = raw_bits[symbol]
                found[entry] = first_level[symbol] + ((look >> (WINDOW - length - raw)) & ((1 << raw) - 1))
                symbols[entry] = symbol
                places[symbol] += 1
                at += length + raw
                if at > limit or found[entry] + bases[position] >= top:
                    return position

            # by falling symbol in one pass, then by insertion within the symbols that span several levels
            place: Any = 0
            for down in range(SYMBOLS):
                symbol = np.int64(SYMBOLS - 1 - down)
                place += places[symbol]
                places[symbol] = place - places[symbol]
                opens[symbol] = places[symbol]
            for entry in range(count):
                symbol, level, token = symbols[entry], found[entry], tokens[entry]
                place = places[symbol]
                places[symbol] += 1
                if symbol >= 8:
                    while place > opens[symbol] and levels[position, place - 1] < level:
                        levels[position, place] = levels[position, place - 1]
                        ids[position, place] = ids[position, place - 1]
                        place -= 1
                levels[position, place] = level
                ids[position, place] = token
        if at > limit or (limit - at) > 7 or (limit > at and _look(data, at) >> (WINDOW - (limit - at))):
            return groups[group + 1] - 1
    return -1


@compiled
def rebuild(
    counts: Any, levels: Any, bases: Any, tails: Any, log_tails: Any, log_heads: Any,
    low: Any, high: Any, centre: Any, temperatures: Any, spans: Any, ratios: Any, ratio_top: int,
    logprobs: Any, log_tail_mass: Any, ratio_normalisers: Any,
) -> None:  # fmt: skip
    """Turn levels into log-probabilities; the formulas are in `topk_values`."""
    head_sums = np.empty(len(temperatures), dtype=np.float64)
    for position in range(len(counts)):
        count, base = counts[position], bases[position]
        log_tail, mass = log_tails[tails[position]], np.exp(log_heads[tails[position]])
        total, square = 0.0, 0.0
        for entry in range(count):
            level = base + levels[position, entry]
            wide = high[level] - low[level]
            total += centre[level]
            square += wide * wide
        pull = (mass - total) / square if count else 0.0
        total = 0.0
        previous, value = -1, 0.0
        for entry in range(count):
            level = base + levels[position, entry]
            if level != previous:
                wide = high[level] - low[level]
                value = min(max(centre[level] + pull * wide * wide, low[level]), high[level])
                previous = level
            total += value
        head_sums[:] = 0.0
        previous, logarithm = -1, 0.0
        for entry in range(count):
            level = base + levels[position, entry]
            if level != previous:
                wide = high[level] - low[level]
                value = min(max(centre[level] + pull * wide * wide, low[level]), high[level])
                logarithm = np.log(value * (mass / total))
                previous = level
            logprobs[position, entry] = logarithm
            for index in range(len(temperatures)):
                head_sums[index] += np.exp(logarithm / temperatures[index])
        log_tail_mass[position] = log_tail
        for index in range(len(temperatures)):
            rest = 0.0
            if tails[position]:
                rest = np.exp(
                    log_tail / temperatures[index] + ratios[position, index] / ratio_top * spans[position, index]
                )
            if count:
                ratio_normalisers[position, index] = np.log(head_sums[index] + rest)
