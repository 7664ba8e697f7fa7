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

from limbeck.data.chat import TokenRow, conversation_row
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
        ids = [
            *tokenizer(str(record["text"]), add_special_tokens=False, verbose=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        for first in range(0, len(ids), sequence_length):
            part = ids[first : first + sequence_length]
            if len(part) > 1:
                yield NamedRow(document, TokenRow(tuple(part), (True,) * len(part)))
        return
    if "messages" in record:
        messages = record["messages"]
    elif "prompt" in record and "response" in record:
        messages = [
            {"role": "user", "content": str(record["prompt"])},
            {"role": "assistant", "content": str(record["response"])},
        ]
    else:
        raise UserError(f"{place}: needs 'text', 'prompt' with 'response', or 'messages'; it has {sorted(record)}.")
    row = conversation_row(tokenizer, messages)
    if len(row.ids) > sequence_length:
        raise UserError(
            f"{place}: a conversation of {len(row.ids)} tokens, more than the {sequence_length} of a row. "
            "Raise the sequence length, or leave it out."
        )
    yield NamedRow(document, row)
