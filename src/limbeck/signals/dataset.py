"""Reading a dataset of signals: random access to rows, decoded only when asked for, checked before they are believed.

Opening reads the manifest and compares it with what the reader expects. Each shard's SHA-256 is checked when the shard
is first read. A few shards are kept in memory, as bytes; what they decode to is not kept. Threads may share a dataset.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.files import digest_of
from limbeck.settings import Settings
from limbeck.signals.beside import AttachedCodec
from limbeck.signals.codecs.columns import Column, Columns, Integers, offsets_of
from limbeck.signals.codecs.registry import make_codec, parse_spec, spec_digest
from limbeck.signals.manifest import Manifest, load_manifest
from limbeck.signals.shards import Shard, read_shard
from limbeck.signals.stacking import split
from limbeck.signals.storage import Storage, open_storage
from limbeck.signals.types import TeacherSignal

SHARDS_KEPT = 4
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class SignalRow:
    """One sample.

    Attributes:
        input_ids: `[T]`, int64.
        trained: `[T]`, bool: whether token i is one that the student should learn to produce.
        signal: `[T, ...]`; position t describes token t + 1. None where it was not decoded.
        documents: `[T]`, int64, the number of the document that token i belongs to; None: all one document.
        source: the name of the dataset that the row is from, where rows of several are trained together.
    """

    input_ids: Tensor
    trained: Tensor
    signal: TeacherSignal | None
    documents: Tensor | None = None
    source: str = ""


@dataclass(frozen=True)
class Expectation:
    """What a reader takes a dataset to be. None: anything.

    Attributes:
        tokenizer_digest: of the tokenizer that made the ids.
        vocabulary: size of the teacher's distributions.
        kind: of the signal.
        codec: the name of a codec, or its settings.
        teacher: repository.
        revision: of the teacher.
        text_digest: of the source text.
    """

    tokenizer_digest: str | None = None
    vocabulary: int | None = None
    kind: str | None = None
    codec: str | Settings | None = None
    teacher: str | None = None
    revision: str | None = None
    text_digest: str | None = None


class SignalDataset:
    """A dataset of signals.

    Attributes:
        storage: where it lies.
        manifest: what it is.
        codec: reads its bytes.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self.storage = storage
        self.manifest = manifest
        self.codec = make_codec(parse_spec(manifest.codec), manifest.vocabulary)
        if isinstance(self.codec, AttachedCodec):
            self.codec.attach(self.folder)
        self._header_digest = manifest.digest
        self._starts = offsets_of([record.stop - record.start for record in manifest.shards])
        self._verified: set[int] = set()
        self._kept: OrderedDict[int, Shard] = OrderedDict()
        self._keep = SHARDS_KEPT
        self._reading = threading.Lock()

    @classmethod
    def open(
        cls, location: Path | str, expect: Expectation | None = None, *, incomplete: bool = False
    ) -> "SignalDataset":
        """Open a dataset.

        Args:
            location: a folder, or a URL that fsspec knows, that holds `manifest.json` and the shards.
            expect: what it must be.
            incomplete: accept one whose capture has not finished; its rows are those of the shards that are there.

        Raises:
            UserError: there is none here, its capture has not finished, or it is not what `expect` says; both sides
                are named.
            IntegrityError: the manifest was changed, or a file that the codec needs is missing or was changed.
        """
        storage = open_storage(location)
        manifest = load_manifest(storage)
        if not manifest.complete and not incomplete:
            there = sum(record.stop - record.start for record in manifest.shards)
            raise UserError(
                f"{storage.where()}: the capture has not finished ({there} of {manifest.samples} samples are there). "
                "Run it again: it goes on where it stopped."
            )
        _compare(storage.where(), manifest, expect or Expectation())
        return cls(storage, manifest)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: it reads shards itself."""
        return {**vars(self), "_kept": OrderedDict(), "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "_reading": threading.Lock()})

    @cached_property
    def folder(self) -> Path:
        """Return a local folder that holds the files beside the manifest."""
        return self.storage.local(self.manifest.files)

    @property
    def kind(self) -> str:
        """Return the kind of signal."""
        return self.manifest.kind

    @property
    def digest(self) -> str:
        """Return the digest of everything in the dataset, by its manifest."""
        return digest_of(self.manifest.model_dump(mode="json"))

    @property
    def longest(self) -> int:
        """Return the most tokens of any row, without reading a shard."""
        return max((record.longest for record in self.manifest.shards), default=0)

    @property
    def lengths(self) -> Integers:
        """Return the tokens of every row, `[len(self)]`; reads all shards."""
        parts = [self.shard(shard).lengths for shard in range(len(self.manifest.shards))]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    @property
    def shard_sizes(self) -> list[int]:
        """Return the rows of every shard."""
        return [int(size) for size in np.diff(self._starts)]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int, *, decode: bool = True) -> SignalRow:
        """Return one row; see `rows`."""
        return self.rows([index], decode=decode)[0]

    def rows(self, indices: Sequence[int], *, decode: bool = True) -> list[SignalRow]:
        """Return rows in the order given, decoded together.

        Args:
            indices: from 0 to `len(self) - 1`.
            decode: whether to decode signals.

        Raises:
            IndexError: there is no such row.
            IntegrityError: a shard is missing, truncated or changed.
        """
        rows, columns = self.encoded(indices)
        if not decode or not rows:
            return rows
        lengths = [len(row.input_ids) for row in rows]
        signals = split(self.codec.decode(columns, lengths), lengths)
        return [replace(row, signal=signal) for row, signal in zip(rows, signals, strict=True)]

    def encoded(self, indices: Sequence[int]) -> tuple[list[SignalRow], Columns]:
        """Return rows without their signals, and the bytes of these for the codec; see `rows`."""
        rows: list[SignalRow] = []
        parts: dict[str, list[Any]] = {name: [] for name in self.codec.columns}
        found: dict[int, Shard] = {}
        for index in indices:
            number, inside = self.locate(index)
            if number not in found:
                found[number] = self.shard(number)
            rows.append(_row(found[number], inside))
            for name, column in found[number].columns.items():
                parts[name].append(column.row(inside))
        columns = {
            name: Column(np.concatenate(strings), offsets_of([len(string) for string in strings]))
            for name, strings in parts.items()
            if strings
        }
        return rows, columns

    def locate(self, index: int) -> tuple[int, int]:
        """Return which shard a row is in, and which of its rows it is.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, int(index - self._starts[number])

    def __iter__(self) -> Iterator[SignalRow]:
        """Iterate over all rows in order, some at a time."""
        for first in range(0, len(self), ROWS_AT_ONCE):
            yield from self.rows(range(first, min(first + ROWS_AT_ONCE, len(self))))

    def verify(self) -> None:
        """Check the bytes of every shard, and of every file beside the manifest.

        Raises:
            IntegrityError: one is missing, truncated or changed; it is named.
        """
        for file in self.manifest.files:
            self.storage.check(file)
        for shard, record in enumerate(self.manifest.shards):
            self.storage.check(record)
            self._verified.add(shard)

    def keep_shards(self, count: int) -> None:
        """Keep at least `count` shards in memory."""
        self._keep = max(self._keep, count)

    def shard(self, number: int) -> Shard:
        """Return a shard as it is stored; read again only if it is not one of those in memory."""
        with self._reading:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            record = self.manifest.shards[number]
            verify = number not in self._verified
            shard = read_shard(self.storage, record, self._header_digest, self.codec.columns, verify=verify)
            self._kept[number] = shard
            self._verified.add(number)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
            return shard


