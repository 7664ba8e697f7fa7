"""Whole runs by recipes: teachers that answer meanwhile, layers, on-policy, evaluation, and the page at the end."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from limbeck.cli.main import app
from limbeck.distill.places import PAGE, RESULT, run_folder
from limbeck.distill.recipe import Recipe
from limbeck.distill.train import TrainingResult, train
from limbeck.pocket.world import load_teacher, teacher_folder
from limbeck.settings import validate_settings
from tests.small_world import recipe_data

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    records = [{"prompt": f"{number} + {number} = ?", "response": f"Answer: {2 * number}"} for number in range(40)]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def online(world: Path, out: Path, text: Path, **changes: Any) -> dict[str, Any]:
    data = recipe_data(world, out)
    data["dataset"] = {"train_dataset": {"disk_path": str(text)}}
    data["teacher"] = {"kind": "hf", "path": str(teacher_folder())}
    data["training_args"] |= {"max_steps": 4, "save_steps": 100}
    return data | changes


def run(data: dict[str, Any]) -> TrainingResult:
    return train(validate_settings(data, Recipe, "test"))


def check_finite(result: TrainingResult, *names: str) -> None:
    assert [entry["step"] for entry in result.history] == [1, 2, 3, 4]
    for entry in result.history:
        assert all(torch.tensor(entry[name]).isfinite() for name in ("loss", *names))


def test_a_teacher_in_process_says_what_was_captured_of_it(world: Path, tmp_path: Path) -> None:
    """The KL of the first step, from states, is that from a capture of the same teacher, but for the tail's bucket."""
    offline = recipe_data(world, tmp_path / "offline")
    offline["training_args"] |= {"max_steps": 2, "save_steps": 100}
    asked = offline | {
        "output_path": str(tmp_path / "online"),
        "teacher": {"kind": "hf", "path": str(teacher_folder())},
    }
    stored, meanwhile = run(offline).history[0]["kl"], run(asked).history[0]["kl"]
    assert stored < meanwhile < 1.2 * stored  # a bucket hides differences within it


def test_layers_of_a_teacher(world: Path, tmp_path: Path, text: Path) -> None:
    losses = [
        {"function": "kl"},
        {"function": "hs_mse", "weight": 0.1},
        {"function": "attention_relation", "weight": 0.1},
    ]
    result = run(online(world, tmp_path / "out", text, loss_functions=losses, layer_mapping="all", packing=True))
    check_finite(result, "kl", "hs_mse", "attention_relation")
    student = LlamaForCausalLM.from_pretrained(result.folder)  # projections stay behind
    assert {path.name for path in result.folder.glob("*.safetensors")} == {"model.safetensors"}
    assert (
        sum(parameter.numel() for parameter in student.parameters())
        == json.loads((run_folder(result.folder) / RESULT).read_text())["figures"]["parameters"]
    )


def test_on_policy(world: Path, tmp_path: Path, text: Path) -> None:
    result = run(
        online(
            world, tmp_path / "out", text, loss_functions=[{"function": "reverse_kl"}],
            rollout={"fraction": 0.5, "max_new_tokens": 6},
        )
    )  # fmt: skip
    check_finite(result, "reverse_kl")


def test_a_teacher_with_another_tokenizer(world: Path, tmp_path: Path, text: Path) -> None:
    tokenizer = load_teacher()[1]
    folder = tmp_path / "teacher"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.train_new_from_iterator(["def f(x): return x"] * 9, 290).save_pretrained(folder)
    data = online(world, tmp_path / "out", text, loss_functions=[{"function": "uld"}, {"function": "cross_entropy"}])
    data["teacher"] = {"kind": "hf", "path": str(folder)}
    check_finite(run(data), "uld", "cross_entropy")


def test_several_sources_and_teachers(world: Path, tmp_path: Path, text: Path) -> None:
    second = tmp_path / "more.jsonl"
    second.write_text('{"text": "some more text"}\n' * 12)
    teacher = {"kind": "hf", "path": str(teacher_folder())}
    data = online(world, tmp_path / "out", text)
    data["dataset"]["train_dataset"] = [{"disk_path": str(text), "label": "sums"}, {"disk_path": str(second)}]
    data["teacher"] = {"kind": "mixed", "teachers": [teacher | {"weight": 0.3}, teacher | {"datasets": ["sums"]}]}
    check_finite(run(data), "kl", "cross_entropy")


