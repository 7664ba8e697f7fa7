"""Rows whose signals stay bytes: read, cut, laid end to end and published, so that copying loses nothing.

Decoding a lossy codec and encoding the result again may round a second time; what is copied as bytes is not rounded.
Rows of any codec can be copied whole. Parts of rows can be copied where each position has a fixed number of bytes.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from limbeck.errors import LimbeckError
from limbeck.files import publish
from limbeck.signals.codecs.columns import Bytes, Column, Columns, offsets_of
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.manifest import ShardRecord
from limbeck.signals.shards import Shard, write_shard
from limbeck.signals.writer import DatasetWriter

FIXED_WIDTH = ("dense", "token", "hidden", "distillkit", "distillkit_legacy")


@dataclass(frozen=True)
class EncodedRows:
    """Rows, and the bytes of their signals.

    Attributes:
        rows: without signals.
        columns: the codec's, one string a row.
    """

    rows: list[SignalRow]
    columns: Columns

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """Return the tokens of each row."""
        return [len(row.input_ids) for row in self.rows]


def encoded_rows(dataset: SignalDataset, indices: Sequence[int]) -> EncodedRows:
    """Return rows of a dataset as they are stored.

    Raises:
        IntegrityError: a shard is missing, truncated or changed.
    """
    return EncodedRows(*dataset.encoded(indices))


def join(parts: Sequence[EncodedRows]) -> EncodedRows:
    """Return the rows of all parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    rows = [row for part in parts for row in part.rows]
    strings = {name: [part.columns[name] for part in parts] for name in parts[0].columns}
    return EncodedRows(rows, {name: _end_to_end(columns) for name, columns in strings.items()})


def cut(source: EncodedRows, pieces: Sequence[tuple[int, int, int]]) -> EncodedRows:
    """Return one row made of pieces of rows, end to end; the codec is one of `FIXED_WIDTH`.

    Args:
        source: the rows.
        pieces: for each piece a row of `source`, its first token, and the one behind its last.
    """
    columns: Columns = {}
    for name, column in source.columns.items():
        strings: list[Bytes] = []
        for row, first, last in pieces:
            width = len(column.row(row)) // len(source.rows[row].input_ids)
            strings.append(column.row(row)[first * width : last * width])
        data = np.concatenate(strings)
        columns[name] = Column(data, offsets_of([len(data)]))
    return EncodedRows([replace(laid_end_to_end(source.rows, pieces), signal=None)], columns)


def laid_end_to_end(rows: Sequence[SignalRow], pieces: Sequence[tuple[int, int, int]]) -> SignalRow:
    """Return the tokens of pieces of rows as one row, without its signal; see `cut`."""
    parts = [(rows[row], slice(first, last)) for row, first, last in pieces]
    numbers = [row.documents[inside] for row, inside in parts if row.documents is not None]
    return SignalRow(
        input_ids=torch.cat([row.input_ids[inside] for row, inside in parts]),
        trained=torch.cat([row.trained[inside] for row, inside in parts]),
        signal=None,
        documents=torch.cat(numbers) if numbers else None,
    )


def write_encoded(writer: DatasetWriter, samples: range, encoded: EncodedRows) -> ShardRecord:
    """Publish the shard of one of a writer's missing ranges from rows that are bytes of its codec already.

    Raises:
        LimbeckError: the rows are not as many as the range, or lack what the header says, or the disk is full.
    """
    where, header = writer.storage.where(), writer.header
    if len(encoded) != len(samples):
        raise LimbeckError(f"{where}: {len(encoded)} rows do not make the shard of samples {samples}.")
    documents = [row.documents for row in encoded.rows if row.documents is not None]
    if len(documents) != (len(encoded) if header.documents else 0):
        raise LimbeckError(f"{where}: document numbers are on all rows of a dataset or on none.")
    input_ids = torch.cat([row.input_ids for row in encoded.rows])
    if len(input_ids) and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < header.vocabulary:
        raise LimbeckError(f"{where}, samples {samples}: a token id is outside the vocabulary of {header.vocabulary}.")
    shard = Shard(
        offsets=offsets_of(encoded.lengths),
        input_ids=input_ids.numpy().astype(np.int32),
        trained=torch.cat([row.trained for row in encoded.rows]).numpy().astype(np.bool_),
        documents=torch.cat(documents).numpy().astype(np.int32) if documents else None,
        columns=encoded.columns,
    )
    record = write_shard(writer.storage, samples, shard, header.digest)
    writer.adopt(record)
    return record


def copy_beside(source: SignalDataset, writer: DatasetWriter) -> None:
    """Copy what a dataset's codec keeps beside the manifest, such as an output head; often that is nothing."""
    names = [record.name for record in source.manifest.files]

    def write(folder: Path) -> None:
        for name in names:
            if not (folder / name).exists():
                with publish(folder / name) as temporary:
                    shutil.copyfile(source.folder / name, temporary)

    if names:
        writer.write_beside(write)


def _end_to_end(columns: Sequence[Column]) -> Column:
    sizes = np.concatenate([np.diff(column.offsets) for column in columns])
    return Column(np.concatenate([column.data for column in columns]), offsets_of(sizes))
