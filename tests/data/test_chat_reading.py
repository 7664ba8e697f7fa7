"""Tokens back to messages, and datasets of them as Axolotl's own reader takes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from limbeck.cli.signals import signals
from limbeck.data.capture import CaptureRecipe, capture
from limbeck.data.chat import conversation_row, prompt_ids
from limbeck.data.chat_reading import messages_of
from limbeck.data.encoding import TokenRow
from limbeck.errors import UserError
from limbeck.settings import validate_settings
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.types import TopkSignal
from tests.data.strangers import chatml, llama
from tests.data.test_chat import spelled
from tests.engines.tiny import save, tokenizer_of

TOKENIZERS = {"ours": tokenizer_of(), "chatml": chatml(), "llama": llama()}
COUNT = {"codec": "topk", "select": "count", "cap": 4, "temperatures": [1.0]}
app = typer.Typer()
app.add_typer(signals, name="signals")


def exchanges(content: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, str]]]:
    pair = st.tuples(content, content)
    return st.lists(pair, min_size=1, max_size=3).map(
        lambda pairs: [
            {"role": role, "content": text}
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    )


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_what_is_read_is_what_the_template_writes(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    plain = name == "llama"  # its marks of roles are text as any other
    content = st.text("abc 12", min_size=1, max_size=8).map(lambda text: f"{text}x") if plain else spelled
    row = conversation_row(tokenizer, data.draw(exchanges(content)))
    try:
        messages = messages_of(tokenizer, row)
    except ValueError:
        assert not plain  # what a message spells looks like what the template writes
        return
    assert conversation_row(tokenizer, messages) == row


@pytest.mark.parametrize("name", ["ours", "chatml"])
def test_messages_come_back(name: str) -> None:
    messages = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "1 + 1 = ?\n"},
        {"role": "assistant", "content": "2"}, {"role": "user", "content": "why"}, {"role": "assistant", "content": ""},
    ]  # fmt: skip
    found = messages_of(TOKENIZERS[name], conversation_row(TOKENIZERS[name], messages))
    assert [message["role"] for message in found] == [message["role"] for message in messages]
    assert [message["content"].strip() for message in found] == [message["content"].strip() for message in messages]


def test_what_is_no_conversation_is_refused() -> None:
    tokenizer = tokenizer_of()
    row = conversation_row(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    for other in (
        TokenRow(row.ids, (True,) * len(row.ids)),
        TokenRow(row.ids[1:], row.trained[1:]),
        TokenRow((), ()),
        TokenRow(tuple(prompt_ids(tokenizer, "a")), (False,) * len(prompt_ids(tokenizer, "a"))),
    ):
        with pytest.raises(ValueError, match="no conversation that the chat template writes"):
            messages_of(tokenizer, other)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `teacher`, and captures of five exchanges: with four entries a position, and of a varying number."""
    folder = tmp_path_factory.mktemp("axolotl")
    save(folder / "teacher")
    talks = [{"prompt": f"{number} + 1", "response": f"Answer: {number + 1}"} for number in range(5)]
    (folder / "text.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (folder / "plain.jsonl").write_text('{"text": "no conversation"}\n')
    for name, text, codec in (
        ("four", "text", COUNT),
        ("varying", "text", {"codec": "topk", "threshold": 0.01}),
        ("plain", "plain", COUNT),
    ):
        data: dict[str, Any] = {
            "model": str(folder / "teacher"), "dataset": {"path": str(folder / f"{text}.jsonl")}, "codec": codec,
            "output": str(folder / name), "samples_per_shard": 2,
        }  # fmt: skip
        capture(validate_settings(data, CaptureRecipe, "recipe"))
    return folder


def convert(world: Path, source: str, output: Path, *options: str) -> None:
    where = [str(world / source), str(output), "--to", "axolotl", "--messages", *options]
    result = CliRunner().invoke(app, ["signals", "convert", *where])
    if result.exception is not None:
        raise result.exception


def test_axolotl_finds_messages_numbers_and_ids_at_their_places(world: Path, tmp_path: Path) -> None:
    """As its reader does: as many numbers as ids in every list, the last list about the last token."""
    convert(world, "four", tmp_path / "out", "--tokenizer", str(world / "teacher"))
    settings = yaml.safe_load((tmp_path / "out" / "axolotl.yaml").read_text())["datasets"][0]
    lines = [line for file in sorted((tmp_path / "out").glob("*.jsonl")) for line in file.read_text().splitlines()]
    rows = SignalDataset.open(world / "four")
    for line, row in zip(map(json.loads, lines), rows, strict=True):
        read = conversation_row(tokenizer_of(), line[settings["field_messages"]])
        assert read.ids == tuple(row.input_ids.tolist())
        values, ids = line[settings["logprobs_field"]], line["target_token_ids"]
        assert {len(listed) for listed in [*values, *ids]} == {4}
        assert isinstance(row.signal, TopkSignal)
        for place in range(len(read.ids)):
            at = place - (len(read.ids) - len(values))
            if read.trained[place]:
                assert ids[at] == row.signal.ids[place - 1].tolist()
                torch.testing.assert_close(torch.tensor(values[at]), row.signal.logprobs[place - 1])
    back = [str(tmp_path / name) for name in ("out", "back")]
    who = ["--teacher", "t", "--revision", "r", "--tokenizer", str(world / "teacher"), "--vocabulary", "300"]
    result = CliRunner().invoke(app, ["signals", "convert", *back, "--from", "axolotl", *who])
    assert result.exit_code == 0, result.exception
    for before, after in zip(rows, SignalDataset.open(tmp_path / "back"), strict=True):
        assert torch.equal(before.input_ids, after.input_ids)
        assert torch.equal(before.trained, after.trained)
        assert isinstance(before.signal, TopkSignal) and isinstance(after.signal, TopkSignal)
        assert torch.equal(before.signal.mask, after.signal.mask)
        assert torch.equal(before.signal.ids[before.signal.mask], after.signal.ids[after.signal.mask])


@pytest.mark.parametrize(
    ("source", "options", "complaint"),
    [
        ("four", (), "--messages: which tokenizer"),
        ("varying", ("--tokenizer", "teacher"), "varying: its positions have different numbers .* --entries K"),
        ("plain", ("--tokenizer", "teacher"), "sample 0: it is no conversation .* without --messages"),
    ],
)
def test_what_has_no_messages_is_refused(
    world: Path, tmp_path: Path, source: str, options: tuple[str, ...], complaint: str
) -> None:
    options = tuple(str(world / option) if option == "teacher" else option for option in options)
    with pytest.raises(UserError, match=complaint):
        convert(world, source, tmp_path / "out", *options)


def test_another_tokenizer_than_the_datasets_is_refused(world: Path, tmp_path: Path) -> None:
    chatml().save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="tokenizer"):
        convert(world, "four", tmp_path / "out", "--tokenizer", str(tmp_path / "other"))
