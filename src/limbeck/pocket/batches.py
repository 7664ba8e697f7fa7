"""What the pocket teacher is trained on: windows of text, stretches with a gap to fill, and exercises one a row.

Batch `s` is a function of (seed, s) alone, so training can stop anywhere and go on at the same data.

Loss on a text window counts every token; loss on an exercise counts the answer only. (At this size, rows packed with
several exercises and loss on everything teach almost nothing in minutes.)
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbeck.data.chat import TokenRow, exchange_row
from limbeck.data.fim import infill_row
from limbeck.pocket.corpus import Document
from limbeck.pocket.exercises import Family, all_families
from limbeck.seeds import derive_random, derive_seed

IGNORED = -100  # the label of a position that is not trained
INFILL_MARGIN = 16  # tokens kept free for the sentinels and for what cuts inside tokens add


@dataclass(frozen=True)
class Batch:
    """Token ids `[B, T]` and labels `[B, T]`; label `t` is the token that position `t` should predict, or `IGNORED`."""

    ids: Tensor
    labels: Tensor


def token_stream(tokenizer: PreTrainedTokenizerBase, documents: tuple[Document, ...]) -> NDArray[np.int32]:
    """Return the ids of all documents, each followed by the end-of-text token."""
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encoded])


def text_windows(stream: NDArray[np.int32], *, seed: int, step: int, rows: int, length: int) -> Batch:
    """Draw `rows` windows of `length` predictions from anywhere in the stream."""
    generator = np.random.default_rng(derive_seed(seed, "text", step))
    starts = generator.integers(0, len(stream) - length, size=rows)
    windows = torch.from_numpy(np.stack([stream[start : start + length + 1] for start in starts]).astype(np.int64))
    return Batch(windows[:, :-1], windows[:, 1:])


def infill_windows(
    tokenizer: PreTrainedTokenizerBase, stream: NDArray[np.int32], *, seed: int, step: int, rows: int, length: int
) -> Batch:
    """Draw `rows` stretches of one document each as fill-in-the-middle rows of at most `length` predictions."""
    generator = np.random.default_rng(derive_seed(seed, "infill", step))
    taken = length - INFILL_MARGIN
    drawn = []
    for place, start in enumerate(generator.integers(0, len(stream) - taken + 1, size=rows)):
        window = stream[start : start + taken]
        pieces = np.split(window, np.flatnonzero(window == tokenizer.eos_token_id))
        text = tokenizer.decode(max(pieces, key=len), skip_special_tokens=True).strip("\ufffd")
        ids = infill_row(tokenizer, text, derive_random(seed, "infill", step, place))[: length + 1]
        drawn.append(TokenRow(tuple(ids), (True,) * len(ids)))
    return _padded(tokenizer, drawn)


def exercise_row(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> TokenRow:
    """Return the chat row of one exercise and its declared answer line."""
    return exchange_row(tokenizer, prompt, f"Answer: {answer}")


def exercise_batches(
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    step: int,
    rows: int,
    parts: int = 1,
    families: list[Family] | None = None,
) -> list[Batch]:
    """Draw `rows` exercises for training, the families in turn, in `parts` batches of rows about equally long."""
    taught = families or all_families()
    drawn: list[TokenRow] = []
    for place in range(rows):
        family = taught[(step * rows + place) % len(taught)]
        item = family.draw_for_training(derive_random(seed, "exercise", step, place))
        drawn.append(exercise_row(tokenizer, item.prompt, item.answer.written()))
    drawn.sort(key=lambda row: len(row.ids))
    cuts = [round(rows * part / parts) for part in range(parts + 1)]
    return [_padded(tokenizer, drawn[start:end]) for start, end in pairwise(cuts) if end > start]


def _padded(tokenizer: PreTrainedTokenizerBase, rows: list[TokenRow]) -> Batch:
    """Pad rows on the right; the label of a position is the token that follows it, where that one is trained."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        targets = [token if trained else IGNORED for token, trained in zip(row.ids, row.trained, strict=True)]
        labels[index, : len(row.ids) - 1] = torch.tensor(targets[1:])
    return Batch(ids, labels)
