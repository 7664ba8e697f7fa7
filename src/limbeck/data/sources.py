"""Training text of any source, as rows: the `dataset:` section of a recipe, and what reads it.

The same settings, text and tokenizer give the same rows in the same order, and another digest whenever a row, its
trained tokens or the order are different. Records are read one after another and tokenised in batches; rows wait in
temporary files, so that memory does not grow with the text.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from limbeck.data.chat import ROLES
from limbeck.data.placed import Placed
from limbeck.data.records import Format, open_records
from limbeck.data.rows import RowRules, TooLong, make_rows
from limbeck.data.shapes import Columns
from limbeck.data.table import RowTable, RowWriter
from limbeck.errors import UserError
from limbeck.progress import bar
from limbeck.seeds import derive_seed
from limbeck.settings import Settings
from limbeck.signals.order import permutation


class TextSource(Settings):
    """Where training text is, and how it becomes rows."""

    path: str
    """A file, a folder, a glob, a `datasets.save_to_disk` folder, or a Hugging Face dataset `owner/name`."""
    format: Format = "auto"
    """What the files are; `auto` goes by their names."""
    configuration: str | None = None
    split: str = "train"
    revision: str | None = None
    """Of a Hugging Face dataset."""
    streaming: bool | None = None
    """Read only the part of a Hugging Face dataset that is needed; by default where `samples` are of more than 2 GB."""
    columns: Columns = Columns()
    """Which columns hold what; see `limbeck.data.shapes` for the known names."""
    samples: int | None = Field(default=None, ge=1)
    """How many records to take, the first of the order; all when absent."""
    seed: int | None = None
    """Shuffles the records; they keep their order when absent."""
    chat_template: bool = True
    """Whether the tokenizer's chat template writes prompts and messages; if not, their contents are joined."""
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """What else the template is told, such as `enable_thinking: false`, or a date that it would take from the clock."""
    separator: str = "\n"
    """What stands between contents that are joined."""
    trained: tuple[str, ...] = ("assistant",)
    """Roles whose turns are trained."""
    turns_apart: bool = False
    """Each trained turn in a row of its own, with all that came before it: for templates that rewrite earlier turns."""
    sequence_length: int = Field(default=256, ge=2)
    """Longest row, in tokens."""
    too_long: TooLong = "split"
    """What is done with what is longer: `refuse`, `skip` (and count), or `split` (texts; conversations are refused)."""

    @model_validator(mode="after")
    def _known_roles(self) -> Self:
        for role in self.trained:
            if role not in ROLES:
                raise ValueError(f"no such role: {role!r}. Known: {', '.join(ROLES)}")
        if not self.trained:
            raise ValueError("trained: name at least one role")
        return self

    def rules(self) -> RowRules:
        """Return how records become rows."""
        return RowRules(**{rule.name: getattr(self, rule.name) for rule in fields(RowRules)})


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, ready for a teacher to read.

    Attributes:
        rows: the rows, in order; each is made when it is asked for.
        digest: SHA-256 that names them: tokens, what of them is trained, and order.
        skipped: what made no row: reason to number.
        records: how many records were read.
    """

    rows: RowTable
    digest: str
    skipped: Mapping[str, int]
    records: int

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.rows.lengths.sum())

    def __reduce__(self) -> tuple[type["Rows"], tuple[RowTable, str, dict[str, int], int]]:
        """Go to another process, tokens and all (five bytes each)."""
        return Rows, (self.rows, self.digest, dict(self.skipped), self.records)


def chosen_records(source: TextSource, *, answered: bool = True) -> tuple[NDArray[np.int64], Iterator[Placed]]:
    """Return the records that a source takes, and the order in which it wants them.

    Args:
        source: where the records are, and which to take.
        answered: whether prompts need their responses.

    Returns:
        `order` and `records`: these come as they lie in the source, and the one wanted at place `p` is the
        `order[p]`-th of them, from 0.

    Raises:
        UserError: as `open_records`.
    """
    records = open_records(
        source.path, format=source.format, columns=source.columns, configuration=source.configuration,
        split=source.split, revision=source.revision, answered=answered, streaming=source.streaming,
        samples=source.samples, seed=source.seed,
    )  # fmt: skip
    total = records.count()
    wanted = np.arange(total) if source.seed is None else permutation(derive_seed(source.seed, "records"), total)
    wanted = wanted[: source.samples]
    chosen = np.zeros(total, dtype=np.bool_)
    chosen[wanted] = True
    return np.argsort(np.argsort(wanted)), records.read(chosen)


def read_source(source: TextSource, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Read a source's text as rows.

    Args:
        source: where the text is, and how it becomes rows.
        tokenizer: the teacher's.

    Raises:
        UserError: the source or a record of it can't be read as it was asked for; the message names file and line.
        LimbeckError: there is no space for temporary files.
    """
    order, records = chosen_records(source)
    writer, skipped = RowWriter(), Counter[str]()
    with bar("reading text (records)", len(order)) as shown:
        for record in make_rows(records, tokenizer, source.rules()):
            writer.append(record.document, record.rows)
            skipped.update(record.skipped)
            shown.advance()
    rows = writer.finish(order)
    if not len(rows):
        why = "; ".join(f"{number:,} {reason}" for reason, number in sorted(skipped.items()))
        raise UserError(f"{source.path}: no rows in {len(order):,} records{f' ({why})' if why else ''}.")
    return Rows(rows, rows.digest(), MappingProxyType(dict(sorted(skipped.items()))), len(order))
