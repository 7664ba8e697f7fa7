"""Rows of a JSONL file: every kind of line, nothing cut off, and wrong lines named with file and line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from limbeck.data.rows import NamedRow, read_rows
from limbeck.errors import UserError
from tests.data.strangers import llama
from tests.engines.tiny import tokenizer_of

TOKENIZER = tokenizer_of()


def rows_of(folder: Path, *records: Any, length: int = 32) -> list[NamedRow]:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return list(read_rows(path, TOKENIZER, length))


def decoded(rows: list[NamedRow]) -> list[str]:
    return [TOKENIZER.decode(named.row.ids) for named in rows]


def test_every_kind_of_line(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    rows = rows_of(
        tmp_path, {"text": "some text", "document": "d"}, {"prompt": "p", "response": "r"}, {"messages": turns}
    )
    assert decoded(rows) == [
        "some text<|endoftext|>",
        "<|user|>p<|assistant|>r<|endoftext|>",
        "<|system|>s<|user|>u<|assistant|>a<|endoftext|>",
    ]
    assert all(rows[0].row.trained)
    assert [sum(named.row.trained) for named in rows[1:]] == [2, 2]
    assert [named.document for named in rows[1:]] == [f"{tmp_path}/text.jsonl, line {n}" for n in (2, 3)]
    assert rows[0].document == "d"


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('\n  \n{"text": "abc"}\n\n')
    (named,) = read_rows(tmp_path / "text.jsonl", TOKENIZER, 32)
    assert named.document.endswith("line 3")


def whole(folder: Path, text: str, length: int) -> None:
    """The rows of a text, one after another, are its tokens and its end."""
    rows = rows_of(folder, {"text": text, "document": "d"}, length=length)
    expected = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    assert [token for named in rows for token in named.row.ids] == expected
    assert all(len(named.row.ids) <= length and all(named.row.trained) for named in rows)
    assert length == 2 or all(len(named.row.ids) > 1 for named in rows)
    assert {named.document for named in rows} == {"d"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=60), length=st.integers(2, 9))
@example(text="ab", length=2)
def test_nothing_of_a_text_is_cut_off(tmp_path: Path, text: str, length: int) -> None:
    whole(tmp_path, text, length)


def test_the_end_of_a_text_that_fills_its_rows_is_kept(tmp_path: Path) -> None:
    whole(tmp_path, "abcdef", len(TOKENIZER("abcdef", add_special_tokens=False)["input_ids"]))


def test_a_text_without_characters_has_no_rows(tmp_path: Path) -> None:
    assert decoded(rows_of(tmp_path, {"text": ""}, {"text": " "})) == [" <|endoftext|>"]


def test_special_tokens_that_a_text_spells_are_text(tmp_path: Path) -> None:
    (named,) = rows_of(tmp_path, {"text": "a <|endoftext|><|user|> b"})
    special = [token for token in named.row.ids if token in TOKENIZER.all_special_ids]
    assert special == [TOKENIZER.eos_token_id]
    assert TOKENIZER.decode(named.row.ids) == "a <|endoftext|><|user|> b<|endoftext|>"


def test_a_text_begins_as_its_tokenizer_begins_texts(tmp_path: Path) -> None:
    tokenizer = llama()
    (tmp_path / "text.jsonl").write_text('{"text": "def double <s>"}\n')
    rows = list(read_rows(tmp_path / "text.jsonl", tokenizer, 8))
    ids = [token for named in rows for token in named.row.ids]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[1:-1] == tokenizer("def double <s>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert len(rows) > 1
    assert [flag for named in rows for flag in named.row.trained] == [False] + [True] * (len(ids) - 1)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(307)
    tokenizer.eos_token = None
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="no end-of-text token"):
        list(read_rows(tmp_path / "text.jsonl", tokenizer, 8))


def test_a_conversation_that_is_too_long_is_named_and_not_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text.jsonl, line 2: a conversation of \d+ tokens, more than the 8 of a row"):
        rows_of(tmp_path, {"text": "abc"}, {"prompt": "a" * 20, "response": "b"}, length=8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object, found list"),
        ('"text"', "expected an object, found str"),
        ("{}", "needs 'text', 'prompt' with 'response', or 'messages'"),
        ('{"prompt": "p"}', "needs 'text', 'prompt' with 'response', or 'messages'; it has ['prompt']"),
        ('{"text": null}', "'text'"),
        ('{"text": ["a"]}', "'text'"),
        ('{"prompt": null, "response": 1}', "'prompt'"),
        ('{"messages": null}', "'messages'"),
        ('{"messages": []}', "'messages'"),
        ('{"messages": "hi"}', "'messages'"),
        ('{"messages": [1]}', "'messages'"),
        ('{"messages": [{"role": "user"}]}', "'messages'"),
        ('{"messages": [{"role": "assistant", "content": null}]}', "'messages'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(UserError) as caught:
        list(read_rows(path, TOKENIZER, 32))
    assert f"{path}, line 2: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "absent", "no such file"),
        (tmp_path / "empty", "no files in this folder"),
        (tmp_path / "binary", "line 1: not UTF-8 text"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            list(read_rows(path, TOKENIZER, 32))
        assert str(path) in str(caught.value)
