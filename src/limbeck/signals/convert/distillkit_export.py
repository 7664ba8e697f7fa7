"""Writing DistillKit's datasets, from any dataset whose signals its codecs can hold; see `distillkit_tables`.

Where a dataset is in the target's settings already, its bytes are copied; otherwise its signals are encoded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import yaml
from numpy.typing import NDArray

from limbeck.errors import LimbeckError, UserError
from limbeck.files import digest_of, write_text
from limbeck.signals.codecs.columns import Column, offsets_of
from limbeck.signals.codecs.registry import make_codec
from limbeck.signals.convert.distillkit_tables import (
    ARROW,
    CONFIG,
    DOCUMENTS,
    IGNORED,
    LABELS,
    PARQUET,
    TOKENS,
    Field,
    Spec,
    fields_of,
)
from limbeck.signals.convert.dropping import left_out
from limbeck.signals.convert.kinds import conversion_between
from limbeck.signals.convert.tables import write_arrow, write_arrow_state, write_parquet
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.encoded_rows import EncodedRows, encoded_rows
from limbeck.signals.stacking import concatenate

LastPosition = Literal["keep", "drop"]


class DistillkitExporter:
    """Writes DistillKit's Parquet files, or Arrow streams that `datasets` loads; see `Exporter`.

    Args:
        dataset: what is written.
        format: `distillkit-parquet` or `distillkit-arrow`.
        spec: settings of the bytes.
        last: whether a row's last position, behind which there is no token, is written. By default Parquet files are
            without it, as DistillKit captures, and Arrow streams with it, as DistillKit packs; but where it says
            something, it is left out only if that is asked for.

    Raises:
        UserError: these settings would say more than the dataset does.
    """

    def __init__(self, dataset: SignalDataset, format: str, spec: Spec, last: LastPosition | None = None) -> None:
        self.format = format
        self._dataset = dataset
        self._spec = spec
        self._last = last or ("drop" if format == PARQUET else "keep")
        self.options: dict[str, Any] = {"codec": spec.model_dump(mode="json"), "last_position": self._last}
        self._codec = make_codec(spec, dataset.manifest.vocabulary)
        self._unasked = last is None
        source = dataset.codec.spec
        self._convert = None if source == spec else conversion_between(source, spec, dataset.manifest.vocabulary)
        self.left_out = left_out(source, spec, dataset.manifest.vocabulary)

    def name(self, samples: range) -> str:
        """Return the name of the file that holds these rows."""
        ranges = self._dataset.manifest.ranges()
        index = samples.start // self._dataset.manifest.samples_per_shard
        return f"data_{index}.parquet" if self.format == PARQUET else f"data-{index:05d}-of-{len(ranges):05d}.arrow"

    def write(self, folder: Path, samples: range) -> None:
        """Publish the file that holds these rows."""
        write = write_parquet if self.format == PARQUET else write_arrow
        encoded = self._encoded(samples)
        if self._last == "drop" and self._unasked:
            self._check_last(encoded, samples)
        write(folder / self.name(samples), self._table(encoded))

    def finish(self, folder: Path, names: list[str]) -> None:
        """Publish the settings of the compression, and what makes a folder of Arrow streams a dataset."""
        settings = self._spec.model_dump(mode="json", exclude={"codec", "version"})
        write_text(folder / CONFIG, yaml.safe_dump(settings, sort_keys=False))
        if self.format == ARROW:
            write_arrow_state(folder, names, digest_of(self.options)[:16], self._schema())

    def _encoded(self, samples: range) -> EncodedRows:
        if self._convert is None:
            return encoded_rows(self._dataset, samples)
        rows = self._dataset.rows(samples)
        signals = [
            self._convert(row.signal, row.input_ids, sample)
            for sample, row in zip(samples, rows, strict=True)
            if row.signal is not None
        ]
        try:
            columns = self._codec.encode(concatenate(signals), [len(row.input_ids) for row in rows])
        except LimbeckError as error:
            raise type(error)(f"{self._dataset.storage.where()}, samples from {samples.start}: {error}") from error
        return EncodedRows(rows, columns)

    def _check_last(self, encoded: EncodedRows, samples: range) -> None:
        """Refuse rows whose last positions say something."""
        rows = [row for row, length in enumerate(encoded.lengths) if length]
        columns = {}
        for name, column in encoded.columns.items():
            strings = [column.row(row) for row in rows]
            last = [part[-(len(part) // encoded.lengths[row]) :] for row, part in zip(rows, strings, strict=True)]
            columns[name] = Column(np.concatenate(last), offsets_of([len(part) for part in last]))
        said = self._codec.decode(columns, [1] * len(rows)).mask.nonzero()[:, 0].tolist()
        if said:
            raise UserError(
                f"{self._dataset.storage.where()}, sample {samples[rows[said[0]]]}: its last position says something, "
                "and DistillKit's captures leave that position out. Choose: --last-position keep, or drop."
            )

    def _table(self, encoded: EncodedRows) -> Any:
        arrays = [_list_of([row.input_ids.numpy() for row in encoded.rows], pa.uint64())]
        lengths = [max(length - (self._last == "drop"), 0) for length in encoded.lengths]
        for name, field in fields_of(self._spec).items():
            arrays.append(_nested(encoded.columns[name], encoded.lengths, lengths, field))
        labels = [torch.where(row.trained, row.input_ids, IGNORED).numpy() for row in encoded.rows]
        arrays.append(_list_of(labels, pa.int64()))
        if self._dataset.manifest.documents:
            arrays.append(_list_of([counted_documents(row) for row in encoded.rows], pa.int64()))
        return pa.Table.from_arrays(arrays, schema=self._schema())

    def _schema(self) -> Any:
        columns = [(TOKENS, pa.list_(pa.uint64()))]
        columns += [(name, pa.list_(pa.list_(field.item))) for name, field in fields_of(self._spec).items()]
        columns.append((LABELS, pa.list_(pa.int64())))
        if self._dataset.manifest.documents:
            columns.append((DOCUMENTS, pa.list_(pa.int64())))
        return pa.schema(columns)


def counted_documents(row: SignalRow) -> NDArray[np.int64]:
    """Return 1, 2, ... for the tokens of a row's first, second, ... document."""
    if row.documents is None:
        return np.ones(len(row.input_ids), dtype=np.int64)
    changes = (row.documents[1:] != row.documents[:-1]).long().cumsum(0)
    return np.asarray(torch.cat([changes.new_zeros(min(1, len(row.input_ids))), changes]).numpy() + 1)


