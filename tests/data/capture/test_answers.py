"""The section `generate:`: answers are kept, gone on with, and captured as the rows that they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.capture import CaptureRecipe, capture
from limbeck.data.capture import answers as answering
from limbeck.engines.generation import TransformersGenerator
from limbeck.errors import UserError
from limbeck.settings import validate_settings
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.types import TopkSignal
from tests.data.capture.test_run import KilledError, bytes_of
from tests.engines.tiny import save, tokenizer_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `teacher` and `prompts.jsonl`: 5 prompts."""
    folder = tmp_path_factory.mktemp("world")
    save(folder / "teacher")
    lines = [{"prompt": f"{index} + 1", "response": "left out"} for index in range(3)]
    lines[2].pop("response")
    lines += [{"text": "say"}, {"messages": [{"role": "user", "content": "hi"}]}]  # type: ignore[dict-item]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def recipe(world: Path, output: Path, generate: dict[str, Any], **changes: Any) -> CaptureRecipe:
    data: dict[str, Any] = {
        "model": str(world / "teacher"),
        "dataset": {"path": str(world / "prompts.jsonl"), "sequence_length": 60},
        "output": str(output),
        "codec": {"codec": "topk", "cap": 8, "temperatures": [1.0]},
        "samples_per_shard": 2,
        "generate": {"sampling": {"max_tokens": 6, "seed": 3}, "batch_prompts": 2} | generate,
    }
    return validate_settings(data | changes, CaptureRecipe, "recipe")


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output.parent / f"{output.name}.answers.jsonl").read_text().splitlines()]


def test_answers_are_what_is_captured(world: Path, tmp_path: Path) -> None:
    capture(recipe(world, tmp_path / "out", {}))
    _, *answers = lines_of(tmp_path / "out")
    rows = list(SignalDataset.open(tmp_path / "out"))
    assert [answer["prompt"] for answer in answers] == [0, 1, 2, 3, 4]
    for row, answer in zip(rows, answers, strict=True):
        assert row.input_ids.tolist() == answer["ids"]
        assert row.trained.tolist() == [place >= answer["first"] for place in range(len(answer["ids"]))]
        asked = tokenizer_of().decode(answer["ids"][: answer["first"]])
        assert asked.endswith("<|assistant|>") and "left out" not in asked


def test_several_answers_to_a_prompt_are_several_rows(world: Path, tmp_path: Path) -> None:
    capture(recipe(world, tmp_path / "out", {"sampling": {"max_tokens": 4, "n": 3}}))
    assert len(SignalDataset.open(tmp_path / "out")) == 15


@pytest.mark.parametrize("torn", [b"", b'{"prompt": 2, "choi'])
def test_killed_while_writing_the_answers_go_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    capture(recipe(world, tmp_path / "whole", {}))
    write, calls = TransformersGenerator.generate, []

    def dying(self: TransformersGenerator, *arguments: Any, **keywords: Any) -> Any:
        if calls:
            raise KilledError
        calls.append(True)
        return write(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersGenerator, "generate", dying)
        with pytest.raises(KilledError):
            capture(recipe(world, tmp_path / "out", {}))
    with (tmp_path / "out.answers.jsonl").open("ab") as file:
        file.write(torn)
    capture(recipe(world, tmp_path / "out", {}))
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "whole")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_prompt_whose_answers_are_not_all_there_is_answered_anew(world: Path, tmp_path: Path) -> None:
    sampling = {"sampling": {"max_tokens": 4, "n": 2}}
    capture(recipe(world, tmp_path / "whole", sampling))
    lines = (tmp_path / "whole.answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out.answers.jsonl").write_bytes(b"".join(lines[:4]))
    capture(recipe(world, tmp_path / "out", sampling))
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "whole")


def test_answers_to_other_prompts_are_refused(world: Path, tmp_path: Path) -> None:
    capture(recipe(world, tmp_path / "out", {}))
    with pytest.raises(UserError, match=r"out.answers.jsonl: holds answers to other prompts"):
        capture(recipe(world, tmp_path / "out", {"sampling": {"max_tokens": 5}}))


def test_what_the_teacher_said_while_writing_can_be_kept(world: Path, tmp_path: Path) -> None:
    """It is what reading the same answers again gives."""
    sampling = {"max_tokens": 6, "seed": 3, "top_logprobs": 8}
    capture(recipe(world, tmp_path / "written", {"scores": "as_written", "sampling": sampling}))
    capture(recipe(world, tmp_path / "again", {}))
    for written, again in zip(
        SignalDataset.open(tmp_path / "written"), SignalDataset.open(tmp_path / "again"), strict=True
    ):
        assert written.input_ids.tolist() == again.input_ids.tolist()
        assert written.trained.tolist() == again.trained.tolist()
        assert isinstance(written.signal, TopkSignal) and isinstance(again.signal, TopkSignal)
        assert written.signal.mask.tolist() == again.signal.mask.tolist()
        where = again.signal.mask
        assert (written.signal.ids[where][:, 0] == again.signal.ids[where][:, 0]).float().mean() > 0.9


@pytest.mark.parametrize(
    "wrong", [{"sampling": {"n": 2, "top_logprobs": 4}}, {"sampling": {}}, {"engine": {"engine": "transformers"}}]
)
def test_what_was_said_while_writing_needs_log_probabilities(
    world: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="as_written needs"):
        recipe(world, tmp_path / "out", {"scores": "as_written"} | wrong)


def test_prompts_are_shuffled_and_chosen_as_records_are(world: Path, tmp_path: Path) -> None:
    dataset = {"path": str(world / "prompts.jsonl"), "seed": 4}
    shuffled = answering.read_prompts(recipe(world, tmp_path / "out", {}, dataset=dataset), tokenizer_of())
    some = answering.read_prompts(recipe(world, tmp_path / "out", {}, dataset=dataset | {"samples": 2}), tokenizer_of())
    plain = answering.read_prompts(recipe(world, tmp_path / "out", {}), tokenizer_of())
    assert shuffled != plain and sorted(map(str, shuffled)) == sorted(map(str, plain))
    assert some == shuffled[:2]


def test_an_answer_that_is_too_long_is_left_out_and_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = answering.read_prompts(recipe(world, tmp_path / "out", {}), tokenizer_of())
    assert len(prompts) == 5
    dataset = {"path": str(world / "prompts.jsonl"), "sequence_length": 8}
    with pytest.raises(UserError, match="no rows"):
        capture(recipe(world, tmp_path / "out", {}, dataset=dataset))
