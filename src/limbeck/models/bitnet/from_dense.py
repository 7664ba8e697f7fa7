"""A ternary student made from a dense checkpoint: linear layers are replaced and sub-norms inserted.

After BitDistill (arXiv:2510.13998). An RMSNorm cannot be the identity for every token, for it takes each token's size
away; its gain is set so that it is the identity on the average one: to the root mean square that the input of the
product has on calibration text. Raising the quantisation's strength from 0 to 1 in training (`set_strength`) then
starts from nearly the dense model.

Decoders of the Llama and Qwen3 kinds are understood; what the student could not compute is refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.errors import UserError
from limbeck.models.bitnet.configuration import ACTIVATIONS, LimbeckBitNetConfig
from limbeck.models.bitnet.modelling import LimbeckBitNetForCausalLM

KINDS = ("llama", "qwen3", "bitnet", "limbeck_bitnet")
TAKEN = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "max_position_embeddings", "rope_parameters", "hidden_act", "tie_word_embeddings",
         "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip


def from_dense(
    model: PreTrainedModel, calibration_BT: Tensor | None = None, **changes: Any
) -> LimbeckBitNetForCausalLM:
    """Return a ternary student with the weights of a dense model.

    Args:
        model: Llama-like or Qwen3-like, in evaluation mode.
        calibration_BT: token ids of some text, on which the gains of the sub-norms are set; None: ids drawn uniformly,
            128 of them, which is much worse than text.
        changes: fields of the configuration, `sub_norms=False` among them.

    Raises:
        UserError: the model is of a kind, or has a part, that the student does not know.
    """
    config = student_config(model, changes)
    student = LimbeckBitNetForCausalLM(config).to(model.device, model.dtype).eval()
    weights = model.state_dict()
    if config.sub_norms:
        if calibration_BT is None:
            drawn = torch.Generator().manual_seed(0)
            calibration_BT = torch.randint(0, config.vocab_size, (1, 128), generator=drawn)
        weights.update(_sub_norm_gains(model, calibration_BT.to(model.device)))
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    missing, unexpected = student.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name != "lm_head.weight" or not config.tie_word_embeddings]
    if missing or unexpected:
        raise UserError(
            f"{type(model).__name__}: its tensors are not those of the student: "
            f"{(missing + unexpected)[0]} is in one of them only."
        )
    student.tie_weights()
    return student


def student_config(model: PreTrainedModel, changes: dict[str, Any]) -> LimbeckBitNetConfig:
    """Return the configuration of the student that a dense model makes.

    Raises:
        UserError: see `from_dense`.
    """
    source = model.config
    if source.model_type not in KINDS:
        raise UserError(
            f"{type(model).__name__}: only decoders of the kinds {', '.join(KINDS)} can become ternary students."
        )
    if getattr(source, "attention_bias", False) or getattr(source, "mlp_bias", False):
        raise UserError(f"{type(model).__name__}: its products have biases, which a ternary student has not.")
    if getattr(source, "use_sliding_window", False):
        raise UserError(f"{type(model).__name__}: its attention slides over a window, which a student's does not.")
    if source.hidden_act not in ACTIVATIONS:
        raise UserError(
            f"{type(model).__name__}: its activation {source.hidden_act!r} is none of {', '.join(ACTIVATIONS)}."
        )
    fields = {name: getattr(source, name, None) for name in TAKEN}
    fields["head_dim"] = getattr(source, "head_dim", None)
    fields["qk_norm"] = source.model_type == "qwen3" or getattr(source, "qk_norm", False)
    return LimbeckBitNetConfig(**{**fields, **changes})


@torch.no_grad()
def _sub_norm_gains(model: PreTrainedModel, ids_BT: Tensor) -> dict[str, Tensor]:
    """Return gains by the names of the sub-norms: everywhere the root mean square of what the norm will see."""
    gains: dict[str, Tensor] = {}
    with _seeing_inputs(model, gains):
        model(input_ids=ids_BT, use_cache=False)
    return gains


@contextmanager
def _seeing_inputs(model: PreTrainedModel, gains: dict[str, Tensor]) -> Iterator[None]:
    def see(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            size = inputs[0].float().square().mean(-1).sqrt().mean()
            gains[name] = size.to(inputs[0].dtype).expand(inputs[0].shape[-1]).clone()

        return record

    hooks = []
    for index, block in enumerate(model.get_decoder().layers):
        for product, norm in (("self_attn.o_proj", "self_attn.attn_sub_norm"), ("mlp.down_proj", "mlp.ffn_sub_norm")):
            name = f"model.layers.{index}.{norm}.weight"
            hooks.append(block.get_submodule(product).register_forward_pre_hook(see(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
