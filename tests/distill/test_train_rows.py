"""Rows of every origin: nothing lost, documents told apart, streams that repeat, held-out rows that stay out."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from limbeck.data.sources import TextSource
from limbeck.distill.packed import packed
from limbeck.distill.recipe import DatasetSettings
from limbeck.distill.rows import Rows, RowSet, chosen, joined, make_rows, packed_rows, signal_rows, with_other_targets
from limbeck.errors import UserError
from limbeck.pocket.world import load_teacher
from limbeck.settings import validate_settings
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.loader import collate


def numbered(lengths: list[int], documents: bool = False) -> RowSet:
    """Rows whose tokens say which row they are from."""

    def row(index: int) -> SignalRow:
        ids = torch.full((lengths[index],), index)
        inside = torch.arange(lengths[index]) // 2 if documents else None
        return SignalRow(ids, torch.ones(lengths[index], dtype=torch.bool), None, inside)

    sizes = np.asarray(lengths, dtype=np.int64)
    return RowSet(np.arange(len(lengths)), lambda indices: [row(index) for index in indices], lambda: sizes)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_packing_loses_nothing_and_tells_documents_apart(lengths: list[int]) -> None:
    rows = packed_rows(numbered(lengths), 20)
    found = [rows[index] for index in range(len(rows))]
    assert [len(row.input_ids) for row in found] == rows.lengths.tolist()
    assert max(rows.lengths) <= 20
    together = torch.cat([row.input_ids for row in found]).tolist()
    assert sorted(together) == sorted(index for index, length in enumerate(lengths) for _ in range(length))
    for row in found:
        assert row.documents is not None
        changes = row.input_ids[1:] != row.input_ids[:-1]
        assert torch.equal(row.documents[1:] != row.documents[:-1], changes)


def test_documents_within_a_row_stay_apart_when_it_is_packed() -> None:
    rows = numbered([4, 3], documents=True)
    row = packed(rows.fetch([0, 1]))
    assert row.documents is not None and row.documents.tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_rows_of_several_sources_say_which_and_share_no_packed_row() -> None:
    both = joined([numbered([3, 3]), numbered([3, 3, 2])], ["left", "right"])
    assert [row.source for row in both.fetch([4, 0, 2])] == ["right", "left", "right"]
    assert [int(row.input_ids[0]) for row in both.fetch([4, 0, 2])] == [2, 0, 0]
    rows = packed_rows(chosen(both, np.array([0, 1, 2, 4])), 100)
    assert [(row.source, len(row.input_ids)) for row in rows.fetch([0, 1])] == [("left", 6), ("right", 5)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    records = [{"document": f"d{number}", "text": f"def f{number}(): return {number}\n" * 12} for number in range(40)]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def rows_of(text: Path, share: float = 0.0, packs: bool = False, length: int = 32, **dataset: Any) -> Rows:
    source = {"disk_path": str(text), **dataset.pop("source", {})}
    settings = validate_settings({"train_dataset": source, **dataset}, DatasetSettings, "test")
    opened = TextSource(path=str(text), sequence_length=length)
    return make_rows(
        [opened], None, settings, load_teacher()[1], length=length, packs=packs, share=share, decode=False
    )  # fmt: skip


def documents(rows: RowSet) -> NDArray[np.int64]:
    return np.unique(rows.groups)


def test_held_out_rows_are_of_documents_that_are_not_trained_on(text: Path) -> None:
    rows, again = rows_of(text, share=0.25), rows_of(text, share=0.25)
    assert isinstance(rows.train, RowSet) and rows.evaluation is not None and again.evaluation is not None
    assert len(documents(rows.train)) == 30 and len(documents(rows.evaluation)) == 10
    assert not np.isin(rows.evaluation.groups, rows.train.groups).any()
    assert rows.evaluation.groups.tolist() == again.evaluation.groups.tolist()
    other = rows_of(text, share=0.25, seed=7).evaluation
    assert other is not None and other.groups.tolist() != rows.evaluation.groups.tolist()
    with pytest.raises(UserError, match=r"^evaluation\.share: 0.001 of 40 is 0 to hold out"):
        rows_of(text, share=0.001)


def test_some_rows_are_the_first_or_drawn_by_the_seed(text: Path) -> None:
    whole = rows_of(text).train
    first, drawn = rows_of(text, num_samples=5, seed=0).train, rows_of(text, num_samples=5).train
    assert isinstance(whole, RowSet) and isinstance(first, RowSet) and isinstance(drawn, RowSet)
    assert first.groups.tolist() == whole.groups[:5].tolist() and len(drawn) == 5
    assert drawn.groups.tolist() != first.groups.tolist()


def test_positions_before_the_start_are_not_counted(text: Path) -> None:
    rows = rows_of(text, source={"kl_start_pos": 10}).train
    assert isinstance(rows, RowSet)
    batch = collate(rows.fetch([0, 1]))
    assert not batch.counted[:, :10].any() and batch.counted[:, 10:-1].all()


@pytest.mark.parametrize("packs", [False, True])
def test_a_stream_repeats_itself_for_ever_and_loses_nothing(text: Path, packs: bool) -> None:
    source = {"streaming": True, "shuffle_buffer": 20}
    stream = rows_of(text, packs=packs, length=200, source=source).train
    assert not isinstance(stream, RowSet)
    finite = rows_of(text, length=200).train
    assert isinstance(finite, RowSet)
    count = 2 * len(finite) if not packs else 40
    found = list(islice(stream, count))
    assert [row.input_ids.tolist() for row in islice(stream, count)] == [row.input_ids.tolist() for row in found]
    if packs:
        assert all(len(row.input_ids) <= 200 and row.documents is not None for row in found)
        return
    passes = [sorted(row.input_ids.tolist() for row in found[part:][: len(finite)]) for part in (0, len(finite))]
    whole = sorted(row.input_ids.tolist() for row in finite.fetch(range(len(finite))))
    assert passes[0] == whole and passes[1] == whole
    assert [row.input_ids.tolist() for row in found[:40]] != [row.input_ids.tolist() for row in finite.fetch(range(40))]


def test_a_stream_has_no_share_and_stands_alone(text: Path) -> None:
    with pytest.raises(UserError, match=r"^evaluation\.share: a stream"):
        rows_of(text, share=0.1, source={"streaming": True})


def test_signals_are_packed_with_their_rows(world: Path) -> None:
    dataset = SignalDataset.open(world / "signals")
    apart = signal_rows(dataset, decode=True)
    rows = packed_rows(apart, 256)
    whole = rows[0]
    assert whole.signal is not None and whole.documents is not None
    first = next(
        row
        for row in apart.fetch(range(len(apart)))
        if torch.equal(row.input_ids, whole.input_ids[: len(row.input_ids)])
    )
    assert first.signal is not None
    length, width = first.signal.logprobs.shape  # type: ignore[union-attr]
    assert torch.equal(whole.signal.logprobs[:length, :width], first.signal.logprobs)  # type: ignore[union-attr]
    assert rows.lengths.sum() == apart.lengths.sum()


def test_ends_of_turns_become_ends_of_text() -> None:
    batch = collate([SignalRow(torch.tensor([5, 6, 7, 6]), torch.ones(4, dtype=torch.bool), None)])
    changed = with_other_targets(batch, [6, 9], 1)
    assert changed.targets[0, :3].tolist() == [1, 7, 1]
    assert torch.equal(changed.input_ids, batch.input_ids)
