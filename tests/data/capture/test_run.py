"""Capturing a file: killed and resumed it ends with the same bytes, and what can't be captured is refused."""

import json
from pathlib import Path

import pytest
import torch

from limbeck.data import capture
from limbeck.data.capture import capture_file, read_codec
from limbeck.data.rows import read_rows
from limbeck.engines.transformers import load_model
from limbeck.errors import UserError
from limbeck.files import sha256_file
from limbeck.settings import Settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import Expectation, SignalDataset
from limbeck.signals.types import DenseSignal
from limbeck.signals.writer import DatasetWriter
from tests.engines.tiny import save, tokenizer_of

SPEC = TopkSpec(threshold=1e-2, cap=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `teacher` and `text.jsonl`: 11 rows."""
    folder = tmp_path_factory.mktemp("world")
    save(folder / "teacher")
    records = [{"text": f"text {index} {'word ' * index}"} for index in range(6)]
    records += [{"prompt": f"{index} + 1", "response": f"Answer: {index + 1}"} for index in range(5)]  # type: ignore[misc]
    (folder / "text.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "ROWS_A_SHARD", 4)


def capture_into(world: Path, output: Path, codec: Settings = SPEC, text: str = "text.jsonl") -> Path:
    return capture_file(str(world / "teacher"), world / text, output, codec=codec, sequence_length=64)


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.suffix in (".parquet", ".json")}


def test_what_is_captured_is_what_the_teacher_says(world: Path, tmp_path: Path) -> None:
    dataset = SignalDataset.open(capture_into(world, tmp_path / "out", DenseSpec()), Expectation(codec="dense"))
    rows = list(read_rows(world / "text.jsonl", tokenizer_of(), 64))
    model = load_model(world / "teacher")
    assert dataset.manifest.samples == len(rows) == 11
    for shard in dataset.manifest.shards:
        for sample, found in zip(
            range(shard.start, shard.stop), dataset.rows(range(shard.start, shard.stop)), strict=True
        ):
            row = rows[sample].row
            assert tuple(found.input_ids.tolist()) == row.ids
            assert tuple(found.trained.tolist()) == row.trained
            assert isinstance(found.signal, DenseSignal)
            with torch.no_grad():
                expected = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            where = found.signal.mask
            assert where.tolist() == [*row.trained[1:], False]
            torch.testing.assert_close(found.signal.logprobs[where].float(), expected[where], atol=0.05, rtol=0.01)


def test_the_manifest_says_where_it_is_from(world: Path, tmp_path: Path) -> None:
    manifest = SignalDataset.open(capture_into(world, tmp_path / "out")).manifest
    assert manifest.text_digest == sha256_file(world / "text.jsonl")
    assert manifest.vocabulary == len(tokenizer_of())
    assert manifest.teacher.repo == str(world / "teacher")
    assert manifest.complete


class KilledError(Exception):
    pass


@pytest.mark.parametrize("shards", [0, 1, 2])
def test_killed_and_resumed_is_as_if_never_killed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    whole = bytes_of(capture_into(world, tmp_path / "whole"))
    write, written = DatasetWriter.write_shard, []

    def dying(writer: DatasetWriter, samples: range, rows: list[object]) -> object:
        if len(written) == shards:
            raise KilledError
        written.append(samples)
        return write(writer, samples, rows)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "write_shard", dying)
        with pytest.raises(KilledError):
            capture_into(world, tmp_path / "out")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(kept) == shards
    capture_into(world, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == whole
    assert len(whole) == 4
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept


def test_a_finished_capture_is_not_made_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture_into(world, tmp_path / "out")
    monkeypatch.setattr(capture, "load_model", lambda *_, **__: pytest.fail("the teacher must not be loaded"))
    capture_into(world, tmp_path / "out")


@pytest.mark.parametrize("other", ["codec", "text", "teacher"])
def test_another_capture_into_the_same_folder_is_refused(world: Path, tmp_path: Path, other: str) -> None:
    before = bytes_of(capture_into(world, tmp_path / "out"))
    text, model, codec = world / "text.jsonl", world / "teacher", SPEC
    match other:
        case "codec":
            codec = TopkSpec(threshold=2e-2, cap=8)
        case "text":
            text = tmp_path / "other.jsonl"
            text.write_text('{"text": "something else"}\n')
        case _:
            model = save(tmp_path / "teacher", seed=2)
    with pytest.raises(UserError, match="out"):
        capture_file(str(model), text, tmp_path / "out", codec=codec, sequence_length=64)
    assert bytes_of(tmp_path / "out") == before


@pytest.mark.parametrize("content", [None, "", "\n \n", '{"text": ""}\n'])
def test_nothing_to_capture_leaves_nothing(world: Path, tmp_path: Path, content: str | None) -> None:
    text = tmp_path / "text.jsonl"
    if content is not None:
        text.write_text(content)
    with pytest.raises(UserError, match=r"text.jsonl: (no such file|no rows to capture)"):
        capture_file(str(world / "teacher"), text, tmp_path / "out", codec=SPEC)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(world: Path, tmp_path: Path) -> None:
    save(tmp_path / "teacher", tokenizer=tokenizer_of(290))
    tokenizer_of().save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="has 300 entries, but the model's vocabulary only 290"):
        capture_file(str(tmp_path / "teacher"), world / "text.jsonl", tmp_path / "out", codec=SPEC)


def test_the_codec_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "codec.yaml").write_text("codec: topk\ncap: 7\n")
    assert read_codec(tmp_path / "codec.yaml") == TopkSpec(cap=7)
    assert read_codec(None) == TopkSpec()
    with pytest.raises(UserError, match=r"absent.yaml: no such file"):
        read_codec(tmp_path / "absent.yaml")
