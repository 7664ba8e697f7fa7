"""Axolotl's rows for distillation: JSON lines in which each of the last n tokens has a list of entries.

    {"input_ids": [5, 9, 2], "labels": [-100, 9, 2], "logprobs": [[{"token": "token_id:9", "logprob": -0.1}], ...]}

Which token a list is about: list i of n is about token T - n + i of T, as vLLM's `prompt_logprobs` are; so it stands at
position T - n + i - 1. Lists before the first that says something are left out. A list that is empty or null says
nothing. As many lists as tokens are taken only if the first one says nothing, for nothing predicts the first token.

Instead of objects a list may hold numbers, with the ids in `target_token_ids` beside it.

`input_ids` is not Axolotl's: its own files hold messages, which its chat template turns into tokens. They are read if
the caller says how to turn a record into tokens; nothing is guessed.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.errors import LimbeckError, UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.topk_entries import signal_of_entries
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert.importing import Identity, files_digest, vocabulary_or
from limbeck.signals.dataset import SignalRow

FORMAT = "axolotl"
TOKENS, LABELS, FIELD, IDS_FIELD = "input_ids", "labels", "logprobs", "target_token_ids"
PREFIX, IGNORED = "token_id:", -100
NOTHING, LOWEST = -1e9, -1e8

Tokenise = Callable[[dict[str, Any]], tuple[Sequence[int], Sequence[bool]]]
"""Returns the tokens of a record without `input_ids`, and which of them are trained."""

Entries = list[tuple[int, float]]


class AxolotlReader:
    """Reads a file, or a folder of files, of JSON lines; see the module and `Reader`.

    Args:
        path: of the file or folder.
        identity: whose words they are; the vocabulary has to be named.
        field: of the lists.
        entries: the most entries of a position; by default as many as the first row has.
        tokenise: for records without `input_ids`.

    Raises:
        UserError: there are no rows, or the first one has no lists.
    """

    format = FORMAT
    documents = False

    def __init__(
        self,
        path: Path,
        identity: Identity,
        *,
        field: str = FIELD,
        entries: int | None = None,
        tokenise: Tokenise | None = None,
    ) -> None:
        self.where = str(path)
        self._field = field
        self._tokenise = tokenise
        self._files = [path] if path.is_file() else sorted(path.glob("[!.]*.jsonl"))
        if not self._files:
            raise UserError(f"{path}: no *.jsonl file here.")
        self._lines = [place for file in self._files for place in _line_places(file)]
        self.samples = len(self._lines)
        if not self.samples:
            raise UserError(f"{path}: no rows to import.")
        self.vocabulary = vocabulary_or(identity, None, self.where)
        first = self._entries(self._record(0), 0)
        self._most = entries or max(map(len, first), default=0)
        if not self._most:
            raise UserError(
                f"{self._place(0)}: none of its positions has an entry. Say how many there may be: --entries."
            )
        self.spec: Settings = TopkSpec(select="count", cap=min(self._most, self.vocabulary), temperatures=(1.0,))
        self.text_digest = files_digest(self._files, "hashing axolotl (files)")

    def rows(self, samples: range) -> list[SignalRow]:
        """Return some rows with their signals; see `Reader`."""
        return [self._row(sample) for sample in samples]

    def _row(self, sample: int) -> SignalRow:
        record, where = self._record(sample), self._place(sample)
        ids, trained = self._tokens(record, where)
        lists = self._entries(record, sample)
        total, count = len(ids), len(lists)
        if count > total or (count == total and lists and lists[0]):
            raise UserError(
                f"{where}: {count} lists of {self._field!r} for {total} tokens, and no token before the first one that "
                "is described. They can't be aligned."
            )
        lists = [[] for _ in range(total - count)] + lists  # now list i is about token i
        by_position = [*lists[1:], []][:total]
        width = max(1, *map(len, by_position)) if by_position else 1
        if width > self._most:
            raise UserError(
                f"{where}: a position of {width} entries, more than the {self._most} of the first row. "
                f"Import with --entries {width}."
            )
        ids_NK = np.zeros((total, width), dtype=np.int64)
        values_NK = np.full((total, width), -np.inf)
        for position, entries in enumerate(by_position):
            for entry, (token, value) in enumerate(entries):
                ids_NK[position, entry], values_NK[position, entry] = token, value
        try:
            signal = signal_of_entries(ids_NK, torch.from_numpy(values_NK), [total], self.vocabulary, FORMAT)
        except LimbeckError as error:
            raise type(error)(f"{where}: {error}") from error
        return SignalRow(torch.tensor(ids, dtype=torch.int64), torch.tensor(trained, dtype=torch.bool), signal)

    def _tokens(self, record: dict[str, Any], where: str) -> tuple[Sequence[int], Sequence[bool]]:
        if TOKENS not in record:
            if self._tokenise is None:
                raise UserError(f"{where}: no {TOKENS!r}, and nothing says which tokens its text is.")
            try:
                return self._tokenise(record)
            except LimbeckError as error:
                raise type(error)(f"{where}: {error}") from error
        ids = record[TOKENS]
        labels = record.get(LABELS, ids)
        if not isinstance(ids, list) or not isinstance(labels, list) or len(labels) != len(ids):
            raise UserError(f"{where}: {TOKENS!r} and {LABELS!r} have to be lists of equally many numbers.")
        trained = [label != IGNORED for label in labels]
        if any(said and label != token for said, label, token in zip(trained, labels, ids, strict=True)):
            raise UserError(f"{where}: {LABELS!r} are not the tokens themselves, so they can't be read.")
        return ids, trained

    def _entries(self, record: dict[str, Any], sample: int) -> list[Entries]:
        """Return the entries of each list, the most probable first, absent ones left out."""
        where, lists = self._place(sample), record.get(self._field)
        if not isinstance(lists, list):
            known = ", ".join(sorted(record))
            raise UserError(f"{where}: no list {self._field!r} (it has {known}). Name the field: --logprobs-field.")
        ids = record.get(IDS_FIELD)
        found = []
        for index, items in enumerate(lists):
            try:
                if ids is not None and items and not isinstance(items[0], dict):
                    pairs = list(zip(map(int, ids[index]), map(float, items), strict=True))
                else:
                    pairs = [(_token_id(item["token"]), float(item["logprob"])) for item in items or []]
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise UserError(
                    f"{where}: list {index} of {self._field!r} is not one of entries "
                    f'{{"token": "{PREFIX}7", "logprob": -0.1}} ({type(error).__name__}: {error}).'
                ) from error
            found.append([pair for pair in pairs if pair[1] > LOWEST])
        return found

    def _record(self, sample: int) -> dict[str, Any]:
        file, offset, _ = self._lines[sample]
        with file.open("rb") as lines:
            lines.seek(offset)
            try:
                record = json.loads(lines.readline())
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{self._place(sample)}: not JSON ({error}).") from error
        if not isinstance(record, dict):
            raise UserError(f"{self._place(sample)}: expected an object, found {type(record).__name__}.")
        return record

    def _place(self, sample: int) -> str:
        file, _, number = self._lines[sample]
        return f"{file}, line {number}"


def _token_id(text: Any) -> int:
    if not isinstance(text, str) or not text.startswith(PREFIX):
        raise ValueError(f"token {text!r} is not {PREFIX}N")
    return int(text.removeprefix(PREFIX))


def _line_places(file: Path) -> list[tuple[Path, int, int]]:
    """Return file, offset and number of each line that is not blank."""
    places, offset = [], 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                places.append((file, offset, number))
            offset += len(line)
    return places
