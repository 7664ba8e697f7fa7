"""Decodes with a packed student: tokens in, final states and logits out, keys and values kept.

    student = PackedStudent.load(folder)
    session = student.session()
    logits = student.logits(session.read(prompt)[-1])     # [V]
    logits = student.logits(session.read([chosen])[-1])

Prompts are read in tiles, whose products unpack each weight once for several tokens. Weights are read where the file
is mapped; the cache is the one large thing that is made. The numbers are those of the student that training computes
with (`files.unpack_student`), but for the cache's 16 bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from limbeck.errors import IntegrityError, UserError
from limbeck.models.bitnet import LimbeckBitNetConfig
from limbeck.models.packed.files import PackedFile, read_packed
from limbeck.models.packed.products import PackedLayer, Products, Rounded, best_products

TILE = 128  # tokens of a prompt that are read together


@dataclass(frozen=True)
class _Block:
    queries: PackedLayer
    keys: PackedLayer
    values: PackedLayer
    output: PackedLayer
    gate: PackedLayer | None
    up: PackedLayer
    down: PackedLayer
    norms: dict[str, Tensor]


class PackedStudent:
    """A packed student, ready to read tokens.

    Args:
        packed: what the folder holds.
        products: its arithmetic; None: the fastest there is on a CPU.
        device: where it runs; on another than the CPU the products have to be Triton's.

    Raises:
        IntegrityError: there are codes that no weight has.
    """

    def __init__(self, packed: PackedFile, products: Products | None = None, device: str = "cpu") -> None:
        self.config: LimbeckBitNetConfig = packed.config
        self.bytes = packed.bytes
        self.products = best_products() if products is None else products
        self.device = torch.device(device)
        tensors = {name: tensor.to(self.device) for name, tensor in packed.tensors.items()}
        for name, tensor in tensors.items():
            if name.endswith(".codes") and bool((tensor & (tensor >> 1) & 0x55).any()):
                raise IntegrityError(f"{name} holds a value that no weight has. Export the student again.")
        self.blocks = [_block(self.config, tensors, index) for index in range(self.config.num_hidden_layers)]
        self._table = tensors["model.embed_tokens.table"], tensors["model.embed_tokens.scales"]
        owner = "model.embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        self._head = tensors[f"{owner}.table"], tensors[f"{owner}.scales"]
        self._norm = tensors["model.norm.weight"].clone()
        self._act: Callable[[Tensor], Tensor] = ACT2FN[self.config.hidden_act]
        self._turns = _turns(self.config, self.device)

    @classmethod
    def load(cls, folder: Path, products: Products | None = None, device: str = "cpu") -> "PackedStudent":
        """Return the student of a folder.

        Raises:
            UserError: there is none.
            IntegrityError: its file is not whole.
        """
        return cls(read_packed(folder), products, device)

    def session(self, capacity: int | None = None, dtype: torch.dtype = torch.float16) -> "Session":
        """Return a new session.

        Args:
            capacity: positions that it can hold; None: the student's longest input.
            dtype: of the cache, float16 or float32.
        """
        return Session(self, capacity or self.config.max_position_embeddings, dtype)

    def logits(self, state_d: Tensor) -> Tensor:
        """Return logits `[V]` of a final state `[D]`."""
        found = self.products.table(*self._head, state_d.contiguous())
        cap = self.config.final_logit_softcapping
        return found if cap is None else torch.tanh(found / cap) * cap

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings `[n, D]` of token ids.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        if not all(0 <= token < self.config.vocab_size for token in ids):
            raise UserError(f"token ids have to lie between 0 and {self.config.vocab_size - 1}.")
        table, scales = self._table
        chosen = torch.tensor(ids, dtype=torch.int64, device=self.device)
        return table[chosen].float() * scales[chosen, None]


class Session:
    """One text that a student reads and goes on with; made by `PackedStudent.session`."""

    def __init__(self, student: PackedStudent, capacity: int, dtype: torch.dtype) -> None:
        config = student.config
        if dtype == torch.float16 and not student.products.half:
            dtype = torch.float32
        self.student = student
        self.capacity = capacity
        self.length = 0
        shape = (config.num_key_value_heads, capacity, config.width_of_head)
        self.cache = [
            (
                torch.zeros(shape, dtype=dtype, device=student.device),
                torch.zeros(shape, dtype=dtype, device=student.device),
            )
            for _ in student.blocks
        ]

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Read tokens that follow those read before, and return their final states `[n, D]`.

        Raises:
            UserError: there are none, or more than the session can hold.
        """
        if not ids:
            raise UserError("there is no token to read.")
        if self.length + len(ids) > self.capacity:
            raise UserError(
                f"{self.length + len(ids)} tokens are more than the {self.capacity} that this session can hold."
            )
        parts = [self._tile(ids[first : first + TILE]) for first in range(0, len(ids), TILE)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forget(self, length: int) -> None:
        """Go back to the first `length` tokens.

        Raises:
            UserError: so many were not read.
        """
        if not 0 <= length <= self.length:
            raise UserError(f"{length} tokens can't be kept: {self.length} were read.")
        self.length = length

    def _tile(self, ids: Sequence[int]) -> Tensor:
        student, config = self.student, self.student.config
        products, eps = student.products, config.rms_norm_eps
        states = student.embed(ids)
        turns = student._turns(self.length, len(ids))
        for index, block in enumerate(student.blocks):
            inputs = products.rounded(states.clone(), block.norms["input_layernorm"], eps)
            attended = self._attend(index, block, turns, inputs)
            sub_norm = block.norms.get("self_attn.attn_sub_norm")
            states += products.ternary(block.output, products.rounded(attended, sub_norm, eps))
            inputs = products.rounded(states.clone(), block.norms["post_attention_layernorm"], eps)
            inner = products.ternary(block.up, inputs)
            if block.gate is None:
                inner = student._act(inner)
            else:
                inner *= student._act(products.ternary(block.gate, inputs))
            states += products.ternary(block.down, products.rounded(inner, block.norms.get("mlp.ffn_sub_norm"), eps))
        self.length += len(ids)
        return F.rms_norm(states, student._norm.shape, student._norm, eps)

    def _attend(self, index: int, block: _Block, turns: tuple[Tensor, Tensor], inputs: Rounded) -> Tensor:
        config, products = self.student.config, self.student.products
        width, tokens = config.width_of_head, len(inputs.sums)
        queries, keys, values = (
            products.ternary(layer, inputs).view(tokens, -1, width)
            for layer in (block.queries, block.keys, block.values)
        )
        if config.qk_norm:
            queries = F.rms_norm(queries, (width,), block.norms["self_attn.q_norm"], config.rms_norm_eps)
            keys = F.rms_norm(keys, (width,), block.norms["self_attn.k_norm"], config.rms_norm_eps)
        queries, keys = apply_rotary_pos_emb(queries, keys, *turns, unsqueeze_dim=1)
        kept_keys, kept_values = self.cache[index]
        until = self.length + tokens
        kept_keys[:, self.length : until] = keys.transpose(0, 1)
        kept_values[:, self.length : until] = values.transpose(0, 1)
        cap = config.attn_logit_softcapping or 0.0
        if tokens == 1:
            found = products.attend(queries[0].contiguous(), kept_keys, kept_values, until, width**-0.5, cap)
            return found.view(1, -1)
        places = torch.arange(until, device=self.student.device)
        seen = places <= places[self.length :, None]
        return _attend_tile(queries, kept_keys[:, :until], kept_values[:, :until], seen, cap)


def _attend_tile(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor, cap: float) -> Tensor:
    """Return attention of n tokens, `[n, H * d]`; `seen` `[n, length]` says who sees whom."""
    tokens, heads, width = queries.shape
    moved = queries.transpose(0, 1).unsqueeze(0)
    keys, values = keys.float().unsqueeze(0), values.float().unsqueeze(0)
    if not cap:
        found = F.scaled_dot_product_attention(moved, keys, values, attn_mask=seen, enable_gqa=True)
    else:
        repeats = heads // keys.shape[1]
        scores = moved @ keys.repeat_interleave(repeats, 1).transpose(-1, -2) * width**-0.5
        scores = (cap * torch.tanh(scores / cap)).masked_fill(~seen, float("-inf"))
        found = scores.softmax(-1) @ values.repeat_interleave(repeats, 1)
    return found[0].transpose(0, 1).reshape(tokens, heads * width)


def _turns(config: LimbeckBitNetConfig, device: torch.device) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Return what gives cosines and sines `[n, d]` for n positions from a first one on."""
    turning = LlamaRotaryEmbedding(config).to(device)
    nothing = torch.zeros(1, device=device)

    def turns(first: int, count: int) -> tuple[Tensor, Tensor]:
        cosines, sines = turning(nothing, torch.arange(first, first + count, device=device).unsqueeze(0))
        return cosines[0], sines[0]

    return turns


def _block(config: LimbeckBitNetConfig, tensors: dict[str, Tensor], index: int) -> _Block:
    prefix = f"model.layers.{index}."
    attended = config.num_attention_heads * config.width_of_head

    def layer(name: str, width: int) -> PackedLayer:
        return PackedLayer(tensors[f"{prefix}{name}.codes"], tensors[f"{prefix}{name}.gamma"], width)

    return _Block(
        queries=layer("self_attn.q_proj", config.hidden_size),
        keys=layer("self_attn.k_proj", config.hidden_size),
        values=layer("self_attn.v_proj", config.hidden_size),
        output=layer("self_attn.o_proj", attended),
        gate=layer("mlp.gate_proj", config.hidden_size) if config.gated_mlp else None,
        up=layer("mlp.up_proj", config.hidden_size),
        down=layer("mlp.down_proj", config.intermediate_size),
        norms={
            name.removeprefix(prefix).removesuffix(".weight"): tensor.clone()
            for name, tensor in tensors.items()
            if name.startswith(prefix) and name.endswith(".weight")
        },
    )
