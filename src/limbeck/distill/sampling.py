"""The order in which rows are trained: random, with rows of similar length in one batch, a function of seed and epoch.

Nothing depends on a generator's state, so a run that is resumed in the middle of an epoch sees the rest of exactly
that epoch.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from limbeck.seeds import derive_seed

POOL_BATCHES = 32


class LengthGroupedOrder(Sampler[int]):
    """Yields row indices, shuffled; rows of a batch come from a pool of 32 batches that is sorted by length.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a batch: those of an optimisation step, over ranks and micro-batches.
        seed: of the order.
        grouped: False shuffles rows only.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, *, grouped: bool = True) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.grouped = grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.of_epoch(self.epoch))

    def of_epoch(self, epoch: int) -> list[int]:
        """Return the indices of all rows in the order of an epoch."""
        generator = np.random.default_rng(derive_seed(self.seed, "order", epoch))
        order = generator.permutation(len(self.lengths))
        if not self.grouped:
            return [int(row) for row in order]
        pool = self.batch_size * POOL_BATCHES
        batches = []
        for first in range(0, len(order), pool):
            rows = order[first : first + pool]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            batches += [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        # short ones stand behind the full ones, so that they do not shift the rows of every batch after them
        ordered = [full[place] for place in generator.permutation(len(full))] + rest
        return [int(row) for batch in ordered for row in batch]
