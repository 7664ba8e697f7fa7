"""Codec `topk` compiled by numba, the reading half: groups of positions, from bits to log-probabilities.

What is read is checked as it is read: no look ahead starts behind a group's end by more than `PADDING` allows, no id
leaves the vocabulary, no level its table, whatever the bytes are. The kernel works on a range of groups and lets go of
Python's lock, so that threads can share the work.
"""

import math
from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled
from limbeck.signals.codecs.topk_bits import look, top
from limbeck.signals.codecs.topk_entry_kernels import ID_BITS, ROOM, put_in_order, take_ids, take_levels
from limbeck.signals.codecs.topk_field_kernels import take_fields
from limbeck.signals.codecs.topk_layout import CODE_BITS, LEAST_SHARE, RATIO_TOP
from limbeck.signals.codecs.topk_value_kernels import (
    CENTRE,
    GIVE,
    level_values,
    log_normaliser,
    logarithms,
    search_values,
    spread,
)
from limbeck.signals.codecs.topk_windows import TALLIED


@compiled()
def decode_groups(
    data: Any, begins: Any, ends: Any, groups: Any, first: int, last: int, cap: int, vocabulary: int, with_base: bool,
    rice: Any, found: Any, found_ends: Any, table: Any, raw_bits: Any, first_level: Any,
    log_tails: Any, masses: Any, leasts: Any, mosts: Any, high: Any, floor: Any, ceiling: Any, rules: Any,
    temperatures: Any, bases: Any, tails: Any, ratios: Any,
    counts: Any, ids: Any, logprobs: Any, log_tail_mass: Any, normalisers: Any,
) -> int:  # fmt: skip
    """Read groups `first..last`; return -1, or the first bad position.

    Args:
        data: uint8, `PADDING` more than what holds something; group g is bytes `begins[g]..ends[g]`.
        begins: `[G]`.
        ends: `[G]`.
        groups: `[G + 1]`; group g is positions `groups[g]..groups[g + 1]`.
        first: a group.
        last: the one behind the last.
        cap: the most entries of a position; what follows is of the `Layout`, of `Windows` and of the `TailTable`.
        vocabulary: V.
        with_base: whether positions say at which level theirs start.
        rice: see `Layout`.
        found: see `Windows`.
        found_ends: see `Windows`.
        table: see `PrefixCodes`.
        raw_bits: see `PrefixCodes`.
        first_level: see `PrefixCodes`.
        log_tails: see `TailTable`.
        masses: see `TailTable`.
        leasts: see `TailTable`.
        mosts: see `TailTable`.
        high: see `Layout`.
        floor: see `Layout`.
        ceiling: see `Layout`.
        rules: see `Layout`.
        temperatures: `[S]`, other than 1.
        bases: zeros `[N]`, room for what is read; `tails` and `ratios` `[N, S]` likewise.
        tails: see `bases`.
        ratios: see `bases`.
        counts: `[N]`, to be filled: the entries of each position.
        ids: `[N, K]`, to be filled, 0 where there is no entry.
        logprobs: float32 `[N, K]`, to be filled, `-inf` where there is no entry.
        log_tail_mass: float32 `[N]`, to be filled.
        normalisers: float32 `[N, S]`, to be filled.
    """
    width = ids.shape[1]
    room = width + ROOM
    tokens, keys, longer = (
        np.empty(room, dtype=np.int64),
        np.empty(room, dtype=np.int64),
        np.empty(room, dtype=np.int64),
    )
    levels = np.empty(room, dtype=np.uint8)
    runs, sizes, tallies = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int64), np.empty(8, dtype=np.int64)
    values, logs = np.ones(room, dtype=np.float64), np.empty(room, dtype=np.float64)
    for group in range(first, last):
        limit = ends[group] * 8
        here, end = groups[group], groups[group + 1]
        at = take_fields(
            data, begins[group] * 8, limit, here, end, cap, with_base, len(high), counts, bases, tails, ratios
        )
        if at < 0:
            return here
        usual: Any = 0
        if counts[here:end].any():
            usual = top(look(data, at), CODE_BITS)
            at += CODE_BITS
        for position in range(here, end):
            count, base, tail_code = counts[position], bases[position], tails[position]
            to_ids, to_logprobs = ids[position], logprobs[position]
            to_ids[count:] = 0
            to_logprobs[count:] = -np.inf
            log_tail_mass[position] = 0.0
            normalisers[position] = 0.0
            if count == 0:
                continue
            if count > width or at > limit:
                return position
            code = usual
            if top(look(data, at), 1):
                at += 1
            else:
                code = top(look(data, at), 1 + CODE_BITS)
                at += 1 + CODE_BITS
            at = take_ids(data, at, limit, rice[count], count, tokens)
            if at < 0 or at > limit or tokens[count - 1] >= vocabulary:
                return position
            at, tally = take_levels(
                data, at, limit, found[code], found_ends[code], table[code], raw_bits, first_level, count, levels,
                longer,
            )  # fmt: skip
            if at < 0 or at > limit:
                return position
            single = put_in_order(tokens, levels, longer, count, tally, to_ids, keys, tallies)

            for run in range(single):
                runs[run] = (keys[run] >> ID_BITS) + base
                sizes[run] = 1
            many = single
            for level in range(TALLIED - 1, -1, -1):
                runs[many], sizes[many] = level + base, tallies[level]
                many += tallies[level] > 0
            if runs[0] >= len(high):
                return position

            tail = masses[tail_code]
            if not level_values(runs, sizes, many, rules, 1.0 - tail, values):
                alike = runs[:many]
                lowest = floor[alike]
                if count == 1 and runs[0] == 0:
                    lowest[0] = high[0] * LEAST_SHARE
                tail = search_values(
                    lowest, ceiling[alike], rules[alike, CENTRE], rules[alike, GIVE], sizes, values,
                    tail, leasts[tail_code], mosts[tail_code],
                )  # fmt: skip
            logarithms(values, many, logs)
            spread(logs, sizes, single, many, to_logprobs, count)
            log_tail_mass[position] = log_tails[tail_code] if tail == masses[tail_code] else math.log(tail)
            for index in range(len(temperatures)):
                temperature, rest = temperatures[index], 0.0
                if tail_code:
                    span = (1 - 1 / temperature) * math.log(float(max(vocabulary - count, 1)))
                    rest = math.exp(log_tails[tail_code] / temperature + ratios[position, index] / RATIO_TOP * span)
                normalisers[position, index] = log_normaliser(values, logs, sizes, many, rest, temperature)
        if at > limit or (limit - at) > 7 or (limit > at and top(look(data, at), limit - at)):
            return groups[group + 1] - 1
    return -1
