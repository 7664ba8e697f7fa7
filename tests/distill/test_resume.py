"""Killed with -9 and resumed, a run ends as one that was not interrupted: every loss and weight, bit for bit."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from limbeck.distill.checkpoints import complete_checkpoints, step_of
from limbeck.distill.running_state import (
    check_storable,
    load_optimizer,
    load_process,
    load_weights,
    own_name,
    save_optimizer,
    save_process,
    whole_weights,
)
from limbeck.errors import IntegrityError, UserError
from tests.distill.tiny_run import RUNS, SAVED, STEPS, run, tiny_student


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs that were killed behind step 5; what a checkpoint holds stands in them up to step 3."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.distill.tiny_run", str(folder), *RUNS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_as_if_it_had_not_been(name: str, killed: Path, tmp_path: Path) -> None:
    history, weights = run(tmp_path / "whole", name)
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(2, STEPS + 1, 2))
    (checkpoint,) = complete_checkpoints(killed / name)
    assert step_of(checkpoint) == SAVED
    resumed, again = run(tmp_path / "again", name, resume=checkpoint)
    assert resumed == history
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[part], again[part]) for part in weights)


def test_nothing_in_a_checkpoint_is_pickled(killed: Path) -> None:
    for name in RUNS:
        (checkpoint,) = complete_checkpoints(killed / name)
        assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                assert list(file.keys())
        for path in checkpoint.glob("*.json"):
            json.loads(path.read_text())


def test_another_student_is_refused(killed: Path, tmp_path: Path) -> None:
    (checkpoint,) = complete_checkpoints(killed / "mapped")
    with pytest.raises(IntegrityError, match="another student"):
        load_weights(tiny_student(head_dim=8), [checkpoint / "model.safetensors"])
    student = tiny_student()
    student.extra = nn.Linear(2, 2)
    with pytest.raises(IntegrityError, match=r"extra.weight is not there"):
        load_weights(student, [checkpoint / "model.safetensors"])


def test_tied_weights_stand_in_a_checkpoint_once(tmp_path: Path) -> None:
    student = tiny_student(tied=True)
    weights = whole_weights(student, keep=True)
    assert "lm_head.weight" not in weights
    student.save_pretrained(tmp_path)
    other = tiny_student(tied=True)
    nn.init.zeros_(other.lm_head.weight)
    load_weights(other, [tmp_path / "model.safetensors"])
    assert torch.equal(other.lm_head.weight, student.lm_head.weight)
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_names_are_told_without_wrappers() -> None:
    assert own_name("student._orig_mod.layers.0._checkpoint_wrapped_module.up.weight") == "student.layers.0.up.weight"
    assert own_name("student.submodule.module.weight") == "student.submodule.module.weight"


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, betas=(0.8, 0.9), amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
    "a tensor for a rate": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.01), foreach=False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_goes_on_with_the_same_bits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    models = [nn.Linear(3, 4).to(dtype), nn.Linear(3, 4).to(dtype)]
    optimizers = [OPTIMIZERS[name](list(model.parameters())) for model in models]
    steps(models[0], optimizers[0], 0, 3)
    save_optimizer(optimizers[0], models[0], tmp_path, keep=True)
    models[1].load_state_dict(models[0].state_dict())
    load_optimizer(optimizers[1], models[1], tmp_path)
    for model, optimizer in zip(models, optimizers, strict=True):
        steps(model, optimizer, 3, 6)
    assert torch.equal(models[0].weight, models[1].weight)
    assert optimizers[1].param_groups[0].get("betas") == optimizers[0].param_groups[0].get("betas")


def test_an_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    save_optimizer(torch.optim.SGD(model.parameters()), model, tmp_path, keep=True)
    with pytest.raises(UserError, match="trains other parameters"):
        load_optimizer(torch.optim.SGD([model.weight]), model, tmp_path)


def test_state_that_would_have_to_be_pickled_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight])
    optimizer.state[weight]["inner"] = {"projector": object()}
    with pytest.raises(UserError, match=r"SGD keeps a object \(state/inner/projector\)"):
        check_storable(optimizer)


def test_generators_of_random_numbers_are_put_back(tmp_path: Path) -> None:
    def drawn() -> list[float]:
        return [random.gauss(), random.random(), np.random.standard_normal(), np.random.random(), torch.rand(()).item()]

    drawn()  # a Gaussian is now half used up in two of the generators
    save_process(tmp_path / "rank", {"sum": torch.tensor(1.5)})
    expected = drawn()
    drawn()
    assert load_process(tmp_path / "rank") == {"sum": torch.tensor(1.5)}
    assert drawn() == expected
