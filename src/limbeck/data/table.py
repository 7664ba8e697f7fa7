"""Rows of tokens, kept in unnamed temporary files: any number of them in little memory, five bytes a token on the disk.

The files lie in the folder for temporary files (`TMPDIR`), and are gone with the process that wrote them. In memory are
24 bytes a row and as many a record.
"""

import errno
import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from limbeck.data.encoding import TokenRow
from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class NamedRow:
    """A row of tokens and the document that it is from."""

    document: str
    row: TokenRow


class RowTable(Sequence[NamedRow]):
    """Rows in order, each made when it is asked for.

    Attributes:
        lengths: tokens of each row.
        records: the record that each row is from, counted from 0 in the order of reading.
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
        names: NDArray[np.uint8],
        row_ends: NDArray[np.int64],
        name_ends: NDArray[np.int64],
        records: NDArray[np.int64],
        order: NDArray[np.int64],
    ) -> None:
        self._ids, self._trained, self._names = ids, trained, names
        self._row_ends, self._name_ends, self._order = row_ends, name_ends, order
        self.lengths: NDArray[np.int64] = np.diff(row_ends, prepend=0)[order]
        self.records = records[order]

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, place: int) -> NamedRow: ...
    @overload
    def __getitem__(self, place: slice) -> list[NamedRow]: ...
    def __getitem__(self, place: int | slice) -> NamedRow | list[NamedRow]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        where, record = self._where(self._order[place]), int(self.records[place])
        first = int(self._name_ends[record - 1]) if record else 0
        name = self._names[first : int(self._name_ends[record])].tobytes().decode()
        return NamedRow(name, TokenRow(tuple(self._ids[where].tolist()), tuple(self._trained[where].tolist())))

    def digest(self) -> str:
        """Return the SHA-256 that names these rows: their tokens, what of them is trained, and their order.

        It runs over, for each row, its length (8 bytes, little-endian), one byte that says whether it is the first of
        its record, its ids (4 bytes each, little-endian) and its flags (a byte each).
        """
        digest = hashlib.sha256()
        firsts = np.diff(self.records, prepend=-1) != 0
        for row, first in zip(self._order, firsts, strict=True):
            where = self._where(row)
            digest.update((where.stop - where.start).to_bytes(8, "little") + bytes([int(first)]))
            digest.update(self._ids[where].astype("<i4").tobytes() + self._trained[where].tobytes())
        return digest.hexdigest()

    def _where(self, row: Any) -> slice:
        return slice(int(self._row_ends[row - 1]) if row else 0, int(self._row_ends[row]))


class RowWriter:
    """Takes the rows of one record after another, and makes a table of them."""

    def __init__(self) -> None:
        self._ids, self._trained, self._names = (TemporaryFile() for _ in range(3))  # noqa: SIM115  # the table's
        self._row_ends, self._name_ends, self._records = array("q"), array("q"), array("q")
        self._tokens = self._characters = 0

    def append(self, document: str, rows: Sequence[TokenRow]) -> None:
        """Add the rows of the next record.

        Raises:
            LimbeckError: the disk is full.
        """
        name = document.encode("utf-8", "replace")
        try:
            self._names.write(name)
            for row in rows:
                self._ids.write(np.asarray(row.ids, dtype=np.int32).tobytes())
                self._trained.write(np.asarray(row.trained, dtype=np.bool_).tobytes())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise LimbeckError(
                f"{gettempdir()}: no space left for rows of tokens. Free some, or set TMPDIR to another folder."
            ) from error
        for row in rows:
            self._tokens += len(row.ids)
            self._row_ends.append(self._tokens)
            self._records.append(len(self._name_ends))
        self._characters += len(name)
        self._name_ends.append(self._characters)

    def finish(self, records: NDArray[np.int64] | None = None) -> RowTable:
        """Return the table, its records in the order in which they came, or in that of `records`."""
        of_row = np.asarray(self._records, dtype=np.int64)
        order = np.arange(len(of_row))
        if records is not None:
            rank = np.empty(len(records), dtype=np.int64)
            rank[records] = np.arange(len(records))
            order = np.argsort(rank[of_row], kind="stable")
        return RowTable(
            _mapped(self._ids, np.int32), _mapped(self._trained, np.bool_), _mapped(self._names, np.uint8),
            np.asarray(self._row_ends, dtype=np.int64), np.asarray(self._name_ends, dtype=np.int64), of_row, order,
        )  # fmt: skip


def _mapped(file: IO[bytes], kind: Any) -> NDArray[Any]:
    file.flush()
    empty = file.seek(0, 2) == 0
    return np.zeros(0, kind) if empty else np.asarray(np.memmap(file, kind, mode="r"))
