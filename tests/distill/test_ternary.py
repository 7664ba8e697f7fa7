"""Ternary students by recipe: of presets and dense models, ramped, without decay in the end, watched, resumed."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from limbeck.distill.checkpoints import complete_checkpoints
from limbeck.distill.checks import check
from limbeck.distill.recipe import OptimizerSettings, PresetModel, QuantisationSettings, Recipe
from limbeck.distill.ternary import TernaryTraining, decay_at, ramp_of, strength_at
from limbeck.distill.train import plan, run_folder, train
from limbeck.distill.training_page import write_page
from limbeck.errors import UserError
from limbeck.models.bitnet import LimbeckBitNetConfig, LimbeckBitNetForCausalLM
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.settings import validate_settings
from tests.distill.tiny_run import distilled, random_rows, tiny_trainer
from tests.models.bitnet.shapes import small_student
from tests.small_world import recipe_data

OF_TOKENIZER = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}
TINY = {
    "preset": "bitnet-6m", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip


def recipe(world: Path, out: Path, **changes: Any) -> Recipe:
    model = {**TINY, "tokenizer": str(world / "student")}
    return validate_settings(recipe_data(world, out, **{"model": model, **changes}), Recipe, "test")


def weights_of(folder: Path) -> dict[str, Tensor]:
    return LimbeckBitNetForCausalLM.from_pretrained(folder).state_dict()


def test_every_field_of_a_student_can_be_given() -> None:
    fields = set(LimbeckBitNetConfig.__annotations__) - OF_TOKENIZER - {"model_type", "default_theta"}
    assert set(PresetModel.model_fields) == fields | {"preset", "tokenizer"}


def test_what_is_given_is_told_from_what_is_not() -> None:
    without = PresetModel(preset="royal-flush-39m", tokenizer="t", attn_logit_softcapping=None)
    assert without.changes() == {"attn_logit_softcapping": None}
    again = PresetModel.model_validate(without.model_dump(mode="json"))
    assert again.changes() == without.changes()
    assert PresetModel(preset="p", tokenizer="t").changes() == {}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"preset": "bitnet-6m"}, r"model\.tokenizer: field required"),
        ({"preset": "bitnet-6m", "tokenizer": "t", "hiden_size": 3}, r"unknown key 'model\.hiden_size'.*'hidden_size'"),
        ({"preset": "bitnet-6m", "tokenizer": "t", "vocab_size": 3}, r"unknown key 'model\.vocab_size'"),
        ({"from_dense": "d", "preset": "bitnet-6m"}, r"unknown key 'model\.preset'"),
        ({"from_dense": "d", "hidden_size": 32}, r"unknown key 'model\.hidden_size'"),
        (7, r"^test: model\.name: "),
    ],
)
def test_what_cannot_be_read_is_one_line(model: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        validate_settings(recipe_data(tmp_path, tmp_path, model=model), Recipe, "test")


@pytest.mark.parametrize("ramp", [{}, {"ramp": 0.1, "ramp_steps": 3}, {"ramp": 1.0}, {"ramp_steps": -1}])
def test_a_ramp_is_a_number_or_a_share(ramp: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quantisation"):
        validate_settings(recipe_data(tmp_path, tmp_path, quantisation=ramp), Recipe, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"preset": "bitnet-6", "tokenizer": "{student}"}}, r"^model: no preset is called 'bitnet-6'"),
        ({"model": {**TINY, "tokenizer": "{student}", "num_key_value_heads": 3}}, r"^model: num_key_value_heads"),
        ({"model": {**TINY, "tokenizer": "{student}"}, "model_kwargs": {"device_map": "auto"}}, r"^model_kwargs\.dev"),
        ({"model": "{student}", "quantisation": {"ramp": 0.1}}, r"^quantisation: .* has no ternary layers"),
        ({"model": {"from_dense": "{signals}"}}, r"^(model\.from_dense: )?.*signals: no"),
        ({"quantisation": {"ramp_steps": 12}}, r"^quantisation\.ramp_steps: 12 steps, but the run has 12"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    world: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    places = {"{student}": world / "student", "{signals}": world / "signals"}
    text = json.dumps(changes)
    for name, place in places.items():
        text = text.replace(name, str(place))
    with pytest.raises(UserError, match=message):
        plan(recipe(world, tmp_path / "out", **json.loads(text)))


def test_a_dry_run_makes_no_weights(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    made = recipe(world, tmp_path / "out")
    skeleton = check(made).start.skeleton
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert plan(made).parameters == sum(parameter.numel() for parameter in skeleton.parameters())
    assert not (tmp_path / "out").exists()


class StoppedAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_preset_is_trained_and_resumed_exactly(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped behind step 9, it goes on from step 4 (in the ramp), and from step 8 (behind it), to the same weights."""
    changes: dict[str, Any] = {
        "quantisation": {"ramp": 0.5},
        "optimizer": {"kind": "muon", "decay_until": 0.5, "weight_decay": 0.5},
        "evaluation": {"share": 0.2},
    }
    arguments = recipe_data(world, tmp_path)["training_args"] | {"logging_steps": 3, "eval_steps": 4}
    made = [recipe(world, tmp_path / name, **changes, training_args=arguments) for name in ("whole", "again")]
    whole = train(made[0])
    for step, saved in ((5, 4), (9, 8)):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            stopping(patched, step)
            train(made[1])
        assert [int(one.name.split("-")[1]) for one in complete_checkpoints(run_folder(tmp_path / "again"))] == [saved]
    again = train(made[1])
    unequal = ("tokens_per_second", "signal_bytes_per_second", "memory_gb")
    assert [{key: value for key, value in entry.items() if key not in unequal} for entry in again.history] == [
        {key: value for key, value in entry.items() if key not in unequal} for entry in whole.history
    ]
    assert again.evaluations == whole.evaluations
    expected, found = weights_of(whole.folder), weights_of(again.folder)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert [round(entry["ternary_strength"], 3) for entry in whole.history] == [0.333, 0.833, 1.0, 1.0]
    assert "Ternary layers" in (run_folder(whole.folder) / "training.html").read_text()


