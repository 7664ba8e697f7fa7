"""Where the pocket world's teacher lies, and how a name in a recipe or on the command line leads to it.

The teacher is shipped with the package; `pocket` stands for it wherever a model or a teacher is named.
"""

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.data.tokenizer import load_tokenizer
from limbeck.engines.transformers import load_model

POCKET = "pocket"


def teacher_folder() -> Path:
    """Return the folder of the shipped teacher: safetensors, configuration, tokenizer, model card."""
    return Path(str(files("limbeck.pocket"))) / "assets" / "teacher"


def resolve(name: str | Path) -> str:
    """Return what to load for a model's name: the shipped teacher's folder for `pocket`, the name itself otherwise."""
    return str(teacher_folder()) if str(name) == POCKET else str(name)


@lru_cache(maxsize=1)
def load_teacher() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the shipped teacher in float32 on the CPU, with its tokenizer."""
    return load_model(teacher_folder()), load_tokenizer(teacher_folder())
