"""The student: causal, the same with a cache as without, and each knob changes what it computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, Qwen3Config, Qwen3ForCausalLM

from limbeck.errors import UserError
from limbeck.models.bitnet import LimbeckBitNetConfig, LimbeckBitNetForCausalLM
from tests.models.bitnet.shapes import SMALL, small_student, some_ids

FLUSH: dict[str, Any] = {"qk_norm": True, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
STRETCHED: dict[str, Any] = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}


@pytest.mark.parametrize("changes", [{}, FLUSH, {"ternary": False}])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_a_token_changes_no_logit_before_it(changes: dict[str, Any], masked: bool) -> None:
    student, ids = small_student(**changes), some_ids()
    mask = torch.ones_like(ids)
    if masked:
        mask[0, :3] = 0  # what is computed on padding means nothing
    other = ids.clone()
    other[:, 7] = (other[:, 7] + 1) % 64
    given = mask if masked else None
    before, after = student(ids, attention_mask=given).logits, student(other, attention_mask=given).logits
    real = mask[:, :7] == 1
    assert torch.equal(before[:, :7][real], after[:, :7][real])
    assert not torch.equal(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("changes", [{}, FLUSH, STRETCHED])
@torch.no_grad()
def test_decoding_with_a_cache_gives_the_logits_of_the_whole_context(changes: dict[str, Any]) -> None:
    student, ids = small_student(**changes), some_ids()
    whole = student(ids).logits
    cache, found = None, []
    for step in range(ids.shape[1]):
        output = student(ids[:, step : step + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
    assert torch.allclose(torch.cat(found, 1), whole, atol=2e-5)


@torch.no_grad()
def test_generate_is_greedy_decoding() -> None:
    student, ids = small_student(), some_ids(rows=1)
    written = student.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    for step in range(6):
        logits = student(written[:, : ids.shape[1] + step]).logits[0, -1]
        assert written[0, ids.shape[1] + step] == logits.argmax()


@torch.no_grad()
def test_padding_on_the_left_changes_nothing() -> None:
    student, ids = small_student(), some_ids()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), ids], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.int64), torch.ones_like(ids)], 1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    found = student(padded, attention_mask=mask, position_ids=places).logits[:, 3:]
    assert torch.allclose(found, student(ids).logits, atol=2e-5)


KNOBS: dict[str, Any] = {
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    "hidden_act": "relu2",
    "gated_mlp": False,
    "sub_norms": False,
    "qk_norm": True,
    "attn_logit_softcapping": 0.05,
    "final_logit_softcapping": 0.2,
    "tie_word_embeddings": False,
    "ternary": False,
    "weight_scale": "row",
    "activation_bits": 16,
    "rms_norm_eps": 0.5,
    "initializer_range": 0.3,
    "num_key_value_heads": 4,
    "num_attention_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 80,
}


@pytest.mark.parametrize("name", KNOBS)
@torch.no_grad()
def test_each_knob_changes_what_is_computed(name: str) -> None:
    ids = some_ids()
    plain, changed = small_student()(ids).logits, small_student(**{name: KNOBS[name]})(ids).logits
    assert plain.shape != changed.shape or not torch.allclose(plain, changed, atol=1e-4)


def test_dropout_is_alive_in_training_only() -> None:
    student, ids = small_student(attention_dropout=0.5), some_ids()
    with torch.no_grad():
        assert torch.equal(student(ids).logits, student(ids).logits)
        student.train()
        assert not torch.equal(student(ids).logits, student(ids).logits)


REFUSED: dict[str, dict[str, Any]] = {
    "none of silu": {"hidden_act": "swish"},
    "does not divide": {"num_key_value_heads": 3},
    "make it even": {"head_dim": 7},
    "has to be positive": {"final_logit_softcapping": -1.0},
    "none of tensor": {"weight_scale": "block"},
    "none of 8": {"activation_bits": 4},
    "say nothing of a dense": {"ternary": False, "weight_scale": "row"},
    "at least 1": {"num_hidden_layers": 0},
    "don't divide a hidden size": {"num_attention_heads": 5, "num_key_value_heads": 5},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_meaning_is_refused(reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        LimbeckBitNetConfig(**{**SMALL, **REFUSED[reason]})


def test_fused_attention_is_refused_where_it_would_leave_out_the_cap() -> None:
    config = LimbeckBitNetConfig(**{**SMALL, **FLUSH})
    assert LimbeckBitNetForCausalLM(config).config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        LimbeckBitNetForCausalLM._from_config(config, attn_implementation="sdpa")


@torch.no_grad()
def test_fused_attention_computes_as_plain_attention(tmp_path: Path) -> None:
    student, ids = small_student(), some_ids()
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert (loaded.config._attn_implementation, plain.config._attn_implementation) == ("sdpa", "eager")
    assert torch.equal(student(ids).logits, loaded(ids).logits)
    assert torch.allclose(student(ids).logits, plain(ids).logits, atol=1e-5)


@torch.no_grad()
def test_the_dense_twin_computes_as_bitnet_without_rounding_and_as_qwen3() -> None:
    ids = some_ids()
    twin = small_student(ternary=False, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    fields = {name: getattr(twin.config, name) for name in SMALL}
    theirs = BitNetForCausalLM(BitNetConfig(
        **fields, hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )).eval()  # fmt: skip
    theirs.load_state_dict(twin.state_dict())
    assert torch.allclose(twin(ids).logits, theirs(ids).logits, atol=1e-5)

    twin = small_student(ternary=False, sub_norms=False, qk_norm=True, head_dim=16, rms_norm_eps=1e-6)
    other = Qwen3ForCausalLM(Qwen3Config(
        **fields, head_dim=16, tie_word_embeddings=True, rope_parameters=twin.config.rope_parameters,
        bos_token_id=None, eos_token_id=None,
    )).eval()  # fmt: skip
    other.load_state_dict(twin.state_dict())
    assert torch.allclose(twin(ids).logits, other(ids).logits, atol=1e-5)


def test_checkpointing_gradients_changes_no_gradient() -> None:
    ids = some_ids()
    found = []
    for checkpointing in (False, True):
        student = small_student().train()
        if checkpointing:
            student.activation_checkpointing_enable()
        student(ids, labels=ids, use_cache=False).loss.backward()
        found.append([parameter.grad for parameter in student.parameters()])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))
