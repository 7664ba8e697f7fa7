"""Writing a dataset of signals: shard by shard, each whole or absent, by one process at a time.

A capture that is killed leaves the shards that were published and a manifest that lists them. Started again with the
same header, it finds what is missing and ends with the same bytes as if it had never been killed.

Several processes can work for one capture: one of them holds the writer and hands out missing ranges, the others
`publish_shard`, and the writer lists what they published by `adopt`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from limbeck.errors import LimbeckError, UserError
from limbeck.signals.beside import AttachedCodec, records_of, write_beside
from limbeck.signals.codecs.columns import offsets_of
from limbeck.signals.codecs.registry import Codec, make_codec, parse_spec
from limbeck.signals.dataset import SignalRow
from limbeck.signals.lock import LOCK
from limbeck.signals.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    ManifestHeader,
    ShardRecord,
    load_manifest,
    save_manifest,
    shard_name,
)
from limbeck.signals.shards import Shard, write_shard
from limbeck.signals.stacking import concatenate
from limbeck.signals.storage import LocalFolder, Storage, open_storage
from limbeck.signals.types import kind_of


class DatasetWriter:
    """Writes one dataset; a context manager that holds the folder's lock.

    Args:
        location: a folder or URL: empty, absent, or the unfinished dataset of the same capture.
        header: identifies the capture.

    Raises:
        UserError: another process is writing here, or the folder holds something else; both sides are named.
    """

    def __init__(self, location: Path | str, header: ManifestHeader) -> None:
        self.storage = open_storage(location)
        self.header = header
        self._codec = make_codec(parse_spec(header.codec), header.vocabulary)
        self._names = {shard_name(samples) for samples in header.ranges()}
        self._files: tuple[FileRecord, ...] = ()
        self._lock = self.storage.lock()
        try:
            self._records = self._take_up()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Return the local folder that is written to.

        Raises:
            UserError: the dataset is on a remote store.
        """
        if not isinstance(self.storage, LocalFolder):
            raise UserError(
                f"{self.storage.where()}: no local folder. Write files beside the manifest by write_beside."
            )
        return self.storage.folder

    def close(self) -> None:
        """Let go of the folder. A second call does nothing."""
        self._lock.release()

    def missing_ranges(self) -> list[range]:
        """Return the sample ranges whose shards are not there yet, in order."""
        return [samples for samples in self.header.ranges() if samples.start not in self._records]

    def write_beside(self, write: Callable[[Path], None]) -> None:
        """Write files that the codec needs: `write` is given a local folder, and what it leaves there is published.

        It is called after a restart, too, and then finds in the folder what was published before.
        """
        self._lock.check()
        files = write_beside(self.storage, write, self._names)
        if files != self._files:
            self._files = files
            self._save(complete=False)

    def write_shard(self, samples: range, rows: Sequence[SignalRow]) -> ShardRecord:
        """Publish the shard of one of the missing ranges.

        Args:
            samples: one of `missing_ranges()`.
            rows: one a sample, in order, each with its signal.

        Raises:
            LimbeckError: the rows are not what the range or the header says, or the codec can't represent one of them
                (row and position are counted within the shard), or the disk is full, or another process has taken over.
                Nothing is left half-written.
        """
        self._lock.check()
        record = _publish(self.storage, self.header, self._codec, samples, rows)
        self._list(record)
        return record

    def write_encoded(self, samples: range, rows: Shard) -> ShardRecord:
        """Publish the shard of one of the missing ranges, from rows that are encoded already by this codec.

        Raises:
            LimbeckError: as `write_shard`.
        """
        self._lock.check()
        where, header = self.storage.where(), self.header
        if samples not in header.ranges() or len(rows.lengths) != len(samples):
            raise LimbeckError(f"{where}: {len(rows.lengths)} rows do not make the shard of samples {samples}.")
        if (rows.documents is not None) != header.documents or set(rows.columns) != set(self._codec.columns):
            raise LimbeckError(f"{where}: these rows have other columns ({', '.join(rows.columns)}) than the dataset.")
        if len(ids := rows.input_ids) and not 0 <= int(ids.min()) <= int(ids.max()) < header.vocabulary:
            raise LimbeckError(f"{where}: a token id is outside the vocabulary of {header.vocabulary}.")
        record = write_shard(self.storage, samples, rows, header.digest)
        self._list(record)
        return record

    def adopt(self, record: ShardRecord) -> None:
        """List a shard that another process has published for this capture.

        Raises:
            LimbeckError: it is not a shard of this capture, or not there.
        """
        self._lock.check()
        if range(record.start, record.stop) not in self.header.ranges() or not self._is_there(record):
            raise LimbeckError(f"{self.storage.where(record.name)}: no shard of this capture is here.")
        self._list(record)

    def finish(self) -> Manifest:
        """Declare the dataset complete and let go of the folder.

        Raises:
            LimbeckError: shards are missing, or a file that the codec needs beside the manifest.
        """
        self._lock.check()
        if missing := self.missing_ranges():
            where = self.storage.where()
            raise LimbeckError(f"{where}: {len(missing)} shards are missing, the first of samples {missing[0]}.")
        if isinstance(self.storage, LocalFolder):
            self._files = records_of(self.storage, self._names)
        if isinstance(self._codec, AttachedCodec):
            self._codec.attach(self.storage.local(self._files))
        if load_manifest(self.storage) != self._manifest(complete=True):
            self._save(complete=True)
        there = load_manifest(self.storage)
        self.close()
        return there

    def _take_up(self) -> dict[int, ShardRecord]:
        """Return the shards that are there, after checking whose they are and clearing what a killed writer left."""
        self.storage.clear()
        names = self.storage.names()
        if MANIFEST not in names:
            if others := [name for name in names if name != LOCK]:
                where = self.storage.where()
                raise UserError(f"{where}: not empty (it holds {others[0]}). Choose another output folder.")
            save_manifest(self.storage, Manifest(**self.header.model_dump()))
            return {}
        there = load_manifest(self.storage)
        theirs = there.model_dump(mode="json", include=set(ManifestHeader.model_fields))
        if differences := list(_differences(theirs, self.header.model_dump(mode="json"))):
            if set(names) <= {MANIFEST, LOCK}:  # of a capture that came to nothing
                save_manifest(self.storage, Manifest(**self.header.model_dump()))
                return {}
            raise UserError(
                f"{self.storage.where()}: holds another capture: {'; '.join(differences[:4])}. "
                "Choose another output folder."
            )
        self._files = there.files
        return {record.start: record for record in there.shards if self._is_there(record)}

    def _is_there(self, record: ShardRecord) -> bool:
        return self.storage.size(record.name) == record.bytes

    def _list(self, record: ShardRecord) -> None:
        self._records[record.start] = record
        self._save(complete=False)

    def _manifest(self, *, complete: bool) -> Manifest:
        shards = tuple(self._records[start] for start in sorted(self._records))
        return Manifest(**self.header.model_dump(), complete=complete, shards=shards, files=self._files)

    def _save(self, *, complete: bool) -> None:
        save_manifest(self.storage, self._manifest(complete=complete))


