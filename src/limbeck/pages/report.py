"""Self-contained HTML reports: one file with its style, its figures and no script, readable offline and for ever.

A report is built top to bottom:

    report = Report("Distillation report", "Pocket teacher, two students, seed 0")
    report.facts({"Forward KL": Fact("0.124", "0.118 to 0.131 nats per token", tone="good")})
    report.section("Training", "Both students started from the same weights.")
    report.figure(curves(...), "Loss on the validation text.")
    report.table(["model", "KL"], [["distilled", Interval(0.124, 0.118, 0.131)]], highlight=[0])
    report.save(Path("report.html"))

Guarantees: every text is escaped, whoever wrote it; the page asks no other machine for anything and its own
Content-Security-Policy forbids scripts; the same content gives the same bytes. In running text, `code` and **strong**
are the only markup. Not here: interaction (sorting, filtering), which needs a script.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from limbeck.errors import UserError
from limbeck.files import write_text
from limbeck.pages.cells import Cell, Column, Tone, table_cells
from limbeck.pages.html import render
from limbeck.pages.numbers import number

NoteKind = Literal["info", "good", "bad", "warn"]


@dataclass(frozen=True)
class Fact:
    """One summary card's content: a large value, and below it a line of detail (its interval, what it is against)."""

    value: str | int | float
    detail: str = ""
    tone: Tone = "plain"

    @property
    def text(self) -> str:
        """The value as it is shown."""
        return self.value if isinstance(self.value, str) else number(self.value)


@dataclass(frozen=True)
class Block:
    """One piece of a section; `kind` names its template."""

    kind: str
    content: Mapping[str, object]


@dataclass
class Section:
    """A heading (empty for what stands before the first one) and the blocks below it."""

    heading: str
    anchor: str
    blocks: list[Block] = field(default_factory=list)


class Report:
    """A page under construction. Every method but `html` and `save` adds one block and returns the report itself."""

    def __init__(self, title: str, subtitle: str = "", footer: str = "") -> None:
        """Start a page; `footer` says how it was made (command, version, seed), so that it can be made again."""
        self.title = title
        self.subtitle = subtitle
        self.footer = footer
        self._sections = [Section("", "")]

    def facts(self, facts: Mapping[str, Fact | str | int | float]) -> "Report":
        """Add a row of summary cards, `{label: value}`; the three to six things a reader came for."""
        cards = [(name, fact if isinstance(fact, Fact) else Fact(fact)) for name, fact in facts.items()]
        return self._add("facts", cards=cards)

    def section(self, heading: str, text: str = "") -> "Report":
        """Begin a section; four or more sections get a table of contents."""
        self._sections.append(Section(heading, self._anchor(heading)))
        return self.text(text) if text else self

    def text(self, text: str) -> "Report":
        """Add running text; an empty line separates paragraphs."""
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]
        return self._add("text", paragraphs=paragraphs)

    def table(
        self,
        columns: Sequence[str | Column],
        rows: Sequence[Sequence[Cell]],
        caption: str = "",
        highlight: Collection[int] = (),
    ) -> "Report":
        """Add a table, which scrolls inside its own frame where it is wider than the page.

        Args:
            columns: titles, or `Column` to say percent or decimals. A column of numbers is aligned right.
            rows: one sequence of cells a row; the first cell names the row.
            caption: what the table shows, and what its intervals are.
            highlight: indices of the rows to set off (the winner, the king).

        Raises:
            UserError: a row has more or fewer cells than there are columns.
        """
        heads = [column if isinstance(column, Column) else Column(column) for column in columns]
        for index, row in enumerate(rows):
            if len(row) != len(heads):
                raise UserError(f"table {caption!r}: row {index} has {len(row)} cells for {len(heads)} columns.")
        heads, cells = table_cells(heads, rows)
        return self._add("table", columns=heads, rows=cells, caption=caption, highlight=frozenset(highlight))

    def figure(self, svg: str, caption: str = "") -> "Report":
        """Add a plot, as `limbeck.pages.plots` returns it. Its caption is also what a screen reader says.

        Raises:
            UserError: `svg` is not SVG, or carries a script or an event handler.
        """
        if not svg.startswith("<svg"):
            raise UserError("figure: expected the SVG text that a function of limbeck.pages.plots returns.")
        if re.search(r"<\s*(script|foreignObject|iframe)|\son\w+\s*=|javascript:", _without_text(svg), re.IGNORECASE):
            raise UserError("figure: the SVG carries active content; only drawings go into a report.")
        return self._add("figure", svg=svg, caption=caption)

    def note(self, text: str, kind: NoteKind = "info") -> "Report":
        """Add a short remark set off from the text: what to beware of, or what was decided."""
        return self._add("note", text=text, note=kind)

    def code(self, text: str) -> "Report":
        """Add a block of literal text, such as the commands that make the report again."""
        return self._add("code", text=text)

    def html(self) -> str:
        """Return the whole page."""
        sections = [section for section in self._sections if section.blocks or section.heading]
        contents = [section for section in sections if section.heading]
        return render(
            "report.html",
            title=self.title,
            subtitle=self.subtitle,
            footer=self.footer,
            sections=sections,
            contents=contents if len(contents) >= 4 else [],
        )

    def save(self, path: Path) -> None:
        """Write the page to `path`, whole or not at all."""
        write_text(path, self.html())

    def _add(self, kind: str, **content: object) -> "Report":
        self._sections[-1].blocks.append(Block(kind, content))
        return self

    def _anchor(self, heading: str) -> str:
        stem = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        taken = {section.anchor for section in self._sections}
        anchor, count = stem, 1
        while anchor in taken:
            count += 1
            anchor = f"{stem}-{count}"
        return anchor


def _without_text(svg: str) -> str:
    """Return the SVG's tags alone, so that a label that merely says `onload=` is not taken for one."""
    return "".join(re.findall(r"<[^>]*>", svg))
