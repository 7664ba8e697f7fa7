"""The BitNet student: a decoder in the style of `transformers`, ternary or as its dense twin.

A block is `h += Attention(RMSNorm(h)); h += MLP(RMSNorm(h))`, with rotary positions and grouped queries. Tensors are
named as in `BitNetForCausalLM` (and `q_norm`, `k_norm` as in Qwen3), so that exports copy them by name. Attention with
a soft-cap has no fused kernel on a CPU, and runs as plain products there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.utils.output_capturing import capture_outputs

from limbeck.models.bitnet.configuration import LimbeckBitNetConfig
from limbeck.models.bitnet.linear import TernaryLinear


def linear(config: LimbeckBitNetConfig, inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer of a student: ternary, or ordinary in its dense twin."""
    if not config.ternary:
        return nn.Linear(inputs, outputs, bias=False)
    return TernaryLinear(inputs, outputs, config.weight_scale, config.activation_bits)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, and the norms and cap that the configuration asks for."""

    def __init__(self, config: LimbeckBitNetConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = head = config.width_of_head
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = head**-0.5
        self.is_causal = True
        width, kept = config.num_attention_heads * head, config.num_key_value_heads * head
        self.q_proj = linear(config, config.hidden_size, width)
        self.k_proj = linear(config, config.hidden_size, kept)
        self.v_proj = linear(config, config.hidden_size, kept)
        self.o_proj = linear(config, width, config.hidden_size)
        if config.sub_norms:
            self.attn_sub_norm = LlamaRMSNorm(width, config.rms_norm_eps)
        if config.qk_norm:
            self.q_norm = LlamaRMSNorm(head, config.rms_norm_eps)
            self.k_norm = LlamaRMSNorm(head, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs `[B, T, D]`, and attention's weights where the implementation gives them."""
        config, leading = self.config, hidden_states.shape[:-1]
        queries, keys, values = (
            product(hidden_states).view(*leading, -1, self.head_dim)
            for product in (self.q_proj, self.k_proj, self.v_proj)
        )
        if config.qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
        queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            config._attn_implementation, eager_attention_forward
        )
        if config.attn_logit_softcapping is not None:
            kwargs["softcap"] = config.attn_logit_softcapping
        found, weights = attend(
            self, queries, keys, values, attention_mask, scaling=self.scaling,
            dropout=config.attention_dropout if self.training else 0.0, **kwargs,
        )  # fmt: skip
        found = found.reshape(*leading, -1).contiguous()
        if config.sub_norms:
            found = self.attn_sub_norm(found)
        return self.o_proj(found), weights


class Mlp(nn.Module):
    """`down(act(gate(x)) * up(x))`, or without a gate `down(act(up(x)))`."""

    def __init__(self, config: LimbeckBitNetConfig) -> None:
        super().__init__()
        if config.gated_mlp:
            self.gate_proj = linear(config, config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config, config.intermediate_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        if config.sub_norms:
            self.ffn_sub_norm = LlamaRMSNorm(config.intermediate_size, config.rms_norm_eps)
        self.config = config

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs `[B, T, D]`."""
        if self.config.gated_mlp:
            inner = self.act_fn(self.gate_proj(inputs)) * self.up_proj(inputs)
        else:
            inner = self.act_fn(self.up_proj(inputs))
        return self.down_proj(self.ffn_sub_norm(inner) if self.config.sub_norms else inner)


class Block(GradientCheckpointingLayer):
    """One layer of the decoder."""

    def __init__(self, config: LimbeckBitNetConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.mlp = Mlp(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Return hidden states `[B, T, D]` behind the block."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class LimbeckBitNetPreTrainedModel(PreTrainedModel):
    """What both models share with `transformers`."""

    config: LimbeckBitNetConfig
    config_class = LimbeckBitNetConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": Block, "attentions": Attention}  # noqa: RUF012

    @property
    def _supports_sdpa(self) -> bool:
        """Whether fused attention computes what the configuration asks for: it knows no cap."""
        return self.config.attn_logit_softcapping is None

    @property
    def _supports_flex_attn(self) -> bool:
        return True


class LimbeckBitNetModel(LimbeckBitNetPreTrainedModel):
    """The decoder without its output head."""

    def __init__(self, config: LimbeckBitNetConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return final hidden states `[B, T, D]`, after the last norm, and the cache if one is kept."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not (self.training and self.gradient_checkpointing):
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(states.shape[1], device=states.device) + seen).unsqueeze(0)
        mask = create_causal_mask(
            config=self.config, inputs_embeds=states, attention_mask=attention_mask,
            past_key_values=past_key_values, position_ids=position_ids,
        )  # fmt: skip
        turns = self.rotary_emb(states, position_ids=position_ids)
        for block in self.layers:
            states = block(
                states, attention_mask=mask, position_embeddings=turns, position_ids=position_ids,
                past_key_values=past_key_values, **kwargs,
            )  # fmt: skip
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states), past_key_values=past_key_values)


class LimbeckBitNetForCausalLM(LimbeckBitNetPreTrainedModel, GenerationMixin):
    """The decoder with its output head, which is never ternary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LimbeckBitNetConfig) -> None:
        super().__init__(config)
        self.model = LimbeckBitNetModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits `[B, T, V]`, or of the last `logits_to_keep` positions; and the loss, given `labels`."""
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs,
        )  # fmt: skip
        states = found.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(states[:, kept, :])
        if (cap := self.config.final_logit_softcapping) is not None:
            logits = torch.tanh(logits / cap) * cap
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=found.past_key_values, hidden_states=found.hidden_states,
            attentions=found.attentions,
        )  # fmt: skip
