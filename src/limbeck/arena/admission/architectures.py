"""Architectures that an arena can allow: which tensors, of which shapes, a configuration stands for.

Holding names and shapes to the configuration closes three doors at once: sizes that the configuration lies about,
extra tensors (a hidden copy of something), and a layer count that only the loader would notice.

A further architecture comes in by `architecture(name)`.
"""

from collections.abc import Callable, Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Expected = Callable[[Mapping[str, Any]], Shapes]
_ARCHITECTURES: dict[str, Expected] = {}
_MAX_SIZE = 1 << 24


class ConfigValueError(ValueError):
    """A key of the configuration is missing or has no sound value."""


def architecture(name: str) -> Callable[[Expected], Expected]:
    """Register the decorated function as the one that lists the tensors of architecture `name`."""

    def register(expected: Expected) -> Expected:
        if name in _ARCHITECTURES:
            raise ValueError(f"architecture {name} is registered twice")
        _ARCHITECTURES[name] = expected
        return expected

    return register


def known_architectures() -> list[str]:
    """Return the names of the architectures that can be checked."""
    return sorted(_ARCHITECTURES)


def expected_shapes(name: str, config: Mapping[str, Any]) -> Shapes:
    """Return the tensors that a configuration stands for.

    Raises:
        ConfigValueError: a key is missing or unsound.
        KeyError: the architecture is not known.
    """
    return _ARCHITECTURES[name](config)


@architecture("LlamaForCausalLM")
def llama(config: Mapping[str, Any]) -> Shapes:
    """Llama: grouped-query attention, gated MLP, RMS norms (transformers' `LlamaForCausalLM`)."""
    width, mlp, layers = (
        _size(config, "hidden_size"),
        _size(config, "intermediate_size"),
        _size(config, "num_hidden_layers"),
    )
    heads = _size(config, "num_attention_heads")
    key_value_heads = _size(config, "num_key_value_heads", heads)
    head = _size(config, "head_dim", width // heads)
    vocabulary = _size(config, "vocab_size")
    if layers > 1000:
        raise ConfigValueError(f"num_hidden_layers is {layers}")
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocabulary, width)
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for projection, rows, columns in (
            ("q_proj", heads * head, width),
            ("k_proj", key_value_heads * head, width),
            ("v_proj", key_value_heads * head, width),
            ("o_proj", width, heads * head),
        ):
            shapes[f"{block}.self_attn.{projection}.weight"] = (rows, columns)
            if config.get("attention_bias", False):
                shapes[f"{block}.self_attn.{projection}.bias"] = (rows,)
        for projection, rows, columns in (
            ("gate_proj", mlp, width),
            ("up_proj", mlp, width),
            ("down_proj", width, mlp),
        ):
            shapes[f"{block}.mlp.{projection}.weight"] = (rows, columns)
            if config.get("mlp_bias", False):
                shapes[f"{block}.mlp.{projection}.bias"] = (rows,)
        shapes[f"{block}.input_layernorm.weight"] = (width,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (width,)
    return shapes


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        value = default
    if type(value) is not int or not 0 < value <= _MAX_SIZE:
        raise ConfigValueError(f"{key} is {str(value)[:40]!r}")
    return value
