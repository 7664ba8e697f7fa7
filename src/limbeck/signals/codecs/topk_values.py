"""From codec `topk`'s integers to log-probabilities, in plain Python.

A level is an interval of probability. Its entries are put at the interval's centre `c`, and what the centres' sum lacks
of the known mass H of all entries is shared out within the intervals:

    p = clip(c + x * d ** 2, floor, ceiling)        with x such that the sum of all p is H

where d is the width of the entry's level: the conditional mean of independent rounding errors given their sum. The
order of levels is kept, and no probability leaves its level for the sake of the others.

H is 1 less the tail that is stored; where that can't be reached within the levels, the tail is moved, at most as far as
its own rounding allows. A position's only entry may lie below level 0, as it is kept in any case. What is then
still missing (rounding errors, damaged bytes) is made by scaling.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from limbeck.signals.codecs.topk_layout import LEAST_SHARE, RATIO_TOP, Layout, ratio_spans, tail_table

ROUNDS = 64  # of the search for x; it ends by itself after a few
CLOSE = 1e-13
LEAST_HEAD = 2.0**-60  # damaged bytes can say that the tail has all

Values = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def rebuild(
    counts: NDArray[np.int64],
    levels: NDArray[np.uint16],
    bases: NDArray[np.int64],
    tails: NDArray[np.int64],
    ratios: NDArray[np.int64],
    layout: Layout,
) -> Values:
    """Return log-probabilities `[N, K]`, the log tail mass `[N]`, and the log-normalisers `[N, S]` at T other than 1.

    Args:
        counts: `[N]`, entries of each position; 0 where nothing is known (what is returned there means nothing).
        levels: `[N, K]`, above the base, falling.
        bases: `[N]`.
        tails: `[N]`, tail codes.
        ratios: `[N, S]`, tail codes at the other temperatures.
        layout: the shared tables.
    """
    logprobs = np.full((len(counts), levels.shape[1]), -np.inf)
    log_tail = np.full(len(counts), -np.inf)
    normalisers = np.zeros((len(counts), len(layout.ratios)))
    spans = ratio_spans(layout.ratios, layout.vocabulary - counts)
    table = tail_table()
    for position, count in enumerate(counts.tolist()):
        if count == 0:
            continue
        found, sizes = np.unique(levels[position, :count] + bases[position], return_counts=True)
        values, tail = level_values(found, sizes, int(tails[position]), layout)
        logprobs[position, :count] = np.repeat(np.log(values), sizes)[::-1]
        code = tails[position]
        log_tail[position] = table.log[code] if tail == table.mass[code] else math.log(tail)
        for index, temperature in enumerate(layout.ratios):
            share = ratios[position, index] / RATIO_TOP * spans[position, index]
            rest = math.exp(table.log[code] / temperature + share) if code else 0.0
            normalisers[position, index] = math.log(np.exp(logprobs[position, :count] / temperature).sum() + rest)
    return logprobs.astype(np.float32), log_tail.astype(np.float32), normalisers.astype(np.float32)


def level_values(
    levels: NDArray[np.int64], sizes: Sequence[int] | NDArray[np.int64], tail_code: int, layout: Layout
) -> tuple[NDArray[np.float64], float]:
    """Return the probability of an entry in each of one position's levels, and the tail's mass.

    Args:
        levels: `[M]`, rising, without repetition.
        sizes: `[M]`, how many entries are in each.
        tail_code: of the tail's mass.
        layout: the shared tables.
    """
    table, sizes = tail_table(), np.asarray(sizes)
    floor, ceiling, centre, give = layout.floor[levels], layout.ceiling[levels], *layout.rules[levels, :2].T
    if sizes.sum() == 1 and levels[0] == 0:
        floor = layout.high[levels] * LEAST_SHARE
    tail = float(table.mass[tail_code])
    if tail_code:
        within = min(max(tail, 1 - float(sizes @ ceiling)), 1 - float(sizes @ floor))
        tail = min(max(within, float(table.least[tail_code])), float(table.most[tail_code]))
    mass = max(1 - tail, LEAST_HEAD)
    x, bottom, top = 0.0, min(0.0, float(((floor - centre) / give).min())), float(((ceiling - centre) / give).max())
    values = centre
    for _ in range(ROUNDS):
        values = np.clip(centre + x * give, floor, ceiling)
        missing = mass - float(sizes @ values)
        if abs(missing) <= CLOSE:
            break
        if missing > 0:
            bottom = x
        else:
            top = x
        free = (values > floor) & (values < ceiling)
        slope = float((sizes * give)[free].sum())
        x = x + missing / slope if slope > 0 else bottom
        if not bottom < x < top:
            x = (bottom + top) / 2
    return values * (mass / float(sizes @ values)), tail
