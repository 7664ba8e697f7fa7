"""A student as `transformers` itself knows it: BitNetForCausalLM, or Qwen3 or Llama, with the bitnet quantiser.

Ternary layers are stored with four rows in a byte: row r + i * (out / 4) in bits 2i and 2i + 1, as weight + 1, which is
the layout of `transformers.integrations.bitnet`. Of its two layers, `autobitlinear` multiplies by `weight_scale` and
`bitlinear` divides by it: gamma is stored for the former, and the configuration says so. A dense twin is stored as it
is.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitNetConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from limbeck.errors import UserError
from limbeck.files import publish
from limbeck.models.bitnet import LimbeckBitNetConfig, LimbeckBitNetForCausalLM
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.models.exports.targets import target_of

CONFIGS: dict[str, type[PreTrainedConfig]] = {"bitnet": BitNetConfig, "qwen3": Qwen3Config, "llama": LlamaConfig}
CLASSES = {"bitnet": "BitNetForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
TAKEN = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_parameters", "hidden_act",
         "tie_word_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip


def save_huggingface(student: LimbeckBitNetForCausalLM, folder: Path) -> None:
    """Write a student's configuration and weights for `transformers`.

    Raises:
        UserError: `transformers` has no architecture that computes the same, or rows that don't fill its bytes.
    """
    config = student.config
    target = target_of(config, "hf")
    layers = ternary_layers(student)
    weights: dict[str, Tensor] = {}
    for name, parameter in student.state_dict().items():
        owner = name.removesuffix(".weight")
        if owner in layers:
            codes, gamma = layers[owner].codes()
            weights[name], weights[f"{owner}.weight_scale"] = rows_in_bytes(codes, owner), gamma.flatten()
        elif name != "lm_head.weight" or not config.tie_word_embeddings:
            weights[name] = parameter
    folder.mkdir(parents=True, exist_ok=True)
    theirs = CONFIGS[target.name](**{name: getattr(config, name) for name in TAKEN}, **_quantisation(config))
    theirs.architectures = [CLASSES[target.name]]
    theirs.dtype = "float32"
    theirs.save_pretrained(folder)
    with publish(folder / "model.safetensors") as temporary:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(whole, temporary, metadata={"format": "pt"})


def rows_in_bytes(codes_oi: Tensor, name: str = "weight") -> Tensor:
    """Return codes in {-1, 0, 1}, `[out, in]`, four rows in a byte, uint8 `[out / 4, in]`.

    Raises:
        UserError: the number of rows is no multiple of 4.
    """
    rows = len(codes_oi)
    if rows % 4:
        raise UserError(f"hf: {name} has {rows} rows, and four of them share a byte. Use a width that 4 divides.")
    parts = (codes_oi + 1).to(torch.uint8).view(4, rows // 4, -1).unbind(0)
    return parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6


def _quantisation(config: LimbeckBitNetConfig) -> dict[str, Any]:
    if not config.ternary:
        return {}
    return {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": ["lm_head"],
            "use_rms_norm": False,
        }
    }
