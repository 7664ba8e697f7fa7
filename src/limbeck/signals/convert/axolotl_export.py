"""Writes Axolotl's rows: as tokens with named entries, or as messages with numbers, as its own reader takes them.

    {"messages": [{"role": "user", …}, …], "logprobs": [[-0.1, …], …], "target_token_ids": [[9, …], …]}

Axolotl's `type: axolotl.integrations.kd.chat_template` makes tokens of the messages itself, so a row is written only if
the caller's `messages_of` says that its tokens come back. The lists are those of `limbeck.signals.convert.axolotl`:
the last one is about the last token. All have the same number of entries, because Axolotl cuts them to one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from limbeck.errors import LimbeckError, UserError
from limbeck.files import publish, write_text
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert.axolotl import FIELD, FORMAT, IDS_FIELD, IGNORED, NOTHING, PREFIX
from limbeck.signals.convert.dropping import left_out_as_entries
from limbeck.signals.convert.exporting import TopRows
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.from_logits import selection_of
from limbeck.signals.types import TopkSignal

MESSAGES, CONFIG = "messages", "axolotl.yaml"

MessagesOf = Callable[[tuple[int, ...], tuple[bool, ...]], list[dict[str, Any]]]
"""Returns the conversation that tokens are, trained as they say; raises a `ValueError` where they are none."""


class AxolotlExporter:
    """Writes JSON lines, a file for each range of rows; see the module and `Exporter`.

    Args:
        dataset: what is written.
        entries: exactly this many entries a position; by default those that there are (of messages: as many as the
            codec's fixed number).
        messages_of: says which conversation a row is; rows are written as tokens where absent.

    Raises:
        UserError: the dataset doesn't say which tokens are the most probable, or messages are asked for of a dataset
            with a varying number of entries.
    """

    format = FORMAT

    def __init__(
        self, dataset: SignalDataset, entries: int | None = None, messages_of: MessagesOf | None = None
    ) -> None:
        self._top = TopRows.of(dataset, entries)
        self._entries = entries
        self._messages_of = messages_of
        spec = self._top.spec
        if messages_of is not None and entries is None:
            fixed = spec.cap if isinstance(spec, TopkSpec) and spec.select == "count" else getattr(spec, "k", None)
            if fixed is None:
                raise UserError(
                    f"{dataset.storage.where()}: its positions have different numbers of entries, and Axolotl wants "
                    "the same of all. Say how many: --entries K."
                )
            self._entries = min(int(fixed), dataset.manifest.vocabulary)
        self.options: dict[str, Any] = {"entries": entries, "messages": messages_of is not None}
        self.left_out = left_out_as_entries(dataset, self._entries or selection_of(spec).cap)
        self.left_out += ["the numbers of documents"] if dataset.manifest.documents else []

    def name(self, samples: range) -> str:
        """Return the name of the file that holds these rows."""
        return f"{samples.start:010d}-{samples.stop:010d}.jsonl"

    def write(self, folder: Path, samples: range) -> None:
        """Publish the file that holds these rows."""
        line = self._as_tokens if self._messages_of is None else self._as_messages
        with publish(folder / self.name(samples)) as temporary, temporary.open("w", encoding="utf-8") as file:
            for sample, (row, signal) in zip(samples, self._top.rows(samples), strict=True):
                file.write(line(row, signal, sample) + "\n")

    def finish(self, folder: Path, names: list[str]) -> None:
        """Write what stands in a configuration of Axolotl's for these files, where they hold messages."""
        if self._messages_of is not None:
            dataset = {
                "path": str(folder.resolve()), "type": "axolotl.integrations.kd.chat_template",
                "field_messages": MESSAGES, "logprobs_field": FIELD, "temperature": 1.0,
            }  # fmt: skip
            settings = {
                "plugins": ["axolotl.integrations.kd.KDPlugin"], "kd_trainer": True, "train_on_inputs": False,
                "datasets": [dataset],
            }  # fmt: skip
            write_text(folder / CONFIG, yaml.safe_dump(settings, sort_keys=False))

    def _as_tokens(self, row: SignalRow, signal: TopkSignal, sample: int) -> str:
        lists = [_named(*self._entries_at(signal, position, sample)) for position in _described(row, signal)]
        ids = row.input_ids.tolist()
        labels = torch.where(row.trained, row.input_ids, IGNORED).tolist()
        return f'{{"input_ids": {json.dumps(ids)}, "labels": {json.dumps(labels)}, "{FIELD}": [{", ".join(lists)}]}}'

    def _as_messages(self, row: SignalRow, signal: TopkSignal, sample: int) -> str:
        if self._messages_of is None:
            raise TypeError("nothing says which messages the rows are")
        try:
            messages = self._messages_of(tuple(row.input_ids.tolist()), tuple(row.trained.tolist()))
        except ValueError as error:
            raise UserError(f"sample {sample}: {error}. Export tokens instead, without --messages.") from error
        silent = row.trained[1:] & ~signal.mask[:-1]
        if bool(silent.any()) or not bool(row.trained.any()):
            what = f"token {int(silent.nonzero()[0]) + 1} is trained" if bool(silent.any()) else "no token is trained"
            raise LimbeckError(f"sample {sample}: {what}, and nothing is said of it, which Axolotl has no sign for.")
        found = [self._entries_at(signal, at, sample) for at in _described(row, signal)]
        ids, values = [list(tokens) for tokens, _ in found], [list(logprobs) for _, logprobs in found]
        head = json.dumps({MESSAGES: messages}, ensure_ascii=False)[:-1]
        numbers = ", ".join(f"[{', '.join(f'{value:.9g}' for value in logprobs)}]" for logprobs in values)
        return f'{head}, "{FIELD}": [{numbers}], "{IDS_FIELD}": {json.dumps(ids)}}}'

    def _entries_at(self, signal: TopkSignal, position: int, sample: int) -> tuple[list[int], list[float]]:
        """Return the ids and log-probabilities of a position, as many as are written."""
        present = signal.logprobs[position] > float("-inf")
        ids, values = signal.ids[position][present].tolist(), signal.logprobs[position][present].tolist()
        if self._entries is None:
            return ids, values
        if not ids:
            return list(range(self._entries)), [NOTHING] * self._entries
        if len(ids) < self._entries:
            raise UserError(
                f"sample {sample}, position {position}: {len(ids)} entries, but {self._entries} of each are to be "
                "written. Write fewer, or capture with `select: count`."
            )
        return ids[: self._entries], values[: self._entries]


def _described(row: SignalRow, signal: TopkSignal) -> range:
    """Return the positions that have lists: from the first that says something; behind the last token there is none."""
    said = signal.mask[:-1].nonzero()[:, 0].tolist()
    last = len(row.input_ids) - 1
    return range(said[0] if said else max(last, 0), last)


def _named(ids: list[int], values: list[float]) -> str:
    entries = (
        f'{{"token": "{PREFIX}{token}", "logprob": {value:.9g}}}' for token, value in zip(ids, values, strict=True)
    )
    return f"[{', '.join(entries)}]"
