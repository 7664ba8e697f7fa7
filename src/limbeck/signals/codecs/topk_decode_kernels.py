"""Codec `topk` compiled by numba, the reading half: from bits to integers, and from integers to log-probabilities.

What is read is checked as it is read: no look ahead starts behind a group's end by more than `PADDING` allows, no id
leaves the vocabulary, no level its table, whatever the bytes are.
"""

from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled
from limbeck.signals.codecs.topk_fields import MODES, MOST_ZEROS
from limbeck.signals.codecs.topk_layout import (
    BASE_ORDER,
    CODE_BITS,
    COUNT_ORDER,
    GOLOMB_MODES,
    LEAST_SHARE,
    MODE_BITS,
    RATIO_ORDER,
    RATIO_TOP,
    TAIL_CODES,
    TAIL_ORDER,
)
from limbeck.signals.codecs.topk_prefix import LONGEST, SYMBOLS
from limbeck.signals.codecs.topk_values import CLOSE, LEAST_HEAD, ROUNDS

PADDING = 4  # words that must follow the data, so that a look ahead never leaves it
LEADING_ZEROS = np.array([8] + [8 - value.bit_length() for value in range(1, 256)], dtype=np.int64)
ID_BITS = 21  # of the largest vocabulary
ID_TOP = (1 << ID_BITS) - 1
MANY = 24  # what _leading_zeros says when there are at least so many


@compiled()
def _look(data: Any, at: int) -> Any:
    """Return the 64 bits from bit `at` on, of 64-bit words whose most significant bit comes first."""
    word, inside = at >> 6, np.uint64(at & 63)
    return data[word] << inside | data[word + 1] >> np.uint64(1) >> (np.uint64(63) - inside)


@compiled()
def _top(look: Any, bits: int) -> Any:
    """Return the first `bits` bits, up to 63, as a number."""
    return np.int64(look >> np.uint64(1) >> np.uint64(63 - bits))


@compiled()
def _leading_zeros(look: Any) -> int:
    zeros = LEADING_ZEROS[look >> np.uint64(56)]
    if zeros == 8:
        zeros += LEADING_ZEROS[look >> np.uint64(48) & np.uint64(255)]
        if zeros == 16:
            zeros += LEADING_ZEROS[look >> np.uint64(40) & np.uint64(255)]
    return zeros


@compiled()
def _take_exp_golomb(data: Any, at: int, order: int) -> tuple[int, int]:
    """Return where the number ends and the number; -1 if it is none."""
    look = _look(data, at)
    zeros = _leading_zeros(look)
    if zeros > MOST_ZEROS:
        return at, -1
    size = 2 * zeros + order + 1
    return at + size, _top(look, size) - (1 << order)


@compiled()
def _take_field(data: Any, at: int, limit: int, order: int, top: int, count: int, numbers: Any) -> int:
    """Read a field into `numbers`; return where it ends, or -1 if it is none."""
    at, least = _take_exp_golomb(data, at, order)
    if least < 0 or at > limit:
        return -1
    mode = _top(_look(data, at), MODE_BITS)
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
            above = _top(_look(data, at), mode - GOLOMB_MODES)
            at += mode - GOLOMB_MODES
        if least + above > top:
            return -1
        numbers[index] = least + above
    return at if at <= limit else -1


@compiled()
def _take_fields(
    data: Any, at: int, limit: int, first: int, last: int, cap: int, with_base: bool, levels: int,
    counts: Any, bases: Any, tails: Any, ratios: Any,
) -> int:  # fmt: skip
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
def decode_groups(
    data: Any, begins: Any, ends: Any, groups: Any, first: int, last: int, cap: int, vocabulary: int, with_base: bool,
    rice: Any, table: Any, raw_bits: Any, first_level: Any, top: int,
    counts: Any, ids: Any, levels: Any, bases: Any, tails: Any, ratios: Any,
) -> int:  # fmt: skip
    """Read groups `first..last` into `[N, K]` arrays, sorted by falling level; return -1, or the first bad position.

    `data` are 64-bit words, big-endian, followed by `PADDING` spare ones; group g is bytes `begins[g]..ends[g]`.
    """
    width = ids.shape[1]
    tokens = np.empty(width, dtype=np.int64)
    symbols = np.empty(width, dtype=np.int64)
    found = np.empty(width, dtype=np.int64)
    keys = np.empty(width, dtype=np.int64)
    places, opens = np.empty(SYMBOLS, dtype=np.int64), np.empty(SYMBOLS, dtype=np.int64)
    for group in range(first, last):
        limit = ends[group] * 8
        here, end = groups[group], groups[group + 1]
        at = _take_fields(data, begins[group] * 8, limit, here, end, cap, with_base, top, counts, bases, tails, ratios)
        if at < 0:
            return here
        usual: Any = 0
        if counts[here:end].any():
            usual = _top(_look(data, at), CODE_BITS)
            at += CODE_BITS
        for position in range(here, end):
            count = counts[position]
            if count == 0:
                continue
            if count > width or at > limit:
                return position
            look = _look(data, at)
            code = usual
            if _top(look, 1):
                at += 1
            else:
                code = _top(look, 1 + CODE_BITS)
                at += 1 + CODE_BITS

            raw = rice[count]
            low_bits = (1 << raw) - 1
            token: Any = -1
            for entry in range(count):
                if at > limit:
                    return position
                look = _look(data, at)
                zeros = _leading_zeros(look)
                quotient = zeros
                while zeros == MANY and at <= limit:
                    at += MANY
                    look = _look(data, min(at, limit))
                    zeros = _leading_zeros(look)
                    quotient += zeros
                token += 1 + (quotient << raw) + (_top(look, zeros + 1 + raw) & low_bits)
                at += zeros + 1 + raw
                tokens[entry] = token
                if at > limit or token >= vocabulary:
                    return position

            places[:] = 0
            base, coding = bases[position], table[code]
            for entry in range(count):
                look = _look(data, at)
                coded = np.int64(coding[_top(look, LONGEST)])
                symbol, length = coded >> 4, coded & 15
                raw = raw_bits[symbol]
                found[entry] = first_level[symbol] + (_top(look, length + raw) & ((1 << raw) - 1))
                symbols[entry] = symbol
                places[symbol] += 1
                at += length + raw
                if at > limit or found[entry] + base >= top:
                    return position

            # by falling symbol in one pass, then by insertion within the symbols that span several levels
            place: Any = 0
            for down in range(SYMBOLS):
                symbol = np.int64(SYMBOLS - 1 - down)
                place += places[symbol]
                places[symbol] = place - places[symbol]
                opens[symbol] = places[symbol]
            for entry in range(count):
                symbol = symbols[entry]
                place = places[symbol]
                places[symbol] += 1
                key = found[entry] << ID_BITS | ID_TOP - tokens[entry]
                if symbol >= 8:
                    while place > opens[symbol] and keys[place - 1] < key:
                        keys[place] = keys[place - 1]
                        place -= 1
                keys[place] = key
            to_levels, to_ids = levels[position], ids[position]
            for entry in range(count):
                to_levels[entry] = keys[entry] >> ID_BITS
                to_ids[entry] = ID_TOP - (keys[entry] & ID_TOP)
        if at > limit or (limit - at) > 7 or (limit > at and _top(_look(data, at), limit - at)):
            return groups[group + 1] - 1
    return -1


