"""Random numbers that are looked up rather than drawn in turn: a function of a row's seed, a position and a purpose.

What a position draws therefore depends neither on what was drawn before it nor on which rows were scored together, and
a capture that is taken up again writes the bytes that it would have written.

Numbers are those of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), whose
n-th output is a function of seed and n: the outputs of a row's seed are the keys of its positions, and the outputs of a
key are the numbers of its position. Place 0 is where the walk along the tail starts, place 1 rounds the weight of one
draw, and place 2 + v rounds the weight of token v.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.signals.codecs.columns import Integers
from limbeck.signals.order import FIRST, GOLDEN, SECOND

START, UNIT, FIRST_TOKEN = 0, 1, 2

Keys = NDArray[np.uint64]


def position_keys(seed: int, count: int) -> Keys:
    """Return the keys of a row's first `count` positions.

    Args:
        seed: the row's, 64 bits; `limbeck.seeds.derive_seed` makes it of a run's seed and the row's number.
        count: positions of the row.
    """
    return _outputs(np.uint64(seed % (1 << 64)), np.arange(count, dtype=np.uint64))


def numbers_at(keys: Keys, places: Integers | int) -> NDArray[np.float64]:
    """Return a uniform number in [0, 1), of 53 bits, for each key at its place."""
    outputs = _outputs(keys, np.asarray(places).astype(np.uint64))
    return np.asarray((outputs >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _outputs(seeds: Any, places: Any) -> Keys:
    with np.errstate(over="ignore"):
        state = seeds + (places + np.uint64(1)) * np.uint64(GOLDEN)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(FIRST)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(SECOND)
        return np.asarray(state ^ (state >> np.uint64(31)))
