"""From a dataset of signals to batches: deterministic, divided among ranks and workers, resumable at any step.

`batch(epoch, step)` is a pure function of the loader's settings: an epoch is read by asking for its steps in order, and
resumed by asking for the next. Each rank has one contiguous stretch of the epoch's order; stretches differ by at most
one sample, every sample is in exactly one, and all ranks have equally many steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limbeck.errors import UserError
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.order import EpochOrder
from limbeck.signals.stacking import concatenate, pad_rows
from limbeck.signals.types import TeacherSignal, to_device


@dataclass(frozen=True)
class SignalBatch:
    """B rows, padded on the right to the longest.

    Attributes:
        input_ids: `[B, T]`, int64.
        attention_mask: `[B, T]`, bool; False on padding.
        trained: `[B, T]`, bool: whether token t is one to learn; False on padding.
        targets: `[B, T]`, int64: the token that follows position t; the padding id behind the last.
        counted: `[B, T]`, bool: whether position t is trained on: the token that follows it is there, is one to learn,
            and belongs to the same document, and the signal (if it was decoded) says something here. This is the one
            place where token flags are shifted to positions.
        signal: `[B, T, ...]` with `counted` for its mask; None where it was not decoded.
        documents: `[B, T]`, int64, -1 on padding; None: each row is one document.
        samples: which of the dataset's rows these are; empty if the batch is a stand-in with nothing to train on.
        epoch: of the batch.
        step: of the batch within its epoch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    trained: Tensor
    targets: Tensor
    counted: Tensor
    signal: TeacherSignal | None
    documents: Tensor | None = None
    samples: tuple[int, ...] = ()
    epoch: int = 0
    step: int = 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SignalBatch":
        """Return the batch on `device`."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        signal = None if self.signal is None else to_device(self.signal, device, non_blocking=non_blocking)
        return replace(self, **tensors, signal=signal)


def collate(rows: Sequence[SignalRow], pad_id: int = 0) -> SignalBatch:
    """Return rows as one batch; all of them have a signal, or none."""
    input_ids = _padded([row.input_ids for row in rows], pad_id)
    trained = _padded([row.trained for row in rows], False)
    attention_mask = _padded([torch.ones_like(row.trained) for row in rows], False)
    documents = (
        _padded([row.documents for row in rows if row.documents is not None], -1)
        if rows[0].documents is not None
        else None
    )
    targets = torch.full_like(input_ids, pad_id)
    targets[:, :-1] = input_ids[:, 1:]
    counted = torch.zeros_like(trained)
    counted[:, :-1] = trained[:, 1:]
    if documents is not None:
        counted[:, :-1] &= documents[:, 1:] == documents[:, :-1]
    signal: TeacherSignal | None = None
    signals = [row.signal for row in rows if row.signal is not None]
    if signals:
        signal = pad_rows(concatenate(signals), [len(row.input_ids) for row in rows])
        counted &= signal.mask
        signal = replace(signal, mask=counted)
    return SignalBatch(input_ids, attention_mask, trained, targets, counted, signal, documents)


@dataclass(frozen=True)
class SignalLoader:
    """Batches of a dataset.

    Attributes:
        dataset: what is read.
        batch_size: the most rows of a batch; batches of an epoch are as equal as they can be, and none is smaller by
            more than the epoch's remainder makes it.
        seed: of the order.
        rank: this process, of `world`.
        world: how many processes share the dataset.
        buffer: samples that are shuffled together; the shards they come from are kept in memory.
        shuffle: False reads in the dataset's own order.
        pad_id: fills up `input_ids`.
        decode: whether signals are decoded.
    """

    dataset: SignalDataset
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    buffer: int = 4096
    shuffle: bool = True
    pad_id: int = 0
    decode: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.buffer < 1 or not 0 <= self.rank < self.world:
            raise UserError(
                f"loader: batch_size {self.batch_size} and buffer {self.buffer} must be at least 1, "
                f"and rank {self.rank} one of 0..{self.world - 1}."
            )
        if not len(self.dataset):
            raise UserError(f"{self.dataset.folder}: no samples to load.")
        if self.shuffle:
            a_shard = max(self.dataset.shard_sizes)
            self.dataset.keep_shards(self.buffer // a_shard + 2)

    @property
    def steps(self) -> int:
        """Return the batches of an epoch, on every rank."""
        largest = -(-len(self.dataset) // self.world)
        return -(-largest // self.batch_size)

    def samples(self, epoch: int, step: int) -> tuple[int, ...]:
        """Return which rows of the dataset are in a batch of this rank."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        total = len(self.dataset)
        first, last = total * self.rank // self.world, total * (self.rank + 1) // self.world
        size = last - first
        places = range(first + size * step // self.steps, first + size * (step + 1) // self.steps)
        if not self.shuffle:
            return tuple(places)
        order = _order(tuple(self.dataset.shard_sizes), self.buffer, self.seed, epoch)
        return tuple(order.sample(place) for place in places)

    def batch(self, epoch: int, step: int) -> SignalBatch:
        """Return one batch of this rank.

        A rank that has fewer samples than steps gets a stand-in now and then: one row with nothing to train on, so that
        all ranks take part in every step and no sample counts twice.
        """
        samples = self.samples(epoch, step)
        rows = self.dataset.rows(samples or (0,), decode=self.decode)
        if not samples:
            rows = [replace(rows[0], trained=torch.zeros_like(rows[0].trained))]
        return replace(collate(rows, self.pad_id), samples=samples, epoch=epoch, step=step)

    def batches(self, epoch: int, start: int = 0, workers: int = 0) -> Iterator[SignalBatch]:
        """Iterate over an epoch from step `start` on; `workers` processes read ahead, in the same order."""
        steps = range(start, self.steps)
        yield from DataLoader(_Steps(self, epoch), batch_size=None, sampler=steps, num_workers=workers)


class _Steps(Dataset[SignalBatch]):
    """An epoch of a loader, by step."""

    def __init__(self, loader: SignalLoader, epoch: int) -> None:
        self.loader = loader
        self.epoch = epoch

    def __getitem__(self, step: int) -> SignalBatch:
        return self.loader.batch(self.epoch, step)


@lru_cache(maxsize=4)
def _order(shard_sizes: tuple[int, ...], buffer: int, seed: int, epoch: int) -> EpochOrder:
    return EpochOrder(shard_sizes, buffer, seed, epoch)


def _padded(rows: Sequence[Tensor], value: Any) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
