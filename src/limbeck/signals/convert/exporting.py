"""From a dataset to a folder of foreign files: one for each range of rows, whole or absent, by one process at a time.

The folder also holds `.limbeck.json`, which says what is being exported and how. Started again with the same dataset
and options, an export goes on at the first missing file; with others it is refused.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from limbeck.errors import UserError
from limbeck.files import write_json
from limbeck.progress import bar, say
from limbeck.settings import Settings
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert.kinds import conversion_between
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.from_logits import kind_stored
from limbeck.signals.lock import LOCK, FolderLock
from limbeck.signals.types import TopkSignal

RECORD = ".limbeck.json"
ENTRIES = 128


class Exporter(Protocol):
    """Writes rows in a foreign format.

    Attributes:
        format: its name.
        options: how it is written, for the record.
        left_out: what of the dataset it does not hold.
    """

    format: str
    options: dict[str, Any]
    left_out: list[str]

    def name(self, samples: range) -> str:
        """Return the name of the file that holds these rows."""
        ...

    def write(self, folder: Path, samples: range) -> None:
        """Publish the file that holds these rows, and what belongs to it."""
        ...

    def finish(self, folder: Path, names: list[str]) -> None:
        """Publish what stands beside the files, once all of them are there."""
        ...


def export(dataset: SignalDataset, output: Path | str, exporter: Exporter) -> Path:
    """Write a dataset in a foreign format; return the folder.

    Raises:
        UserError: the folder holds something else, or another process is writing there.
        LimbeckError: a signal can't be represented, or the disk is full; what was written stays.
    """
    folder = Path(output)
    ranges = dataset.manifest.ranges()
    with _claimed(folder, _record(dataset, exporter)):
        missing = [samples for samples in ranges if not (folder / exporter.name(samples)).exists()]
        done = dataset.manifest.samples - sum(map(len, missing))
        with bar(f"writing {exporter.format} (rows)", dataset.manifest.samples, done) as shown:
            for samples in missing:
                exporter.write(folder, samples)
                shown.advance(len(samples))
        exporter.finish(folder, [exporter.name(samples) for samples in ranges])
    if exporter.left_out:
        say(f"{folder}: {exporter.format} does not hold {'; '.join(exporter.left_out)}")
    return folder


@contextmanager
def _claimed(folder: Path, record: dict[str, Any]) -> Iterator[None]:
    """Hold an output folder that is empty, or that holds a part of the same export."""
    lock = FolderLock(folder)
    try:
        for leftover in folder.glob(".*.part"):
            leftover.unlink()
        there = folder / RECORD
        if not there.exists():
            if others := sorted(path.name for path in folder.iterdir() if path.name != LOCK):
                raise UserError(f"{folder}: not empty (it holds {others[0]}). Choose another output folder.")
            write_json(there, record)
        elif json.loads(there.read_text(encoding="utf-8")) != record:
            raise UserError(f"{folder}: holds another export, of other rows or options. Choose another output folder.")
        yield
    finally:
        lock.release()


def _record(dataset: SignalDataset, exporter: Exporter) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "format": exporter.format,
        "options": exporter.options,
        "source": dataset.digest,
        "teacher": manifest.teacher.model_dump(),
        "tokenizer_digest": manifest.tokenizer_digest,
        "vocabulary": manifest.vocabulary,
        "text_digest": manifest.text_digest,
    }


@dataclass(frozen=True)
class TopRows:
    """A dataset's rows with `topk` signals, whatever it stores: for formats that hold entries.

    Attributes:
        dataset: what is read.
        spec: of the entries; those of the dataset if it stores entries itself.
    """

    dataset: SignalDataset
    spec: Settings

    @classmethod
    def of(cls, dataset: SignalDataset, entries: int | None) -> "TopRows":
        """Return the rows of a dataset with at most `entries` entries a position (None: all that are stored, or 128).

        Raises:
            UserError: the dataset doesn't say which tokens are the most probable.
        """
        source, vocabulary = dataset.codec.spec, dataset.manifest.vocabulary
        if kind_stored(source, vocabulary) == "topk":
            return cls(dataset, source)
        count = min(entries or ENTRIES, vocabulary)
        spec = TopkSpec(select="count", cap=count, temperatures=(1.0,))
        conversion_between(source, spec, vocabulary)
        return cls(dataset, spec)

    def rows(self, samples: range) -> list[tuple[SignalRow, TopkSignal]]:
        """Return rows and their signals."""
        found = []
        source, vocabulary = self.dataset.codec.spec, self.dataset.manifest.vocabulary
        convert = None if self.spec == source else conversion_between(source, self.spec, vocabulary)
        for sample, row in zip(samples, self.dataset.rows(samples), strict=True):
            signal = row.signal
            if signal is not None and convert is not None:
                signal = convert(signal, row.input_ids, sample)
            if not isinstance(signal, TopkSignal):
                raise TypeError(f"{type(signal).__name__} has no entries")
            found.append((replace(row, signal=signal), without_masked(signal)))
        return found


def without_masked(signal: TopkSignal) -> TopkSignal:
    """Return the signal with no entries where its mask is False."""
    logprobs = signal.logprobs.masked_fill(~signal.mask[:, None], float("-inf"))
    return replace(signal, logprobs=logprobs, ids=torch.where(logprobs > float("-inf"), signal.ids, 0))
