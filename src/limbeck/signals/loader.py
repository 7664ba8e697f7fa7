"""From a dataset of signals to batches: deterministic, divided among ranks and workers, resumable at any step.

`batch(epoch, step)` is a pure function of the loader's settings: an epoch is read by asking for its steps in order, and
resumed by asking for the next. Each rank has one contiguous stretch of the epoch's order; stretches differ by at most
one sample, every sample is in exactly one, and all ranks have equally many steps.

Signals travel as the bytes they are stored in for as long as can be: they are decoded in threads or processes that read
ahead, or, where the codec can do it there, on the device that trains. `limbeck.signals.ahead` keeps the order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limbeck.errors import UserError
from limbeck.signals.ahead import ahead
from limbeck.signals.codecs.columns import Column, Columns
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.order import EpochOrder
from limbeck.signals.stacking import concatenate, pad_rows
from limbeck.signals.types import TeacherSignal, to_device


@dataclass(frozen=True)
class EncodedSignal:
    """The signals of B rows as they are stored.

    Attributes:
        data: uint8, the bytes of each of the codec's columns, row after row.
        offsets: `[B + 1]`, int64, where each row's bytes begin.
        lengths: positions of each row.
    """

    data: dict[str, Tensor]
    offsets: dict[str, Tensor]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, columns: Columns, lengths: Sequence[int]) -> "EncodedSignal":
        """Return columns as tensors that share their memory."""
        return cls(
            {name: torch.from_numpy(column.data) for name, column in columns.items()},
            {name: torch.from_numpy(column.offsets) for name, column in columns.items()},
            tuple(lengths),
        )

    def columns(self) -> Columns:
        """Return what the codec reads."""
        return {name: Column(data.numpy(), self.offsets[name].numpy()) for name, data in self.data.items()}


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
        encoded: the signal where it was not decoded; it stays in the processor's memory.
        sources: the name of the dataset that each row is from; empty where they are all from one.
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
    encoded: EncodedSignal | None = None
    sources: tuple[str, ...] = ()

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
    batch = _tokens(rows, pad_id)
    signals = [row.signal for row in rows if row.signal is not None]
    return _with_signal(batch, concatenate(signals), [len(row.input_ids) for row in rows]) if signals else batch


def _tokens(rows: Sequence[SignalRow], pad_id: int) -> SignalBatch:
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
    sources = tuple(row.source for row in rows) if any(row.source for row in rows) else ()
    return SignalBatch(input_ids, attention_mask, trained, targets, counted, None, documents, sources=sources)


def _with_signal(batch: SignalBatch, signal_N: TeacherSignal, lengths: Sequence[int]) -> SignalBatch:
    """Return a batch with the signal of its rows, laid end to end, on the same device."""
    signal = pad_rows(signal_N, lengths)
    counted = batch.counted & signal.mask
    return replace(batch, signal=replace(signal, mask=counted), counted=counted, encoded=None)


@runtime_checkable
class DeviceCodec(Protocol):
    """A codec whose bytes can be decoded on the device that trains."""

    def decode_on(self, columns: Columns, lengths: Sequence[int], device: torch.device | str) -> TeacherSignal:
        """Return what `decode` returns, on `device`."""
        ...


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
        decode: whether signals are decoded; if not, batches hold them as bytes, for `decoded` to make signals of.
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
            raise UserError(f"{self.dataset.storage.where()}: no samples to load.")
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
        batch = self._encoded(epoch, step)
        return self.decoded(batch) if self.decode else batch

    def decoded(self, batch: SignalBatch, device: torch.device | str = "cpu") -> SignalBatch:
        """Return a batch with its signal decoded, on `device`.

        A codec that has a method `decode_on` is given the bytes there; what others decode is moved.
        """
        batch = batch.to(device, non_blocking=True)
        if batch.encoded is None:
            return batch
        codec, columns, lengths = self.dataset.codec, batch.encoded.columns(), batch.encoded.lengths
        if isinstance(codec, DeviceCodec):
            return _with_signal(batch, codec.decode_on(columns, lengths, device), lengths)
        return _with_signal(batch, to_device(codec.decode(columns, lengths), device, non_blocking=True), lengths)

    def batches(
        self,
        epoch: int,
        start: int = 0,
        workers: int = 0,
        *,
        threads: int = 1,
        device: torch.device | str = "cpu",
    ) -> Iterator[SignalBatch]:
        """Iterate over an epoch from step `start` on; the order is the same whoever reads ahead.

        Args:
            epoch: of the order.
            start: the first step.
            workers: processes that read ahead, and decode unless the codec decodes on the device.
            threads: threads of this process that read ahead and decode where there are no `workers`; 0: none.
            device: where batches are wanted.
        """
        steps = range(start, self.steps)
        if workers:
            there = replace(self, decode=self.decode and not isinstance(self.dataset.codec, DeviceCodec))
            batches = iter(DataLoader(_Steps(there, epoch), batch_size=None, sampler=steps, num_workers=workers))
            yield from (self._on(device, batch) for batch in batches)
        else:
            yield from ahead(lambda step: self._on(device, self._encoded(epoch, step)), steps, threads)

    def _on(self, device: torch.device | str, batch: SignalBatch) -> SignalBatch:
        return self.decoded(batch, device) if self.decode else batch.to(device, non_blocking=True)

    def _encoded(self, epoch: int, step: int) -> SignalBatch:
        samples = self.samples(epoch, step)
        rows, columns = self.dataset.encoded(samples or (0,))
        if not samples:
            rows = [replace(rows[0], trained=torch.zeros_like(rows[0].trained))]
        encoded = EncodedSignal.of(columns, [len(row.input_ids) for row in rows])
        batch = _tokens(rows, self.pad_id)
        return replace(batch, samples=samples, epoch=epoch, step=step, encoded=encoded)


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
