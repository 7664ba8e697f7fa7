"""Training text as rows of token ids: records of texts, of prompts with responses, or of conversations.

A text becomes as many rows as it needs, all of it trained; it begins with the tokenizer's beginning-of-text token,
where that adds one, and ends with its end-of-text token. A conversation is one row, in which the turns of the chosen
roles are trained. Nothing is ever cut off: the rows of a text, one after another, are its tokens, and what is left
out is counted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from limbeck.data.chat import Conversation, written_by_template, written_plainly
from limbeck.data.encoding import TokenRow, Written, encode
from limbeck.data.placed import Placed
from limbeck.data.records import open_records
from limbeck.data.shapes import Columns, Text, contents, document_of
from limbeck.data.table import NamedRow
from limbeck.errors import UserError

__all__ = ["NamedRow", "RecordRows", "RowRules", "TokenRow", "TooLong", "make_rows", "read_rows"]

TooLong = Literal["refuse", "skip", "split"]
BATCH_CHARACTERS = 1 << 20  # of text that is tokenised at a time
EMPTY, TOO_LONG, UNTRAINED = "empty", "too long", "nothing to train"


@dataclass(frozen=True)
class RowRules:
    """How records become rows.

    Attributes:
        sequence_length: the longest row, in tokens.
        too_long: what happens to what is longer: an error, left out and counted, or (texts only) several rows.
        columns: which columns of a record hold what.
        chat_template: whether the tokenizer's chat template writes conversations, or their contents are joined.
        template_arguments: what else the template is told.
        separator: what stands between contents that are joined.
        trained: roles whose turns are trained.
        turns_apart: whether each trained turn is a row of its own, with all that came before it.
    """

    sequence_length: int
    too_long: TooLong = "split"
    columns: Columns = field(default_factory=Columns)
    chat_template: bool = True
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    separator: str = "\n"
    trained: tuple[str, ...] = ("assistant",)
    turns_apart: bool = False


@dataclass(frozen=True)
class RecordRows:
    """The rows of one record, and why other things in it made none."""

    document: str
    rows: tuple[TokenRow, ...]
    skipped: tuple[str, ...]


def read_rows(path: Path, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> Iterator[NamedRow]:
    """Yield the rows of a JSONL file, in order. A text without characters has none.

    Args:
        path: the file; it may be compressed.
        tokenizer: the teacher's.
        sequence_length: the longest row, in tokens.

    Raises:
        UserError: the file is missing, a line is not such an object, or a conversation is longer than
            `sequence_length`; the message names file and line.
    """
    records = open_records(str(path), format="jsonl")
    chosen = np.ones(records.count(), dtype=np.bool_)
    for record in make_rows(records.read(chosen), tokenizer, RowRules(sequence_length)):
        yield from (NamedRow(record.document, row) for row in record.rows)


def make_rows(records: Iterable[Placed], tokenizer: PreTrainedTokenizerBase, rules: RowRules) -> Iterator[RecordRows]:
    """Yield the rows of each record, in order; many records are tokenised at a time.

    Raises:
        UserError: a record can't become rows under these rules; the message names its place.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no tokenizer.json: it can't be used.")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no end-of-text token, with which texts end.")
    opening = _opening(tokenizer)
    batch: list[_Item] = []
    characters = 0
    for place, record in records:
        item = _Item(place, document_of(record, rules.columns, place), [], [])
        for content in contents(record, rules.columns, place):
            _write(item, content, tokenizer, rules)
        batch.append(item)
        characters += sum(len(text.text) for text in item.texts) + 1
        if characters > BATCH_CHARACTERS or len(batch) == 1000:
            yield from _encoded(batch, tokenizer, opening, rules)
            batch, characters = [], 0
    yield from _encoded(batch, tokenizer, opening, rules)


@dataclass
class _Item:
    """What one record says, written out, before it is tokenised."""

    place: str
    document: str
    texts: list[Written]
    skipped: list[str]


def _write(item: _Item, content: Text | Conversation, tokenizer: PreTrainedTokenizerBase, rules: RowRules) -> None:
    if isinstance(content, Text):
        if content.text:
            item.texts.append(Written(content.text, ((0, len(content.text)),), "none"))
        else:
            item.skipped.append(EMPTY)
        return
    if not any(message["role"] in rules.trained for message in content.messages):
        item.skipped.append(UNTRAINED)
        return
    try:
        if rules.chat_template:
            item.texts += written_by_template(
                tokenizer, content, rules.trained, turns_apart=rules.turns_apart, arguments=rules.template_arguments
            )
        else:
            item.texts.append(written_plainly(content, rules.trained, rules.separator))
    except ValueError as error:
        raise UserError(f"{item.place}: {error}.") from error


def _encoded(
    batch: Sequence[_Item], tokenizer: PreTrainedTokenizerBase, opening: tuple[int, ...], rules: RowRules
) -> Iterator[RecordRows]:
    encoded = iter(encode(tokenizer, [text for item in batch for text in item.texts]))
    for item in batch:
        rows: list[TokenRow] = []
        for text in item.texts:
            row = next(encoded)
            if text.specials == "none":
                row = _whole(row, opening, tokenizer.eos_token_id, ends_trained=text.trained[-1][1] == len(text.text))
            whole_text = text.specials == "none" and text.whole
            if len(row.ids) <= rules.sequence_length:
                rows.append(row)
            elif rules.too_long == "split" and whole_text:
                rows += _cut(row, rules.sequence_length)
            elif rules.too_long == "skip":
                item.skipped.append(TOO_LONG)
            else:
                raise UserError(
                    f"{item.place}: a {'text' if whole_text else 'conversation'} of {len(row.ids)} tokens, more than "
                    f"the {rules.sequence_length} of a row. Raise the sequence length, or leave it out "
                    "(too_long: skip)."
                )
        yield RecordRows(item.document, tuple(rows), tuple(item.skipped))


def _opening(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the beginning-of-text token if the tokenizer puts one before texts."""
    begins = list(tokenizer("a")["input_ids"])[:1]
    return tuple(begins) if tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id] else ()


def _whole(row: TokenRow, opening: tuple[int, ...], end: int, *, ends_trained: bool) -> TokenRow:
    """Return a plain text's row with its beginning, which nobody has to learn to produce, and its end."""
    return TokenRow((*opening, *row.ids, end), (*((False,) * len(opening)), *row.trained, ends_trained))


def _cut(row: TokenRow, length: int) -> Iterator[TokenRow]:
    """Yield pieces of at most `length` tokens; a last one takes a token from its neighbour rather than stand alone.

    Pieces of two tokens have none to give: there a last one may stand alone, and says nothing.
    """
    starts = list(range(0, len(row.ids), length))
    if len(row.ids) - starts[-1] == 1 and length > 2:
        starts[-1] -= 1
    for first, last in pairwise([*starts, len(row.ids)]):
        yield TokenRow(row.ids[first:last], row.trained[first:last])
