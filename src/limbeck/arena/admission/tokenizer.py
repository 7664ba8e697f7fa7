"""Check `tokenizer`: the candidate cuts text exactly as the teacher does.

Files equal to the teacher's need no loading, nor does another vocabulary. What remains is loaded by `tokenizer_probe`
in a process of its own, under a limit of processor time, because parsing a stranger's tokenizer may crash or hang
whoever does it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from limbeck.arena.admission.registry import RefusalError, Rules, check
from limbeck.arena.admission.submission import Submission
from limbeck.arena.faults import Fault, ForeignError

MAX_TOKENIZER_BYTES = 64 << 20
SAME_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
NEUTRAL_KEYS = frozenset(
    {
        "is_local",
        "local_files_only",
        "name_or_path",
        "model_max_length",
        "padding_side",
        "truncation_side",
        "chat_template",
    }
)
"""Keys of tokenizer_config.json that do not touch how text is cut."""

_MEND = (
    "Copy tokenizer.json and tokenizer_config.json from the teacher into the folder, and delete other tokenizer files."
)


@check("tokenizer", cost=20, needs=("files", "config"))
def tokenizer(submission: Submission, rules: Rules) -> str:
    """The tokenizer is the teacher's: equal files, or an equal digest and equal encodings of reference texts."""
    if "tokenizer.json" not in submission.files:
        raise RefusalError("there is no tokenizer.json.", _MEND)
    for path in SAME_FILES:
        if path in submission.files and submission.files[path].size > MAX_TOKENIZER_BYTES:
            raise RefusalError(
                f"{path} has {submission.files[path].size:,} bytes, at most {MAX_TOKENIZER_BYTES:,}.", _MEND
            )
    if _files_equal(submission, rules.teacher):
        return "the teacher's files"
    _compare_vocabularies(submission, rules.teacher)
    answer = _probe(submission.repository.folder(), rules.teacher)
    expected = rules.tokenizer or answer["teacher_digest"]
    if answer["digest"] != expected:
        raise RefusalError(
            f"another tokenizer than the teacher's (digest {answer['digest'][:12]}…, not {expected[:12]}…).",
            _MEND,
        )
    if answer["differs_on"] is not None:
        raise RefusalError(f"it cuts {answer['differs_on']!r} differently from the teacher.", _MEND)
    return f"digest and encodings are the teacher's ({expected[:12]}…)"


def _files_equal(submission: Submission, teacher: Path) -> bool:
    for path in SAME_FILES:
        mine, original = submission.files.get(path), teacher / path
        if mine is None or not original.is_file():
            if mine is not None or path == "tokenizer.json":
                return False
            continue
        if mine.size != original.stat().st_size:
            return False
        if submission.repository.read(path, 0, mine.size) != original.read_bytes():
            return False
    return _settings_of(submission) == _teacher_settings(teacher)


def _compare_vocabularies(submission: Submission, teacher: Path) -> None:
    """Refuse another vocabulary by the files alone: nothing of a stranger's has to be loaded for that."""
    model = submission.json("tokenizer.json", MAX_TOKENIZER_BYTES).get("model")
    original = json.loads((teacher / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    if not isinstance(model, dict) or model.get("vocab") != original["vocab"]:
        raise RefusalError("another tokenizer than the teacher's: its vocabulary is not the same.", _MEND)


def _settings_of(submission: Submission) -> dict[str, Any]:
    if "tokenizer_config.json" not in submission.files:
        return {}
    return _cutting(submission.json("tokenizer_config.json"))


def _teacher_settings(teacher: Path) -> dict[str, Any]:
    path = teacher / "tokenizer_config.json"
    if not path.is_file():
        return {}
    return _cutting(json.loads(path.read_text(encoding="utf-8")))


def _cutting(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in NEUTRAL_KEYS}


def _probe(candidate: Path, teacher: Path) -> dict[str, Any]:
    """Load both tokenizers in a child process and return what it found.

    Raises:
        RefusalError: the candidate's can't be loaded.
        ForeignError: the teacher's can't be, or the machine ended the child.
    """
    command = [sys.executable, "-m", "limbeck.arena.admission.tokenizer_probe", str(candidate), str(teacher)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = child.stdout.strip().splitlines()
    if child.returncode == 0 and lines:
        answer = json.loads(lines[-1])
        if answer.get("teacher_error"):
            raise ForeignError(f"the teacher's tokenizer cannot be loaded: {answer['teacher_error']}", Fault.TEACHER)
        if answer.get("error"):
            raise RefusalError(f"the tokenizer cannot be loaded: {answer['error']}", _MEND)
        return dict(answer)
    if not lines or lines[-1] != "teacher loaded":
        said = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise ForeignError(f"the tokenizer could not be checked on this machine ({said}).")
    raise RefusalError("loading the tokenizer crashes, or takes too long.", _MEND)
