"""A small tokenizer for tests."""

from functools import lru_cache

from transformers import PreTrainedTokenizerFast

from limbeck.data.tokenizer import train_tokenizer


@lru_cache(maxsize=1)
def byte_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a few words, and 12 numbers\n" * 4], 280, 64)
