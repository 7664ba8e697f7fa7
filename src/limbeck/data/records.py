"""Where records come from: JSONL, Parquet and plain files, folders and globs of these, and Hugging Face datasets.

Records are counted first and then read in one pass, in a fixed order (files by name), some or all of them; none but
those at hand are in memory. What can't be read is refused with its file and line or row.
"""

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.data.hugging_face import BATCH, HubSource, hub_records, saved_records
from limbeck.data.placed import Chosen, Placed, Records
from limbeck.data.shapes import Columns, wanted_columns
from limbeck.errors import UserError

Format = Literal["auto", "jsonl", "parquet", "text", "huggingface"]
PACKED = frozenset({".gz", ".zst", ".zstd"})
JSON_LINES = frozenset({".jsonl", ".ndjson", ".json"})
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
"""Files of a folder that `datasets.save_to_disk` made."""


def open_records(
    path: str,
    *,
    format: Format = "auto",
    columns: Columns | None = None,
    configuration: str | None = None,
    split: str = "train",
    revision: str | None = None,
    answered: bool = True,
    streaming: bool | None = None,
    samples: int | None = None,
    seed: int | None = None,
) -> Records:
    """Find the records that `path` means.

    Args:
        path: a file, a folder, a glob, a folder of `datasets.save_to_disk`, or a Hugging Face dataset (`owner/name`).
        format: of the files; `auto` goes by their names. `huggingface` asks the hub even if there is such a folder.
        columns: columns that hold the text.
        configuration: of a Hugging Face dataset.
        split: of a Hugging Face dataset.
        revision: of a Hugging Face dataset.
        answered: whether prompts need their responses.
        streaming: whether a Hugging Face dataset is streamed; see `limbeck.data.hugging_face`.
        samples: how many records will be taken.
        seed: what will shuffle them.

    Raises:
        UserError: there is no such thing, or it can't be told what it holds.
    """
    columns = columns or Columns()
    local = Path(path)
    if format == "huggingface" or (format == "auto" and not local.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path)):
        hub = HubSource(
            name=path, configuration=configuration, split=split, revision=revision, streaming=streaming,
            samples=samples, seed=seed,
        )  # fmt: skip
        return hub_records(hub, columns, answered=answered)
    if local.is_dir() and any((local / name).is_file() for name in SAVED) and format == "auto":
        return saved_records(local, split, columns, answered=answered)
    files = _files(path)
    kinds = [format if format != "auto" else format_of(file) for file in files]
    if len(set(kinds)) > 1:
        odd = next(file for file, kind in zip(files, kinds, strict=True) if kind != kinds[0])
        raise UserError(
            f"{path}: holds files of several kinds, such as {files[0].name} and {odd.name}. "
            "Name those to read by a glob, or say which `format` they are."
        )
    if kinds[0] == "text":
        return Records(path, lambda: len(files), lambda chosen: _texts(files, chosen))
    if kinds[0] == "parquet":
        tables = [_parquet(file) for file in files]
        taken = [
            wanted_columns(table.schema_arrow.names, columns, str(file), answered=answered)
            for file, table in zip(files, tables, strict=True)
        ]
        return Records(
            path,
            lambda: sum(table.metadata.num_rows for table in tables),
            lambda chosen: _table_rows(files, tables, taken, chosen),
        )
    return Records(
        path,
        lambda: sum(1 for file in files for _ in _json_lines(file)),
        lambda chosen: _objects(files, chosen),
    )


def format_of(file: Path) -> Format:
    """Return what a file's name says it holds."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return "jsonl" if last in JSON_LINES else "parquet" if last in (".parquet", ".pq") else "text"


def _files(path: str) -> list[Path]:
    """Return the files that a path or a glob means, by name; hidden ones only where they are named."""
    found = Path(path)
    if found.is_file():
        return [found]
    if found.is_dir():
        inside = (file for file in found.rglob("*") if file.is_file())
        files = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(found).parts)]
        if not files:
            raise UserError(f"{path}: there are no files in this folder.")
        return sorted(files)
    if any(character in path for character in "*?["):
        root = Path(found.anchor)
        files = sorted(file for file in root.glob(str(found.relative_to(root))) if file.is_file())
        if not files:
            raise UserError(f"{path}: no file has such a name.")
        return files
    raise UserError(f"{path}: no such file.")


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """Open a file that may be compressed; whatever fails within is said of the file."""
    try:
        if file.suffix.lower() == ".gz":
            with gzip.open(file) as opened:
                yield opened  # type: ignore[misc]  # its reads are those of any binary file
        elif file.suffix.lower() in PACKED:
            with pa.input_stream(str(file), compression="zstd") as stream, BufferedReader(stream) as opened:
                yield opened
        else:
            with file.open("rb") as opened:
                yield opened
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())}).") from error


def _json_lines(file: Path) -> Iterator[tuple[int, bytes | Any]]:
    """Yield the number and the bytes of each line that is not blank; of a JSON list, its elements."""
    with _opened(file) as opened:
        for number, line in enumerate(opened, start=1):
            if line.isspace() or not line:
                continue
            if number == 1 and line.lstrip(b"\xef\xbb\xbf").lstrip().startswith(b"[") and ".json" in file.suffixes:
                yield from enumerate(_parsed(line + opened.read(), str(file), list), start=1)
                return
            yield number, line


def _objects(files: Sequence[Path], chosen: Chosen) -> Iterator[Placed]:
    index = 0
    for file in files:
        for number, line in _json_lines(file):
            if chosen[index]:
                place = f"{file}, line {number}"
                record = _parsed(line, place, dict) if isinstance(line, bytes) else _expected(line, place, dict)
                yield place, record
            index += 1


def _parsed(data: bytes, place: str, kind: type) -> Any:
    try:
        return _expected(json.loads(data.decode("utf-8-sig")), place, kind)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}).") from error


def _expected(value: Any, place: str, kind: type) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"{place}: expected {'an object' if kind is dict else 'a list'}, found {type(value).__name__}.")
    return value


def _texts(files: Sequence[Path], chosen: Chosen) -> Iterator[Placed]:
    for file, taken in zip(files, chosen, strict=True):
        if taken:
            with _opened(file) as opened:
                data = opened.read()
            try:
                yield str(file), {"text": data.decode("utf-8-sig")}
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: not UTF-8 text ({error}).") from error


def _parquet(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a Parquet file ({' '.join(str(error).split())}).") from error


def _table_rows(
    files: Sequence[Path], tables: Sequence[Any], columns: Sequence[list[str]], chosen: Chosen
) -> Iterator[Placed]:
    first = 0
    for file, table, names in zip(files, tables, columns, strict=True):
        row = 0
        try:
            for batch in table.iter_batches(batch_size=BATCH, columns=names):
                here = chosen[first + row : first + row + len(batch)]
                records = batch.filter(pa.array(here)).to_pylist() if here.any() else []
                for number, record in zip(np.flatnonzero(here) + row + 1, records, strict=True):
                    yield f"{file}, row {number}", record
                row += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())}).") from error
        first += row
