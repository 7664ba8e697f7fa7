"""Capturing: killed and resumed it ends with the same bytes, and what can't be captured is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.capture import CaptureRecipe, capture, read_codec, run
from limbeck.data.sources import TextSource, read_source
from limbeck.engines.transformers import load_model
from limbeck.errors import LimbeckError, UserError
from limbeck.files import sha256_file
from limbeck.settings import Settings, validate_settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import Expectation, SignalDataset
from limbeck.signals.manifest import ShardRecord
from limbeck.signals.types import DenseSignal, HiddenSignal
from limbeck.signals.writer import DatasetWriter
from tests.engines.tiny import save, tokenizer_of

SPEC = TopkSpec(threshold=1e-2, cap=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `teacher` and `text.jsonl`: 11 rows."""
    folder = tmp_path_factory.mktemp("world")
    save(folder / "teacher")
    records: list[dict[str, str]] = [{"text": f"text {index} {'word ' * index}"} for index in range(6)]
    records += [{"prompt": f"{index} + 1", "response": f"Answer: {index + 1}"} for index in range(5)]
    (folder / "text.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def recipe(world: Path, output: Path, codec: Settings = SPEC, **changes: Any) -> CaptureRecipe:
    """A capture of the small world in three shards."""
    data: dict[str, Any] = {
        "model": str(world / "teacher"),
        "dataset": {"path": str(world / "text.jsonl"), "sequence_length": 64},
        "output": str(output),
        "codec": codec.model_dump(mode="json"),
        "samples_per_shard": 4,
    }
    return validate_settings(data | changes, CaptureRecipe, "recipe")


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.suffix in (".parquet", ".json")}


def captured(world: Path, output: Path, codec: Settings = SPEC, **changes: Any) -> dict[str, str]:
    """The bytes of a capture."""
    return bytes_of(Path(capture(recipe(world, output, codec, **changes))))


def test_what_is_captured_is_what_the_teacher_says(world: Path, tmp_path: Path) -> None:
    captured(world, tmp_path / "out", DenseSpec())
    dataset = SignalDataset.open(tmp_path / "out", Expectation(codec="dense"))
    rows = read_source(TextSource(path=str(world / "text.jsonl"), sequence_length=64), tokenizer_of()).rows
    model = load_model(world / "teacher")
    assert dataset.manifest.samples == len(rows) == 11
    for named, found in zip(rows, dataset, strict=True):
        row = named.row
        assert tuple(found.input_ids.tolist()) == row.ids
        assert tuple(found.trained.tolist()) == row.trained
        assert isinstance(found.signal, DenseSignal)
        with torch.no_grad():
            expected = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        where = found.signal.mask
        assert where.tolist() == [*row.trained[1:], False]
        torch.testing.assert_close(found.signal.logprobs[where].float(), expected[where], atol=0.05, rtol=0.01)


def test_hidden_states_bring_the_teachers_head_along(world: Path, tmp_path: Path) -> None:
    captured(world, tmp_path / "out", codec=_Named("hidden"))
    dataset = SignalDataset.open(tmp_path / "out")
    row = dataset.row(0)
    assert isinstance(row.signal, HiddenSignal)
    logits = row.signal.hidden.float() @ row.signal.head.weight.float().T
    with torch.no_grad():
        expected = load_model(world / "teacher")(row.input_ids[None]).logits[0]
    torch.testing.assert_close(logits[:-1], expected[:-1], atol=0.2, rtol=0.05)


class _Named(Settings):
    """A codec's settings as a recipe may give them: by name alone."""

    codec: str

    def __init__(self, codec: str) -> None:
        super().__init__(codec=codec)


@pytest.mark.parametrize("codec", ["sampled", "token", "dense", "hidden"])
def test_every_codec_can_be_named_alone(world: Path, tmp_path: Path, codec: str) -> None:
    captured(world, tmp_path / "out", codec=_Named(codec))
    assert len(SignalDataset.open(tmp_path / "out", Expectation(codec=codec))) == 11


