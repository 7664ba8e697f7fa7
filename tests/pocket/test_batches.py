"""Training batches: answers only are trained, labels are one ahead, and a batch is a function of (seed, step)."""

import re
from collections.abc import Callable
from itertools import groupby, pairwise
from random import Random

import numpy as np
import pytest
import torch

from limbeck.evaluate.axes import Item
from limbeck.pocket.batches import IGNORED, exercise_batches, infill_windows, text_windows, token_stream
from limbeck.pocket.corpus import Document
from limbeck.pocket.exercises import Family, all_families, held_out
from limbeck.pocket.world import load_teacher

TOKENIZER = load_teacher()[1]
STREAM = np.arange(500, dtype=np.int32)


def exercises(seed: int = 1, step: int = 0, rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    (batch,) = exercise_batches(TOKENIZER, seed=seed, step=step, rows=rows)
    return batch.ids, batch.labels


def windows(seed: int = 1, step: int = 0, rows: int = 6, length: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    batch = text_windows(STREAM, seed=seed, step=step, rows=rows, length=length)
    return batch.ids, batch.labels


def test_exactly_the_answer_and_its_end_are_trained() -> None:
    ids, labels = exercises()
    for row, targets in zip(ids, labels, strict=True):
        text = TOKENIZER.decode(row)
        answer = text.partition("<|assistant|>")[2].partition("<|endoftext|>")[0]
        assert TOKENIZER.decode(targets[targets != IGNORED]) == f"{answer}<|endoftext|>"
        assert answer.startswith("Answer: ")


def test_a_label_is_the_token_that_follows() -> None:
    ids, labels = exercises()
    counted = labels[:, :-1] != IGNORED
    assert counted.any(1).all()
    assert torch.equal(labels[:, :-1][counted], ids[:, 1:][counted])
    assert (labels[:, -1] == IGNORED).all()
    shown, following = windows()
    assert torch.equal(shown[:, 1:], following[:, :-1])
    assert (following != IGNORED).all()


def test_padding_stands_on_the_right_and_is_never_trained() -> None:
    ids, labels = exercises()
    padding = ids == TOKENIZER.pad_token_id
    assert padding.any()
    assert (padding[:, 1:] >= padding[:, :-1]).all()
    assert (labels[padding] == IGNORED).all()


@pytest.mark.parametrize("draw", [exercises, windows])
def test_a_batch_is_a_function_of_seed_and_step(draw: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    later = draw(seed=1, step=7)
    draw(seed=1, step=6)
    torch.manual_seed(99)
    np.random.seed(99)
    assert all(torch.equal(one, same) for one, same in zip(later, draw(seed=1, step=7), strict=True))
    for other in (draw(seed=1, step=8), draw(seed=2, step=7)):
        assert other[0].shape != later[0].shape or not torch.equal(other[0], later[0])


def test_neighbouring_steps_share_no_windows() -> None:
    starts = [windows(step=step)[0][:, 0].tolist() for step in range(20)]
    assert len({tuple(row) for row in starts}) == 20


def test_every_family_has_its_turn() -> None:
    families = all_families()
    rows = 5
    drawn: list[str] = []

    def spied(family: Family) -> Family:
        def generator(rng: Random, level: int) -> Item:
            drawn.append(family.name)
            return family.generator(rng, level)

        return Family(f"{family.name} ", generator, family.difficulty)

    for step in range(len(families)):
        exercise_batches(TOKENIZER, seed=1, step=step, rows=rows, families=[spied(family) for family in families])
    turns = [name for name, _ in groupby(drawn)]  # a held-out item is drawn again, by the same family
    assert turns == [family.name for family in families] * rows


def test_no_batch_holds_an_exercise_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, asked = Family.draw_for_training, []

    def watched(family: Family, rng: Random) -> Item:
        item = draw(family, rng)
        asked.append(held_out(family.name, item))
        return item

    monkeypatch.setattr(Family, "draw_for_training", watched)
    exercises(rows=100)
    assert asked == [False] * 100


def test_windows_are_stretches_of_the_stream() -> None:
    shown, following = windows(rows=50, length=16)
    assert shown.shape == following.shape == (50, 16)
    assert torch.equal(shown, shown[:, :1] + torch.arange(16))
    assert following.max() < 500


def test_every_window_may_be_drawn_the_last_one_too() -> None:
    starts = {int(start) for step in range(60) for start in windows(step=step, rows=6, length=490)[0][:, 0]}
    assert starts == set(range(10))


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_rows_are_put_together_by_length_and_none_is_lost(parts: int) -> None:
    (whole,) = exercise_batches(TOKENIZER, seed=1, step=0, rows=20)
    batches = exercise_batches(TOKENIZER, seed=1, step=0, rows=20, parts=parts)
    rows = [row[row != TOKENIZER.pad_token_id].tolist() for batch in batches for row in batch.ids]
    assert rows == [row[row != TOKENIZER.pad_token_id].tolist() for row in whole.ids]
    assert len(batches) == parts
    assert sum(int((batch.labels != IGNORED).sum()) for batch in batches) == int((whole.labels != IGNORED).sum())
    assert all(later.ids.shape[1] >= earlier.ids.shape[1] for earlier, later in pairwise(batches))


def test_a_row_with_a_gap_is_a_stretch_of_one_document() -> None:
    documents = tuple(Document(f"{place}.py", f"def f{place}():\n    return {place}\n" * 40) for place in range(6))
    stream = token_stream(TOKENIZER, documents)
    batch = infill_windows(TOKENIZER, stream, seed=1, step=0, rows=30, length=128)
    assert batch.ids.shape[1] <= 128 + 1
    orders = set()
    for row in batch.ids:
        text = TOKENIZER.decode(row[row != TOKENIZER.pad_token_id])
        _, prefix, suffix, middle, end = re.split(
            r"<\|fim_prefix\|>|<\|fim_suffix\|>|<\|fim_middle\|>|<\|endoftext\|>", text
        )
        assert end == ""
        assert any(prefix + middle + suffix in document.text for document in documents)
        orders.add(bool(prefix))
    assert orders == {True, False}


def test_a_row_with_a_gap_is_trained_to_its_end() -> None:
    stream = token_stream(TOKENIZER, (Document("a.py", "x = 1\n" * 400),))
    batch = infill_windows(TOKENIZER, stream, seed=1, step=0, rows=4, length=128)
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        filled = int((ids != TOKENIZER.pad_token_id).sum())
        assert torch.equal(labels[: filled - 1], ids[1:filled])
        assert labels[filled - 2] == TOKENIZER.eos_token_id
        assert (labels[filled - 1 :] == IGNORED).all()


def test_documents_end_with_the_end_of_text() -> None:
    documents = (Document("a.py", "x = 1\n"), Document("b.py", "y\n"))
    stream = token_stream(TOKENIZER, documents)
    assert TOKENIZER.decode(stream) == "x = 1\n<|endoftext|>y\n<|endoftext|>"
    assert (stream == TOKENIZER.eos_token_id).sum() == 2
