"""Training text as rows of token ids: JSONL files of texts, of prompts with responses, or of chat messages.

Each line is one object with one of `text`, `prompt` + `response`, or `messages` (a list of `role` and `content`), and
an optional `document` that names what it is from. A text becomes as many rows as it needs, all of it trained; of a
conversation the assistant's turns are trained. Nothing is ever cut off: a conversation that is too long is an error.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck.data.chat import Message, TokenRow, conversation_row
from limbeck.errors import UserError


@dataclass(frozen=True)
class NamedRow:
    """A row of tokens and the document that it is from."""

    document: str
    row: TokenRow


def read_rows(path: Path, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> Iterator[NamedRow]:
    """Yield the rows of a JSONL file, in order.

    Args:
        path: the file.
        tokenizer: the teacher's.
        sequence_length: the longest row, in tokens.

    Raises:
        UserError: the file is missing, a line is not such an object, or a conversation is longer than
            `sequence_length`; the message names file and line.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    place = f"{path}, line {number}"
                    yield from _rows_of(_parsed(line, place), tokenizer, sequence_length, place)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSONL text file ({error}).") from error


def _parsed(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error}).") from error
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected an object, found {type(record).__name__}.")
    return record


def _rows_of(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, sequence_length: int, place: str
) -> Iterator[NamedRow]:
    document = str(record.get("document", place))
    if "text" in record:
        text = _text(record, "text", place)
        encoded = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for part in _cut([*encoded, tokenizer.eos_token_id], sequence_length):
            yield NamedRow(document, TokenRow(tuple(part), (True,) * len(part)))
        return
    if "messages" in record:
        messages = _messages(record["messages"], place)
    elif "prompt" in record and "response" in record:
        messages = [
            {"role": "user", "content": _text(record, "prompt", place)},
            {"role": "assistant", "content": _text(record, "response", place)},
        ]
    else:
        raise UserError(f"{place}: needs 'text', 'prompt' with 'response', or 'messages'; it has {sorted(record)}.")
    try:
        row = conversation_row(tokenizer, messages)
    except ValueError as error:
        raise UserError(f"{place}: {error}.") from error
    if len(row.ids) > sequence_length:
        raise UserError(
            f"{place}: a conversation of {len(row.ids)} tokens, more than the {sequence_length} of a row. "
            "Raise the sequence length, or leave it out."
        )
    yield NamedRow(document, row)


def _cut(ids: list[int], length: int) -> Iterator[list[int]]:
    """Yield pieces of at most `length` tokens; a last one takes a token from its neighbour rather than stand alone."""
    starts = list(range(0, len(ids), length))
    if len(starts) > 1 and len(ids) - starts[-1] == 1 and length > 2:
        starts[-1] -= 1
    for first, last in zip(starts, [*starts[1:], len(ids)], strict=True):
        if last - first > 1:
            yield ids[first:last]


def _text(record: dict[str, Any], key: str, place: str) -> str:
    if not isinstance(record[key], str):
        raise UserError(f"{place}: {key!r} has to be a text, and is {type(record[key]).__name__}.")
    return str(record[key])


def _messages(value: Any, place: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{place}: 'messages' has to be a list of at least one message.")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(f"{place}: each of 'messages' needs a 'role' and a 'content', both texts.")
    return value