def test_distillkits_own_settings_are_accepted(world: Path, tmp_path: Path) -> None:
    spec = DistillkitSpec(d=len(tokenizer_of()), k=8, exact_k=8, residual_bins=())
    captured(world, tmp_path / "out", spec)
    assert SignalDataset.open(tmp_path / "out").kind == "topk"


def test_the_manifest_says_where_it_is_from(world: Path, tmp_path: Path) -> None:
    captured(world, tmp_path / "out", name="org/teacher", seed=7)
    manifest = SignalDataset.open(tmp_path / "out").manifest
    assert manifest.vocabulary == len(tokenizer_of())
    assert manifest.teacher.repo == "org/teacher"
    assert manifest.capture["seed"] == 7
    assert manifest.capture["engine"]["engine"] == "transformers"
    assert manifest.complete


class KilledError(Exception):
    pass


@pytest.mark.parametrize("codec", [SPEC, _Named("sampled"), _Named("hidden")], ids=["topk", "sampled", "hidden"])
@pytest.mark.parametrize("shards", [0, 1, 2])
def test_killed_and_resumed_is_as_if_never_killed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, codec: Settings
) -> None:
    whole = captured(world, tmp_path / "whole", codec)
    adopt, adopted = DatasetWriter.adopt, []

    def dying(writer: DatasetWriter, record: ShardRecord) -> None:
        if len(adopted) == shards:
            raise KilledError
        adopted.append(record)
        adopt(writer, record)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "adopt", dying)
        with pytest.raises(KilledError):
            captured(world, tmp_path / "out", codec)
    kept = {record.name: (tmp_path / "out" / record.name).stat().st_mtime_ns for record in adopted}
    assert captured(world, tmp_path / "out", codec) == whole
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept


def test_a_finished_capture_is_not_made_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured(world, tmp_path / "out")
    monkeypatch.setattr("limbeck.data.capture.shards.open_scorer", lambda *_: pytest.fail("the teacher is not needed"))
    captured(world, tmp_path / "out")


def test_a_shard_that_is_gone_is_captured_again(world: Path, tmp_path: Path) -> None:
    whole = captured(world, tmp_path / "out")
    next((tmp_path / "out").glob("*.parquet")).unlink()
    assert captured(world, tmp_path / "out") == whole


def test_a_budget_of_tokens_stops_at_a_shards_end(world: Path, tmp_path: Path) -> None:
    whole = captured(world, tmp_path / "whole")
    captured(world, tmp_path / "out", token_budget=1)
    with pytest.raises(UserError, match=r"has not finished \(4 of 11"):
        SignalDataset.open(tmp_path / "out")
    assert len(SignalDataset.open(tmp_path / "out", incomplete=True)) == 4
    assert captured(world, tmp_path / "out") == whole


@pytest.mark.parametrize("other", ["codec", "text", "teacher", "seed", "batch"])
def test_another_capture_into_the_same_folder_is_refused(world: Path, tmp_path: Path, other: str) -> None:
    before = captured(world, tmp_path / "out")
    changes: dict[str, Any] = {}
    match other:
        case "codec":
            changes["codec"] = TopkSpec(threshold=2e-2, cap=8)
        case "text":
            (tmp_path / "other.jsonl").write_text('{"text": "something else"}\n')
            changes["dataset"] = {"path": str(tmp_path / "other.jsonl"), "sequence_length": 64}
        case "teacher":
            changes["model"] = str(save(tmp_path / "teacher", seed=2))
        case "seed":
            changes["seed"] = 3
        case _:
            changes["engine"] = {"engine": "transformers", "batch_tokens": 64}
    with pytest.raises(UserError, match="out: holds another capture"):
        capture(recipe(world, tmp_path / "out", **changes))
    assert bytes_of(tmp_path / "out") == before