def _row(shard: Shard, row: int) -> SignalRow:
    part = slice(int(shard.offsets[row]), int(shard.offsets[row + 1]))
    documents = None if shard.documents is None else torch.from_numpy(shard.documents[part].astype(np.int64))
    input_ids = torch.from_numpy(shard.input_ids[part].astype(np.int64))
    return SignalRow(input_ids, torch.from_numpy(shard.trained[part].copy()), None, documents)


def _compare(where: str, manifest: Manifest, expect: Expectation) -> None:
    codec = expect.codec
    sides = {
        "tokenizer_digest": (manifest.tokenizer_digest, "tokenizer"),
        "vocabulary": (manifest.vocabulary, "vocabulary"),
        "kind": (manifest.kind, "kind of signal"),
        "codec": (manifest.codec["codec"] if isinstance(codec, str) else manifest.codec_digest, "codec"),
        "teacher": (manifest.teacher.repo, "teacher"),
        "revision": (manifest.teacher.revision, "teacher's revision"),
        "text_digest": (manifest.text_digest, "source text"),
    }
    for field in fields(expect):
        wanted = getattr(expect, field.name)
        if isinstance(wanted, Settings):
            wanted = spec_digest(wanted)
        found, name = sides[field.name]
        if wanted is not None and wanted != found:
            raise UserError(
                f"{where}: captured with {name} {found}, but {name} {wanted} is expected. "
                "Name another dataset, or capture again."
            )
