"""The pocket world's teacher, loaded once."""

from functools import lru_cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.data.tokenizer import load_tokenizer
from limbeck.engines.transformers import load_model
from limbeck.pocket.places import POCKET, resolve, teacher_folder

__all__ = ["POCKET", "load_teacher", "resolve", "teacher_folder"]


@lru_cache(maxsize=1)
def load_teacher() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the shipped teacher in float32 on the CPU, with its tokenizer."""
    return load_model(teacher_folder()), load_tokenizer(teacher_folder())
