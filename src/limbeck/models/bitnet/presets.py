"""Profiles and presets of BitNet students, and what each weighs.

A **profile** is a set of knobs that makes a student loadable by others: `bitnet` by `transformers`' BitNetForCausalLM
and llama.cpp's arch `bitnet`, `qwen3` by Qwen3ForCausalLM with the bitnet quantiser and llama.cpp's `qwen3`.
`royal_flush` joins grouped queries, QK-norm and both soft-caps; only this package runs it.

A **preset** is a profile at a size, named by its true number of parameters at its own vocabulary. Widths of the
`bitnet` and `qwen3` presets are multiples of 256, which every packed layout needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.errors import UserError
from limbeck.models.bitnet.configuration import LimbeckBitNetConfig
from limbeck.settings import nearest

PROFILES: dict[str, dict[str, Any]] = {
    "bitnet": {"sub_norms": True, "hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "qwen3": {
        "sub_norms": False, "qk_norm": True, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "royal_flush": {
        "sub_norms": False, "qk_norm": True, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
}  # fmt: skip


def _sizes(
    vocabulary: int, width: int, blocks: int, heads: int, kept: int, head: int, inner: int, context: int
) -> dict[str, int]:
    return {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads,
        "num_key_value_heads": kept, "head_dim": head, "intermediate_size": inner, "max_position_embeddings": context,
    }  # fmt: skip


PRESETS: dict[str, tuple[str, dict[str, int]]] = {
    "bitnet-6m": ("bitnet", _sizes(4096, 256, 6, 4, 2, 64, 768, 512)),
    "bitnet-41m": ("bitnet", _sizes(32000, 512, 8, 8, 2, 64, 1536, 1024)),
    "bitnet-88m": ("bitnet", _sizes(16000, 768, 12, 12, 4, 64, 2048, 2048)),
    "bitnet-100m": ("bitnet", _sizes(32000, 768, 12, 12, 4, 64, 2048, 2048)),
    "bitnet-213m": ("bitnet", _sizes(32000, 1024, 16, 16, 4, 64, 2816, 4096)),
    "bitnet-303m": ("bitnet", _sizes(32000, 1024, 24, 16, 4, 64, 2816, 4096)),
    "qwen3-100m": ("qwen3", _sizes(32000, 768, 12, 12, 4, 64, 2048, 2048)),
    "royal-flush-39m": ("royal_flush", _sizes(32000, 512, 8, 8, 2, 64, 1408, 1024)),
    "royal-flush-100m": ("royal_flush", _sizes(32000, 768, 12, 12, 4, 64, 2048, 2048)),
    "royal-flush-213m": ("royal_flush", _sizes(32000, 1024, 16, 16, 4, 64, 2816, 4096)),
}


@dataclass(frozen=True)
class Weight:
    """What a student weighs.

    Attributes:
        total: parameters, each tensor once.
        ternary: those of ternary layers.
        embedding: those of the embedding, and of the head where it is another tensor.
        norms: gains of all norms.
        fp32: bytes of all of them in float32.
        bf16: in bfloat16.
        packed: 2 bits a ternary weight, 8 an embedding's or head's, with a scale a row; the rest in float32.
        cache: of keys and values of all blocks at the longest input, in 16 bits.
    """

    total: int
    ternary: int
    embedding: int
    norms: int
    fp32: int
    bf16: int
    packed: int
    cache: int


def preset_config(name: str, changes: Mapping[str, Any] | None = None) -> LimbeckBitNetConfig:
    """Return the configuration of a preset, with some fields changed.

    Args:
        name: of the preset.
        changes: fields of `LimbeckBitNetConfig`.

    Raises:
        UserError: there is no such preset or field, or the fields don't go together.
    """
    if name not in PRESETS:
        raise UserError(f"no preset is called {name!r}.{nearest(name, list(PRESETS))} `limbeck models list` shows all.")
    profile, sizes = PRESETS[name]
    known = [field for field in LimbeckBitNetConfig.__annotations__ if field not in ("model_type", "default_theta")]
    for field in changes or {}:
        if field not in known:
            raise UserError(f"{name}: no field is called {field!r}.{nearest(field, known)}")
    return LimbeckBitNetConfig(**{**PROFILES[profile], **sizes, **(changes or {})})


def weigh(config: LimbeckBitNetConfig) -> Weight:
    """Return what a student of this configuration weighs, counted from its shape."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.width_of_head
    queries, kept = config.num_attention_heads * head, config.num_key_value_heads * head
    products = [(queries, width), (kept, width), (kept, width), (width, queries)]
    products += [(inner, width)] * (2 if config.gated_mlp else 1) + [(width, inner)]
    linear = config.num_hidden_layers * sum(rows * columns for rows, columns in products)
    scales = config.num_hidden_layers * sum(rows if config.weight_scale == "row" else 1 for rows, _ in products)
    norms = 2 * width + (queries + inner if config.sub_norms else 0) + (2 * head if config.qk_norm else 0)
    norms = config.num_hidden_layers * norms + width
    tables = 1 if config.tie_word_embeddings else 2
    embedding = tables * config.vocab_size * width
    ternary = linear if config.ternary else 0
    total = linear + norms + embedding
    packed = ternary // 4 + 4 * scales + 4 * (linear - ternary) + embedding + 4 * tables * config.vocab_size + 4 * norms
    cache = 2 * 2 * config.num_hidden_layers * kept * config.max_position_embeddings
    return Weight(total, ternary, embedding, norms, 4 * total, 2 * total, packed, cache)
