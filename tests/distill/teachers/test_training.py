"""Whole runs with a teacher that answers meanwhile: as good as a capture, resumed as if never stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.capture import CaptureRecipe, capture
from limbeck.data.sources import TextSource
from limbeck.distill.recipe import Recipe
from limbeck.distill.rollout import Rollout
from limbeck.distill.student import DistilledStudent
from limbeck.distill.teachers.mixed import Mixture
from limbeck.distill.train import TrainingResult, train
from limbeck.errors import UserError
from limbeck.settings import validate_settings
from limbeck.signals.codecs.hidden_head import HiddenSpec
from limbeck.signals.loader import SignalBatch
from tests.distill.families import family
from tests.engines.loopback import serve
from tests.engines.tiny import new_model, save, tokenizer_of

LINES = ["def double(x):\n    return x + x\n", "What is left of 12 is 34 .", "return x", "double(12) is 24 ."]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers, one of another tokenizer, a student, plain texts, and questions with answers."""
    folder = tmp_path_factory.mktemp("online")
    for name, seed in (("teacher", 1), ("second", 2), ("student", 3)):
        save(folder / name, seed)
    save(folder / "other", 4, family("bytes"))
    texts = [json.dumps({"text": LINES[row % 4] * (1 + row % 3)}) for row in range(12)]
    asked = [json.dumps({"prompt": LINES[row % 4], "response": LINES[(row + 1) % 4]}) for row in range(12)]
    (folder / "text.jsonl").write_text("\n".join(texts))
    (folder / "asked.jsonl").write_text("\n".join(asked))
    return folder


def trained(place: Path, out: Path, **changes: Any) -> TrainingResult:
    data = {
        "model": str(place / "student"),
        "output_path": str(out),
        "sequence_length": 48,
        "dataset": {"train_dataset": {"disk_path": str(place / "text.jsonl")}},
        "teacher": {"kind": "hf", "path": str(place / "teacher")},
        "loss_functions": [{"function": "kl"}],
    } | changes
    arguments = {
        "max_steps": 4, "per_device_train_batch_size": 3, "learning_rate": 0.01, "logging_steps": 1, "save_steps": 2,
    } | data.pop("training_args", {})  # fmt: skip
    return train(validate_settings({**data, "training_args": arguments}, Recipe, "test"))


def losses(result: TrainingResult, name: str = "kl") -> list[float]:
    return [entry[name] for entry in result.history]


def test_online_trains_as_from_a_capture_of_hidden_states(place: Path, tmp_path: Path) -> None:
    text = TextSource(path=str(place / "text.jsonl"), sequence_length=48)
    spec = HiddenSpec(dtype="float32").model_dump(mode="json", exclude={"width", "head_sha256"})
    capture(CaptureRecipe(model=str(place / "teacher"), dataset=text, output=str(tmp_path / "signals"), codec=spec))
    captured = {"train_dataset": {"disk_path": str(tmp_path / "signals")}}
    offline = trained(place, tmp_path / "offline", dataset=captured, teacher={"kind": "dataset"})
    # without a seed the rows of the text are those of the capture, in its order
    text_again = {"train_dataset": {"disk_path": str(place / "text.jsonl")}, "seed": 0}
    online = trained(place, tmp_path / "online", dataset=text_again)
    assert losses(online) == pytest.approx(losses(offline), rel=1e-6)
    assert losses(online)[-1] < losses(online)[0]


def test_packing_and_mapped_layers_with_a_teacher_in_process(place: Path, tmp_path: Path) -> None:
    """The teacher's layers stand in the places of the packed rows: packed or not, the first step's losses agree."""
    results = []
    for packing in (False, True):
        result = trained(
            place, tmp_path / f"packed-{packing}", packing=packing, layer_mapping="all",
            loss_functions=[{"function": "kl"}, {"function": "hs_mse"}, {"function": "attention_relation"}],
            training_args={"max_steps": 1, "per_device_train_batch_size": 12},
        )  # fmt: skip
        results.append(result.history[0])
    for name in ("kl", "hs_mse"):
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-4)
    assert results[1]["attention_relation"] > 0


