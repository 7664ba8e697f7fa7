"""Loading a model: safetensors only, whole or not at all, and one clear line where it can't be done."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.data.tokenizer import load_tokenizer
from limbeck.engines.transformers import load_model
from limbeck.errors import UserError
from tests.engines.tiny import new_model, save


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refused(folder: Path) -> str:
    """The one line that says why the model can't be loaded."""
    with pytest.raises(UserError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path) -> None:
    loaded, original = load_model(save(tmp_path)), new_model()
    assert not loaded.training
    assert loaded.dtype == torch.float32
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_bfloat16_weights_are_computed_in_float32_on_a_processor(tmp_path: Path) -> None:
    new_model().bfloat16().save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.float32
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.bin"])
def test_a_pickle_checkpoint_is_refused_by_name_and_never_opened(tmp_path: Path, name: str) -> None:
    """Opening it would leave a file behind."""
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/opened'\ntR.".encode())
    assert f"{name}: a pickle checkpoint" in refused(tmp_path)
    assert not (tmp_path / "opened").exists()


def test_safetensors_are_taken_where_a_pickle_lies_beside_them(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/opened'\ntR.".encode())
    load_model(tmp_path)
    assert not (tmp_path / "opened").exists()


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "no config.json here" in refused(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "no *.safetensors file here" in refused(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "absent")


@pytest.mark.parametrize("kept", [0, 5, 300, -100])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, kept: int) -> None:
    save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    refused(tmp_path)


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    """Tensors that are made up in the place of missing ones are another model, and another one each time."""
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "nobodys"},
        {"model_type": "t5"},
        {"hidden_size": "many"},
        {"num_attention_heads": 0},
    ],
    ids=["nobodys", "t5", "many", "zero"],
)
def test_a_config_that_describes_no_such_model_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    save(tmp_path)
    change_config(tmp_path, **changes)
    refused(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    save(tmp_path)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path)


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change_config(tmp_path, model_type="own", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    with pytest.raises(UserError):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["absent", "truncated", "empty"])
def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, damage: str) -> None:
    save(tmp_path)
    path = tmp_path / "tokenizer.json"
    match damage:
        case "absent":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:-500])
        case _:
            path.write_text("{}")
    with pytest.raises(UserError, match="no tokenizer can be loaded from here") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
