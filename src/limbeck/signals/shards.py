"""One shard: a Parquet file of rows, written the same way every time, read into numpy without Python lists.

Columns: `input_ids` list<int32>; `trained` list<bool>, whether the student should learn to produce token i;
`documents` list<int32> (where the dataset has it), the number of the document that token i belongs to; and the codec's
columns, one large_binary value a row. The file's metadata carry the digest of the manifest's header and the sample
range, so that a shard can't pass for another dataset's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from limbeck.errors import IntegrityError
from limbeck.files import sha256_file
from limbeck.signals.codecs.columns import Column, Columns, Integers
from limbeck.signals.manifest import ShardRecord, shard_name
from limbeck.signals.mapping import ADVICE
from limbeck.signals.storage import Storage

METADATA = b"limbeck"


@dataclass(frozen=True)
class Shard:
    """The rows of one shard, laid end to end.

    Attributes:
        offsets: int64 `[R + 1]`, where each row's tokens begin.
        input_ids: int32 `[N]`.
        trained: bool `[N]`.
        documents: int32 `[N]`, or None.
        columns: the codec's.
    """

    offsets: Integers
    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    documents: NDArray[np.int32] | None
    columns: Columns

    @property
    def lengths(self) -> Integers:
        """Return the tokens of each row."""
        return np.diff(self.offsets)


def write_shard(storage: Storage, samples: range, shard: Shard, header_digest: str) -> ShardRecord:
    """Publish a shard and return its record.

    Raises:
        LimbeckError: the disk is full; nothing is left half-written.
    """
    offsets = pa.array(shard.offsets.astype(np.int32))
    arrays = {
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(shard.input_ids)),
        "trained": pa.ListArray.from_arrays(offsets, pa.array(shard.trained)),
    }
    if shard.documents is not None:
        arrays["documents"] = pa.ListArray.from_arrays(offsets, pa.array(shard.documents))
    for name, column in shard.columns.items():
        buffers = [None, pa.py_buffer(column.offsets), pa.py_buffer(column.data)]
        arrays[name] = pa.Array.from_buffers(pa.large_binary(), len(samples), buffers)
    note = json.dumps({"capture": header_digest, "start": samples.start, "stop": samples.stop}, sort_keys=True)
    table = pa.table(arrays).replace_schema_metadata({METADATA: note.encode()})
    name = shard_name(samples)
    with storage.publish(name) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=len(samples),
            use_dictionary=False,
            write_statistics=False,
            compression={name: "none" if name in shard.columns else "zstd" for name in arrays},
        )
        size, sha256 = temporary.stat().st_size, sha256_file(temporary)
    return ShardRecord(
        name=name,
        start=samples.start,
        stop=samples.stop,
        tokens=len(shard.input_ids),
        longest=int(shard.lengths.max(initial=0)),
        bytes=size,
        sha256=sha256,
    )


def read_shard(
    storage: Storage, record: ShardRecord, header_digest: str, names: Sequence[str], *, verify: bool
) -> Shard:
    """Read a shard.

    Args:
        storage: of the dataset.
        record: what the manifest says of the shard.
        header_digest: of the manifest's header.
        names: the codec's columns.
        verify: whether to check the file's SHA-256 first.

    Raises:
        IntegrityError: the file is missing, truncated, changed, or another dataset's; the shard and the fix are named.
    """
    path = storage.where(record.name)
    data = storage.map(record, verify=verify)
    try:
        table = pq.read_table(pa.BufferReader(pa.py_buffer(data)), use_threads=False)
        note = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
        expected = {"capture": header_digest, "start": record.start, "stop": record.stop}
        if note != expected or table.num_rows != record.stop - record.start:
            raise IntegrityError(f"{path}: a shard of another capture or sample range. {ADVICE}")
        offsets, input_ids = _lists(table, "input_ids")
        documents = _lists(table, "documents")[1] if "documents" in table.column_names else None
        columns = {name: _strings(table, name) for name in names}
        return Shard(offsets, input_ids, _lists(table, "trained")[1], documents, columns)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise IntegrityError(f"{path}: not a readable shard ({str(error).splitlines()[0]}). {ADVICE}") from error


def _lists(table: pa.Table, name: str) -> tuple[Integers, NDArray[Any]]:
    """Return a list column's offsets and values."""
    array = table.column(name).combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy(zero_copy_only=False)
    return offsets - offsets[0], values[offsets[0] : offsets[-1]]


def _strings(table: pa.Table, name: str) -> Column:
    array = table.column(name).combine_chunks().cast(pa.large_binary())
    _, offset_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else np.zeros(0, dtype=np.uint8)
    return Column(data, offsets)