def test_what_differs_is_named_and_nothing_else(world: Path, tmp_path: Path) -> None:
    captured(world, tmp_path / "out")
    other = recipe(world, tmp_path / "out", seed=3, engine={"engine": "transformers", "batch_tokens": 64})
    with pytest.raises(UserError) as refused:
        capture(other)
    assert "its capture.engine.batch_tokens is 8192, this one's is 64; its capture.seed is 42" in str(refused.value)
    assert "dtype" not in str(refused.value)


def test_a_device_that_is_not_there_leaves_a_folder_that_another_capture_may_use(world: Path, tmp_path: Path) -> None:
    for device in ("nonsense", "cuda:77"):
        with pytest.raises(UserError, match=f"device '{device}': not to be had here"):
            captured(world, tmp_path / "out", engine={"engine": "transformers", "device": device})
    assert captured(world, tmp_path / "out", seed=5) == captured(world, tmp_path / "whole", seed=5)


@pytest.mark.parametrize("content", [None, "", "\n \n", '{"text": ""}\n'])
def test_nothing_to_capture_leaves_nothing(world: Path, tmp_path: Path, content: str | None) -> None:
    text = tmp_path / "text.jsonl"
    if content is not None:
        text.write_text(content)
    with pytest.raises(UserError, match=r"text.jsonl: (no such file|no rows)"):
        capture(recipe(world, tmp_path / "out", dataset={"path": str(text)}))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(world: Path, tmp_path: Path) -> None:
    save(tmp_path / "teacher", tokenizer=tokenizer_of(290))
    tokenizer_of().save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="has 300 entries, but the model's vocabulary only 290"):
        capture(recipe(world, tmp_path / "out", model=str(tmp_path / "teacher")))


def test_a_repository_needs_a_revision(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "tokenizer_for", lambda _: tokenizer_of())
    monkeypatch.setattr(run, "vocabulary_for", lambda *_: 300)
    with pytest.raises(UserError, match="name the revision"):
        capture(recipe(world, tmp_path / "out", model="org/teacher"))


def test_the_codec_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "codec.yaml").write_text("codec: topk\ncap: 7\n")
    assert read_codec(tmp_path / "codec.yaml") == TopkSpec(cap=7)
    assert read_codec(None) == TopkSpec()
    with pytest.raises(UserError, match=r"absent.yaml: no such file"):
        read_codec(tmp_path / "absent.yaml")


def test_a_file_without_a_codec_is_distillkits(tmp_path: Path) -> None:
    (tmp_path / "their.yaml").write_text("logprob_compressor:\n  d: 300\n  k: 8\n  exact_k: 8\n  residual_bins: []\n")
    assert read_codec(tmp_path / "their.yaml") == DistillkitSpec(d=300, k=8, exact_k=8, residual_bins=())
    (tmp_path / "wrong.yaml").write_text("cap: 7\n")
    with pytest.raises(UserError, match="has the key `codec`"):
        read_codec(tmp_path / "wrong.yaml")


@pytest.mark.slow
def test_processes_that_share_the_work_make_the_same_bytes(world: Path, tmp_path: Path) -> None:
    whole = captured(world, tmp_path / "whole")
    assert captured(world, tmp_path / "out", processes=2) == whole


@pytest.mark.slow
def test_a_process_that_fails_stops_the_run_with_its_error(world: Path, tmp_path: Path) -> None:
    """The text changes between the start and the first worker's reading of it."""
    broken = recipe(world, tmp_path / "out", processes=2, dataset={"path": str(tmp_path / "text.jsonl")})
    (tmp_path / "text.jsonl").write_bytes((world / "text.jsonl").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "made_by_processes", _after_a_change(tmp_path / "text.jsonl"))
        with pytest.raises(LimbeckError, match=r"capturing processes died|the text has changed"):
            capture(broken)
    assert not SignalDataset.open(tmp_path / "out", incomplete=True).manifest.complete


def _after_a_change(text: Path) -> Any:
    from limbeck.data.capture.workers import made_by_processes

    def changed(*arguments: Any) -> Any:
        text.write_text('{"text": "another text"}\n')
        yield from made_by_processes(*arguments)

    return changed
