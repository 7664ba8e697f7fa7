"""A student with half the teacher's blocks and another width learns its inner layers, through the whole of `train`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from limbeck.distill.recipe import Recipe
from limbeck.distill.train import run_folder, train
from limbeck.errors import UserError
from limbeck.pocket.world import teacher_folder
from limbeck.settings import validate_settings
from tests.distill.families import family

STEPS = 8
SHAPES = {"teacher": (4, 48, 4), "student": (2, 32, 2)}  # blocks, width, heads


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher`, `student` and `text.jsonl`; the tokenizer is the pocket teacher's."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = [path for path in teacher_folder().iterdir() if path.name.startswith(("tokenizer", "special"))]
    vocabulary = json.loads((teacher_folder() / "config.json").read_text())["vocab_size"]
    for name, (blocks, width, heads) in SHAPES.items():
        torch.manual_seed(blocks)
        config = LlamaConfig(
            hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=heads // 2,
            intermediate_size=64, vocab_size=vocabulary, max_position_embeddings=64, initializer_range=0.2,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        for path in tokenizer:
            shutil.copy(path, folder / name)
    lines = [json.dumps({"text": f"The sum of {n} and {n + 1} is {2 * n + 1}, and that is odd."}) for n in range(12)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder


def recipe(models: Path, out: Path, **changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "model": str(models / "student"),
        "output_path": str(out),
        "sequence_length": 48,
        "dataset": {"train_dataset": {"disk_path": str(models / "text.jsonl")}},
        "teacher": {"kind": "hf", "path": str(models / "teacher")},
        "loss_functions": [
            {"function": "kl", "weight": 0.1},
            {"function": "hs_cosine", "weight": 1.0},
            {"function": "hs_mse", "weight": 0.1},
            {"function": "attention_relation", "weight": 0.5},
        ],
        "layer_mapping": "all",
        "attention_relation": {"layers": [[1, 2]], "relation_heads": 2},
        "training_args": {
            "max_steps": STEPS, "per_device_train_batch_size": 12, "learning_rate": 0.01, "save_steps": STEPS // 2,
            "save_total_limit": 2, "logging_steps": 1, "lr_scheduler_type": "constant",
        },
    }  # fmt: skip
    return validate_settings(data | changes, Recipe, "recipe.yaml")


@pytest.fixture(scope="module")
def trained(models: Path) -> tuple[Path, tuple[dict[str, float], ...]]:
    result = train(recipe(models, models / "out"))
    return result.folder, result.history


def test_every_loss_on_inner_layers_falls(trained: tuple[Path, tuple[dict[str, float], ...]]) -> None:
    history = trained[1]
    assert len(history) == STEPS
    for name in ("kl", "hs_cosine", "hs_mse", "attention_relation"):
        assert history[-1][name] < 0.95 * history[0][name]
    for entry in history:
        weighted = 0.1 * entry["kl"] + entry["hs_cosine"] + 0.1 * entry["hs_mse"] + 0.5 * entry["attention_relation"]
        assert entry["loss"] == pytest.approx(weighted, rel=1e-3)


def test_projections_are_in_checkpoints_and_never_in_the_student(
    trained: tuple[Path, tuple[dict[str, float], ...]], models: Path
) -> None:
    folder = trained[0]
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == load_file(models / "student" / "model.safetensors").keys()
    checkpoint = load_file(run_folder(folder) / f"checkpoint-{STEPS}" / "alignment.safetensors")
    assert {name: tuple(x.shape) for name, x in checkpoint.items()} == {
        "projections.0_to_1.weight": (48, 32),
        "projections.1_to_3.weight": (48, 32),
    }


def test_resumed_it_ends_with_the_same_bits(
    trained: tuple[Path, tuple[dict[str, float], ...]], models: Path, tmp_path: Path
) -> None:
    half = f"checkpoint-{STEPS // 2}"
    shutil.copytree(run_folder(trained[0]) / half, run_folder(tmp_path / "out") / half)
    again = train(recipe(models, tmp_path / "out"))
    for place in ("model.safetensors", f"../{{}}.run/checkpoint-{STEPS}/alignment.safetensors"):
        whole, resumed = (load_file(folder / place.format(folder.name)) for folder in (trained[0], again.folder))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_compiled_it_computes_the_same(
    trained: tuple[Path, tuple[dict[str, float], ...]], models: Path, tmp_path: Path
) -> None:
    arguments = recipe(models, tmp_path).training_args
    compiled = {"max_steps": 1, "save_strategy": "no", "torch_compile": True, "torch_compile_backend": "eager"}
    result = train(recipe(models, tmp_path / "out", training_args=arguments | compiled))
    (entry,) = result.history
    for name in ("kl", "hs_cosine", "hs_mse", "attention_relation"):
        assert entry[name] == pytest.approx(trained[1][0][name], rel=1e-4)


def test_a_teacher_of_another_tokenizer_has_no_layers_to_compare(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "teacher", tmp_path / "teacher")
    family("bytes").save_pretrained(tmp_path / "teacher")
    losses = [{"function": "uld"}, {"function": "hs_cosine"}]
    other = recipe(
        models, tmp_path / "out", teacher={"kind": "hf", "path": str(tmp_path / "teacher")}, loss_functions=losses,
        attention_relation=None,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"^teacher: its tokenizer .* is not the student's"):
        train(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_mapping": [[0, 1], [1, 4]]}, r"^layer_mapping\.1: the teacher has 4 blocks"),
        ({"attention_relation": {"relation_heads": 5}}, r"^attention_relation\.relation_heads: .*Choose a divisor"),
        ({"attention_relation": {"layers": [[2, 2]]}}, r"^attention_relation\.layers\.0: the student has 2 blocks"),
        ({"layer_mapping": None}, r"loss_functions\.1\.function: 'hs_cosine' compares .* 32 wide.* 48 wide"),
        (
            {"evaluation": {"share": 0.2, "losses": ["attention_relation"]}},
            r"^evaluation\.losses\.0: 'attention_relation' compares inner layers",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    models: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*given: Any, **named: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    with pytest.raises(UserError, match=message):
        train(recipe(models, tmp_path / "out", **changes))
