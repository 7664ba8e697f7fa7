"""DistillKit's datasets: rows of tokens with the bytes of codec `distillkit` or `distillkit_legacy`, as lists.

On disk a signal is a list of positions, each a list of bytes (or of numbers, in the legacy form). These bytes are
those of our codecs' columns, so both ways they are copied, not computed.

Which token a position is about: signal row i stands for token i + 1, given tokens 0 to i. A capture has one row less
than tokens, for nothing follows the last one; a packed dataset has as many rows as tokens. Any other number is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from limbeck.errors import IntegrityError, UserError
from limbeck.progress import bar
from limbeck.settings import read_yaml
from limbeck.signals.codecs.columns import Bytes, Column, Columns, offsets_of
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec, read_config
from limbeck.signals.codecs.registry import make_codec
from limbeck.signals.convert.importing import Identity, files_digest, vocabulary_or
from limbeck.signals.convert.tables import Tables, open_arrow, open_parquet
from limbeck.signals.dataset import SignalRow
from limbeck.signals.encoded_rows import EncodedRows
from limbeck.signals.types import TopkSignal

PARQUET, ARROW = "distillkit-parquet", "distillkit-arrow"
CONFIG = "compression_config.yaml"
TOKENS, LABELS, DOCUMENTS = "input_ids", "labels", "attention_mask"
IGNORED = -100
ROWS_AT_ONCE = 1024

Spec = DistillkitSpec | DistillkitLegacySpec


@dataclass(frozen=True)
class Field:
    """How a column of bytes stands in a table.

    Attributes:
        item: Arrow's type of one item of a position.
        stored: numpy's type of the same item in the codec's bytes; bfloat16 goes by torch.
    """

    item: Any
    stored: str


def fields_of(spec: Spec) -> dict[str, Field]:
    """Return the columns of a signal by name."""
    if isinstance(spec, DistillkitSpec):
        return {"compressed_logprobs": Field(pa.uint8(), "uint8"), "bytepacked_indices": Field(pa.uint8(), "uint8")}
    wide = pa.float64() if spec.term_dtype == "float64" else pa.float32()
    return {
        "packed_indices": Field(pa.int64(), "int64"),
        "exact_values": Field(pa.float32(), "float16"),
        "coeffs": Field(wide, spec.term_dtype),
    }


class DistillkitReader:
    """Reads DistillKit's Parquet files or saved Arrow dataset; see the module and `Reader`.

    Args:
        folder: of the files.
        format: `distillkit-parquet` or `distillkit-arrow`.
        identity: what the files don't say; the vocabulary defaults to the settings' own.
        config: DistillKit's settings of the compression; `compression_config.yaml` in the folder by default.

    Raises:
        UserError: files, settings or columns are missing.
    """

    def __init__(self, folder: Path, format: str, identity: Identity, config: Path | None = None) -> None:
        self.where = str(folder)
        self.format = format
        self._tables: Tables = open_parquet(folder) if format == PARQUET else open_arrow(folder)
        path = config or (folder if folder.is_dir() else folder.parent) / CONFIG
        if not path.exists():
            raise UserError(f"{path}: no such file. Name the settings that the data were written with: --config FILE.")
        self.spec: Spec = read_config(read_yaml(path), str(path))
        self.samples = len(self._tables)
        self._columns = [TOKENS, *fields_of(self.spec)]
        if missing := [name for name in self._columns if name not in self._tables.names]:
            raise UserError(
                f"{folder}: no column {missing[0]!r}, which the settings in {path} call for; "
                f"it has {', '.join(self._tables.names)}."
            )
        if not self.samples:
            raise UserError(f"{folder}: no rows to import.")
        self._columns += [name for name in (LABELS, DOCUMENTS) if name in self._tables.names]
        self.vocabulary = vocabulary_or(
            identity, self.spec.d if isinstance(self.spec, DistillkitSpec) else self.spec.vocab_size, self.where
        )
        self._codec = make_codec(self.spec, self.vocabulary)
        self._absent = self._codec.encode(nothing_said(), [1])
        self.documents = DOCUMENTS in self._columns and self._has_documents()
        self.text_digest = files_digest(self._tables.files, f"hashing {format} (files)")

    def rows(self, samples: range) -> EncodedRows:
        """Return some rows with the bytes of their signals; see `Reader`."""
        table = self._tables.slice(samples, self._columns)
        signals = {name: _positions(table, name, field) for name, field in fields_of(self.spec).items()}
        for name, (data, _) in signals.items():
            width = self._absent[name].data.shape[0]
            if data.shape[1] not in (width, 0) or (data.shape[1] == 0 and len(data) and width):
                raise IntegrityError(
                    f"{self.where}: {data.shape[1]} bytes a position in {name!r}, but the settings make {width}. "
                    "The data were written with other settings: name theirs by --config."
                )
        texts = {name: _lists(table, name) for name in self._columns if name in (TOKENS, LABELS, DOCUMENTS)}
        rows: list[SignalRow] = []
        strings: dict[str, list[Bytes]] = {name: [] for name in signals}
        for number, sample in enumerate(samples):
            values = {name: flat[offsets[number] : offsets[number + 1]] for name, (flat, offsets) in texts.items()}
            row = self._row(values, sample)
            rows.append(row)
            for name, (data, offsets) in signals.items():
                positions = data[offsets[number] : offsets[number + 1]]
                strings[name].append(self._whole(positions, len(values[TOKENS]), len(row.input_ids), name, sample))
        columns: Columns = {}
        for name, parts in strings.items():
            columns[name] = Column(np.concatenate(parts), offsets_of([len(part) for part in parts]))
        return EncodedRows(rows, columns)

    def _whole(self, positions: NDArray[np.uint8], tokens: int, kept: int, name: str, sample: int) -> Bytes:
        """Return the bytes of one row's positions, one for each token that is kept."""
        if len(positions) == tokens - 1:
            absent = self._absent[name].data.reshape(1, -1)
            positions = np.concatenate([positions.reshape(-1, absent.shape[1]), absent])
        elif len(positions) != tokens:
            raise UserError(
                f"{self._tables.where(sample)}: {tokens} tokens with {len(positions)} positions of {name!r}. A row has "
                "as many positions as tokens, or one less."
            )
        return np.ascontiguousarray(positions[:kept]).reshape(-1)

    def _row(self, values: dict[str, NDArray[Any]], sample: int) -> SignalRow:
        """Return a row's tokens, without the padding behind them."""
        where = self._tables.where(sample)
        marks = values.get(DOCUMENTS)
        tokens = values[TOKENS].astype(np.int64)
        for name, others in values.items():
            if len(others) != len(tokens):
                raise UserError(f"{where}: {len(tokens)} tokens, but {len(others)} values of {name!r}.")
        kept = len(tokens) if marks is None else int((marks != 0).sum())
        if marks is not None and not marks[:kept].all():
            raise UserError(f"{where}: {DOCUMENTS!r} is 0 before the row's end. Padding stands behind the tokens only.")
        ids = torch.from_numpy(tokens[:kept].copy())
        trained = torch.ones(kept, dtype=torch.bool)
        if LABELS in values:
            labels = torch.from_numpy(values[LABELS].astype(np.int64)[:kept].copy())
            trained = labels != IGNORED
            if not torch.equal(labels[trained], ids[trained]):
                raise UserError(
                    f"{where}: {LABELS!r} are not the tokens themselves. Labels that were moved can't be read."
                )
        documents = None
        if self.documents and marks is not None:
            documents = torch.from_numpy(marks[:kept].astype(np.int64))
        return SignalRow(ids, trained, None, documents)

    def _has_documents(self) -> bool:
        """Return whether any attention mask counts documents, as DistillKit's packer does."""
        with bar("looking for documents (rows)", self.samples) as shown:
            for first in range(0, self.samples, ROWS_AT_ONCE):
                rows = range(first, min(first + ROWS_AT_ONCE, self.samples))
                flat, _ = _lists(self._tables.slice(rows, [DOCUMENTS]), DOCUMENTS)
                if len(flat) and flat.max() > 1:
                    return True
                shown.advance(len(rows))
        return False