def test_each_dataset_is_asked_of_its_own_teacher(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    annotate = Mixture.annotate

    def looking(self: Mixture, batch: SignalBatch) -> Any:
        seen.update(batch.sources)
        return annotate(self, batch)

    monkeypatch.setattr(Mixture, "annotate", looking)
    sources = [{"disk_path": str(place / f"{name}.jsonl"), "label": name} for name in ("text", "asked")]
    members = [
        {"kind": "hf", "path": str(place / path), "datasets": [label]}
        for path, label in (("teacher", "text"), ("second", "asked"))
    ]
    result = trained(
        place, tmp_path / "out", dataset={"train_dataset": sources}, teacher={"kind": "mixed", "teachers": members}
    )
    assert seen == {"text", "asked"} and all(loss > 0 for loss in losses(result))


def asked(place: Path) -> dict[str, Any]:
    return {"train_dataset": {"disk_path": str(place / "asked.jsonl")}}


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_an_on_policy_run_that_was_stopped_ends_with_the_same_bits(
    place: Path, tmp_path: Path, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "dataset": asked(place),
        "loss_functions": [{"function": "reverse_kl"}],
        "rollout": {"fraction": fraction, "max_new_tokens": 6},
        "training_args": {"gradient_accumulation_steps": 2},
    }
    whole = trained(place, tmp_path / "whole", **settings)
    call = Rollout.__call__

    def stopping(self: Rollout, batch: SignalBatch, step: int, micro_batch: int) -> SignalBatch:
        if (step, micro_batch) == (3, 1):
            raise InterruptedError
        return call(self, batch, step, micro_batch)

    with monkeypatch.context() as patch:
        patch.setattr(Rollout, "__call__", stopping)
        with pytest.raises(InterruptedError):
            trained(place, tmp_path / "stopped", **settings)
    resumed = trained(place, tmp_path / "stopped", **settings)
    assert losses(resumed, "reverse_kl") == losses(whole, "reverse_kl")
    name = "model.safetensors"
    assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_served_teacher_scores_what_the_student_wrote(place: Path, tmp_path: Path) -> None:
    with serve(new_model(1), tokenizer_of()) as server:
        teacher = {"kind": "server", "engine": server.engine().model_dump(), "path": str(place / "teacher")}
        result = trained(
            place, tmp_path / "out", dataset=asked(place), teacher=teacher, loss_functions=[{"function": "k2"}],
            rollout={"max_new_tokens": 4}, training_args={"max_steps": 2},
        )  # fmt: skip
        exact = trained(
            place, tmp_path / "exact", dataset=asked(place), loss_functions=[{"function": "k2"}],
            rollout={"max_new_tokens": 4}, training_args={"max_steps": 2},
        )  # fmt: skip
    assert losses(result, "k2") == pytest.approx(losses(exact, "k2"), rel=1e-3)


def test_a_teacher_of_another_tokenizer_reads_the_text(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[int] = []
    forward = DistilledStudent.forward

    def looking(self: DistilledStudent, batch: SignalBatch, denominator: Any, view: Any = None) -> Any:
        others.append(len(view.other.rows))
        return forward(self, batch, denominator, view)

    monkeypatch.setattr(DistilledStudent, "forward", looking)
    teacher = {"kind": "hf", "path": str(place / "other")}
    whole = {"per_device_train_batch_size": 12}
    result = trained(
        place, tmp_path / "out", teacher=teacher, loss_functions=[{"function": "uld"}], training_args=whole
    )
    assert min(others) > 0 and losses(result, "uld")[-1] < losses(result, "uld")[0]
    two = {"kind": "mixed", "teachers": [teacher, teacher]}
    with pytest.raises(UserError, match=r"teacher\.kind: a teacher of another tokenizer"):
        trained(place, tmp_path / "two", teacher=two, loss_functions=[{"function": "uld"}])
    same = {"kind": "hf", "path": str(place / "teacher"), "special_tokens": {"<|endoftext|>": ""}}
    with pytest.raises(UserError, match=r"teacher\.special_tokens: the student's tokenizer is the teacher's"):
        trained(place, tmp_path / "same", teacher=same)


def test_a_rollout_without_a_teacher_to_ask_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollout\.temperature: 'k1'"):
        trained(place, tmp_path / "out", loss_functions=[{"function": "k1"}], rollout={"temperature": 0.5})
    assert not torch.distributed.is_initialized()
