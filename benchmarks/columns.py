"""How a column of a fixed number of bytes a position is best kept in Parquet: speed of reading, and bytes."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.timing import Row, in_turn

TITLE = "64 rows of 2,048 positions, 128 bytes each: large_binary a row (ours) and other layouts, from memory to numpy"
ROWS, LENGTH, WIDTH = 64, 2048, 128


def run() -> list[Row]:
    count = ROWS * LENGTH
    data = np.random.default_rng(0).integers(0, 256, count * WIDTH, dtype=np.uint8)
    of_bytes = pa.array(np.arange(ROWS + 1, dtype=np.int64) * LENGTH * WIDTH)
    of_positions = pa.array(np.arange(ROWS + 1, dtype=np.int32) * LENGTH)
    fixed = pa.Array.from_buffers(pa.binary(WIDTH), count, [None, pa.py_buffer(data)])
    ours = pa.Array.from_buffers(pa.large_binary(), ROWS, [None, of_bytes.buffers()[1], pa.py_buffer(data)])
    numbers = pa.array(data)
    layouts: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "list<fixed_size_binary>": (
            pa.ListArray.from_arrays(of_positions, fixed),
            lambda found: found.values.buffers()[1],
        ),
        "fixed_size_binary, one a position": (fixed, lambda found: found.buffers()[1]),
        "large_list<uint8>": (
            pa.LargeListArray.from_arrays(of_bytes, numbers),
            lambda found: found.values.buffers()[1],
        ),
    }
    with tempfile.TemporaryDirectory() as name:
        best = Reading(Path(name) / "ours", ours, lambda found: found.buffers()[2])
        return [
            Row(
                f"large_binary, {best.size / count:.1f} bytes a position",
                *in_turn(best, other),
                _label(layout, other, count),
            )
            for layout, other in (
                (layout, Reading(Path(name) / "other", column, bytes_of))
                for layout, (column, bytes_of) in layouts.items()
            )
        ]


class Reading:
    """Reads a column that was written to a file."""

    def __init__(self, path: Path, column: Any, bytes_of: Callable[[Any], Any]) -> None:
        pq.write_table(
            pa.table({"column": column}), path, row_group_size=len(column), use_dictionary=False,
            write_statistics=False, compression="none",
        )  # fmt: skip
        self._data, self._bytes_of = path.read_bytes(), bytes_of
        self.size = len(self._data)

    def __call__(self) -> Any:
        table = pq.read_table(pa.BufferReader(pa.py_buffer(self._data)), use_threads=False)
        return np.frombuffer(self._bytes_of(table.column("column").combine_chunks()), dtype=np.uint8)


def _label(layout: str, reader: Reading, count: int) -> str:
    return f"{layout}, {reader.size / count:.1f} bytes a position"
