"""Records of Hugging Face datasets: of the Hub, whole or streamed, and of folders that `datasets` saved.

A dataset that is streamed is read from its first records on and no further than it must be. What is read waits in an
unnamed temporary file, so that a source can be read again without asking the Hub again.

Which records a stream gives is a function of the dataset's revision, `samples` and `seed`: without a seed the first
`samples`; with one the first `WINDOW` times as many, of the files in the order of the seed, from which `samples` are
then drawn as from any other source.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa

from limbeck.data.placed import Chosen, Placed, Records
from limbeck.data.shapes import Columns, Record, wanted_columns
from limbeck.engines.retries import PASSING, backoff
from limbeck.errors import LimbeckError, UserError
from limbeck.progress import say
from limbeck.seeds import derive_seed
from limbeck.settings import Settings
from limbeck.signals.order import permutation

BATCH = 1000
ATTEMPTS = 5
LARGE = 2_000_000_000
"""Bytes of a split from which on some samples of it are streamed, unless that is said otherwise."""
WINDOW = 10


class HubSource(Settings):
    """Which dataset of the Hub, and how much of it.

    Attributes:
        name: `owner/name`.
        configuration: of the dataset, where it has several.
        split: of the dataset.
        revision: of its repository.
        streaming: whether it is streamed; None: where `samples` are wanted of more than `LARGE` bytes.
        samples: how many records will be taken; None: all.
        seed: what shuffles them; None: nothing.
    """

    name: str
    configuration: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool | None = None
    samples: int | None = None
    seed: int | None = None


def hub_records(source: HubSource, columns: Columns, *, answered: bool) -> Records:
    """Return the records of a dataset of the Hub (or of the cache of what was downloaded from it).

    Raises:
        UserError: there is no such dataset, configuration, split or column.
        LimbeckError: the Hub does not answer, or goes on failing.
    """
    from datasets import load_dataset

    def opened() -> Records:
        if source.streaming or (source.streaming is None and source.samples is not None and _is_large(source)):
            return _streamed(source, columns, answered)
        dataset = load_dataset(source.name, source.configuration, split=source.split, revision=source.revision)
        return _of_dataset(source.name, dataset, columns, answered)

    with _explained(source.name, source.configuration, source.split):
        return _patiently(opened)


def saved_records(folder: Path, split: str, columns: Columns, *, answered: bool) -> Records:
    """Return the records of a folder that `datasets.save_to_disk` made.

    Raises:
        UserError: it can't be read, or has no such split or column.
    """
    from datasets import DatasetDict, load_from_disk

    with _explained(str(folder), None, split):
        dataset = load_from_disk(str(folder))
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise UserError(f"{folder}: there is no split {split!r}; there are: {', '.join(dataset)}.")
        dataset = dataset[split]
    return _of_dataset(str(folder), dataset, columns, answered)


def _of_dataset(name: str, dataset: Any, columns: Columns, answered: bool) -> Records:
    """Return the records of a `datasets.Dataset`."""
    wanted = wanted_columns(dataset.column_names, columns, name, answered=answered)
    taken = dataset.select_columns(wanted).with_format(None)

    def read(chosen: Chosen) -> Iterator[Placed]:
        numbers = np.flatnonzero(chosen)
        picked = taken if chosen.all() else taken.select(numbers)
        first = 0
        for batch in picked.iter(batch_size=BATCH):
            for values in zip(*batch.values(), strict=True):
                yield f"{name}, row {numbers[first] + 1}", dict(zip(batch, values, strict=True))
                first += 1

    return Records(name, lambda: len(dataset), read)


def _is_large(source: HubSource) -> bool:
    """Return whether the files of a split are more than `LARGE` bytes, as far as the Hub says (offline it doesn't)."""
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    if Path(source.name).exists():
        return False
    builder = load_dataset_builder(source.name, source.configuration, revision=source.revision)
    files = (builder.config.data_files or {}).get(source.split, ())
    try:
        there = HfApi().dataset_info(source.name, revision=source.revision, files_metadata=True).siblings or ()
    except ConnectionError:
        return False
    sizes = {file.rfilename: file.size or 0 for file in there}
    return sum(sizes.get(str(file).partition("@")[2].partition("/")[2], 0) for file in files) > LARGE


def _streamed(source: HubSource, columns: Columns, answered: bool) -> Records:
    """Read as much of a dataset as is needed, and return that."""
    from datasets import load_dataset

    name = source.name
    stream = load_dataset(name, source.configuration, split=source.split, revision=source.revision, streaming=True)
    files: Iterable[Any] = (stream,)
    most = source.samples
    if source.seed is not None and most is not None:
        most *= WINDOW
        order = permutation(derive_seed(source.seed, "files"), stream.num_shards)
        files = (stream.shard(num_shards=stream.num_shards, index=int(number)) for number in order)
    read = islice((record for file in files for record in file), most)
    first = next(read, None)
    if first is None:
        raise UserError(f"{name}: split {source.split!r} has no records.")
    wanted = wanted_columns(list(first), columns, name, answered=answered)
    kept = _Kept(name, wanted)
    kept.add(first)
    for record in read:
        kept.add(record)
    say(f"{name}: streamed {kept.count:,} records")
    return Records(name, lambda: kept.count, kept.read)


class _Kept:
    """Records in a temporary file: JSON lines of the columns that are wanted."""

    def __init__(self, name: str, wanted: list[str]) -> None:
        self._name, self._wanted = name, wanted
        self._file = TemporaryFile()  # noqa: SIM115  # the records'
        self.count = 0

    def add(self, record: Mapping[str, Any]) -> None:
        line = json.dumps({name: record.get(name) for name in self._wanted}, default=str)
        self._file.write(line.encode() + b"\n")
        self.count += 1

    def read(self, chosen: Chosen) -> Iterator[Placed]:
        self._file.seek(0)
        for number, taken in enumerate(chosen, start=1):
            line = self._file.readline()
            if taken:
                record: Record = json.loads(line)
                yield f"{self._name}, record {number} of the stream", record


def _patiently(ask: Callable[[], Records]) -> Records:
    """Return what the Hub gives; where its server failed for a while it is asked again.

    `huggingface_hub` itself tries again where the network fails. What was downloaded before is in its cache.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return ask()
        except OSError as error:
            if not _passes(error):
                raise
            time.sleep(backoff(attempt, Random()))
    return ask()


def _passes(error: OSError) -> bool:
    """Return whether a failure is one of the Hub's server that may be gone when it is asked again."""
    return getattr(getattr(error, "response", None), "status_code", None) in PASSING


@contextmanager
def _explained(name: str, configuration: str | None, split: str) -> Iterator[None]:
    """Say what failed in one line, and what to do; `datasets` never puts a token into its messages."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except (OSError, ValueError, DatasetsError, pa.ArrowException) as error:  # the hub's and the network's are OSErrors
        what = ", ".join(filter(None, (configuration and f"configuration {configuration!r}", f"split {split!r}")))
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(said[:2])  # the second names the configurations that there are
        if isinstance(error, OSError) and _passes(error):
            raise LimbeckError(
                f"{name}: the Hub failed {ATTEMPTS} times ({reason.rstrip('.')}). Run again when it answers; what was "
                "downloaded is kept."
            ) from error
        mend = " A private or gated one needs a token in HF_TOKEN." if isinstance(error, DatasetNotFoundError) else ""
        raise UserError(
            f"{name}: no such file, and no dataset that can be loaded ({what}): {reason.rstrip('.')}.{mend}"
        ) from error