def _differences(theirs: Any, ours: Any, name: str = "its") -> Iterator[str]:
    """Yield in words in which values two headers differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            yield from _differences(
                theirs.get(key), ours.get(key), f"{name} {key}" if name == "its" else f"{name}.{key}"
            )
    elif theirs != ours:
        yield f"{name} is {theirs}, this one's is {ours}"


def publish_shard(
    location: Path | str, header: ManifestHeader, samples: range, rows: Sequence[SignalRow]
) -> ShardRecord:
    """Publish a shard for a capture whose writer another process holds; that process has to `adopt` the record.

    Raises:
        LimbeckError: as `DatasetWriter.write_shard`.
    """
    codec = make_codec(parse_spec(header.codec), header.vocabulary)
    return _publish(open_storage(location), header, codec, samples, rows)


def _publish(
    storage: Storage, header: ManifestHeader, codec: Codec, samples: range, rows: Sequence[SignalRow]
) -> ShardRecord:
    if samples not in header.ranges() or len(rows) != len(samples):
        raise LimbeckError(f"{storage.where()}: {len(rows)} rows do not make the shard of samples {samples}.")
    for index, row in enumerate(rows):
        _check(row, samples.start + index, header)
    lengths = [len(row.input_ids) for row in rows]
    signal = concatenate([row.signal for row in rows if row.signal is not None])
    columns = codec.encode(signal, lengths)
    documents = None
    if header.documents:
        documents = torch.cat([row.documents for row in rows if row.documents is not None]).numpy().astype(np.int32)
    shard = Shard(
        offsets=offsets_of(lengths),
        input_ids=torch.cat([row.input_ids for row in rows]).numpy().astype(np.int32),
        trained=torch.cat([row.trained for row in rows]).numpy().astype(np.bool_),
        documents=documents,
        columns=columns,
    )
    return write_shard(storage, samples, shard, header.digest)


def _check(row: SignalRow, sample: int, header: ManifestHeader) -> None:
    if row.signal is None:
        raise LimbeckError(f"sample {sample}: its signal is missing.")
    if kind_of(row.signal) != header.kind:
        raise LimbeckError(f"sample {sample}: a {kind_of(row.signal)!r} signal, not {header.kind!r}.")
    if (row.documents is not None) != header.documents:
        raise LimbeckError(f"sample {sample}: document numbers are on all rows of a dataset or on none.")
    parts = (row.trained, row.signal.mask, *(() if row.documents is None else (row.documents,)))
    if any(part.shape != row.input_ids.shape for part in parts):
        raise LimbeckError(
            f"sample {sample}: {len(row.input_ids)} tokens, but {len(row.trained)} training flags "
            f"and a signal of {len(row.signal.mask)} positions."
        )
    if len(row.input_ids) and not 0 <= int(row.input_ids.min()) <= int(row.input_ids.max()) < header.vocabulary:
        raise LimbeckError(f"sample {sample}: a token id is outside the vocabulary of {header.vocabulary}.")
