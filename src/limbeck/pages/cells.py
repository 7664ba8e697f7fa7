"""What may stand in a table's cell, and how a column decides on its alignment and decimals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from limbeck.errors import UserError
from limbeck.pages.numbers import MISSING, Interval, decimals_for, limits, number

Tone = Literal["plain", "good", "bad", "warn", "muted"]


@dataclass(frozen=True)
class Badge:
    """A small coloured word: a status."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Link:
    """A text that leads to `href`: a place on this page (`#…`), a path of this site (`/…`) or an http(s) address."""

    text: str
    href: str

    def __post_init__(self) -> None:
        """Refuse every other kind of address (`javascript:`, `data:`, another site as `//…`)."""
        local = self.href.startswith(("#", "/")) and not self.href.startswith(("//", "/\\"))
        if not local and not self.href.startswith(("https://", "http://")):
            raise UserError(f"link {self.href[:60]!r}: expected #place, /path, http:// or https://.")


@dataclass(frozen=True)
class Key:
    """A hotkey, digest or revision: shown in a fixed-width face with its middle cut out, whole on hovering."""

    text: str

    @property
    def short(self) -> str:
        """The first eight and the last five characters."""
        return self.text if len(self.text) <= 14 else f"{self.text[:8]}…{self.text[-5:]}"


Cell = str | int | float | bool | None | Interval | Badge | Link | Key


@dataclass(frozen=True)
class Column:
    """A column's title and how its numbers are written; alignment follows from the cells unless given."""

    title: str
    percent: bool = False
    decimals: int | None = None
    numeric: bool | None = None


@dataclass(frozen=True)
class ShownCell:
    """A cell as text: `detail` stands muted below it, `whole` is what a shortened text stands for."""

    text: str
    detail: str = ""
    badge: Tone | None = None
    href: str = ""
    whole: str = ""


def table_cells(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]]
) -> tuple[list[Column], list[list[ShownCell]]]:
    """Settle each column's alignment and decimals from its cells, and write the cells out."""
    plain = [[_plain(cell) for cell in row] for row in rows]
    settled = [_settle(column, [row[index] for row in plain]) for index, column in enumerate(columns)]
    return settled, [[_show(cell, column) for cell, column in zip(row, settled, strict=True)] for row in plain]


def _plain(cell: Cell) -> Cell:
    """Return numpy's and torch's scalars as Python's own."""
    item = getattr(cell, "item", None)
    return cast("Cell", item()) if callable(item) else cell


def _settle(column: Column, cells: Sequence[Cell]) -> Column:
    present = [cell for cell in cells if cell is not None]
    numbers = [cell for cell in present if isinstance(cell, int | float | Interval) and not isinstance(cell, bool)]
    numeric = bool(numbers) and len(numbers) == len(present) if column.numeric is None else column.numeric
    decimals = column.decimals
    if decimals is None and column.percent:
        decimals = 1
    if decimals is None:
        mids = [cell.mid if isinstance(cell, Interval) else cell for cell in numbers if not isinstance(cell, int)]
        decimals = decimals_for(mids) if mids else None
    return replace(column, numeric=numeric, decimals=decimals)


def _show(cell: Cell, column: Column) -> ShownCell:
    match cell:
        case None:
            return ShownCell(MISSING)
        case bool():
            return ShownCell("yes" if cell else "no")
        case Interval():
            shown = number(float(cell.mid), column.decimals, column.percent)
            return ShownCell(shown, limits(cell, column.decimals, column.percent))
        case int() | float():
            return ShownCell(number(cell, column.decimals, column.percent))
        case Badge():
            return ShownCell(cell.text, badge=cell.tone)
        case Link():
            return ShownCell(cell.text, href=cell.href)
        case Key():
            return ShownCell(cell.short, whole=cell.text)
        case str():
            return ShownCell(cell)
