"""The walk along one position's distribution, compiled by numba: the same choice as `sampled_walk.walk_plainly`.

The vocabulary is gone through in blocks. Sums of blocks say which of them the walk takes a token from, and only those
are looked at token by token; everything else is sums and comparisons, many tokens at a time. Kernels let go of Python's
lock. Importing this module compiles nothing; the first call does (the result is cached on disk).
"""

from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled

BLOCK = 128  # tokens; long enough that adding up a vector register's parts at the end costs little


@compiled("reassoc", "nsz")
def _sum_blocks(values: Any, sums: Any) -> None:
    """Fill in the sum of each block, float64; the order of additions within one is the compiler's choice."""
    for block in range(len(values)):
        summed = 0.0
        for index in range(BLOCK):
            summed += np.float64(values[block, index])
        sums[block] = summed


@compiled()
def _count_from(values: Any, block: int, edge: Any) -> int:
    found = 0
    for index in range(BLOCK):
        found += values[block, index] >= edge
    return found


@compiled()
def _take_head(masses: Any, shares: Any, sums: Any, edge: float, ids: Any, found: Any) -> int:
    """Move what is at least `edge` from the blocks to `ids` and `found`; return how many that are."""
    heads = 0
    near = masses.dtype.type(edge * (1 - 1e-6))  # a comparison in the masses' own precision, so that it is a fast one
    for block in range(len(masses)):
        if not _count_from(masses, block, near):
            continue
        left = 0.0
        for index in range(BLOCK):
            if masses[block, index] >= edge:
                ids[heads], found[heads] = block * BLOCK + index, masses[block, index]
                heads += 1
                masses[block, index] = 0
                shares[block, index] = 0
            left += masses[block, index]
        sums[block] = left
    return heads


@compiled()
def walk(
    masses: Any, shares: Any, separate: bool, threshold: float, draws: int, least: float, start: float,
    sums: Any, ids: Any, found: Any, expected: Any, counts: Any,
) -> tuple[float, float, int, int]:  # fmt: skip
    """Choose head and tail of one position, whose V tokens are laid out in blocks, filled up with zeros.

    Args:
        masses: `[blocks, 128]`, probabilities up to a factor, none of them NaN; the head's are set to 0.
        shares: `[blocks, 128]`, what draws are proportional to; `masses` itself unless `separate`. Likewise.
        separate: whether `shares` is another array.
        threshold: of the head; 1: no head.
        draws: from the tail; 0: as often as its mass is a multiple of the threshold.
        least: a tail of a smaller mass is not drawn from.
        start: where the walk starts, in [0, 1).
        sums: `[blocks]`, scratch.
        ids: `[V]`, out: the head's ids, then the tail's, each rising.
        found: `[V]`, out: their `masses`.
        expected: `[V]`, out: how often each of the tail was expected.
        counts: `[V]`, out: how often each of the tail was drawn.

    Returns:
        the sum of `masses`, that of the tail's, and how many tokens are in the head and in the tail.
    """
    _sum_blocks(masses, sums)
    whole = np.sum(sums)
    edge = threshold * whole
    heads = _take_head(masses, shares, sums, edge, ids, found) if threshold < 1.0 else 0
    tail = np.sum(sums)
    if tail < least * whole:
        return whole, tail, heads, 0
    if separate:
        _sum_blocks(shares, sums)
    rate = draws / np.sum(sums) if draws else 1.0 / edge
    end = len(sums) - 1
    while sums[end] == 0.0:
        end -= 1
    ultimate = -1  # the last sum is `draws` but for rounding: the last token there is has what is missing
    if draws:
        ultimate = BLOCK - 1
        while shares[end, ultimate] == 0:
            ultimate -= 1
    filled, passed, so_far = heads, 0, 0.0
    for block in range(end + 1):
        following = so_far + sums[block]
        last = draws > 0 and block == end
        if int(np.floor(following * rate + start)) <= passed and not last:
            so_far = following
            continue
        for index in range(BLOCK):
            if shares[block, index] == 0:
                continue
            so_far += shares[block, index]
            here = int(np.floor(so_far * rate + start))
            here = min(here, draws) if draws else min(here, passed + 1)
            if last and index == ultimate:
                here = draws
            if here > passed:
                ids[filled], found[filled] = block * BLOCK + index, masses[block, index]
                expected[filled], counts[filled] = shares[block, index] * rate, here - passed
                filled += 1
                passed = here
    return whole, tail, heads, filled - heads
