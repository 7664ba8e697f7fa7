"""The trainer's steps: normalisation, rolled and annotated batches, precision, checkpointing, what stops a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from limbeck.distill.checkpoints import complete_checkpoints, step_of
from limbeck.distill.view import TeacherView
from limbeck.errors import LimbeckError, UserError
from limbeck.signals.loader import SignalBatch, collate
from tests.distill.tiny_run import Stream, distilled, random_rows, tiny_student, tiny_trainer


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, *given: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients(
    folder: Path, *, rows: int = 8, weights: float = 1.0, more: Any = None, **arguments: Any
) -> dict[str, Tensor]:
    kept = Gradients()
    student = distilled(tiny_student(), {"kl": 0.7 * weights, "cross_entropy": 0.4 * weights})
    settings = {"max_steps": 1, "max_grad_norm": 0.0, "optim": "sgd", **arguments}
    with tiny_trainer(folder, student, random_rows(rows), more=more, **settings) as trainer:
        trainer.add_callback(kept)
        trainer.train()
    return kept.found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return gradients(tmp_path_factory.mktemp("one"), per_device_train_batch_size=8)


@pytest.mark.parametrize(("rows", "steps"), [(4, 2), (2, 4), (1, 8), (3, 3)])
def test_splitting_a_batch_differently_gives_the_same_gradient(
    undivided: dict[str, Tensor], tmp_path: Path, rows: int, steps: int
) -> None:
    found = gradients(tmp_path, per_device_train_batch_size=rows, gradient_accumulation_steps=steps)
    assert_same(found, undivided, 1e-6)


def test_weights_are_used_as_given(undivided: dict[str, Tensor], tmp_path: Path) -> None:
    found = gradients(tmp_path, weights=3.0, per_device_train_batch_size=8)
    assert_same(found, {name: 3 * value for name, value in undivided.items()}, 1e-6)


def test_recomputed_activations_give_the_same_gradient(undivided: dict[str, Tensor], tmp_path: Path) -> None:
    found = gradients(tmp_path, per_device_train_batch_size=8, activation_checkpointing=True)
    assert_same(found, undivided, 1e-6)


def test_mixed_precision_comes_near_the_gradient(undivided: dict[str, Tensor], tmp_path: Path) -> None:
    found = gradients(tmp_path, per_device_train_batch_size=8, bf16=True)
    whole = [torch.cat([part[name].flatten() for name in undivided]) for part in (found, undivided)]
    assert torch.nn.functional.cosine_similarity(*whole, dim=0) > 0.999
    assert not torch.equal(*whole)
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_a_rolled_batch_is_what_is_counted_and_trained(tmp_path: Path) -> None:
    seen = []

    def roll(batch: SignalBatch, step: int, micro_batch: int) -> SignalBatch:
        seen.append((step, micro_batch, batch.samples))
        return collate(random_rows(8)[4 * micro_batch : 4 * micro_batch + 4])

    found = gradients(
        tmp_path / "rolled", rows=30, per_device_train_batch_size=4, gradient_accumulation_steps=2, more={"roll": roll}
    )
    assert [place for *place, _ in seen] == [[0, 0], [0, 1]]
    assert all(samples for *_, samples in seen)
    assert_same(found, gradients(tmp_path / "rows", per_device_train_batch_size=8), 1e-6)


def test_an_annotated_batch_is_what_the_student_sees(undivided: dict[str, Tensor], tmp_path: Path) -> None:
    signals = {tuple(row.input_ids.tolist()): row.signal for row in random_rows(8)}
    with_gradients = []

    def annotate(batch: SignalBatch) -> tuple[SignalBatch, TeacherView | None]:
        with_gradients.append(torch.is_grad_enabled())
        rows = [
            replace(
                random_rows(1)[0], input_ids=ids[mask], trained=trained[mask], signal=signals[tuple(ids[mask].tolist())]
            )
            for ids, mask, trained in zip(batch.input_ids, batch.attention_mask, batch.trained, strict=True)
        ]
        return collate(rows), None

    rows = [replace(row, signal=None) for row in random_rows(8)]
    kept = Gradients()
    with tiny_trainer(
        tmp_path, distilled(tiny_student()), rows, more={"annotate": annotate}, max_steps=1, max_grad_norm=0.0,
        optim="sgd", per_device_train_batch_size=8,
    ) as trainer:  # fmt: skip
        trainer.add_callback(kept)
        trainer.train()
    assert with_gradients == [False]
    assert_same(kept.found, undivided, 1e-6)


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    rows = random_rows(8)
    rows[5].signal.logprobs[:] = float("nan")  # type: ignore[union-attr]
    student = distilled(tiny_student())
    with (
        tiny_trainer(
            tmp_path, student, rows, num_train_epochs=1, save_strategy="steps", save_steps=1,
            per_device_train_batch_size=1, gradient_accumulation_steps=2, keep=8,
        ) as trainer,
        pytest.raises(LimbeckError, match=r"step (\d), micro-batch \d \(samples 5\): .*kl nan, cross_entropy \d"),
    ):  # fmt: skip
        trainer.train()
    kept = complete_checkpoints(tmp_path)
    assert [step_of(path) for path in kept] == list(range(1, trainer.state.global_step + 1))
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop"])
def test_the_librarys_optimizers_train_and_go_on(tmp_path: Path, optim: str) -> None:
    def trained(folder: str, checkpoint: Path | None = None) -> dict[str, Tensor]:
        student = distilled(tiny_student())
        settings = {"optim": optim, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
        with tiny_trainer(tmp_path / folder, student, random_rows(8), **settings) as trainer:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return student.state_dict()

    whole = trained("whole")
    again = trained("again", tmp_path / "whole" / "checkpoint-2")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not torch.equal(whole["student.lm_head.weight"], tiny_student().lm_head.weight)


def test_logs_name_each_loss_and_the_speed(tmp_path: Path) -> None:
    with tiny_trainer(
        tmp_path, distilled(tiny_student()), random_rows(8), max_steps=2, more={"signal_bytes": 244.0}
    ) as trainer:
        trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(0.7 * entry["kl"] + 0.4 * entry["cross_entropy"], rel=1e-5)
    assert {"grad_norm", "learning_rate", "tokens_per_second", "signal_bytes_per_second", "memory_gb"} <= entry.keys()


def test_held_out_means_are_over_tokens(tmp_path: Path) -> None:
    rows = random_rows(5)
    found = []
    for size in (1, 5):
        with tiny_trainer(
            tmp_path, distilled(tiny_student()), random_rows(8), max_steps=1, more={"eval_dataset": rows},
            per_device_eval_batch_size=size,
        ) as trainer:  # fmt: skip
            found.append(trainer.evaluate())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    batch = collate(rows)
    loss, parts = distilled(tiny_student()).eval()(batch, int(batch.counted.sum()))
    assert found[0]["eval_kl"] == pytest.approx(parts["kl"].item(), rel=1e-5)
    assert found[0]["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found[0]["eval_tokens"] == batch.counted.sum()


def test_evaluating_does_not_change_the_training(tmp_path: Path) -> None:
    weights = []
    for name, evaluating in (("with", {"eval_strategy": "steps", "eval_steps": 1}), ("without", {})):
        student = distilled(tiny_student(dropout=0.3))
        with tiny_trainer(
            tmp_path / name, student, random_rows(8), max_steps=3, more={"eval_dataset": random_rows(3)}, **evaluating
        ) as trainer:
            trainer.train()
        weights.append(student.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_a_stream_needs_a_number_of_steps(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"training_args\.max_steps: a stream has no length"),
        tiny_trainer(tmp_path, distilled(tiny_student()), Stream(), num_train_epochs=1),
    ):
        raise AssertionError("it was taken")
