"""A student as one GGUF file for llama.cpp: arch `bitnet`, `qwen3` or `llama`.

Linear layers are TQ2_0 (2 bits) or TQ1_0 (1.7 bits) of gamma times the codes, which is exact but for gamma's 16 bits;
the embedding is Q8_0; norms are F32. A dense twin's linear layers are F16. The tokenizer goes along with its merges,
special tokens, fill-in-the-middle sentinels and chat template.
"""

import importlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbeck.errors import UserError
from limbeck.files import publish
from limbeck.models.bitnet import LimbeckBitNetConfig, LimbeckBitNetForCausalLM
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.models.exports.targets import target_of

BLOCK, TABLE_BLOCK = 256, 32  # weights that share a scale, in ternary layers and in embeddings
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.attn_sub_norm": "attn_sub_norm", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.ffn_sub_norm": "ffn_sub_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
PRE_TOKENIZERS = {  # by what tokenizer.json says, how llama.cpp calls the same splitting
    (("ByteLevel", False, True),): "gpt-2",
    (("Digits", True), ("ByteLevel", False, True)): "smollm",
}
SENTINELS = {"fim_pre_token_id": "<|fim_prefix|>", "fim_suf_token_id": "<|fim_suffix|>",
             "fim_mid_token_id": "<|fim_middle|>", "fim_pad_token_id": "<|fim_pad|>"}  # fmt: skip
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # types of tokens


def save_gguf(
    student: LimbeckBitNetForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    *,
    linear: Literal["TQ2_0", "TQ1_0"] = "TQ2_0",
    name: str = "student",
) -> None:
    """Write a student as a GGUF file.

    Args:
        student: the student.
        tokenizer: a byte-level BPE.
        path: of the file.
        linear: how ternary layers are stored.
        name: what the file calls the student.

    Raises:
        UserError: `gguf` is not installed, or llama.cpp has no architecture or no splitting of text that does the same,
            or a width does not fill its blocks.
    """
    try:
        gguf = importlib.import_module("gguf")
    except ImportError as error:
        raise UserError("gguf: the package is not installed. Install limbeck[gguf].") from error
    config = student.config
    target = target_of(config, "gguf")
    _check_widths(config)
    words = _vocabulary(tokenizer, config.vocab_size)
    with publish(path) as temporary:
        writer = gguf.GGUFWriter(temporary, target.name)
        file_types = gguf.LlamaFileType
        _describe(writer, config, name, file_types.MOSTLY_TQ2_0 if config.ternary else file_types.MOSTLY_F16)
        _add_tokenizer(writer, tokenizer, words)
        layers = ternary_layers(student)
        for tensor_name, parameter in student.named_parameters():
            owner = tensor_name.removesuffix(".weight")
            kind = gguf.GGMLQuantizationType.F32
            values = parameter.detach().float()
            if owner in layers:
                codes, gamma = layers[owner].codes()
                values, kind = codes * gamma, gguf.GGMLQuantizationType[linear]
            elif owner in ("model.embed_tokens", "lm_head"):
                kind = gguf.GGMLQuantizationType.Q8_0
            elif values.ndim == 2:
                kind = gguf.GGMLQuantizationType.F16
            if target.name == "llama" and owner.rsplit(".", 1)[-1] in ("q_proj", "k_proj"):
                values = _interleaved(values, config.width_of_head)
            data = gguf.quants.quantize(values.numpy(), kind)
            writer.add_tensor(_their_name(owner), data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _check_widths(config: LimbeckBitNetConfig) -> None:
    heads = config.num_attention_heads * config.width_of_head
    widths = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size, "all heads": heads}
    block = BLOCK if config.ternary else TABLE_BLOCK
    for what, width in widths.items():
        if width % block:
            raise UserError(f"gguf: {what} is {width}, and blocks of {block} weights have to fill it.")


def _describe(writer: Any, config: LimbeckBitNetConfig, name: str, file_type: int) -> None:
    rope = dict(config.rope_parameters or {})
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.width_of_head)
    writer.add_value_length(config.width_of_head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(config.width_of_head)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type("linear")
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind != "default":
        raise UserError(f"gguf: positions are scaled by {kind!r}, which is not written; only default and linear are.")


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Any]:
    """Return what tokenizer.json says: tokens, their types, merges, and how text is split."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    if said["model"]["type"] != "BPE":
        raise UserError(f"gguf: the tokenizer is a {said['model']['type']}; only byte-level BPE is written.")
    parts = said["pre_tokenizer"] or {}
    steps = tuple(_step(part) for part in parts.get("pretokenizers", [parts]))
    if steps not in PRE_TOKENIZERS or said.get("normalizer"):
        named = ", ".join(str(step[0]) for step in steps) + (" after a normaliser" if said.get("normalizer") else "")
        raise UserError(f"gguf: llama.cpp has no name for how this tokenizer splits text ({named}).")
    tokens = [f"<|unused_{index}|>" for index in range(size)]
    types = [CONTROL] * size
    for token, index in said["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in said["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in said["model"]["merges"]]
    return {"tokens": tokens, "types": types, "merges": merges, "pre": PRE_TOKENIZERS[steps]}


def _step(part: dict[str, Any]) -> tuple[Any, ...]:
    kind = part.get("type")
    if kind == "ByteLevel":
        return kind, part["add_prefix_space"], part.get("use_regex", True)
    return (kind, part["individual_digits"]) if kind == "Digits" else (kind, json.dumps(part, sort_keys=True))


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, words: dict[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words["pre"])
    writer.add_token_list(words["tokens"])
    writer.add_token_types(words["types"])
    writer.add_token_merges(words["merges"])
    writer.add_add_bos_token(False)
    roles = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id}
    for role, index in roles.items():
        if index is not None:
            writer.add_uint32(f"tokenizer.ggml.{role}_token_id", index)
    for key, token in SENTINELS.items():
        if token in words["tokens"]:
            writer.add_uint32(f"tokenizer.ggml.{key}", words["tokens"].index(token))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _their_name(owner: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if owner in whole:
        return f"{whole[owner]}.weight"
    _, _, index, part = owner.split(".", 3)
    return f"blk.{index}.{NAMES[part]}.weight"


def _interleaved(weight_oi: Tensor, head: int) -> Tensor:
    """Return rows of queries or keys in the order of llama.cpp's arch `llama`, which turns neighbouring pairs."""
    rows, width = weight_oi.shape
    return weight_oi.view(rows // head, 2, head // 2, width).transpose(1, 2).reshape(rows, width)


def read_gguf(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a GGUF file by name, dequantised to float32.

    Raises:
        UserError: `gguf` is not installed.
    """
    try:
        gguf = importlib.import_module("gguf")
    except ImportError as error:
        raise UserError("gguf: the package is not installed. Install limbeck[gguf].") from error
    reader = gguf.GGUFReader(path)
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
