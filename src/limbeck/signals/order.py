"""The order of samples in an epoch, as a function of the seed and the epoch alone.

Shards come in random order and the samples of each in random order; then every window of `buffer` consecutive samples
is shuffled again, so that neighbours come from different shards. Nothing is drawn in sequence: the sample at any
place is found directly, which is what makes a run resumable at any step and the work divisible among ranks.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from limbeck.seeds import derive_seed
from limbeck.signals.codecs.columns import offsets_of

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def permutation(seed: int, size: int) -> NDArray[np.int64]:
    """Return a permutation of `size` numbers: those sorted by the SplitMix64 sequence (Steele et al., 2014) of `seed`.

    Its own generator, because the streams of numpy's may change with its version.
    """
    with np.errstate(over="ignore"):
        keys = np.uint64(seed) + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(FIRST)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(SECOND)
        keys ^= keys >> np.uint64(31)
    return np.argsort(keys, kind="stable")


class EpochOrder:
    """Where each place of an epoch's order lies in the dataset.

    Args:
        shard_sizes: samples of each shard.
        buffer: samples that are shuffled together; 1 leaves the order of shards and within shards.
        seed: of the run.
        epoch: of the order.
    """

    def __init__(self, shard_sizes: Sequence[int], buffer: int, seed: int, epoch: int) -> None:
        self.buffer = buffer
        self._root = derive_seed(seed, "sample order", epoch)
        self._firsts = offsets_of(shard_sizes)
        self._shards = permutation(derive_seed(self._root, "shards"), len(shard_sizes))
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)[self._shards]
        self._starts = offsets_of(self._sizes)
        self._window = lru_cache(maxsize=4)(self._window_order)
        self._inside = lru_cache(maxsize=64)(self._shard_order)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def sample(self, place: int) -> int:
        """Return the sample at one place of the order."""
        window = place // self.buffer
        place = window * self.buffer + int(self._window(window)[place - window * self.buffer])
        turn = int(np.searchsorted(self._starts, place, side="right")) - 1
        return int(self._firsts[self._shards[turn]] + self._inside(turn)[place - self._starts[turn]])

    def _window_order(self, window: int) -> NDArray[np.int64]:
        size = min(self.buffer, len(self) - window * self.buffer)
        return permutation(derive_seed(self._root, "window", window), size)

    def _shard_order(self, turn: int) -> NDArray[np.int64]:
        return permutation(derive_seed(self._root, "shard", int(self._shards[turn])), int(self._sizes[turn]))
