"""From a student's folder to one with another tokenizer: what `limbeck tokenizer transplant` does.

The result appears under its name once it is whole. It is a model folder and nothing else (weights as safetensors,
configuration, tokenizer with its chat template); what became of the vocabulary stands beside it, in
`<folder>.transplant.json`.
"""

import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.engines.transformers import check_source, load_model, quiet
from limbeck.errors import LimbeckError, UserError
from limbeck.files import write_json
from limbeck.models.transplant import Transplanted, give_vocabulary, report, set_special_ids, transplant

Method = Literal["average", "tokensurgeon"]
TOKENSURGEON = "mergekit-tokensurgeon"


def transplant_folder(
    student: str,
    tokenizer: str,
    out: Path,
    *,
    method: Method = "average",
    vocabulary: int | None = None,
    revision: str | None = None,
    tokenizer_revision: str | None = None,
    seed: int = 1,
) -> Transplanted:
    """Write a student with another tokenizer.

    Args:
        student: its folder or repository.
        tokenizer: folder or repository of the tokenizer; where there is a model too, the rows of its vocabulary.
        out: the folder to write.
        method: `average`, or mergekit's `tokensurgeon`, which reads the weights that lie beside the tokenizer.
        vocabulary: rows of embeddings and head; None: as many as the model beside the tokenizer has, or its entries.
        revision: of the student's repository.
        tokenizer_revision: of the tokenizer's.
        seed: of what is drawn at random.

    Raises:
        UserError: a folder is missing or in the way, a tokenizer can't be read, the student has it already, or mergekit
            is not installed.
        LimbeckError: mergekit failed.
    """
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise UserError(f"{out}: there is something here already. Choose another --out, or remove it.")
    old, new = _tokenizer(student, revision, "STUDENT"), _tokenizer(tokenizer, tokenizer_revision, "--tokenizer")
    if old.backend_tokenizer.to_str() == new.backend_tokenizer.to_str():
        raise UserError(f"{student}: this student has the tokenizer of {tokenizer} already; nothing to transplant.")
    config, rows = _config(student, revision), vocabulary or _rows_beside(tokenizer, tokenizer_revision, len(new))
    with quiet():
        model = load_model(student, revision=revision, dtype=getattr(config, "dtype", None))
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if method == "average":
            result = transplant(model, old, new, vocabulary=rows, seed=seed)
        else:
            model, result = _by_tokensurgeon(student, tokenizer, partial / "surgeon", model, old, new, rows, seed)
        if (written := _generation(tokenizer, tokenizer_revision)) is not None and written.eos_token_id is not None:
            model.generation_config.eos_token_id = written.eos_token_id
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        new.model_max_length = min(new.model_max_length, longest or new.model_max_length)
        with quiet():
            model.save_pretrained(partial)
            new.save_pretrained(partial)
        shutil.rmtree(partial / "surgeon", ignore_errors=True)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    write_json(
        out.with_name(f"{out.name}.transplant.json"),
        {"student": student, "tokenizer": tokenizer, "method": method, "seed": seed, **asdict(result)},
    )
    return result


def _by_tokensurgeon(
    student: str,
    donor: str,
    folder: Path,
    model: PreTrainedModel,
    old: PreTrainedTokenizerBase,
    new: PreTrainedTokenizerBase,
    rows: int,
    seed: int,
) -> tuple[PreTrainedModel, Transplanted]:
    """Let mergekit make the rows; special tokens go by their role all the same, as mergekit knows no roles."""
    if (command := shutil.which(TOKENSURGEON)) is None:
        raise UserError("--method tokensurgeon: mergekit is not installed (pip install mergekit). Or use average.")
    result = report(model, old, new, rows)
    folder.parent.mkdir(parents=True, exist_ok=True)
    run = subprocess.run([command, student, donor, str(folder)], capture_output=True, text=True, check=False)
    if run.returncode or not (folder / "config.json").exists():
        said = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise LimbeckError(f"{TOKENSURGEON} {student} {donor}: it failed ({said}). Run it by itself to see more.")
    made = load_model(folder, dtype=model.dtype)
    give_vocabulary(made, rows, seed)
    set_special_ids(made, new)
    return made, result


def _tokenizer(name: str, revision: str | None, where: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    check_source(name)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{where}: {name}: no tokenizer can be loaded from here ({first}).") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None or not len(tokenizer):
        raise UserError(f"{where}: {name}: this tokenizer has no tokenizer.json. Save it as a fast tokenizer.")
    return tokenizer


def _config(name: str, revision: str | None) -> object:
    try:
        with quiet():
            return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"STUDENT: {name}: no model can be loaded from here ({first}).") from error


def _rows_beside(name: str, revision: str | None, entries: int) -> int:
    """Return the rows of the model that lies beside a tokenizer; the tokenizer's entries where there is none."""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return entries
    return max(entries, int(getattr(config.get_text_config(), "vocab_size", 0) or 0))


def _generation(name: str, revision: str | None) -> GenerationConfig | None:
    """Return how the model beside a tokenizer generates: which tokens end its answers."""
    try:
        return GenerationConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError):
        return None
