"""Writing a dataset of signals: shard by shard, each whole or absent, by one process at a time.

A capture that is killed leaves the shards that were published and a manifest that lists them. Started again with the
same header, it finds what is missing and ends with the same bytes as if it had never been killed.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from limbeck.errors import LimbeckError, UserError
from limbeck.signals.codecs.columns import offsets_of
from limbeck.signals.codecs.registry import make_codec, parse_spec
from limbeck.signals.dataset import SignalRow
from limbeck.signals.lock import LOCK, FolderLock
from limbeck.signals.manifest import MANIFEST, Manifest, ManifestHeader, ShardRecord, load_manifest, save_manifest
from limbeck.signals.shards import Shard, write_shard
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import kind_of


class DatasetWriter:
    """Writes one dataset; a context manager that holds the folder's lock.

    Args:
        folder: empty, absent, or the unfinished dataset of the same capture.
        header: identifies the capture.

    Raises:
        UserError: another process is writing here, or the folder holds something else; both sides are named.
    """

    def __init__(self, folder: Path | str, header: ManifestHeader) -> None:
        self.folder = Path(folder)
        self.header = header
        self._codec = make_codec(parse_spec(header.codec), header.vocabulary)
        self._lock = FolderLock(self.folder)
        try:
            self._records = self._take_up()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder. A second call does nothing."""
        self._lock.release()

    def missing_ranges(self) -> list[range]:
        """Return the sample ranges whose shards are not there yet, in order."""
        return [samples for samples in self.header.ranges() if samples.start not in self._records]

    def write_shard(self, samples: range, rows: Sequence[SignalRow]) -> ShardRecord:
        """Publish the shard of one of the missing ranges.

        Args:
            samples: one of `missing_ranges()`.
            rows: one a sample, in order, each with its signal.

        Raises:
            LimbeckError: the rows are not what the range or the header says, or the codec can't represent one of them
                (row and position are counted within the shard), or the disk is full. Nothing is left half-written.
        """
        if samples not in self.header.ranges() or len(rows) != len(samples):
            raise LimbeckError(f"{self.folder}: {len(rows)} rows do not make the shard of samples {samples}.")
        for index, row in enumerate(rows):
            self._check(row, samples.start + index)
        lengths = [len(row.input_ids) for row in rows]
        signal = concatenate([row.signal for row in rows if row.signal is not None])
        columns = self._codec.encode(signal, lengths)
        documents = None
        if self.header.documents:
            documents = torch.cat([row.documents for row in rows if row.documents is not None]).numpy().astype(np.int32)
        shard = Shard(
            offsets=offsets_of(lengths),
            input_ids=torch.cat([row.input_ids for row in rows]).numpy().astype(np.int32),
            trained=torch.cat([row.trained for row in rows]).numpy().astype(np.bool_),
            documents=documents,
            columns=columns,
        )
        record = write_shard(self.folder, samples, shard, self.header.digest)
        self._records[samples.start] = record
        self._save(complete=False)
        return record

    def finish(self) -> Manifest:
        """Declare the dataset complete and let go of the folder.

        Raises:
            LimbeckError: shards are missing.
        """
        if missing := self.missing_ranges():
            raise LimbeckError(f"{self.folder}: {len(missing)} shards are missing, the first of samples {missing[0]}.")
        if not (there := load_manifest(self.folder)).complete:
            self._save(complete=True)
            there = load_manifest(self.folder)
        self.close()
        return there

    def _take_up(self) -> dict[int, ShardRecord]:
        """Return the shards that are there, after checking whose they are and clearing what a killed writer left."""
        for leftover in self.folder.glob(".*.part"):
            leftover.unlink()
        if not (self.folder / MANIFEST).exists():
            others = sorted(path.name for path in self.folder.iterdir() if path.name != LOCK)
            if others:
                raise UserError(f"{self.folder}: not empty (it holds {others[0]}). Choose another output folder.")
            save_manifest(self.folder, Manifest(**self.header.model_dump()))
            return {}
        there = load_manifest(self.folder)
        for name in ManifestHeader.model_fields:
            theirs, ours = getattr(there, name), getattr(self.header, name)
            if theirs != ours:
                raise UserError(
                    f"{self.folder}: holds another capture: its {name} is {theirs}, this one's is {ours}. "
                    "Choose another output folder."
                )
        return {record.start: record for record in there.shards if self._is_there(record)}

    def _is_there(self, record: ShardRecord) -> bool:
        path = self.folder / record.name
        return path.exists() and path.stat().st_size == record.bytes

    def _save(self, *, complete: bool) -> None:
        shards = tuple(self._records[start] for start in sorted(self._records))
        save_manifest(self.folder, Manifest(**self.header.model_dump(), complete=complete, shards=shards))

    def _check(self, row: SignalRow, sample: int) -> None:
        if row.signal is None:
            raise LimbeckError(f"sample {sample}: its signal is missing.")
        if kind_of(row.signal) != self.header.kind:
            raise LimbeckError(f"sample {sample}: a {kind_of(row.signal)!r} signal, not {self.header.kind!r}.")
        if (row.documents is not None) != self.header.documents:
            raise LimbeckError(f"sample {sample}: document numbers are on all rows of a dataset or on none.")
        parts = (row.trained, row.signal.mask, *(() if row.documents is None else (row.documents,)))
        if any(part.shape != row.input_ids.shape for part in parts):
            raise LimbeckError(
                f"sample {sample}: {len(row.input_ids)} tokens, but {len(row.trained)} training flags "
                f"and a signal of {len(row.signal.mask)} positions."
            )
        if (
            len(row.input_ids)
            and not 0 <= int(row.input_ids.min()) <= int(row.input_ids.max()) < self.header.vocabulary
        ):
            raise LimbeckError(f"sample {sample}: a token id is outside the vocabulary of {self.header.vocabulary}.")
