"""Training by a recipe: it learns, goes on bit for bit after a kill, and refuses what can't be before it starts."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from limbeck.distill.recipe import Recipe
from limbeck.distill.sampling import LengthGroupedOrder
from limbeck.distill.train import RESULT, run_folder, train
from limbeck.engines.transformers import load_model
from limbeck.errors import UserError
from limbeck.settings import validate_settings
from tests.small_world import recipe_data

KILLED_AT_STEP_7 = """
import os, signal, sys
from pathlib import Path
from limbeck.distill import trainer
from limbeck.distill.recipe import Recipe
from limbeck.distill.train import train
from limbeck.settings import load_settings

def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 7:
        os.kill(os.getpid(), signal.SIGKILL)

trainer._Progress.on_step_end = on_step_end
train(load_settings(Path(sys.argv[1]), Recipe))
"""


def trained(data: dict[str, Any]) -> Path:
    return train(validate_settings(data, Recipe, "test")).folder


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(recipe_data(world, tmp_path_factory.mktemp("whole") / "student"))


def test_it_learns(uninterrupted: Path) -> None:
    history = json.loads((run_folder(uninterrupted) / RESULT).read_text())["history"]
    assert [entry["step"] for entry in history] == list(range(1, 13))
    for name in ("loss", "kl", "cross_entropy"):
        assert history[-1][name] < history[0][name] - 0.5
    for entry in history:
        assert entry["loss"] == pytest.approx(0.5 * entry["kl"] + 0.5 * entry["cross_entropy"], abs=2e-3)


def test_a_students_folder_is_a_model_and_nothing_else(uninterrupted: Path) -> None:
    assert load_model(uninterrupted).config.vocab_size == 4096
    assert {path.suffix for path in uninterrupted.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert not (uninterrupted / RESULT).exists()


def test_killed_and_resumed_it_ends_with_the_same_bits(world: Path, uninterrupted: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_data(world, tmp_path / "student")))
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_STEP_7, str(recipe)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "student").exists()
    assert (run_folder(tmp_path / "student") / "checkpoint-4" / "complete.json").exists()

    resumed = train(validate_settings(recipe_data(world, tmp_path / "student"), Recipe, "test"))
    whole, again = load_file(uninterrupted / "model.safetensors"), load_file(resumed.folder / "model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    history = json.loads((run_folder(uninterrupted) / RESULT).read_text())["history"]
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in history]


def test_a_checkpoint_that_was_not_finished_is_not_used(world: Path, tmp_path: Path, uninterrupted: Path) -> None:
    half = run_folder(tmp_path / "student") / "checkpoint-8"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    folder = trained(recipe_data(world, tmp_path / "student"))
    assert (folder / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


def test_a_finished_run_is_not_run_again(uninterrupted: Path, world: Path) -> None:
    before = (uninterrupted / "model.safetensors").stat().st_mtime_ns
    assert trained(recipe_data(world, uninterrupted)) == uninterrupted
    assert (uninterrupted / "model.safetensors").stat().st_mtime_ns == before


def test_accumulation_does_not_change_the_gradient(world: Path, tmp_path: Path) -> None:
    """Each loss is divided by the tokens of the whole optimisation step, however it is cut into micro-batches."""
    losses = []
    for name, rows, steps in (("one", 8, 1), ("four", 2, 4)):
        data = recipe_data(world, tmp_path / name)
        data["training_args"] |= {
            "max_steps": 3, "per_device_train_batch_size": rows, "gradient_accumulation_steps": steps,
        }  # fmt: skip
        losses.append([entry["kl"] for entry in train(validate_settings(data, Recipe, "test")).history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_another_recipe_does_not_overwrite_a_student(uninterrupted: Path, world: Path) -> None:
    with pytest.raises(UserError, match="holds the student of another recipe"):
        trained(recipe_data(world, uninterrupted, project_name="other"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_functions": [{"function": "kll"}]}, r"^loss_functions\.0\.function: .*'kll'\. Did you mean 'kl'"),
        ({"loss_functions": [{"function": "kl"}, {"function": "kl"}]}, "each loss can stand in a recipe once"),
        ({"loss_functions": [{"function": "jsd", "beta": 2.0}]}, r"^loss_functions\.0\.beta: jsd"),
        ({"loss_functions": [{"function": "kl", "beta": 0.5}]}, r"^loss_functions\.0\.beta: kl"),
        (
            {"loss_functions": [{"function": "kl", "temperature": 3.0, "missing_probability_handling": "tail"}]},
            r"^loss_functions\.0\.temperature: 3: ",
        ),
        ({"sequence_length": 16}, "sequence_length: the dataset has a row of"),
        ({"training_args": {"learning_rte": 1}}, "training_args.learning_rte: .* Did you mean 'learning_rate'"),
        ({"training_args": {"save_strategy": "often"}}, "training_args: .*often"),
        ({"model": "nowhere"}, "nowhere: no such folder"),
        ({"dataset": {"train_dataset": {"disk_path": "nowhere"}}}, "nowhere: no manifest.json here"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    world: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        trained(recipe_data(world, tmp_path / "student", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "student").exists()


def test_an_unknown_key_names_the_nearest(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key 'loss_function'\. Did you mean 'loss_functions'"):
        trained(recipe_data(world, tmp_path, loss_function=[]))


@pytest.mark.parametrize("grouped", [True, False])
def test_the_order_is_a_permutation_fixed_by_seed_and_epoch(grouped: bool) -> None:
    lengths = [(7 * index) % 50 + 2 for index in range(1003)]
    order = LengthGroupedOrder(lengths, 8, 1, grouped=grouped)
    first = list(order)
    assert sorted(first) == list(range(1003))
    assert list(LengthGroupedOrder(lengths, 8, 1, grouped=grouped)) == first
    order.set_epoch(1)
    assert list(order) != first
    assert list(LengthGroupedOrder(lengths, 8, 2, grouped=grouped)) != first


def test_grouped_batches_hold_rows_of_similar_length() -> None:
    lengths = [(7 * index) % 50 + 2 for index in range(1024)]
    order = list(LengthGroupedOrder(lengths, 8, 1))
    spreads = [max(part) - min(part) for i in range(0, 1024, 8) if (part := [lengths[row] for row in order[i : i + 8]])]
    assert sum(spreads) / len(spreads) < 4
