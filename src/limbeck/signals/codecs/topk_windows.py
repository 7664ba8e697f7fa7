"""Several levels at one look: what the next ten bits of a stream hold, for each of the 64 prefix codes.

A window holds as many whole levels as fit, up to six, each with its raw bits and none above 254. None fits where a
longer word comes next: such a level is read by itself.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from limbeck.signals.codecs.topk_prefix import CODES, LONGEST, PrefixCodes, prefix_codes

WINDOW = 10  # bits
MOST = 6  # levels in a window
LONG = 255  # what stands for a level that does not fit a byte
TALLIED = 7  # levels from here up are counted as one


@dataclass(frozen=True)
class Windows:
    """What is in each window of each code.

    Attributes:
        found: uint64 `[64, 1024, 2]`: six levels, eight bits each, the first lowest; then in eight bits each how many
            there are, and how many bits they take. The second number counts them: byte l the levels l, byte 7 those
            from 7 up.
        ends: uint64 `[64, 1024]`: where level number j ends, in the four bits from 4 j on; 0 where j = 0.
    """

    found: NDArray[np.uint64]
    ends: NDArray[np.uint64]


@lru_cache(maxsize=1)
def windows() -> Windows:
    """Return the windows of all codes; they are made once."""
    return _windows_of(prefix_codes())


def _windows_of(codes: PrefixCodes) -> Windows:
    bits = np.arange(1 << WINDOW)
    shape = (CODES, 1 << WINDOW)
    levels, tally, ends, count, used = (np.zeros(shape, dtype=np.int64) for _ in range(5))
    going = np.ones(shape, dtype=bool)
    for place in range(MOST):
        ahead = (bits << used << (LONGEST - WINDOW)) & ((1 << LONGEST) - 1)
        coded = np.take_along_axis(codes.table, ahead, axis=1).astype(np.int64)
        symbol = coded >> 4
        raw = codes.raw_bits[symbol]
        left = WINDOW - used - (coded & 15) - raw
        level = codes.first_level[symbol] + ((bits >> np.maximum(left, 0)) & ((1 << raw) - 1))
        going &= (left >= 0) & (level < LONG)
        levels += np.where(going, level << 8 * place, 0)
        tally += np.where(going, 1 << 8 * np.minimum(level, TALLIED), 0)
        used = np.where(going, WINDOW - left, used)
        count += going
        ends += np.where(going, used << 4 * (place + 1), 0)
    found = np.stack([levels | count << 48 | used << 56, tally], -1)
    return Windows(found.astype(np.uint64), ends.astype(np.uint64))