@compiled()
def _level_values(
    low: Any, high: Any, centre: Any, sizes: Any, values: Any, tail: float, least: float, most: float
) -> float:
    """Fill `values` and return the tail's mass; the formulas are in `topk_values`."""
    runs = len(sizes)
    sum_low, sum_high = 0.0, 0.0
    bottom, top = 0.0, 0.0
    for run in range(runs):
        sum_low += sizes[run] * low[run]
        sum_high += sizes[run] * high[run]
    if tail > 0.0:
        tail = min(max(min(max(tail, 1 - sum_high), 1 - sum_low), least), most)
    mass = max(1 - tail, LEAST_HEAD)
    for run in range(runs):
        give = (high[run] - low[run]) ** 2
        floor = low[run] if low[run] > 0 else high[run] * LEAST_SHARE
        bottom = min(bottom, (floor - centre[run]) / give)
        top = max(top, (high[run] - centre[run]) / give)
    x, total = 0.0, 0.0
    for _ in range(ROUNDS):
        total, slope = 0.0, 0.0
        for run in range(runs):
            give = (high[run] - low[run]) ** 2
            floor = low[run] if low[run] > 0 else high[run] * LEAST_SHARE
            value = centre[run] + x * give
            if value <= floor:
                value = floor
            elif value >= high[run]:
                value = high[run]
            else:
                slope += sizes[run] * give
            values[run] = value
            total += sizes[run] * value
        missing = mass - total
        if abs(missing) <= CLOSE:
            break
        if missing > 0:
            bottom = x
        else:
            top = x
        x = x + missing / slope if slope > 0 else bottom
        if not bottom < x < top:
            x = (bottom + top) / 2
    for run in range(runs):
        values[run] *= mass / total
    return tail


@compiled()
def rebuild(
    counts: Any, levels: Any, bases: Any, tails: Any, log_tails: Any, masses: Any, leasts: Any, mosts: Any,
    low: Any, high: Any, centre: Any, temperatures: Any, spans: Any, ratios: Any,
    logprobs: Any, log_tail_mass: Any, ratio_normalisers: Any,
) -> None:  # fmt: skip
    """Turn levels into log-probabilities; the formulas are in `topk_values`."""
    width = levels.shape[1]
    found = np.empty(width, dtype=np.int64)
    sizes = np.empty(width, dtype=np.float64)
    values = np.empty(width, dtype=np.float64)
    head_sums = np.empty(len(temperatures), dtype=np.float64)
    for position in range(len(counts)):
        count, base, code = counts[position], bases[position], tails[position]
        if count == 0:
            continue
        runs = 0
        for entry in range(count):
            level = base + levels[position, entry]
            if runs and found[runs - 1] == level:
                sizes[runs - 1] += 1.0
            else:
                found[runs], sizes[runs] = level, 1.0
                runs += 1
        lowest = low[found[:runs]]
        if count == 1 and found[0] == 0:
            lowest[0] = 0.0
        tail = _level_values(
            lowest, high[found[:runs]], centre[found[:runs]], sizes[:runs], values,
            masses[code], leasts[code], mosts[code],
        )  # fmt: skip
        head_sums[:] = 0.0
        entry = 0
        for run in range(runs):
            logarithm = np.log(values[run])
            for _ in range(int(sizes[run])):
                logprobs[position, entry] = logarithm
                entry += 1
            for index in range(len(temperatures)):
                head_sums[index] += sizes[run] * np.exp(logarithm / temperatures[index])
        log_tail_mass[position] = log_tails[code] if tail == masses[code] else np.log(tail)
        for index in range(len(temperatures)):
            rest = 0.0
            if code:
                rest = np.exp(
                    log_tails[code] / temperatures[index] + ratios[position, index] / RATIO_TOP * spans[position, index]
                )
            ratio_normalisers[position, index] = np.log(head_sums[index] + rest)