def _list_of(rows: Sequence[NDArray[Any]], item: Any) -> Any:
    """Return a column of one list a row."""
    offsets = pa.array(offsets_of([len(row) for row in rows]).astype(np.int32))
    values = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    return pa.ListArray.from_arrays(offsets, pa.array(values, type=item))


def _nested(column: Column, lengths: Sequence[int], kept: Sequence[int], field: Field) -> Any:
    """Return a column of one list a row, of one list a position; the first `kept` positions of each row."""
    positions = [
        column.row(row).reshape(length, -1)[:count] if length else np.zeros((0, 0), dtype=np.uint8)
        for row, (length, count) in enumerate(zip(lengths, kept, strict=True))
    ]
    width = max((part.shape[1] for part in positions), default=0)
    data = np.concatenate([part.reshape(-1, width) for part in positions]) if width else np.zeros((sum(kept), 0))
    items = _items(np.ascontiguousarray(data), field)
    inner = pa.ListArray.from_arrays(
        pa.array(np.arange(len(items) + 1, dtype=np.int32) * items.shape[1]),
        pa.array(items.reshape(-1), type=field.item),
    )
    return pa.ListArray.from_arrays(pa.array(offsets_of(kept).astype(np.int32)), inner)


def _items(data: NDArray[Any], field: Field) -> NDArray[Any]:
    """Return the numbers `[N, C]` that a codec's bytes `[N, W]` are."""
    if field.stored == "uint8" or not data.shape[1]:
        return data
    if field.stored == "int64":
        return data.view("<i8")
    numbers = torch.from_numpy(data).view(getattr(torch, field.stored))
    wide = torch.float64 if field.stored == "float64" else torch.float32
    return np.asarray(numbers.to(wide).numpy())
