"""The rows that a student is trained and measured on, whatever they are made from, as `SignalRow`s.

Signals and finite text become a `RowSet`: rows by their number, in memory only when they are asked for, so that any
order can be had and a run that is resumed sees exactly the rest of it. Endless text is a stream (`limbeck.distill.
streaming`). Rows may be packed: whole documents side by side in rows of one length, with their numbers, by which
training keeps them apart. Nothing is cut off: what is too long is refused, or split where that was asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from limbeck.data.sources import TextSource, read_source
from limbeck.data.table import RowTable
from limbeck.distill.packed import packed, text_row
from limbeck.distill.recipe import DatasetSettings
from limbeck.distill.streaming import StreamedRows
from limbeck.errors import UserError
from limbeck.files import digest_of
from limbeck.seeds import derive_seed
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.loader import SignalBatch
from limbeck.signals.order import permutation
from limbeck.signals.packing import Document, place

SHARDS_KEPT = 64  # rows are drawn from anywhere: a shard that is dropped is read again at once
PACKING_WINDOW = 16_384


class RowSet(Dataset[SignalRow]):
    """Rows by their number, made when they are asked for.

    Args:
        groups: what each row is from (a record, for text): rows of one thing are held out together.
        fetch: returns the rows of some numbers, in the order given; what lies side by side is decoded at once.
        lengths: counts the tokens of each row; it may have to read all of them, and is asked only where it matters.
        origins: the number of the source that each row is from; absent: all from one.
    """

    def __init__(
        self,
        groups: NDArray[np.int64],
        fetch: Callable[[Sequence[int]], list[SignalRow]],
        lengths: Callable[[], NDArray[np.int64]],
        origins: NDArray[np.int64] | None = None,
    ) -> None:
        self.groups = groups
        self.origins = np.zeros_like(groups) if origins is None else origins
        self.fetch = fetch
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> SignalRow:
        return self.fetch([index])[0]

    def __getitems__(self, indices: list[int]) -> list[SignalRow]:
        """Return the rows of a batch."""
        return self.fetch(indices)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens of each row."""
        return self._lengths()


@dataclass(frozen=True)
class Rows:
    """What a run is trained and measured on.

    Attributes:
        train: by number, or a stream.
        evaluation: held-out rows; None: none.
        digest: of the data, for telling runs apart.
    """

    train: RowSet | StreamedRows
    evaluation: RowSet | None
    digest: str


def signal_rows(dataset: SignalDataset, *, decode: bool) -> RowSet:
    """Return the rows of a dataset of signals, with their signals or without."""
    dataset.keep_shards(SHARDS_KEPT)
    return RowSet(
        np.arange(len(dataset)),
        lambda indices: dataset.rows(indices, decode=decode),
        lambda: dataset.lengths.astype(np.int64),
    )


def text_rows(table: RowTable, start: int = 0) -> RowSet:
    """Return rows of text, in which positions before `start` are not trained."""
    return RowSet(
        table.records,
        lambda indices: [text_row(table[int(index)].row, start) for index in indices],
        lambda: table.lengths,
    )


def joined(sets: Sequence[RowSet], labels: Sequence[str]) -> RowSet:
    """Return the rows of several sets, one set after the other; each row says which set it is from."""
    if len(sets) == 1:
        return sets[0]
    ends = np.cumsum([len(one) for one in sets])
    firsts = np.cumsum([0] + [int(one.groups.max(initial=-1)) + 1 for one in sets])

    def fetch(indices: Sequence[int]) -> list[SignalRow]:
        found: dict[int, SignalRow] = {}
        for end, one, label in zip(ends, sets, labels, strict=True):
            first = int(end) - len(one)
            here = [place for place, index in enumerate(indices) if first <= index < end]
            rows = one.fetch([indices[place] - first for place in here]) if here else []
            found.update((place, replace(row, source=label)) for place, row in zip(here, rows, strict=True))
        rows = [found[place] for place in range(len(indices))]
        if any(row.documents is not None for row in rows):  # all rows of a batch say so, or none
            rows = [row if row.documents is not None else packed([row]) for row in rows]
        return rows

    return RowSet(
        np.concatenate([one.groups + first for one, first in zip(sets, firsts, strict=False)]),
        fetch,
        lambda: np.concatenate([one.lengths for one in sets]),
        np.repeat(np.arange(len(sets)), [len(one) for one in sets]),
    )


def chosen(rows: RowSet, numbers: NDArray[np.int64]) -> RowSet:
    """Return some rows of a set."""
    return RowSet(
        rows.groups[numbers],
        lambda indices: rows.fetch([int(numbers[index]) for index in indices]),
        lambda: rows.lengths[numbers],
        rows.origins[numbers],
    )


def packed_rows(rows: RowSet, length: int) -> RowSet:
    """Return whole rows of a set, several in one row of at most `length` tokens, each a document of its own.

    Documents that a row of the set holds already keep being told apart. Rows of different sources share no row.
    """
    lengths = rows.lengths
    windows = []
    for origin in np.unique(rows.origins):
        pieces = [Document(row, row, 0, int(lengths[row])) for row in map(int, np.flatnonzero(rows.origins == origin))]
        windows += [pieces[first : first + PACKING_WINDOW] for first in range(0, len(pieces), PACKING_WINDOW)]
    places = [[piece.row for piece in row] for window in windows for row in place(window, length)]

    def fetch(indices: Sequence[int]) -> list[SignalRow]:
        found = iter(rows.fetch([row for index in indices for row in places[index]]))
        return [packed([next(found) for _ in places[index]]) for index in indices]

    return RowSet(
        np.arange(len(places)), fetch, lambda: np.asarray([int(lengths[row].sum()) for row in places], dtype=np.int64)
    )


