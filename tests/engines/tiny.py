"""A tokenizer and decoders small enough to be made in a test."""

from functools import lru_cache
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from limbeck.data.tokenizer import train_tokenizer
from limbeck.engines.transformers import quiet
from limbeck.models.llama import LlamaShape, new_llama

TINY = LlamaShape(hidden_size=16, layers=2, heads=2, key_value_heads=1, mlp_size=32, context=64)
TEXT = "def double(x):\n    return x + x\n\n\nWhat is left of 12 is 34 .\nAnswer: 56\n"


@lru_cache(maxsize=4)
def tokenizer_of(vocabulary: int = 300, text: str = TEXT) -> PreTrainedTokenizerBase:
    """A tokenizer of the house's kind; 266 entries are bytes and special tokens."""
    return train_tokenizer([text] * 3, vocabulary, TINY.context)


def new_model(
    seed: int = 1, *, spread: float = 8.0, tokenizer: PreTrainedTokenizerBase | None = None
) -> LlamaForCausalLM:
    """An untrained decoder in evaluation mode whose distributions are far from uniform."""
    model = new_llama(TINY, tokenizer or tokenizer_of(), seed)
    with torch.no_grad():
        model.model.norm.weight.mul_(spread)
    return model.eval()


def save(folder: Path, seed: int = 1, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Save a tiny model with its tokenizer, as `transformers` does."""
    with quiet():
        new_model(seed, tokenizer=tokenizer).save_pretrained(folder)
        (tokenizer or tokenizer_of()).save_pretrained(folder)
    return folder
