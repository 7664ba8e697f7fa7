"""Endless text: read while training, tokenised as it comes, shuffled within a buffer, again from the start at its end.

The order is a function of the source and the seed. Every process of a run reads the whole stream, and the trainer
gives each its part (`limbeck.distill.batches`); a run that is resumed reads up to where it was. Files are read where
they lie; a dataset of the hub is streamed, not downloaded.
"""

from collections.abc import Iterator
from itertools import count

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from limbeck.data.placed import Placed
from limbeck.data.records import open_records
from limbeck.data.rows import make_rows
from limbeck.data.sources import TextSource
from limbeck.distill.packed import packed, text_row
from limbeck.errors import UserError
from limbeck.seeds import derive_seed
from limbeck.signals.dataset import SignalRow
from limbeck.signals.order import permutation
from limbeck.signals.packing import Document, place


class StreamedRows(IterableDataset[SignalRow]):
    """Rows of a text, without end.

    Args:
        source: where the text is, and how it becomes rows.
        tokenizer: the student's.
        seed: of the order.
        buffer: rows that are shuffled together; 1: the order of the source.
        start: positions before it are not trained.
        packed_length: put the rows of a buffer into common rows of at most so many tokens; None: leave them apart.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        buffer: int = 1024,
        start: int = 0,
        packed_length: int | None = None,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.seed = seed
        self.buffer = buffer
        self.start = start
        self.packed_length = packed_length

    def __iter__(self) -> Iterator[SignalRow]:
        window: list[SignalRow] = []
        windows = 0
        for row in self._rows():
            window.append(row)
            if len(window) == self.buffer:
                yield from self._mixed(window, windows)
                window, windows = [], windows + 1

    def _mixed(self, window: list[SignalRow], number: int) -> Iterator[SignalRow]:
        order = permutation(derive_seed(self.seed, "stream", number), len(window))
        if self.packed_length is None:
            yield from (window[index] for index in order)
            return
        pieces = [Document(int(index), int(index), 0, len(window[index].input_ids)) for index in order]
        for row in place(pieces, self.packed_length):
            yield packed([window[piece.row] for piece in row])

    def _rows(self) -> Iterator[SignalRow]:
        rules = self.source.rules()
        for epoch in count():
            found = 0
            for record in make_rows(self._records(), self.tokenizer, rules):
                for row in record.rows:
                    made = text_row(row, self.start)
                    if made.trained[1:].any():
                        found += 1
                        yield made
            if not found:
                raise UserError(f"{self.source.path}: no rows with something to train on (pass {epoch + 1}).")

    def _records(self) -> Iterator[Placed]:
        source = self.source
        if source.format == "huggingface":
            yield from _streamed(source)
            return
        records = open_records(
            source.path, format=source.format, columns=source.columns, configuration=source.configuration,
            split=source.split, revision=source.revision,
        )  # fmt: skip
        total = records.count()
        yield from records.read(np.arange(total) < (source.samples or total))


def _streamed(source: TextSource) -> Iterator[Placed]:
    """Yield the records of a dataset of the hub as they arrive."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        stream = load_dataset(
            source.path, source.configuration, split=source.split, revision=source.revision, streaming=True
        )
        for number, record in enumerate(stream, start=1):
            if source.samples is not None and number > source.samples:
                return
            yield f"{source.path}, row {number}", record
    except (OSError, ValueError, DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source.path}: can't be streamed ({first.rstrip('.')}).") from error