def test_hard_labels_alone_need_no_teacher_and_may_stream(world: Path, tmp_path: Path, text: Path) -> None:
    data = online(world, tmp_path / "out", text, loss_functions=[{"function": "cross_entropy"}])
    data["dataset"]["train_dataset"] |= {"streaming": True, "shuffle_buffer": 8}
    del data["teacher"]
    check_finite(run(data), "cross_entropy")


@pytest.fixture(scope="module")
def evaluated(world: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    data = recipe_data(world, tmp_path_factory.mktemp("evaluated") / "student", evaluation={"share": 0.2})
    data["training_args"] |= {"max_steps": 8, "eval_steps": 4, "eval_on_start": True, "save_steps": 100}
    return run(data)


def test_held_out_rows_are_measured_meanwhile(evaluated: TrainingResult) -> None:
    steps = [entry["step"] for entry in evaluated.evaluations]
    assert steps == [0, 4, 8]
    first, middle, last = (entry["eval_kl"] for entry in evaluated.evaluations)
    assert first > middle > last
    for entry in evaluated.evaluations:
        assert entry["eval_loss"] == pytest.approx(entry["eval_kl"])
        assert entry["eval_tokens"] == evaluated.evaluations[0]["eval_tokens"] > 0
        assert entry["eval_cross_entropy"] > 0


def test_the_same_rows_are_measured_however_they_are_batched(
    world: Path, tmp_path: Path, evaluated: TrainingResult
) -> None:
    data = recipe_data(world, tmp_path / "student", evaluation={"share": 0.2, "losses": ["kl"]})
    data["training_args"] |= {"max_steps": 1, "eval_on_start": True, "eval_steps": 5, "per_device_eval_batch_size": 3}
    first = run(data).evaluations[0]
    assert first["eval_kl"] == pytest.approx(evaluated.evaluations[0]["eval_kl"], rel=1e-5)
    assert "eval_cross_entropy" not in first


def test_a_run_ends_with_its_figures_and_a_page(evaluated: TrainingResult) -> None:
    run_files = run_folder(evaluated.folder)
    result = json.loads((run_files / RESULT).read_text())
    assert result["figures"]["steps"] == 8 and result["figures"]["seconds"] > 0
    assert result["environment"]["torch"] == torch.__version__
    assert len(result["history"]) == 8 and len(result["evaluations"]) == 3
    assert {"tokens_per_second", "memory_gb", "learning_rate", "signal_bytes_per_second"} <= set(result["history"][0])
    page = (run_files / PAGE).read_text()
    assert "<script" not in page and not re.search(r'(src|href)="https?:', page)
    for wanted in ("Held-out KL", "tokens/s", "learning rate", "cross_entropy", "project_name"):
        assert wanted in page, wanted
    assert page.count("<svg") >= 2 * 8


def test_the_command_plans_and_trains(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_data(world, tmp_path / "student")))
    shown = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--set", "training_args.max_steps=3"])
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^steps +3, of at most 1,024 tokens$", shown.stdout, re.MULTILINE)
    for part in ("weights", "gradients", "optimizer", "activations", "executor", "teacher", "together"):
        assert f"memory: {part}" in shown.stdout
    assert sorted(found.name for found in tmp_path.iterdir()) == ["recipe.yaml"]
    done = CliRunner().invoke(app, ["train", str(path), "--set", "training_args.max_steps=1"])
    assert done.exit_code == 0 and done.stdout.strip() == str(tmp_path / "student")


@pytest.mark.parametrize("name", ["llama-70b-to-8b", "online-hidden-states", "fsdp2", "on-policy"])
def test_shipped_recipes_can_be_planned_with_local_models(name: str, world: Path, tmp_path: Path, text: Path) -> None:
    data = yaml.safe_load((ROOT / "recipes" / "train" / f"{name}.yaml").read_text())
    data |= {"model": str(world / "student"), "output_path": str(tmp_path / "out"), "sequence_length": 256}
    asks = data["teacher"]["kind"] == "hf"
    data["dataset"] |= {"train_dataset": {"disk_path": str(text if asks else world / "signals")}, "num_samples": 30}
    data["evaluation"] = {"share": 0.1} if "evaluation" in data else {}
    if asks:
        data["teacher"] |= {"path": str(teacher_folder())}
    if "rollout" in data:
        data["rollout"]["max_new_tokens"] = 16
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    shown = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), "--dry-run"])
    assert shown.exit_code == 0, (shown.output, shown.exception)
    assert "memory: together" in shown.stdout
