"""Untrained decoders in the Llama architecture, by shape and seed: the pocket world's teacher and dense students."""

import torch
from pydantic import Field
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from limbeck.seeds import derive_seed
from limbeck.settings import Settings


class LlamaShape(Settings):
    """The sizes of a Llama-architecture decoder with tied embeddings."""

    hidden_size: int = Field(192, gt=0)
    layers: int = Field(5, gt=0)
    heads: int = Field(6, gt=0)
    key_value_heads: int = Field(2, gt=0)
    mlp_size: int = Field(512, gt=0)
    context: int = Field(512, gt=0, description="longest input, in tokens")


def new_llama(shape: LlamaShape, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Return an untrained model for a tokenizer's vocabulary; its weights depend on shape and seed alone.

    Weights are drawn with a standard deviation of half of `hidden_size ** -0.5`.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.mlp_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=shape.hidden_size**-0.5 / 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights") % 2**63)
        return LlamaForCausalLM(config)
