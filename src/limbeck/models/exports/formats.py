"""The formats of `limbeck export`: from a student's folder to what others run."""

import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.errors import UserError
from limbeck.models.bitnet import LimbeckBitNetConfig, LimbeckBitNetForCausalLM
from limbeck.models.exports.gguf_file import save_gguf
from limbeck.models.exports.huggingface import save_huggingface
from limbeck.models.packed.files import NAME as PACKED
from limbeck.models.packed.files import read_packed, save_packed, unpack_student
from limbeck.settings import nearest

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def load_student(folder: Path) -> LimbeckBitNetForCausalLM:
    """Return the BitNet student of a folder, packed or not, in float32.

    Raises:
        UserError: the folder holds none.
    """
    if (folder / PACKED).exists():
        return unpack_student(read_packed(folder))
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no config.json here. Name the folder of a student.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", use_safetensors=True, local_files_only=True)
    if not isinstance(model, LimbeckBitNetForCausalLM):
        raise UserError(
            f"{folder}: a {type(model).__name__}, which `transformers` runs as it is. Only BitNet students (model_type "
            f"{LimbeckBitNetConfig.model_type}) are exported."
        )
    return model.eval()


def export(folder: Path, form: str, output: Path) -> Path:
    """Write the student of a folder in another format; return what was written.

    Args:
        folder: of the student, with its tokenizer.
        form: `packed`, `hf`, `gguf` or `safetensors`.
        output: the folder to write to; for `gguf` it may be the name of the file.

    Raises:
        UserError: there is no such format, or it can't express the student; the reason is named.
    """
    if form not in FORMATS:
        raise UserError(f"no format is called {form!r}.{nearest(form, list(FORMATS))} There are {', '.join(FORMATS)}.")
    return FORMATS[form](load_student(folder), folder, output)


def _packed(student: LimbeckBitNetForCausalLM, folder: Path, output: Path) -> Path:
    save_packed(student, output)
    if student.generation_config is not None:  # chat models end a turn with a token of their own
        student.generation_config.save_pretrained(output)
    return _with_tokenizer(folder, output)


def _huggingface(student: LimbeckBitNetForCausalLM, folder: Path, output: Path) -> Path:
    save_huggingface(student, output)
    return _with_tokenizer(folder, output)


def _safetensors(student: LimbeckBitNetForCausalLM, folder: Path, output: Path) -> Path:
    student.save_pretrained(output)
    return _with_tokenizer(folder, output)


def _gguf(student: LimbeckBitNetForCausalLM, folder: Path, output: Path) -> Path:
    path = output if output.suffix == ".gguf" else output / f"{folder.resolve().name}.gguf"
    save_gguf(student, AutoTokenizer.from_pretrained(folder, local_files_only=True), path, name=folder.resolve().name)
    return path


def _with_tokenizer(folder: Path, output: Path) -> Path:
    for name in TOKENIZER:
        if (folder / name).exists() and folder.resolve() != output.resolve():
            shutil.copyfile(folder / name, output / name)
    return output


FORMATS: dict[str, Callable[[LimbeckBitNetForCausalLM, Path, Path], Path]] = {
    "packed": _packed,
    "hf": _huggingface,
    "gguf": _gguf,
    "safetensors": _safetensors,
}
