"""KL on raw text: flags become a recipe, the recipe trains, and losses count from `kl_start_pos` on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from limbeck.cli.main import app
from limbeck.distill.places import RESULT, run_folder
from limbeck.distill.raw_text import RawText, raw_text_recipe, train_on_raw_text, visible_gpus
from limbeck.distill.recipe import Recipe
from limbeck.distill.student import DistilledStudent
from limbeck.engines.transformers import load_model
from limbeck.errors import UserError
from limbeck.settings import load_settings, validate_settings
from tests.engines.tiny import save

RECIPES = Path(__file__).parents[2] / "recipes"
TEXT = "def double(x):\n    return x + x\n\n\nWhat is left of 12 is 34 . "


def options(**changes: Any) -> RawText:
    return validate_settings(changes, RawText, "test")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A teacher, a student, and a text of a few lengths: options for a short run."""
    folder = tmp_path_factory.mktemp("raw-text")
    texts = [TEXT * repeats for repeats in (1, 3, 2, 5, 1, 4)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {
        "teacher": str(save(folder / "teacher", 1)), "student": str(save(folder / "student", 2)),
        "dataset": str(folder / "text.jsonl"), "max_seq_len": 48, "kl_start_pos": 20, "samples_per_step": 6,
        "batch_size": 4, "max_steps": 4, "save_every": 2, "lr": 0.01, "no_wandb": True, "warmup_steps": 0,
    }  # fmt: skip


def test_the_recipe_file_is_what_the_flags_stand_for() -> None:
    written = yaml.safe_load((RECIPES / "raw-text-kl.yaml").read_text())
    assert written == raw_text_recipe(RawText(), gpus=2)
    assert isinstance(load_settings(RECIPES / "raw-text-kl.yaml", Recipe), Recipe)


def test_the_on_policy_recipe_is_one() -> None:
    recipe = load_settings(RECIPES / "train" / "on-policy.yaml", Recipe)
    assert recipe.rollout is not None and recipe.rollout.fraction == 0.5


def test_reverse_kl_is_what_an_on_policy_recipe_minimises_by_default() -> None:
    data = yaml.safe_load((RECIPES / "train" / "on-policy.yaml").read_text())
    del data["loss_functions"]
    recipe = validate_settings(data, Recipe, "test")
    assert [(loss.function, loss.weight) for loss in recipe.loss_functions] == [("reverse_kl", 1.0)]


@pytest.mark.parametrize(("samples", "at_once", "ranks"), [(100, 4, 1), (60, 4, 3), (7, 1, 1), (6, 3, 1), (12, 3, 4)])
def test_a_step_has_as_many_samples_as_asked(samples: int, at_once: int, ranks: int) -> None:
    recipe = raw_text_recipe(options(samples_per_step=samples), gpus=0, ranks=ranks)
    arguments = recipe["training_args"]
    assert arguments["per_device_train_batch_size"] == at_once
    assert at_once * arguments["gradient_accumulation_steps"] * ranks == samples


def test_models_go_to_their_gpus() -> None:
    apart, together = options(teacher_gpu=2, student_gpu=0), options(teacher_gpu=1, student_gpu=1)
    assert raw_text_recipe(apart, gpus=3)["teacher"]["device"] == "cuda:1"
    assert raw_text_recipe(together, gpus=2)["teacher"]["device"] == "cuda:0"
    assert visible_gpus(apart, None) == "0,2" and visible_gpus(together, None) == "1"
    assert visible_gpus(apart, "4,5,6") == "4,6"
    for changes in ({"gpus": 0}, {"gpus": 8, "ranks": 4}):
        assert "device" not in raw_text_recipe(options(samples_per_step=8), **changes)["teacher"]


@pytest.mark.parametrize(
    ("changes", "gpus", "ranks", "message"),
    [
        ({"kl_start_pos": 640}, 0, 1, "kl_start_pos: from position 640 on, rows of max_seq_len 640 have fewer than 10"),
        ({"samples_per_step": 10}, 8, 4, "samples_per_step: 10 can't be divided by 4 processes"),
        ({"student_gpu": 3}, 2, 1, "student_gpu: there is no GPU 3 here, only 0 to 1"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], gpus: int, ranks: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        raw_text_recipe(options(**changes), gpus=gpus, ranks=ranks)


def test_it_trains_by_flags_on_streamed_text_and_counts_from_the_start_position(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, with what the student is trained on looked at on the way."""
    seen: list[tuple[int, int, int]] = []
    forward = DistilledStudent.forward

    def looking(self: DistilledStudent, batch: Any, *args: Any) -> Any:
        assert not batch.counted[:, :20].any()
        lengths = batch.attention_mask.sum(1).tolist()
        seen.extend((length, int(row.sum()), 20) for length, row in zip(lengths, batch.counted, strict=True))
        return forward(self, batch, *args)

    monkeypatch.setattr(DistilledStudent, "forward", looking)
    out = tmp_path / "student"
    flags = [f"--{name}={value}" for name, value in models.items() if name != "no_wandb"]
    done = CliRunner().invoke(app, ["train-raw-text", *flags, "--no_wandb", f"--output_dir={out}"])
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith(str(out))
    assert len(seen) == 4 * 6
    assert all(counted == length - 1 - start for length, counted, start in seen)
    history = json.loads((run_folder(out) / RESULT).read_text())["history"]
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    assert history[-1]["kl"] < history[0]["kl"]
    weights = [load_model(folder).get_input_embeddings().weight for folder in (out, Path(models["student"]))]
    assert not torch.equal(*weights)


def test_a_tracker_that_is_missing_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.distill.raw_text.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Give --no_wandb"):
        train_on_raw_text(RawText())


def test_settings_change_the_recipe_that_flags_make(models: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key 'training_arg'"):
        train_on_raw_text(options(**models, output_dir=tmp_path / "student"), ("training_arg=1",))
