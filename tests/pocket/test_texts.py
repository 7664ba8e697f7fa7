"""Texts for the rest of the house: training text of lessons only, and rows to measure on that never overlap."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.evaluate.divergences import TextRow
from limbeck.pocket.corpus import Document, load_corpus
from limbeck.pocket.exercises import all_families
from limbeck.pocket.texts import EXCERPT_CHARS, held_out_rows, text_rows, write_training_text
from limbeck.pocket.world import load_teacher

TOKENIZER = load_teacher()[1]


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def rows_of(text: str, length: int, rows: int) -> list[TextRow]:
    return text_rows((Document("d.py", text),), TOKENIZER, length=length, rows_a_document=rows)


@settings(deadline=None)
@given(
    text=st.text(st.characters(max_codepoint=127), min_size=1, max_size=200),
    length=st.integers(2, 20),
    count=st.integers(1, 5),
)
def test_rows_are_separate_stretches_of_their_document(text: str, length: int, count: int) -> None:
    """Each is found after the end of the one before; bytes are those of all its tokens but the first."""
    ids, rows, after = ids_of(text), rows_of(text, length, count), 0
    assert len(rows) <= count
    assert bool(rows) is (len(ids) > 1)
    for row in rows:
        assert 2 <= len(row.ids) <= length
        starts = [first for first in range(after, len(ids)) if tuple(ids[first : first + len(row.ids)]) == row.ids]
        assert starts, "a row overlaps the one before, or is not of the document"
        after = starts[0] + len(row.ids)
        assert row.predicted_bytes == len(TOKENIZER.decode(row.ids[1:]).encode())


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (99, [0, 1, 2, 3, 4, 5])])
def test_rows_are_spread_over_the_document(count: int, expected: list[int]) -> None:
    """Digits are a token each: 60 of them make six rows of ten."""
    text = "".join(str(index // 10) for index in range(60))
    found = [TOKENIZER.decode(row.ids) for row in rows_of(text, 10, count)]
    assert found == [str(index) * 10 for index in expected]


def test_bytes_are_counted_in_utf_8() -> None:
    text = "x = 'é — 漢字'\n" * 30
    (row,) = rows_of(text, 10_000, 1)
    assert row.predicted_bytes == len(text.encode()) - len(TOKENIZER.decode(row.ids[:1]).encode())


def test_bytes_of_a_character_that_is_split_between_rows_are_counted_once() -> None:
    """Each byte of this character is a token; rows of two tokens predict one byte each."""
    text = "\U00010380"
    assert len(ids_of(text)) == 4
    assert [row.predicted_bytes for row in rows_of(text, 2, 2)] == [1, 1]


def test_rows_to_measure_on_are_of_held_out_files() -> None:
    corpus = load_corpus()
    rows = held_out_rows(corpus, TOKENIZER, length=64, rows_a_document=2)
    names = {document.path for document in corpus.documents["held_out"]}
    assert {row.document for row in rows} <= names
    assert len({row.document for row in rows}) > 0.9 * len(names)
    assert not {row.document for row in rows} & {document.path for document in corpus.documents["train"]}


def write(path: Path, seed: int = 1, texts: int = 30, exercises: int = 40) -> list[dict[str, str]]:
    write_training_text(path, load_corpus(), seed=seed, texts=texts, exercises=exercises)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_training_text_is_of_training_files(tmp_path: Path) -> None:
    texts = {document.path: document.text for document in load_corpus().documents["train"]}
    records = [record for record in write(tmp_path / "text.jsonl") if "text" in record]
    assert len(records) == 30
    for record in records:
        assert len(record["text"]) <= EXCERPT_CHARS
        whole = texts[record["document"]]
        assert record["text"] in whole
        assert whole.startswith(record["text"]) or "\n" + record["text"] in whole


def test_exercises_are_of_every_family_in_turn(tmp_path: Path) -> None:
    families = [family.name for family in all_families()]
    records = [r for r in write(tmp_path / "text.jsonl", exercises=2 * len(families)) if "prompt" in r]
    assert sorted(record["document"] for record in records) == sorted(families * 2)
    assert all(record["response"].startswith("Answer: ") for record in records)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "1")
    write(tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert write(tmp_path / "3", seed=2) != first


def test_texts_and_exercises_are_mixed(tmp_path: Path) -> None:
    kinds = ["text" in record for record in write(tmp_path / "text.jsonl")]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))
