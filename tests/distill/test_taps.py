"""What is seen inside a model is what the model computed, for any architecture, and nothing else is held."""

import weakref
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from limbeck.distill.taps import decoder_blocks, taps
from limbeck.errors import LimbeckError, UserError

BLOCKS = 3
IDS = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(0))
TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": TEXT,
    "qwen3": TEXT,
    "gemma2": TEXT,
    "gemma3_text": TEXT,
    "qwen3_moe": TEXT | EXPERTS,  # more experts than blocks
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
             "eos_token_id": 2, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "mistral3": {"text_config": TEXT | {"model_type": "mistral"}, "vision_config": VISION | {"model_type": "pixtral"}},
    "gemma3": {"text_config": TEXT, "vision_config": VISION},  # more vision blocks than text blocks
    "qwen3_next": TEXT | EXPERTS | LINEAR | {"shared_expert_intermediate_size": 16},
}  # fmt: skip
MULTIMODAL = ("mistral3", "gemma3")


@cache
def model_of(architecture: str, attention: str = "eager") -> PreTrainedModel:
    torch.manual_seed(7)
    config = AutoConfig.for_model(architecture, **SETTINGS[architecture])
    kind = AutoModelForImageTextToText if architecture in MULTIMODAL else AutoModelForCausalLM
    return kind.from_config(config, attn_implementation=attention).eval()


def run(model: PreTrainedModel, **settings: Any) -> Any:
    return model.get_decoder()(input_ids=IDS, use_cache=False, **settings)


@pytest.mark.parametrize("architecture", [name for name in SETTINGS if name != "qwen3_next"])
def test_it_sees_states_and_what_is_attended_with_in_any_architecture(architecture: str) -> None:
    model = model_of(architecture)
    blocks = decoder_blocks(model)
    assert len(blocks) == BLOCKS
    with torch.no_grad(), taps(model, (0, 1), (1,)) as seen:
        output = run(model, output_hidden_states=True, output_attentions=True)
    assert seen.layers.keys() == {0, 1}
    assert seen.relations.keys() == {1}
    for index in (0, 1):
        torch.testing.assert_close(seen.layers[index], output.hidden_states[index + 1], rtol=0, atol=0)

    # the model's own attention has to follow from the queries and keys: positions and norms are applied to them
    relations = seen.relations[1]
    attention = next(part for part in blocks[1].modules() if hasattr(part, "scaling"))
    groups = relations.queries.shape[1] // relations.keys.shape[1]
    scores = relations.queries @ relations.keys.repeat_interleave(groups, 1).transpose(-1, -2) * attention.scaling
    if (cap := getattr(model.config, "attn_logit_softcapping", None)) is not None:
        scores = cap * torch.tanh(scores / cap)
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    torch.testing.assert_close(scores.masked_fill(later, -torch.inf).softmax(-1), output.attentions[1])
    assert relations.values.shape == relations.keys.shape


def test_other_implementations_of_attention_show_the_same() -> None:
    with torch.no_grad(), taps(model_of("llama"), (), (2,)) as plain:
        run(model_of("llama"))
    with torch.no_grad(), taps(model_of("llama", "sdpa"), (), (2,)) as fused:
        run(model_of("llama", "sdpa"))
    for part in ("queries", "keys", "values"):
        torch.testing.assert_close(getattr(plain.relations[2], part), getattr(fused.relations[2], part))


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """Of a sum over everything that is seen, and over the final states."""
    model.zero_grad()
    with taps(model, (0, 2), (1,)) as seen:
        final = run(model).last_hidden_state
    parts = [*seen.layers.values(), *vars(seen.relations[1]).values(), final]
    torch.stack([(part * torch.linspace(-1, 1, part.shape[-1])).square().sum() for part in parts]).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_gradients_flow_through_checkpointed_blocks_as_through_others() -> None:
    model = model_of("llama").train()
    try:
        kept = gradients(model)
        model.activation_checkpointing_enable({"use_reentrant": False})
        again = gradients(model)
        assert kept.keys() == again.keys()
        assert "model.layers.0.self_attn.q_proj.weight" in kept
        for name in kept:
            torch.testing.assert_close(again[name], kept[name], rtol=1e-6, atol=1e-7)
        model.activation_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
        with pytest.raises(UserError, match="use_reentrant: false"), taps(model, (), (1,)):
            run(model)
    finally:
        model.activation_checkpointing_disable()
        model.eval()


