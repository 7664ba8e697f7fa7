"""A ternary student from a dense checkpoint begins where the dense model was."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from limbeck.errors import UserError
from limbeck.models.bitnet.from_dense import from_dense
from limbeck.models.bitnet.linear import set_strength
from tests.models.bitnet.shapes import SMALL, some_ids

TOKENS = {"bos_token_id": None, "eos_token_id": None}


def dense(kind: str, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**{**SMALL, **TOKENS, "tie_word_embeddings": True, **changes})).eval()
    return Qwen3ForCausalLM(Qwen3Config(**{**SMALL, **TOKENS, "head_dim": 16, **changes})).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@torch.no_grad()
def test_unrounded_and_without_sub_norms_it_is_the_dense_model(kind: str) -> None:
    source, ids = dense(kind), some_ids()
    student = from_dense(source, sub_norms=False)
    set_strength(student, 0.0)
    assert torch.allclose(student(ids).logits, source(ids).logits, atol=1e-5)


@torch.no_grad()
def test_calibrated_sub_norms_keep_it_near_the_dense_model() -> None:
    source, ids = dense("llama", initializer_range=0.05), some_ids(4, 32)
    near, far = from_dense(source, ids), from_dense(source, ids)
    for name, parameter in far.named_parameters():
        if "sub_norm" in name:
            parameter.fill_(1.0)
    wanted = source(ids).logits

    def distance(student: PreTrainedModel) -> float:
        set_strength(student, 0.0)
        return (student(ids).logits - wanted).norm().item() / wanted.norm().item()

    assert distance(near) < 0.25
    assert distance(near) < 0.25 * distance(far)


def test_what_a_student_can_not_compute_is_refused() -> None:
    with pytest.raises(UserError, match="biases"):
        from_dense(dense("llama", attention_bias=True))
    with pytest.raises(UserError, match="activation 'tanh'"):
        from_dense(dense("llama", hidden_act="tanh"))
    with pytest.raises(UserError, match="only decoders of the kinds"):
        from_dense(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=64)))