def _lists(table: Any, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the numbers of a column of lists, and where each row's begin."""
    array = table.column(name).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if array.null_count or not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise UserError(f"column {name!r}: {array.type} with {array.null_count} nulls, not a list of numbers a row.")
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return values.to_numpy(zero_copy_only=False), offsets - offsets[0]


def _positions(table: Any, name: str, field: Field) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes `[N, W]` of a column's positions, as the codec stores them, and where each row's begin."""
    array = table.column(name).combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    inner = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    if array.null_count or inner.null_count:
        raise UserError(f"column {name!r}: a row or a position is null.")
    if pa.types.is_fixed_size_list(inner.type):
        flat = inner.flatten()
        sizes = np.full(len(inner), inner.type.list_size, dtype=np.int64)
    else:
        bounds = inner.offsets.to_numpy().astype(np.int64)
        flat, sizes = inner.values.slice(bounds[0], bounds[-1] - bounds[0]), np.diff(bounds)
    if len(sizes) and (sizes != sizes[0]).any():
        raise IntegrityError(
            f"column {name!r}: positions of {int(sizes.min())} to {int(sizes.max())} items, not all of one size."
        )
    count = int(sizes[0]) if len(sizes) else 0
    values = flat.to_numpy(zero_copy_only=False).reshape(len(sizes), count)
    return _stored(values, name, field), offsets - offsets[0]


def _stored(values: NDArray[Any], name: str, field: Field) -> NDArray[np.uint8]:
    """Return numbers as the bytes that the codec keeps of them."""
    if field.stored in ("uint8", "int64"):
        narrow = values.astype(f"<{np.dtype(field.stored).str[1:]}")
        if not np.array_equal(narrow, values):
            raise IntegrityError(f"column {name!r}: a number is not one of {field.stored}.")
        return narrow.view(np.uint8).reshape(len(values), -1)
    given = torch.from_numpy(np.array(values))
    kept = given.to(getattr(torch, field.stored))
    if not torch.equal(torch.nan_to_num(kept.to(given.dtype)), torch.nan_to_num(given)):
        raise IntegrityError(
            f"column {name!r}: a number is not one of {field.stored}, which the settings call for. "
            "The data were written with other settings."
        )
    return np.asarray(kept.contiguous().view(torch.uint8).numpy()).reshape(len(values), -1)


def nothing_said() -> TopkSignal:
    """Return one position that says nothing."""
    gone = torch.full((1, 1), float("-inf"))
    return TopkSignal(
        torch.zeros(1, 1, dtype=torch.int64), gone, gone[0], torch.zeros(1, 1), (1.0,), torch.zeros(1, dtype=torch.bool)
    )
