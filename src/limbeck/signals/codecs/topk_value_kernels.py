"""The values of one position of codec `topk`, compiled by numba: from levels to log-probabilities.

The formulas are those of `topk_values`. Where the share of what is missing leaves all values within their levels, which
is the rule, it is found at once; otherwise by the same search as there.
"""

import math
from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled
from limbeck.signals.codecs.topk_bits import LANES, bits_of, float_of, store_lanes
from limbeck.signals.codecs.topk_values import CLOSE, LEAST_HEAD, ROUNDS

CENTRE, GIVE, LEAST, MOST = 0, 1, 2, 3  # columns of `value_table`
_ROOT_HALF = int(np.sqrt(np.float64(0.5)).view(np.int64))
_LN_2 = math.log(2)


@compiled()
def level_values(runs: Any, sizes: Any, count: int, rules: Any, mass: float, values: Any) -> bool:
    """Fill `values` if the entries have a mass of `mass` with all of them within their levels; say whether they do.

    Args:
        runs: the levels of `count` runs of entries.
        sizes: how many entries each has.
        count: of runs.
        rules: float64 `[L, 4]`: of each level its centre c and give d^2, and the least and greatest x for which
            c + x d^2 lies between its bounds.
        mass: to be reached.
        values: to be filled.
    """
    total, give = 0.0, 0.0
    least, most = -np.inf, np.inf
    for run in range(count):
        level, size = np.uint64(runs[run]), float(sizes[run])
        total += size * rules[level, CENTRE]
        give += size * rules[level, GIVE]
        least = max(least, rules[level, LEAST])
        most = min(most, rules[level, MOST])
    x = (mass - total) / give
    if not least <= x <= most:
        return False
    for run in range(count):
        level = np.uint64(runs[run])
        values[run] = rules[level, CENTRE] + x * rules[level, GIVE]
    return True


@compiled()
def search_values(
    floor: Any, ceiling: Any, centre: Any, give: Any, sizes: Any, values: Any, tail: float, least: float, most: float
) -> float:
    """Fill `values` and return the tail's mass, whatever has to give way; see `topk_values`.

    Args:
        floor: `[R]`, lower bounds of the values of R runs; what follows likewise.
        ceiling: upper bounds.
        centre: where they are put.
        give: by how much they give way.
        sizes: how many entries each has.
        values: to be filled.
        tail: the mass that its code means; `least` and `most` round to the same code.
        least: see `tail`.
        most: see `tail`.
    """
    runs = len(floor)
    sum_low, sum_high = 0.0, 0.0
    bottom, top = 0.0, 0.0
    for run in range(runs):
        sum_low += sizes[run] * floor[run]
        sum_high += sizes[run] * ceiling[run]
        bottom = min(bottom, (floor[run] - centre[run]) / give[run])
        top = max(top, (ceiling[run] - centre[run]) / give[run])
    if tail > 0.0:
        tail = min(max(min(max(tail, 1 - sum_high), 1 - sum_low), least), most)
    mass = max(1 - tail, LEAST_HEAD)
    x, total = 0.0, 0.0
    for _ in range(ROUNDS):
        total, slope = 0.0, 0.0
        for run in range(runs):
            value = centre[run] + x * give[run]
            if value <= floor[run]:
                value = floor[run]
            elif value >= ceiling[run]:
                value = ceiling[run]
            else:
                slope += sizes[run] * give[run]
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
def logarithms(values: Any, count: int, into: Any) -> None:
    """Fill `into` with the natural logarithms of positive float64 numbers, exact to about two units in the last place.

    With v = 2^k m and s = (m - 1) / (m + 1): log v = k log 2 + 2 (s + s^3/3 + ... + s^17/17), where sqrt(1/2) <= m <
    sqrt(2). Both arrays must have room for the next multiple of eight, and positive numbers there.
    """
    for index in range((count + 7) >> 3 << 3):
        bits = bits_of(values[index])
        octave = bits - _ROOT_HALF >> 52
        above = float_of(bits - (octave << 52)) - 1.0
        s = above / (2.0 + above)
        z = s * s
        series = 2 / 9 + z * (2 / 11 + z * (2 / 13 + z * (2 / 15 + z * (2 / 17))))
        series = z * (2 / 3 + z * (2 / 5 + z * (2 / 7 + z * series)))
        into[index] = float(octave) * _LN_2 + (2.0 * s + s * series)


@compiled()
def spread(values: Any, sizes: Any, first: int, runs: int, row: Any, count: int) -> None:
    """Fill the first `count` places of a float32 row: the first `first` runs have one entry each, others `sizes`."""
    for run in range(first):
        row[np.uint64(run)] = np.float32(values[run])
    at = first
    for run in range(first, runs):
        value, size = np.float32(values[run]), sizes[run]
        if size >= LANES:
            for place in range(at, at + size - LANES, LANES):
                store_lanes(row, place, value)
            store_lanes(row, at + size - LANES, value)
        elif at + LANES <= count:
            store_lanes(row, at, value)
        else:
            for place in range(at, at + size):
                row[np.uint64(place)] = value
        at += size


@compiled()
def log_normaliser(values: Any, logs: Any, sizes: Any, runs: int, rest: float, temperature: float) -> float:
    """Return `log(sum v^(1/T) + rest)` over the entries of all runs."""
    total = rest
    if temperature == 2.0:
        for run in range(runs):
            total += sizes[run] * math.sqrt(values[run])
    else:
        for run in range(runs):
            total += sizes[run] * math.exp(logs[run] / temperature)
    return math.log(total)
