"""Reading a dataset of signals: random access to rows, decoded only when asked for, checked before they are believed.

Opening reads the manifest and compares it with what the reader expects. Each shard's SHA-256 is checked when the shard
is first read. A few shards are kept in memory, as bytes; what they decode to is not kept.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.files import digest_of
from limbeck.settings import Settings
from limbeck.signals.codecs.columns import Integers, offsets_of
from limbeck.signals.codecs.registry import make_codec, parse_spec, spec_digest
from limbeck.signals.manifest import Manifest, load_manifest
from limbeck.signals.shards import Shard, check_shard, read_shard
from limbeck.signals.stacking import split
from limbeck.signals.types import TeacherSignal

SHARDS_KEPT = 4


@dataclass(frozen=True)
class SignalRow:
    """One sample.

    Attributes:
        input_ids: `[T]`, int64.
        trained: `[T]`, bool: whether token i is one that the student should learn to produce.
        signal: `[T, ...]`; position t describes token t + 1. None where it was not decoded.
        documents: `[T]`, int64, the number of the document that token i belongs to; None: all one document.
    """

    input_ids: Tensor
    trained: Tensor
    signal: TeacherSignal | None
    documents: Tensor | None = None


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
    """A dataset of signals on disk.

    Attributes:
        folder: where it lies.
        manifest: what it is.
        codec: reads its bytes.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.codec = make_codec(parse_spec(manifest.codec), manifest.vocabulary)
        self._header_digest = manifest.digest
        self._starts = offsets_of([record.stop - record.start for record in manifest.shards])
        self._verified: set[int] = set()
        self._kept: OrderedDict[int, Shard] = OrderedDict()
        self._keep = SHARDS_KEPT

    @classmethod
    def open(
        cls, folder: Path | str, expect: Expectation | None = None, *, incomplete: bool = False
    ) -> "SignalDataset":
        """Open a dataset.

        Args:
            folder: holds `manifest.json` and the shards.
            expect: what it must be.
            incomplete: accept one whose capture has not finished; its rows are those of the shards that are there.

        Raises:
            UserError: there is none here, its capture has not finished, or it is not what `expect` says; both sides
                are named.
        """
        folder = Path(folder)
        manifest = load_manifest(folder)
        if not manifest.complete and not incomplete:
            there = sum(record.stop - record.start for record in manifest.shards)
            raise UserError(
                f"{folder}: the capture has not finished ({there} of {manifest.samples} samples are there). "
                "Run it again: it goes on where it stopped."
            )
        _compare(folder, manifest, expect or Expectation())
        return cls(folder, manifest)

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
        parts = [self._shard(shard).lengths for shard in range(len(self.manifest.shards))]
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
        """Return rows in the order given; those of one shard are decoded together.

        Args:
            indices: from 0 to `len(self) - 1`.
            decode: whether to decode signals.

        Raises:
            IndexError: there is no such row.
            IntegrityError: a shard is missing, truncated or changed.
        """
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            places.setdefault(int(np.searchsorted(self._starts, index, side="right")) - 1, []).append(place)
        found: list[SignalRow | None] = [None] * len(indices)
        for shard, at in places.items():
            inside = [int(indices[place] - self._starts[shard]) for place in at]
            for place, row in zip(at, self._read(self._shard(shard), inside, decode), strict=True):
                found[place] = row
        return [row for row in found if row is not None]

    def __iter__(self) -> Iterator[SignalRow]:
        """Iterate over all rows in order, a shard at a time."""
        for shard, size in enumerate(self.shard_sizes):
            yield from self._read(self._shard(shard), range(size), decode=True)

    def verify(self) -> None:
        """Check every shard's bytes.

        Raises:
            IntegrityError: one is missing, truncated or changed; it is named.
        """
        for shard, record in enumerate(self.manifest.shards):
            check_shard(self.folder, record)
            self._verified.add(shard)

    def keep_shards(self, count: int) -> None:
        """Keep at least `count` shards in memory."""
        self._keep = max(self._keep, count)

    def _shard(self, shard: int) -> Shard:
        if shard in self._kept:
            self._kept.move_to_end(shard)
            return self._kept[shard]
        record = self.manifest.shards[shard]
        verify = shard not in self._verified
        self._kept[shard] = read_shard(self.folder, record, self._header_digest, self.codec.columns, verify=verify)
        self._verified.add(shard)
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)
        return self._kept[shard]

    def _read(self, shard: Shard, rows: Sequence[int], decode: bool) -> list[SignalRow]:
        lengths = [int(shard.offsets[row + 1] - shard.offsets[row]) for row in rows]
        signals: list[TeacherSignal | None] = [None] * len(lengths)
        if decode:
            columns = {name: column.take(rows) for name, column in shard.columns.items()}
            signals = list(split(self.codec.decode(columns, lengths), lengths))
        found = []
        for row, signal in zip(rows, signals, strict=True):
            part = slice(int(shard.offsets[row]), int(shard.offsets[row + 1]))
            documents = None if shard.documents is None else torch.from_numpy(shard.documents[part].astype(np.int64))
            input_ids = torch.from_numpy(shard.input_ids[part].astype(np.int64))
            found.append(SignalRow(input_ids, torch.from_numpy(shard.trained[part].copy()), signal, documents))
        return found


def _compare(folder: Path, manifest: Manifest, expect: Expectation) -> None:
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
                f"{folder}: captured with {name} {found}, but {name} {wanted} is expected. "
                "Name another dataset, or capture again."
            )