def stopping(patched: pytest.MonkeyPatch, step: int) -> None:
    """Make each trainer stop behind a step."""
    from limbeck.distill.trainer import DistillationTrainer

    begin = DistillationTrainer.train

    def stopped(self: DistillationTrainer, *given: Any, **named: Any) -> Any:
        self.add_callback(StoppedAt(step))
        return begin(self, *given, **named)

    patched.setattr(DistillationTrainer, "train", stopped)


def test_the_dense_twin_starts_with_the_same_weights(world: Path, tmp_path: Path) -> None:
    from limbeck.distill.starting import load_student

    found = []
    for seed, changes in ((1, {}), (1, {"ternary": False}), (2, {})):
        made = recipe(world, tmp_path, model={**TINY, "tokenizer": str(world / "student"), **changes})
        found.append(load_student(made, check(made).start, seed=seed))
    ternary, twin, other = (dict(one.named_parameters()) for one in found)
    assert len(ternary_layers(found[0])) == 7 and not ternary_layers(found[1])
    assert ternary.keys() == twin.keys() and all(torch.equal(ternary[name], twin[name]) for name in twin)
    assert not torch.equal(ternary["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_dense_model_becomes_a_student_near_it(world: Path, tmp_path: Path) -> None:
    arguments = recipe_data(world, tmp_path)["training_args"] | {"max_steps": 2}
    changes = {"model": {"from_dense": str(world / "student")}, "quantisation": {"ramp_steps": 1}}
    made = recipe(world, tmp_path / "out", **changes, training_args=arguments)
    result = train(made)
    dense = train(recipe(world, tmp_path / "dense", model=str(world / "student"), training_args=arguments))
    first, expected = result.history[0], dense.history[0]
    assert abs(first["cross_entropy"] - expected["cross_entropy"]) < 0.02 * expected["cross_entropy"]
    assert first["ternary_strength"] == 0 and result.history[1]["ternary_strength"] == 1
    assert ternary_layers(LimbeckBitNetForCausalLM.from_pretrained(result.folder))


@given(st.integers(0, 50), st.integers(1, 200))
def test_strength_rises_in_equal_steps(ramp: int, steps: int) -> None:
    found = [strength_at(step, ramp) for step in range(ramp + 2)]
    assert found[ramp] == found[-1] == 1.0
    assert ramp == 0 or found[0] == 0.0
    rises = [after - before for before, after in pairwise(found[: ramp + 1])]
    assert all(abs(rise * ramp - 1) < 1e-9 for rise in rises)
    assert ramp_of(QuantisationSettings(ramp=0.1), 10 * steps) == steps


@given(st.floats(0, 1), st.integers(1, 300))
def test_weight_decay_ends_where_it_is_told_to(until: float, steps: int) -> None:
    settings = OptimizerSettings(weight_decay=0.3, decay_until=until)
    found = [decay_at(settings, step, steps) for step in range(steps)]
    assert sum(decay > 0 for decay in found) == (steps if until == 1 else math.ceil(until * steps))
    assert found == sorted(found, reverse=True)


def test_before_each_step_strength_and_decay_are_set(tmp_path: Path) -> None:
    seen = []

    class See(TrainerCallback):
        def on_pre_optimizer_step(self, *given: Any, **kwargs: Any) -> None:
            layer = next(iter(ternary_layers(student.student).values()))
            seen.append((layer.strength, trainer.inner_optimizer.param_groups[0]["weight_decay"]))

    student = distilled(small_student(vocab_size=61))
    more = {"quantisation": QuantisationSettings(ramp_steps=2), "eval_dataset": random_rows(2)}
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 4, "gradient_accumulation_steps": 2}
    with tiny_trainer(tmp_path, student, random_rows(16), muon=True, more=more, **settings) as trainer:
        trainer.optimizer_settings = OptimizerSettings(weight_decay=0.2, decay_until=0.5)
        trainer.add_callback(See())
        trainer.train()
    assert seen == [(0.0, 0.2), (0.5, 0.2), (1.0, 0.0), (1.0, 0.0)]
    assert {layer.strength for layer in ternary_layers(student.student).values()} == {1.0}


def test_held_out_rows_are_measured_with_all_of_the_rounding(tmp_path: Path) -> None:
    student = distilled(small_student(vocab_size=61))
    with tiny_trainer(tmp_path, student, random_rows(4), more={"eval_dataset": random_rows(3)}) as trainer:
        whole = trainer.evaluate()["eval_kl"]
        trainer.ternary._settings = QuantisationSettings(ramp_steps=9)
        trainer.ternary.before_step(0, 100)
        assert trainer.evaluate()["eval_kl"] == whole
        assert {layer.strength for layer in ternary_layers(student.student).values()} == {0.0}


def test_a_fallen_scale_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    student = small_student()
    watched = TernaryTraining(student, None)
    with watched.training():
        assert watched.logged(1, abs, speaks=True)["ternary_fallen"] == 0
        with torch.no_grad():
            for layer in ternary_layers(student).values():
                layer.weight.mul_(0.05)
        fallen = [watched.logged(step, abs, speaks=True)["ternary_fallen"] for step in (2, 3)]
    assert fallen == [len(ternary_layers(student))] * 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("warning: step 2: ") == 1 and "step 3" not in said


def test_the_page_says_that_a_scale_fell(tmp_path: Path) -> None:
    names = ("minus", "zero", "plus", "flips", "update", "least_scale", "largest_input", "strength")
    entry = {"step": 1, "loss": 1.0, **{f"ternary_{name}": 0.5 for name in names}, "ternary_fallen": 3.0}
    result = {
        "recipe": {"output_path": "o", "project_name": "p", "model": {"preset": "bitnet-6m", "tokenizer": "t"}},
        "history": [entry], "evaluations": [], "teacher": None,
        "figures": {"steps": 1, "seconds": 1.0, "parameters": 5, "trained_parameters": 5},
        "environment": {"limbeck": "0", "processes": 1, "device": "cpu"},
    }  # fmt: skip
    write_page(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text()
    assert "The scale of 3 layers fell tenfold" in page and "bitnet-6m, untrained" in page
