"""What is wrong with a run is said before any weights are loaded, in one line that begins with the key."""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from limbeck.distill.checks import check
from limbeck.distill.plan import activation_bytes, make_plan
from limbeck.distill.recipe import Recipe
from limbeck.distill.starting import load_student
from limbeck.distill.train import plan
from limbeck.errors import UserError
from limbeck.pocket.world import load_teacher
from limbeck.settings import validate_settings
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.convert.recoding import recode
from limbeck.signals.dataset import SignalDataset
from tests.small_world import recipe_data

ON_STATES = [{"function": "kl"}, {"function": "hs_mse"}]


def model(folder: Path, **changes: Any) -> Path:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=4096, max_position_embeddings=256, **(shape | changes))).save_pretrained(
        folder
    )
    load_teacher()[1].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def places(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": f"line {number} of text"}) for number in range(9)))
    wide = model(folder / "wide", hidden_size=24)
    return {"text": folder / "text.jsonl", "wide": wide, "student": world / "student", "signals": world / "signals"}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the loading of any weights an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(refuse))
    yield


def recipe(world: Path, tmp_path: Path, **changes: Any) -> Recipe:
    return validate_settings(recipe_data(world, tmp_path / "out", **changes), Recipe, "test")


def online(path: Path) -> dict[str, Any]:
    return {"kind": "hf", "path": str(path)}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_functions": [{"function": "kl"}, {"function": "tvd", "temperature": -1}]}, r"^loss_functions\.1\.temp"),
        ({"loss_functions": [{"function": "kl", "temperature": 0}]}, r"^loss_functions\.0\.temperature: 0 is no"),
        ({"loss_functions": [{"function": "kl"}, {"function": "k1"}]}, r"^loss_functions\.1\.function: 'k1' is not"),
        ({"loss_functions": [{"function": "kl", "parameters": {"gamma": 1}}]}, r"^loss_functions\.0\.gamma: kl: no"),
        ({"loss_functions": ON_STATES}, r"^loss_functions\.1\.function: 'hs_mse' is not defined on a 'topk'"),
        ({"layer_mapping": "all", "loss_functions": ON_STATES}, r"^layer_mapping: inner layers are seen of"),
        ({"layer_mapping": "all"}, r"^layer_mapping: no loss compares layers"),
        ({"attention_relation": {}}, r"^attention_relation: no loss of this name"),
        ({"frozen_modules": ["model.layer"]}, r"^frozen_modules\.0: .*Did you mean 'model.layers'"),
        ({"frozen_modules": [""]}, r"^frozen_modules, frozen_res: they freeze every parameter"),
        ({"frozen_res": ["["]}, r"^frozen_res\.0: '\[' is no regular expression"),
        ({"frozen_res": ["layers", "nothing"]}, r"^frozen_res\.1: no parameter .* 'nothing' matches"),
        ({"model_auto_class": "AutoModelForCausalLLM"}, r"^model_auto_class: .* mean 'AutoModelForCausalLM'"),
        ({"model_auto_class": "AutoModelForImageTextToText"}, r"^model_auto_class: .* is no model for"),
        ({"model_kwargs": {"dtype": "bf17"}}, r"^model_kwargs\.dtype: 'bf17' is none of"),
        ({"rollout": {}}, r"^rollout: what the student writes has to be scored by a teacher"),
        ({"lora": {"r": 4}}, r"^lora: adapters need the package peft"),
        ({"teacher": {"kind": "dataset", "vocab_size": 9}}, r"^teacher\.vocab_size: 9, but .* is over 4096"),
        ({"training_args": {"eval_steps": 2, "eval_strategy": "steps"}}, r"^training_args\.eval_strategy: there"),
        ({"training_args": {"report_to": "wandb"}}, r"^training_args\.report_to: wandb is not installed"),
        ({"optimizer": None, "training_args": {"optim": "paged_adamw_8bit"}}, r"^training_args\.optim: .* bits"),
        ({"training_args": {"load_best_model_at_end": True}}, r"^training_args\.load_best_model_at_end"),
        ({"training_args": {"output_dir": "x"}}, r"^training_args\.output_dir: .* recipe's output_path"),
        ({"evaluation": {"share": 0.2, "losses": ["kll"]}}, r"^evaluation\.losses\.0: no loss is called 'kll'"),
        ({"evaluation": {"share": 0.2, "losses": ["k1"]}}, r"^evaluation\.losses\.0: 'k1' is not defined"),
        ({"resize_embeddings_to_multiple_of": 1000}, None),
    ],
)  # fmt: skip
def test_what_cannot_be_names_its_key(
    world: Path, tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    if message is None:
        assert check(recipe(world, tmp_path, **changes)).start.vocabulary == 5000
        return
    with pytest.raises(UserError, match=message) as caught:
        check(recipe(world, tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_weights")
def test_text_and_teachers_that_do_not_go_together(world: Path, tmp_path: Path, places: dict[str, Path]) -> None:
    text = {"train_dataset": {"disk_path": str(places["text"])}}
    both = {"train_dataset": [{"disk_path": str(places["signals"])}, {"disk_path": str(places["text"])}]}
    pairs = [[0, 1], [7, 1]]
    for changes, message in (
        ({"dataset": text}, r"^dataset\.train_dataset: .* is text, and 'kl' compares with a teacher's signals"),
        ({"dataset": both}, r"^dataset\.train_dataset\.1: .* is text"),
        ({"dataset": text, "teacher": online(tmp_path / "none")}, r"^teacher\.path: .*no such folder"),
        (
            {"dataset": text, "sequence_length": 300, "teacher": online(places["wide"])},
            r"^sequence_length: rows of 300",
        ),
        (
            {"dataset": text, "teacher": online(places["wide"]), "loss_functions": ON_STATES},
            r"^loss_functions\.1\.function: 'hs_mse' compares the student's states, 32 wide, .* 24 wide",
        ),
        (
            {"dataset": text, "teacher": online(places["wide"]), "loss_functions": ON_STATES, "layer_mapping": pairs},
            r"^layer_mapping\.1: the student has 1 blocks",
        ),
        (
            {"dataset": text, "teacher": online(places["wide"]), "loss_functions": [{"function": "hinge"}]},
            r"^teacher: 'hinge' is not defined on a 'hidden' signal|^teacher.*hinge",
        ),
    ):
        with pytest.raises(UserError, match=message):
            check(recipe(world, tmp_path, **changes))


@pytest.mark.usefixtures("no_weights")
def test_codecs_are_not_mixed(world: Path, tmp_path: Path) -> None:
    compressor = {"d": 4096, "k": 8, "exact_k": 8, "residual_bins": []}
    recode(SignalDataset.open(world / "signals"), tmp_path / "kit", DistillkitSpec.model_validate(compressor))
    two = {"train_dataset": [{"disk_path": str(world / "signals")}, {"disk_path": str(tmp_path / "kit")}]}
    with pytest.raises(UserError, match=r"^dataset\.train_dataset\.1: its codec is distillkit, and that of .* is topk"):
        check(recipe(world, tmp_path, dataset=two))
    other = {
        "train_dataset": {"disk_path": str(world / "signals")},
        "eval_dataset": {"disk_path": str(tmp_path / "kit")},
    }
    with pytest.raises(UserError, match=r"^dataset\.eval_dataset: its codec is distillkit"):
        check(recipe(world, tmp_path, dataset=other))
    kit = {"train_dataset": {"disk_path": str(tmp_path / "kit")}}
    for given, message in (
        (
            compressor | {"k": 9, "exact_k": 9},
            r"^dataset\.train_dataset: teacher\.logprob_compressor\.k: the recipe says 9",
        ),
        (compressor, None),
    ):
        asked = recipe(world, tmp_path, dataset=kit, teacher={"kind": "dataset", "logprob_compressor": given})
        if message is None:
            assert check(asked).compares
        else:
            with pytest.raises(UserError, match=message):
                check(asked)
    named = recipe(world, tmp_path, teacher={"kind": "dataset", "logprob_compressor": compressor})
    with pytest.raises(
        UserError, match=r"teacher\.logprob_compressor: the recipe gives codec 'distillkit', but .* 'topk'"
    ):
        check(named)


@pytest.mark.usefixtures("no_weights")
def test_another_vocabulary(world: Path, tmp_path: Path) -> None:
    short = model(tmp_path / "short")
    config = json.loads((short / "config.json").read_text()) | {"vocab_size": 4000}
    (short / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"^model: .* a vocabulary of 4000, but the signals in .* are over 4096"):
        check(recipe(world, tmp_path, model=str(short)))
    config["vocab_size"] = 4160  # padded beyond the tokenizer: topk signals say nothing of those entries
    (short / "config.json").write_text(json.dumps(config))
    assert check(recipe(world, tmp_path, model=str(short))).start.vocabulary == 4160


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed here")
def test_a_package_that_is_missing_is_named(world: Path, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "recipes" / "train" / "deepspeed.yaml"
    arguments = yaml.safe_load(shipped.read_text())["training_args"]
    with pytest.raises(UserError, match=r"^training_args.*[Dd]eep[Ss]peed"):
        check(recipe(world, tmp_path, training_args=arguments))


def test_a_student_whose_weights_are_pickled_or_missing(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(world / "student", folder)
    (folder / "model.safetensors").unlink()
    asked = recipe(world, tmp_path, model=str(folder))
    with pytest.raises(UserError, match=r"^model: .*no \*\.safetensors file"):
        load_student(asked, check(asked).start)


def test_frozen_and_resized_as_the_recipe_says(world: Path, tmp_path: Path) -> None:
    asked = recipe(
        world, tmp_path, frozen_modules=["embed_tokens"], frozen_res=[r"layers\.0\.mlp"],
        resize_embeddings_to_multiple_of=5000,
    )  # fmt: skip
    student = load_student(asked, check(asked).start)
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"embed_tokens", "layers"}
    assert all(".mlp." in name for name in frozen if "layers" in name)
    assert student.get_input_embeddings().weight.shape[0] == student.config.vocab_size == 5000


@pytest.mark.usefixtures("no_weights")
def test_a_plan_counts_parameters_steps_and_tokens(world: Path, tmp_path: Path) -> None:
    asked = recipe(world, tmp_path, training_args={"per_device_train_batch_size": 8, "num_train_epochs": 3})
    found = plan(asked)
    parameters = dict(check(asked).start.skeleton.named_parameters())
    assert found.parameters == found.trained == sum(parameter.numel() for parameter in parameters.values())
    matrices = sum(value.numel() for name, value in parameters.items() if "proj" in name)
    assert found.memory["weights"] == found.memory["gradients"] == 4 * found.parameters
    assert found.memory["optimizer"] == 4 * matrices + 8 * (found.parameters - matrices)  # Muon keeps one average
    assert found.rows is not None and found.rows >= 56
    assert found.steps == 3 * -(-found.rows // 8)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()
    frozen = plan(recipe(world, tmp_path, frozen_res=["proj"]))
    assert frozen.trained == found.parameters - matrices


def test_the_estimate_of_activations_is_near_what_is_kept(world: Path, tmp_path: Path) -> None:
    """A block's own figure: what autograd really keeps of a batch, weights not counted, is within half of it."""
    folder = model(tmp_path / "deep", num_hidden_layers=6, hidden_size=64, intermediate_size=192, num_key_value_heads=1)
    asked = recipe(world, tmp_path, model=str(folder), sequence_length=256)
    checked = check(asked)
    student = load_student(asked, checked.start).train()
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = asked.training_args["per_device_train_batch_size"]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = student.model(torch.zeros(rows, 256, dtype=torch.long), use_cache=False).last_hidden_state
    assert states.requires_grad
    assert 0.5 < activation_bytes(checked) / sum(kept.values()) < 1.5
    assert make_plan(checked, None).memory["activations"] == activation_bytes(checked)
