"""Models of local folders, opened to write: packed students and whatever `transformers` loads.

Nothing is asked of the network: what is no folder is refused.
"""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from limbeck.engines.generation import open_transformers_generator
from limbeck.engines.settings import TransformersEngine
from limbeck.engines.writing import LocalGenerator
from limbeck.errors import UserError
from limbeck.models.packed.engine import PackedEngine, is_packed, open_packed
from limbeck.settings import validate_settings


def check_folder(name: str | Path) -> Path:
    """Return the folder of a model.

    Raises:
        UserError: there is none of this name.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"{name}: no such folder. Name the folder of a model; nothing is downloaded here.")
    return folder


def open_local(
    folder: Path, tokenizer: PreTrainedTokenizerBase, *, device: str = "cpu", threads: int | None = None
) -> LocalGenerator:
    """Return a generator for what lies in a folder: a packed student goes before weights beside it.

    Args:
        folder: of the model.
        tokenizer: its tokenizer.
        device: cpu, or a GPU.
        threads: for packed students on a CPU.

    Raises:
        UserError: there is no model in it, or none that can be loaded.
        IntegrityError: a packed student's file is not whole.
    """
    if is_packed(folder):
        asked = {"device": device, "threads": threads, "reuse": True}
        return open_packed(str(folder), None, validate_settings(asked, PackedEngine, str(folder)), tokenizer)
    return open_transformers_generator(str(folder), None, TransformersEngine(device=device), tokenizer)
