"""`limbeck export`: from a folder to a folder, with the tokenizer, and from packed back."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.errors import UserError
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.models.exports.formats import export, load_student
from tests.models.bitnet.shapes import small_student
from tests.models.exports.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("student")
    small_student(vocab_size=300, hidden_size=256, head_dim=64, intermediate_size=256).save_pretrained(made)
    byte_tokenizer().save_pretrained(made)
    return made


@pytest.mark.parametrize("form", ["packed", "hf", "safetensors", "gguf"])
def test_every_format_is_written(folder: Path, form: str, tmp_path: Path) -> None:
    if form == "gguf":
        pytest.importorskip("gguf")
    written = export(folder, form, tmp_path / form)
    if form == "gguf":
        assert written == tmp_path / form / f"{folder.name}.gguf" and written.stat().st_size > 0
    else:
        assert (written / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
        assert (written / "config.json").exists()


def test_a_packed_student_can_be_exported_again(folder: Path, tmp_path: Path) -> None:
    export(folder, "packed", tmp_path / "packed")
    export(tmp_path / "packed", "safetensors", tmp_path / "back")
    first, back = ternary_layers(load_student(folder)), ternary_layers(load_student(tmp_path / "back"))
    assert all(torch.equal(layer.codes()[0], back[name].codes()[0]) for name, layer in first.items())


def test_bad_requests_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="packed"):
        export(folder, "packet", tmp_path / "out")
    with pytest.raises(UserError, match=r"no config\.json"):
        export(tmp_path, "hf", tmp_path / "out")
    shape = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match="Only BitNet students"):
        export(tmp_path / "llama", "packed", tmp_path / "out")
