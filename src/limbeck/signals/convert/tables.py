"""Arrow tables on disk as one long table, read a slice at a time: folders of Parquet files, and what `datasets` saves.

`datasets` (its `save_to_disk`) leaves Arrow streams, `state.json` that lists them, and `dataset_info.json`. Both kinds
are read and written without that library, which would copy everything through its cache.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.errors import IntegrityError, UserError
from limbeck.files import publish, read_json, write_json
from limbeck.signals.codecs.columns import Integers, offsets_of

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
GROUPS_KEPT = 4


@dataclass
class Tables:
    """Files whose rows are one table.

    Attributes:
        files: in order.
        schema: of the first; the others have the same columns.
        parts: for each run of rows that is read at once, the file and the row group within it.
        starts: where each part begins, and where the last one ends.
    """

    files: list[Path]
    schema: Any
    parts: list[tuple[int, int]]
    starts: Integers
    _arrow: dict[int, Any] = field(default_factory=dict)
    _kept: "OrderedDict[tuple[int, tuple[str, ...]], Any]" = field(default_factory=OrderedDict)

    @property
    def names(self) -> list[str]:
        """Return the names of the columns."""
        return list(self.schema.names)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def slice(self, rows: range, columns: Sequence[str]) -> Any:
        """Return some rows of some columns as one Arrow table.

        Raises:
            IntegrityError: a file can't be read; it is named.
        """
        found = []
        for number in range(len(self.parts)):
            first, last = int(self.starts[number]), int(self.starts[number + 1])
            begin, end = max(rows.start, first), min(rows.stop, last)
            if begin < end:
                found.append(self._part(number, tuple(columns)).slice(begin - first, end - begin))
        return pa.concat_tables(found)

    def where(self, row: int) -> str:
        """Return the file of a row and its number within the file, for messages."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        file = self.parts[number][0]
        first = min(int(start) for start, part in zip(self.starts, self.parts, strict=False) if part[0] == file)
        return f"{self.files[file]}, row {row - first}"

    def _part(self, number: int, columns: tuple[str, ...]) -> Any:
        key = (number, columns)
        if key not in self._kept:
            file, group = self.parts[number]
            try:
                if file in self._arrow:
                    self._kept[key] = self._arrow[file].select(list(columns))
                else:
                    parquet = pq.ParquetFile(self.files[file])
                    self._kept[key] = parquet.read_row_group(group, columns=list(columns), use_threads=False)
            except (pa.ArrowException, OSError) as error:
                first_line = (str(error).splitlines() or [type(error).__name__])[0]
                raise IntegrityError(f"{self.files[file]}: can't be read ({first_line}). Copy it anew.") from error
        self._kept.move_to_end(key)
        while len(self._kept) > GROUPS_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


def open_parquet(folder: Path) -> Tables:
    """Open a folder of Parquet files, in the order of their names, numbers in them counting as numbers.

    Raises:
        UserError: there are none, or one has other columns or is none.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*.parquet"), key=_natural)
    if not files:
        raise UserError(f"{folder}: no *.parquet file here.")
    parts, sizes, schema = [], [], None
    for number, path in enumerate(files):
        try:
            parquet = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a Parquet file ({(str(error).splitlines() or ['empty'])[0]}).") from error
        schema = schema or parquet.schema_arrow
        _check_columns(path, schema, parquet.schema_arrow)
        for group in range(parquet.num_row_groups):
            parts.append((number, group))
            sizes.append(parquet.metadata.row_group(group).num_rows)
    return Tables(files, schema, parts, offsets_of(sizes))


def open_arrow(folder: Path) -> Tables:
    """Open what `datasets` saved to disk.

    Raises:
        UserError: the folder is none, or holds several splits, or a file that it names is missing or damaged.
    """
    if (folder / SPLITS).exists():
        splits = read_json(folder / SPLITS).get("splits", [])
        raise UserError(f"{folder}: holds the splits {', '.join(splits)}. Name one of them: {folder / splits[0]}")
    if not (folder / STATE).exists():
        raise UserError(f"{folder}: no {STATE} here. Name a folder that `datasets` saved to disk (save_to_disk).")
    state = read_json(folder / STATE)
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: its rows are picked by an index. Save it flattened (flatten_indices) first.")
    files = [folder / entry["filename"] for entry in state["_data_files"]]
    tables: dict[int, Any] = {}
    for number, path in enumerate(files):
        try:
            tables[number] = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        except (pa.ArrowException, OSError) as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: can't be read ({first_line}). Copy the folder anew.") from error
        _check_columns(path, tables[0].schema, tables[number].schema)
    sizes = [tables[number].num_rows for number in range(len(files))]
    return Tables(
        files, tables[0].schema, [(number, 0) for number in range(len(files))], offsets_of(sizes), _arrow=tables
    )


def write_parquet(path: Path, table: Any) -> None:
    """Publish a table as a Parquet file."""
    with publish(path) as temporary:
        pq.write_table(table, temporary, compression="snappy", use_dictionary=False, write_statistics=False)


def write_arrow(path: Path, table: Any) -> None:
    """Publish a table as an Arrow stream, as `datasets` writes it."""
    with publish(path) as temporary, pa.ipc.new_stream(str(temporary), table.schema) as stream:
        stream.write_table(table)


def write_arrow_state(folder: Path, names: Sequence[str], fingerprint: str, schema: Any) -> None:
    """Publish what makes a folder of Arrow streams one that `datasets` loads from disk.

    Args:
        folder: where the streams lie.
        names: of the streams, in order.
        fingerprint: any 16 hexadecimal digits that stand for the contents.
        schema: of the streams.
    """
    features = {name: _feature(schema.field(name).type) for name in schema.names}
    write_json(folder / INFO, {"citation": "", "description": "", "features": features, "homepage": "", "license": ""})
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / STATE, state)


def _feature(kind: Any) -> dict[str, Any]:
    """Return how `datasets` describes a type."""
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type)}
    return {"_type": "Value", "dtype": str(kind).replace("double", "float64").replace("halffloat", "float16")}


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that puts `data_10` behind `data_9`."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts if part]


def _check_columns(path: Path, first: Any, found: Any) -> None:
    if set(found.names) != set(first.names):
        raise UserError(
            f"{path}: has the columns {', '.join(found.names)}, other files here have {', '.join(first.names)}. "
            "Name a folder that holds one dataset."
        )