def states_alive(model: PreTrainedModel, looked_at: tuple[int, ...], **settings: Any) -> list[int]:
    """Run a model without gradients, and return the blocks whose state is still held behind it."""
    alive: dict[int, weakref.ref[Tensor]] = {}

    def watch(index: int) -> Any:
        def hook(block: nn.Module, given: Any, output: Tensor) -> None:
            alive[index] = weakref.ref(output)

        return hook

    handles = [block.register_forward_hook(watch(index)) for index, block in enumerate(decoder_blocks(model))]
    with torch.no_grad(), taps(model, looked_at) as seen:
        output = run(model, **settings)
    for handle in handles:
        handle.remove()
    assert (seen, output) is not None
    return [index for index, state in alive.items() if state() is not None]


def test_only_what_was_asked_for_is_held() -> None:
    model = model_of("llama")
    assert states_alive(model, (1,)) == [1]
    assert states_alive(model, ()) == []
    assert states_alive(model, (), output_hidden_states=True) == [0, 1]  # the last is held by its norm, if at all


def test_nothing_is_left_behind_not_even_after_a_failure() -> None:
    model = model_of("llama")
    dispatch = AttentionInterface.get_interface
    hooks = [list(block._forward_hooks) for block in decoder_blocks(model)]  # the library has some of its own
    with pytest.raises(ZeroDivisionError), taps(model, (0,), (0,)):
        run(model)
        raise ZeroDivisionError
    assert AttentionInterface.get_interface is dispatch
    assert [list(block._forward_hooks) for block in decoder_blocks(model)] == hooks


def test_two_models_are_looked_into_one_inside_the_other() -> None:
    student, teacher = model_of("llama"), model_of("qwen3")
    with torch.no_grad(), taps(student, (0,), (1,)) as ours, taps(teacher, (2,), (0,)) as theirs:
        run(student)
        run(teacher)
    assert (ours.layers.keys(), ours.relations.keys()) == ({0}, {1})
    assert (theirs.layers.keys(), theirs.relations.keys()) == ({2}, {0})


def test_a_model_that_was_not_run_is_told() -> None:
    with pytest.raises(LimbeckError, match="block 1 was looked into, and was not run"), taps(model_of("llama"), (1,)):
        pass


def test_a_block_without_softmax_attention_shows_no_relations() -> None:
    model = model_of("qwen3_next")
    with torch.no_grad(), taps(model, (0,), (1,)) as seen:
        run(model)
    assert seen.relations[1].queries.shape == (2, 4, 7, 8)
    refused = pytest.raises(UserError, match=r"block 0 of Qwen3Next\w+ shows no queries")
    with torch.no_grad(), refused, taps(model, (), (0,)):
        run(model)


def test_the_list_of_blocks_is_not_taken_for_another() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.adapters = nn.ModuleList(nn.Linear(2, 2) for _ in range(BLOCKS))
            self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(9)) for _ in range(BLOCKS))

    class Model:
        config = model_of("llama").config
        decoder = Decoder()

        def get_decoder(self) -> nn.Module:
            return self.decoder

    assert decoder_blocks(Model()) is Model.decoder.layers  # type: ignore[arg-type]
    Model.decoder.layers = nn.ModuleList()
    Model.decoder.adapters = nn.ModuleList()
    with pytest.raises(UserError, match="no list of 3 blocks"):
        decoder_blocks(Model())  # type: ignore[arg-type]


def test_seen_states_are_those_that_follow_each_other() -> None:
    model = model_of("llama")
    with torch.no_grad(), taps(model, range(BLOCKS)) as seen:
        final = run(model).last_hidden_state
    assert all(not torch.equal(seen.layers[a], seen.layers[b]) for a, b in pairwise(range(BLOCKS)))
    torch.testing.assert_close(model.get_decoder().norm(seen.layers[BLOCKS - 1]), final)
