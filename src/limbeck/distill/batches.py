"""From rows to the micro-batches of one process: a function of seed, epoch and place, so a run resumes anywhere.

The rows of an optimisation step are the next ones of the epoch's order, however many processes and micro-batches they
are divided among: as equally as can be, in order, micro-batch by micro-batch and in each rank by rank. All ranks have
equally many micro-batches, no row counts twice, and a rank that gets no row (in the last step of an epoch) gets a
stand-in with nothing to train on.

A stream of rows is read by all processes, and each keeps its part. It has no epochs here: when it ends it is read
again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from limbeck.errors import UserError
from limbeck.signals.dataset import SignalRow
from limbeck.signals.loader import SignalBatch, collate

Key = tuple[int, int]  # epoch, micro-batch


@runtime_checkable
class Passes(Protocol):
    """A stream that is told the number of the pass that is about to be read, to shuffle differently, say."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass that the next iteration reads."""
        ...


@runtime_checkable
class Seekable(Protocol):
    """A stream that finds a row without reading those before it."""

    def rows_from(self, first: int) -> Iterator[SignalRow]:
        """Iterate without end over pass after pass, from row number `first` on, counted over all passes."""
        ...


@dataclass(frozen=True)
class Division:
    """How the rows of an optimisation step are divided.

    Attributes:
        rows: the most rows of one micro-batch on one rank.
        micro_batches: of a step, on each rank.
        rank: this process.
        world: how many processes there are.
    """

    rows: int
    micro_batches: int = 1
    rank: int = 0
    world: int = 1

    @property
    def a_step(self) -> int:
        """Return the rows of a step."""
        return self.rows * self.micro_batches * self.world

    def steps(self, rows: int, *, drop_last: bool = False) -> int:
        """Return how many steps an epoch of `rows` rows has; the last may be a smaller one."""
        return rows // self.a_step if drop_last else -(-rows // self.a_step)

    def part(self, micro_batch: int, rows: int) -> slice:
        """Return this rank's part of the `rows` rows of a step."""
        index, parts = micro_batch * self.world + self.rank, self.micro_batches * self.world
        return slice(rows * index // parts, rows * (index + 1) // parts)


class MappedBatches(Dataset[SignalBatch]):
    """Micro-batches of rows that can be asked for by number.

    Args:
        rows: `rows[i]`, and `rows.__getitems__([i, ...])` where it has that.
        order: the numbers of an epoch's rows.
        division: among micro-batches and ranks.
        pad_id: fills up `input_ids`.
    """

    def __init__(self, rows: Any, order: Callable[[int], Sequence[int]], division: Division, pad_id: int = 0) -> None:
        self.rows = rows
        self.order = order
        self.division = division
        self.pad_id = pad_id
        self._epoch: tuple[int, Sequence[int]] = (-1, ())

    def __getitem__(self, key: Key) -> SignalBatch:
        epoch, number = key
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.order(epoch))
        step, micro_batch = divmod(number, self.division.micro_batches)
        of_step = self._epoch[1][step * self.division.a_step : (step + 1) * self.division.a_step]
        samples = list(of_step[self.division.part(micro_batch, len(of_step))])
        rows = self._read(samples or [0])
        batch = collate(rows, self.pad_id) if samples else _stand_in(rows[0], self.pad_id)
        return replace(batch, samples=tuple(samples), epoch=epoch, step=step)

    def _read(self, samples: list[int]) -> list[SignalRow]:
        together = getattr(self.rows, "__getitems__", None)
        found: list[SignalRow] = together(samples) if together else [self.rows[sample] for sample in samples]
        return found


class StreamedBatches(Dataset[SignalBatch]):
    """Micro-batches of a stream; cheap when asked for in order.

    Args:
        rows: the same rows whenever they are iterated over; see also `Passes` and `Seekable`.
        division: among micro-batches and ranks.
        pad_id: fills up `input_ids`.
    """

    def __init__(self, rows: Iterable[SignalRow], division: Division, pad_id: int = 0) -> None:
        self.rows = rows
        self.division = division
        self.pad_id = pad_id
        self._read: Iterator[SignalRow] | None = None
        self._place = 0  # rows read, over all passes

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: it reads the stream itself."""
        return {**vars(self), "_read": None, "_place": 0}

    def __getitem__(self, key: Key) -> SignalBatch:
        step, micro_batch = divmod(key[1], self.division.micro_batches)
        part = self.division.part(micro_batch, self.division.a_step)
        first = step * self.division.a_step + part.start
        if self._read is None or self._place > first:
            self._read, self._place = self._rows(first), first
        for _ in range(first - self._place):
            next(self._read)
        rows = list(islice(self._read, part.stop - part.start))
        self._place = first + len(rows)
        return replace(collate(rows, self.pad_id), samples=tuple(range(first, self._place)), step=step)

    def _rows(self, first: int) -> Iterator[SignalRow]:
        if isinstance(self.rows, Seekable):
            yield from self.rows.rows_from(first)
        number = 0
        while True:
            if isinstance(self.rows, Passes):
                self.rows.set_epoch(number)
            count = 0
            for count, row in enumerate(self.rows, 1):
                if count > first:
                    yield row
            if not count:
                raise UserError("dataset: the stream has no rows. Name another source.")
            first, number = max(0, first - count), number + 1


class KeySampler(Sampler[list[Key]]):
    """Yields the keys of an epoch's micro-batches, each in a list of its own.

    Args:
        count: micro-batches of an epoch.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[Key]]:
        return iter([[(self.epoch, number)] for number in range(self.count)])


class EpochLoader(DataLoader[SignalBatch]):
    """Reads micro-batches ahead in worker processes, or in this one where there are none.

    Args:
        batches: of rows or of a stream.
        count: micro-batches of an epoch.
        workers: processes.
        reading: further arguments of `DataLoader`.
    """

    def __init__(self, batches: Dataset[SignalBatch], count: int, workers: int = 0, **reading: Any) -> None:
        super().__init__(batches, batch_sampler=KeySampler(count), collate_fn=_only, num_workers=workers, **reading)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration reads."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def _only(batches: list[SignalBatch]) -> dict[str, SignalBatch]:
    (batch,) = batches
    return {"batch": batch}


def _stand_in(row: SignalRow, pad_id: int) -> SignalBatch:
    return collate([replace(row, trained=torch.zeros_like(row.trained))], pad_id)