def make_rows(
    sources: Sequence[SignalDataset | TextSource],
    evaluation: SignalDataset | TextSource | None,
    settings: DatasetSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    packs: bool,
    share: float,
    decode: bool,
) -> Rows:
    """Return the rows of a recipe.

    Args:
        sources: of training rows, opened.
        evaluation: held-out rows, opened; None: a share of the training rows, or none.
        settings: the recipe's `dataset`.
        tokenizer: the student's.
        length: the longest row.
        packs: whether documents are packed into rows of `length` tokens.
        share: of the training rows that is held out.
        decode: whether a loss reads the stored signals.

    Raises:
        UserError: a source is empty or can't be read, or there is nothing to hold out.
    """
    seed = settings.seed or 0
    held = None
    if evaluation is not None and settings.eval_dataset is not None:
        start = settings.eval_dataset.kl_start_pos
        held, _ = _opened(evaluation, "dataset.eval_dataset", tokenizer, length, decode, start)
    if any(source.streaming for source in settings.train_dataset):
        if share:
            raise UserError("evaluation.share: a stream has no share to hold out. Name dataset.eval_dataset.")
        stream, digest = _stream(sources, settings, tokenizer, length if packs else None)
        return Rows(stream, _first(held, settings.num_eval_samples, seed, "evaluation"), digest)
    parts = []
    for index, (opened, source) in enumerate(zip(sources, settings.train_dataset, strict=True)):
        key = f"dataset.train_dataset.{index}" if len(sources) > 1 else "dataset.train_dataset"
        parts.append(_opened(opened, key, tokenizer, length, decode, source.kl_start_pos))
    labels = [source.label or source.name for source in settings.train_dataset]
    train = _first(joined([rows for rows, _ in parts], labels), settings.num_samples, seed, "training")
    if share and held is None:
        train, held = _apart(train, share, seed)
    if packs:
        train = packed_rows(train, length)
    digest = parts[0][1] if len(parts) == 1 else digest_of([digest for _, digest in parts])
    return Rows(train, _first(held, settings.num_eval_samples, seed, "evaluation"), digest)


def _stream(
    sources: Sequence[SignalDataset | TextSource],
    settings: DatasetSettings,
    tokenizer: PreTrainedTokenizerBase,
    packed_length: int | None,
) -> tuple[StreamedRows, str]:
    """Return a stream and a digest of what it is made from."""
    source, text, seed = settings.train_dataset[0], sources[0], settings.seed or 0
    if len(sources) > 1 or not isinstance(text, TextSource):
        raise UserError("dataset.train_dataset: a stream is one source of text, alone.")
    if settings.num_samples:
        text = text.model_copy(update={"samples": settings.num_samples})
    stream = StreamedRows(text, tokenizer, seed, source.shuffle_buffer, source.kl_start_pos, packed_length)
    made_of = {"stream": text.model_dump(mode="json"), "start": source.kl_start_pos, "buffer": source.shuffle_buffer}
    return stream, digest_of({**made_of, "seed": seed, "packed": packed_length})


def _opened(
    opened: SignalDataset | TextSource,
    key: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    decode: bool,
    start: int,
) -> tuple[RowSet, str]:
    """Return rows and their digest."""
    if isinstance(opened, SignalDataset):
        return signal_rows(opened, decode=decode), opened.digest
    try:
        found = read_source(opened, tokenizer)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    return text_rows(found.rows, start), found.digest


@overload
def _first(rows: RowSet, count: int | None, seed: int, label: str) -> RowSet: ...
@overload
def _first(rows: RowSet | None, count: int | None, seed: int, label: str) -> RowSet | None: ...
def _first(rows: RowSet | None, count: int | None, seed: int, label: str) -> RowSet | None:
    """Return `count` rows of a set, picked by the seed (0: the first), in the set's order."""
    if rows is None or count is None or count >= len(rows):
        return rows
    picked = permutation(derive_seed(seed, label), len(rows))[:count] if seed else np.arange(count)
    return chosen(rows, np.sort(picked))


def _apart(rows: RowSet, share: float, seed: int) -> tuple[RowSet, RowSet]:
    """Return the rows to train on and those held out: about `share` of them, rows of one group together."""
    groups, inside = np.unique(rows.groups, return_inverse=True)
    count = round(share * len(groups))
    if not 0 < count < len(groups):
        raise UserError(
            f"evaluation.share: {share:g} of {len(groups)} is {count} to hold out; both sides need something."
        )
    held = np.isin(inside, permutation(derive_seed(seed, "held out"), len(groups))[:count])
    return chosen(rows, np.flatnonzero(~held)), chosen(rows, np.flatnonzero(held))


def with_other_targets(batch: SignalBatch, ids: Sequence[int], eos_token_id: int) -> SignalBatch:
    """Return a batch in which targets that are one of `ids` are the end-of-text token (`eos_label_token_ids`)."""
    wanted = torch.tensor(list(ids), device=batch.targets.device)
    return replace(batch, targets=batch.targets.masked_fill(torch.isin(batch.targets, wanted), eos_token_id))
