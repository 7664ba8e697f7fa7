"""Exports are loaded back by those they are made for, and compute the same; what they can't express is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from limbeck.errors import UserError
from limbeck.models.bitnet import LimbeckBitNetConfig
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.models.exports.gguf_file import read_gguf, save_gguf
from limbeck.models.exports.huggingface import rows_in_bytes, save_huggingface
from limbeck.models.exports.targets import target_of
from tests.models.bitnet.shapes import SMALL, small_student, some_ids
from tests.models.exports.tokenizers import byte_tokenizer

PROFILES: dict[str, dict[str, Any]] = {
    "bitnet": {},
    "qwen3": {"sub_norms": False, "qk_norm": True, "head_dim": 16, "rms_norm_eps": 1e-6},
    "llama": {"sub_norms": False, "tie_word_embeddings": False},
}
BROAD = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "vocab_size": 300}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("ternary", [True, False])
@torch.no_grad()
def test_transformers_computes_the_same(profile: str, ternary: bool, tmp_path: Path) -> None:
    student, ids = small_student(**PROFILES[profile], ternary=ternary), some_ids()
    save_huggingface(student, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__.lower().startswith(profile)
    for name, layer in ternary_layers(student).items():
        inputs = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(theirs.get_submodule(name)(inputs), layer(inputs), atol=1e-6)
    wanted = student(ids).logits
    closeness = 1e-2 if ternary else 1e-5  # a rounding of inputs that falls the other way moves the rest
    assert (theirs(ids).logits - wanted).norm() < closeness * wanted.norm()


def test_four_rows_share_a_byte() -> None:
    codes = torch.tensor([[1.0], [0.0], [-1.0], [0.0], [0.0], [1.0], [1.0], [-1.0]])
    assert rows_in_bytes(codes).tolist() == [[2 | 0 << 2 | 1 << 4 | 2 << 6], [1 | 1 << 2 | 2 << 4 | 0 << 6]]
    with pytest.raises(UserError, match="four of them share a byte"):
        rows_in_bytes(codes[:6])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("linear", ["TQ2_0", "TQ1_0"])
def test_gguf_holds_what_the_student_computes_with(profile: str, linear: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    student = small_student(**{**PROFILES[profile], **BROAD, "num_hidden_layers": 1})
    save_gguf(student, byte_tokenizer(), tmp_path / "student.gguf", linear=linear)
    found = read_gguf(tmp_path / "student.gguf")
    up = ternary_layers(student)["model.layers.0.mlp.up_proj"]
    codes, gamma = up.codes()
    theirs = found["blk.0.ffn_up.weight"]
    assert np.array_equal(np.sign(theirs), codes.numpy())
    assert np.allclose(np.abs(theirs[theirs != 0]), gamma.item(), rtol=1e-3)
    table = student.model.embed_tokens.weight.detach()
    step = table.abs().view(300, -1, 32).amax(-1).repeat_interleave(32, 1).numpy() / 127
    assert (np.abs(found["token_embd.weight"] - table.numpy()) <= 0.6 * step + 1e-6).all()
    assert np.array_equal(found["output_norm.weight"], student.model.norm.weight.detach().numpy())
    assert ("output.weight" in found) == (not student.config.tie_word_embeddings)
    assert ("blk.0.attn_sub_norm.weight" in found) == student.config.sub_norms
    assert ("blk.0.attn_q_norm.weight" in found) == student.config.qk_norm


def test_gguf_says_all_of_shape_and_tokenizer(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    student, tokenizer = small_student(**{**BROAD, "num_hidden_layers": 1}), byte_tokenizer()
    save_gguf(student, tokenizer, tmp_path / "student.gguf")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "student.gguf").fields.items()}
    assert fields["general.architecture"] == "bitnet"
    assert fields["bitnet.attention.head_count_kv"] == student.config.num_key_value_heads
    assert fields["bitnet.rope.freq_base"] == 10000.0
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["tokenizer.ggml.tokens"][: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(fields["tokenizer.ggml.tokens"]) == 300
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.fim_mid_token_id"] == tokenizer.convert_tokens_to_ids("<|fim_middle|>")
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template


def test_texts_that_llama_cpp_would_split_otherwise_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tokenizers import Tokenizer, models, pre_tokenizers

    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="no name for how this tokenizer splits text"):
        save_gguf(small_student(**BROAD), PreTrainedTokenizerFast(tokenizer_object=other), tmp_path / "student.gguf")
    assert not (tmp_path / "student.gguf").exists()


def test_widths_that_fill_no_block_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(UserError, match="hidden_size is 32, and blocks of 256"):
        save_gguf(small_student(), byte_tokenizer(), tmp_path / "student.gguf")


REASONS: dict[str, dict[str, Any]] = {
    "attn_logit_softcapping is 50": {"attn_logit_softcapping": 50.0},
    "final_logit_softcapping is 30": {"final_logit_softcapping": 30.0},
    "never together": {"qk_norm": True},
    "hidden_act is relu2": {"hidden_act": "relu2"},
    "no gate": {"gated_mlp": False},
    "weight_scale is row": {"weight_scale": "row"},
    "activation_bits is 16": {"activation_bits": 16},
    "together are 64 wide": {"head_dim": 16},
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_no_architecture_computes_is_refused(reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        target_of(LimbeckBitNetConfig(**{**SMALL, **REASONS[reason]}), "hf")


def test_all_reasons_are_named() -> None:
    config = LimbeckBitNetConfig(**{**SMALL, "qk_norm": True, "attn_logit_softcapping": 50.0, "gated_mlp": False})
    with pytest.raises(UserError, match=r"attn_logit_softcapping is 50.*never together.*no gate"):
        target_of(config, "gguf")
