"""Where the shipped teacher lies, and how a name in a recipe or on the command line leads to it.

`pocket` stands for it wherever a model or a teacher is named. Nothing heavy is imported here.
"""

from importlib.resources import files
from pathlib import Path

POCKET = "pocket"


def teacher_folder() -> Path:
    """Return the folder of the shipped teacher: safetensors, configuration, tokenizer, model card."""
    return Path(str(files("limbeck.pocket"))) / "assets" / "teacher"


def resolve(name: str | Path) -> str:
    """Return what to load for a model's name: the shipped teacher's folder for `pocket`, the name itself otherwise."""
    return str(teacher_folder()) if str(name) == POCKET else str(name)
