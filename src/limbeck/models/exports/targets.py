"""Which architecture of others computes what a student computes, and why none does where there is none."""

from dataclasses import dataclass

from limbeck.errors import UserError
from limbeck.models.bitnet import LimbeckBitNetConfig


@dataclass(frozen=True)
class Target:
    """An architecture that others implement.

    Attributes:
        name: as llama.cpp spells it; `transformers` calls it the same but for upper case.
        sub_norms: whether it has them; a student has to have the same.
        qk_norm: whether it normalises queries and keys; a student has to do the same.
        free_heads: whether the width of a head may differ from the hidden size over the heads.
    """

    name: str
    sub_norms: bool
    qk_norm: bool
    free_heads: bool


TARGETS = (
    Target("bitnet", sub_norms=True, qk_norm=False, free_heads=False),
    Target("qwen3", sub_norms=False, qk_norm=True, free_heads=True),
    Target("llama", sub_norms=False, qk_norm=False, free_heads=True),
)


def target_of(config: LimbeckBitNetConfig, form: str) -> Target:
    """Return the architecture that a student can be exported as.

    Args:
        config: of the student.
        form: the format's name, for the message.

    Raises:
        UserError: there is none; every reason is named.
    """
    reasons = []
    if config.attn_logit_softcapping is not None:
        reasons.append(f"attn_logit_softcapping is {config.attn_logit_softcapping:g}")
    if config.final_logit_softcapping is not None:
        reasons.append(f"final_logit_softcapping is {config.final_logit_softcapping:g}")
    if config.sub_norms and config.qk_norm:
        reasons.append("sub_norms and qk_norm are never together there")
    if config.hidden_act != "silu":
        reasons.append(f"hidden_act is {config.hidden_act}, not silu")
    if not config.gated_mlp:
        reasons.append("the MLP has no gate")
    if config.ternary and config.weight_scale == "row":
        reasons.append("weight_scale is row: they keep one scale a tensor")
    if config.ternary and config.activation_bits != 8:
        reasons.append(f"activation_bits is {config.activation_bits}, and they round inputs to 8")
    for target in TARGETS:
        if (target.sub_norms, target.qk_norm) == (config.sub_norms, config.qk_norm):
            width = config.num_attention_heads * config.width_of_head
            if not target.free_heads and width != config.hidden_size:
                reasons.append(f"the heads together are {width} wide, and {target.name} wants {config.hidden_size}")
            if not reasons:
                return target
    raise UserError(f"{form}: no architecture there computes what this student does: {'; '.join(reasons)}.")
