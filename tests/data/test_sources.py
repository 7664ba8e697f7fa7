"""Sources of text: the same rows from every kind of file, in the order asked for, none lost and none read twice."""

import gzip
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from limbeck.data import records as records_module
from limbeck.data import rows as rows_module
from limbeck.data.rows import read_rows
from limbeck.data.sources import Rows, TextSource, read_source
from limbeck.errors import UserError
from limbeck.settings import load_settings, validate_settings
from tests.data.strangers import chatml
from tests.engines.tiny import tokenizer_of

TOKENIZER = tokenizer_of()
RECORDS: list[dict[str, Any]] = [
    {"text": f"text {index} {'word ' * index}", "document": f"d{index}"} for index in range(12)
]
TALKS = [
    {"prompt": "2 + 3 = ?", "response": "5"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
]


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def read(path: Path | str, **changes: Any) -> Rows:
    return read_source(TextSource(path=str(path), **changes), TOKENIZER)


def texts(rows: Rows) -> list[str]:
    """Each record's text: the tokens of its rows, one after another."""
    joined: dict[int, list[int]] = {}
    for record, named in zip(rows.rows.records.tolist(), rows.rows, strict=True):
        joined.setdefault(record, []).extend(named.row.ids)
    return [str(TOKENIZER.decode(ids)).removesuffix("<|endoftext|>") for ids in joined.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same records in every kind of file."""
    from datasets import Dataset, DatasetDict

    folder = tmp_path_factory.mktemp("sources")
    data = lines(RECORDS)
    (folder / "a.jsonl").write_bytes(data)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(data[:100]) + gzip.compress(data[100:]))
    packed = [pa.compress(part, codec="zstd", asbytes=True) for part in (data[:100], data[100:])]
    (folder / "a.jsonl.zst").write_bytes(b"".join(packed))
    (folder / "list.json").write_text(json.dumps(RECORDS, indent=1))
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "a.parquet", row_group_size=5)
    (folder / "parts").mkdir()
    for part in range(3):
        (folder / "parts" / f"{part}.jsonl").write_bytes(lines(RECORDS[part * 4 : part * 4 + 4]))
    (folder / "parts" / ".hidden").write_text("no")
    dataset = Dataset.from_list(RECORDS)
    dataset.save_to_disk(folder / "saved")
    DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(folder / "splits")
    (folder / "files").mkdir()
    for index, record in enumerate(RECORDS):
        (folder / "files" / f"{index:02}.txt").write_text(record["text"])
    return folder


KINDS = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "list.json", "a.parquet", "parts", "parts/*.jsonl", "saved", "splits"]


@pytest.mark.parametrize("kind", [*KINDS, "files"])
@pytest.mark.parametrize("changes", [{}, {"samples": 5}, {"seed": 3}, {"seed": 3, "samples": 5}])
def test_every_kind_of_file_gives_the_same_rows(folder: Path, kind: str, changes: dict[str, Any]) -> None:
    rows, expected = read(folder / kind, **changes), read(folder / "a.jsonl", **changes)
    assert rows.digest == expected.digest
    assert [named.row for named in rows.rows] == [named.row for named in expected.rows]
    if kind != "files":
        assert [named.document for named in rows.rows] == [named.document for named in expected.rows]
    assert rows.records == changes.get("samples", 12)


def test_rows_are_those_of_the_records_in_their_order(folder: Path) -> None:
    rows = read(folder / "a.jsonl", sequence_length=16)
    assert texts(rows) == [record["text"] for record in RECORDS]
    assert list(rows.rows) == list(read_rows(folder / "a.jsonl", TOKENIZER, 16))
    assert len(rows.rows) > len(RECORDS)
    assert rows.rows.lengths.tolist() == [len(named.row.ids) for named in rows.rows]
    assert rows.tokens == rows.rows.lengths.sum()
    assert rows.rows[-1] == rows.rows[len(rows.rows) - 1]
    assert rows.rows[2:4] == [rows.rows[2], rows.rows[3]]


def test_a_seed_shuffles_and_samples_are_the_first_of_that_order(folder: Path) -> None:
    whole = texts(read(folder / "a.jsonl", seed=7, sequence_length=16))
    assert sorted(whole) == sorted(str(record["text"]) for record in RECORDS)
    assert whole != [record["text"] for record in RECORDS]
    assert whole != texts(read(folder / "a.jsonl", seed=8, sequence_length=16))
    assert texts(read(folder / "a.jsonl", seed=7, samples=4, sequence_length=16)) == whole[:4]
    assert texts(read(folder / "a.jsonl", samples=4)) == [record["text"] for record in RECORDS[:4]]
    assert texts(read(folder / "a.jsonl", samples=99)) == [record["text"] for record in RECORDS]


def test_the_split_is_the_one_asked_for(folder: Path) -> None:
    assert texts(read(folder / "splits", split="test")) == [RECORDS[0]["text"]]
    with pytest.raises(UserError, match="no split 'validation'; there are: train, test"):
        read(folder / "splits", split="validation")


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 11},
        {"seed": 1},
        {"sequence_length": 16},
        {"columns": {"text": "document"}},
    ],
)
def test_the_digest_changes_with_whatever_changes_a_row(folder: Path, changes: dict[str, Any]) -> None:
    assert read(folder / "a.jsonl", **changes).digest != read(folder / "a.jsonl").digest


def test_the_digest_changes_with_roles_order_and_borders_and_not_with_names(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_bytes(lines(TALKS))
    digests = {read(path, **changes).digest for changes in ({}, {"trained": ("user",)}, {"chat_template": False})}
    path.write_bytes(lines(TALKS[::-1]))
    digests.add(read(path).digest)
    assert len(digests) == 4
    path.write_bytes(lines([TALKS[0] | {"document": "x"}, TALKS[1]]))
    path.rename(tmp_path / "moved.jsonl")
    assert read(tmp_path / "moved.jsonl").digest in digests
    one = tmp_path / "one.jsonl"
    one.write_bytes(lines([{"prompt": "q", "responses": {"a": "x", "b": "y"}}]))
    two = tmp_path / "two.jsonl"
    two.write_bytes(lines([{"prompt": "q", "response": "x"}, {"prompt": "q", "response": "y"}]))
    assert read(one).digest != read(two).digest
    assert [named.row for named in read(one).rows] == [named.row for named in read(two).rows]


def test_an_edit_of_one_letter_changes_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(RECORDS))
    before = read(path).digest
    path.write_bytes(lines(RECORDS).replace(b"text 7", b"text 8"))
    assert read(path).digest != before


def test_what_makes_no_row_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [
        {"text": ""}, {"text": "x" * 50}, {"prompt": "p" * 50, "response": "r"}, {"prompt": "p", "response": "r"},
        {"messages": [{"role": "user", "content": "alone"}]},
    ]  # fmt: skip
    path.write_bytes(lines(records))
    rows = read(path, sequence_length=16, too_long="skip")
    assert dict(rows.skipped) == {"empty": 1, "nothing to train": 1, "too long": 2}
    assert [named.document for named in rows.rows] == [f"{path}, line 4"]
    for too_long, what in (("refuse", "line 2: a text of 51"), ("split", "line 3: a conversation of")):
        with pytest.raises(UserError, match=what):
            read(path, sequence_length=16, too_long=too_long)


def test_conversations_joined_plainly(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(TALKS))
    rows = read(path, chat_template=False, separator="\n\n")
    assert [TOKENIZER.decode(named.row.ids) for named in rows.rows] == [
        "2 + 3 = ?\n\n5<|endoftext|>", "hi\n\nho<|endoftext|>"
    ]  # fmt: skip
    for named, answer in zip(rows.rows, ("5", "ho"), strict=True):
        trained = [token for token, flag in zip(named.row.ids, named.row.trained, strict=True) if flag]
        assert TOKENIZER.decode(trained) == f"{answer}<|endoftext|>"
    (one, _) = read(path, chat_template=False, trained=("user",)).rows
    assert one.row.trained[-1] is False
    with pytest.raises(UserError, match="line 1: tools and their calls"):
        path.write_bytes(lines([TALKS[1] | {"tools": [{"name": "f"}]}]))
        read(path, chat_template=False)


def test_settings_reach_the_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(308)
    tokenizer.chat_template = "{{ date }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    (tmp_path / "a.jsonl").write_bytes(lines(TALKS[:1]))
    source = TextSource(path=str(tmp_path / "a.jsonl"), template_arguments={"date": "May"})
    (named,) = read_source(source, tokenizer).rows
    assert tokenizer.decode(named.row.ids) == "May<|user|>2 + 3 = ?<|assistant|>5"


def test_tool_calls_through_another_template(tmp_path: Path) -> None:
    call = {"name": "add", "arguments": '{"x": 2}'}
    turns = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    (tmp_path / "a.jsonl").write_bytes(lines([{"tools": [json.dumps({"name": "add"})], "turns": turns}]))
    (named,) = read_source(TextSource(path=str(tmp_path / "a.jsonl")), chatml()).rows
    trained = [token for token, flag in zip(named.row.ids, named.row.trained, strict=True) if flag]
    assert chatml().decode(trained).strip() == '<call>{"name": "add", "arguments": {"x": 2}}</call><|im_end|>'
    assert named.row.ids.count(chatml().eos_token_id) == 3


small = st.lists(st.text(max_size=30), min_size=1, max_size=30)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(small, st.integers(2, 9), st.none() | st.integers(0, 5), st.none() | st.integers(1, 12))
def test_no_text_is_lost_or_read_twice(
    tmp_path: Path, said: list[str], length: int, seed: int | None, samples: int | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": f"{index}:{text}"} for index, text in enumerate(said)]))
    rows = read(path, sequence_length=length, seed=seed, samples=samples)
    found = texts(rows)
    numbers = [int(text.partition(":")[0]) for text in found]
    assert found == [f"{number}:{said[number]}" for number in numbers]
    assert len(set(numbers)) == len(numbers) == min(samples or len(said), len(said))
    if seed is None:
        assert numbers == list(range(len(numbers)))
    assert all(len(named.row.ids) <= length for named in rows.rows)


def test_batches_are_not_seen_in_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(folder / "a.parquet", seed=1, samples=7)
    monkeypatch.setattr(rows_module, "BATCH_CHARACTERS", 20)
    monkeypatch.setattr(records_module, "BATCH", 3)
    for kind in ("a.parquet", "saved", "a.jsonl"):
        assert read(folder / kind, seed=1, samples=7).digest == expected.digest


def test_a_table_holds_its_rows_on_the_disk(folder: Path) -> None:
    rows = read(folder / "a.jsonl").rows
    assert isinstance(rows._ids.base, np.memmap)
    assert isinstance(rows._trained.base, np.memmap)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"txt": 1}\n', "a.jsonl, line 2: needs 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl, line 1: not UTF-8 text"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl, line 1: not JSON"),
        ("a.jsonl", b"\n\n", "no rows in 0 records"),
        ("a.jsonl", b'{"text": ""}\n', r"no rows in 1 records \(1 empty\)"),
        ("a.json", b'[{"text": "a"}, 5]', "a.json, line 2: expected an object, found int"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-12], "a.jsonl.gz: cannot be read"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz: cannot be read"),
        (
            "a.jsonl.zst",
            pa.compress(b'{"text": "a"}\n', codec="zstd", asbytes=True)[:-3],
            "a.jsonl.zst: cannot be read",
        ),
        ("a.jsonl.zst", b"not zstd", "a.jsonl.zst: cannot be read"),
        ("a.parquet", b"not parquet", "a.parquet: not a Parquet file"),
        ("a.txt", b"\xff\xfe", "a.txt: not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_named(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "a.parquet").read_bytes())
    data[4:60] = bytes(56)
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"a.parquet: cannot be read"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["a.parquet", "saved"])
def test_a_column_that_is_not_there_is_named_before_anything_is_read(folder: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"no column 'body' \(columns.text\). .*document"):
        read(folder / kind, columns={"text": "body"})


def test_paths_that_lead_nowhere_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.jsonl").write_bytes(lines(RECORDS))
    (tmp_path / "mixed" / "README.md").write_text("about")
    for path, message in (
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path / "*.jsonl", "no file has such a name"),
        (tmp_path / "mixed", "files of several kinds, such as README.md and a.jsonl"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            read(path)
        assert str(path) in str(caught.value)
    assert read(tmp_path / "mixed" / "*.jsonl").records == 12


def test_a_dataset_through_the_datasets_library(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the hub, but for the network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        records = RECORDS if split == "train" else RECORDS[:1]
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    hub = {"path": str(tmp_path / "hub"), "format": "huggingface"}
    assert read(**hub, seed=2, samples=5).digest == read(folder / "a.jsonl", seed=2, samples=5).digest
    assert read(**hub, split="test").records == 1
    for wrong, message in (({"split": "dev"}, "split 'dev'"), ({"configuration": "x"}, "configuration 'x'")):
        with pytest.raises(UserError, match=message) as caught:
            read(**hub, **wrong)
        assert "\n" not in str(caught.value)


def test_a_dataset_that_the_hub_does_not_give_is_named() -> None:
    with pytest.raises(UserError, match=r"^nobody/nothing: no such file, and no dataset .*split 'train'") as caught:
        read("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_settings_are_checked(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("path: x\ncolumns: {text: body}\ntrained: [assistant, tool]\n")
    assert load_settings(recipe, TextSource).trained == ("assistant", "tool")
    for wrong, message in (
        ({"path": "x", "colums": {}}, "Did you mean 'columns'"),
        ({"path": "x", "columns": {"txt": "a"}}, "Did you mean 'text'"),
        ({"path": "x", "trained": ["robot"]}, "no such role: 'robot'"),
        ({"path": "x", "trained": []}, "name at least one role"),
        ({"path": "x", "sequence_length": 1}, "sequence_length"),
    ):
        with pytest.raises(UserError, match=message):
            validate_settings(wrong, TextSource, "recipe")
    with pytest.raises(ValidationError):
        TextSource(path="x", samples=0)


def test_rows_go_to_another_process(folder: Path) -> None:
    rows = read(folder / "a.jsonl", seed=3, sequence_length=8)
    copy = pickle.loads(pickle.dumps(rows))
    assert list(copy.rows) == list(rows.rows)
    assert copy.rows.digest() == copy.digest == rows.digest
    assert (copy.skipped, copy.records, copy.tokens) == (rows.skipped, rows.records, rows.tokens)
