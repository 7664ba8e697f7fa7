"""Where a training run keeps its files: beside the folder of its student, which holds the student and nothing else."""

from pathlib import Path

RESULT = "training.json"
PAGE = "training.html"
PREPARED = "prepared"


def run_folder(folder: Path) -> Path:
    """Return where a run keeps its own files."""
    return folder.with_name(f"{folder.name}.run")
