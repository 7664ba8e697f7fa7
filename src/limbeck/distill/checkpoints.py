"""Folders of checkpoints: whole or absent, the last k kept.

A checkpoint is written under a temporary name and renamed once everything in it is on the disk, with a list of its
files and their sizes (`complete.json`) as the last of them. What a killed run leaves behind has the temporary name, or
lacks a file or a part of one: it is not used, and removed by the next run.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.files import read_json, write_json

COMPLETE = "complete.json"
PREFIX = "checkpoint-"
PART = ".part"


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint of an optimisation step is."""
    return run / f"{PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    """Return the optimisation step of a checkpoint."""
    return int(checkpoint.name.removeprefix(PREFIX))


def unfinished_folder(run: Path, step: int) -> Path:
    """Return where a checkpoint is written before it is published."""
    return run / f".{PREFIX}{step}{PART}"


def begin(run: Path, step: int) -> Path:
    """Make an empty folder to write the checkpoint of a step to."""
    folder = unfinished_folder(run, step)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def publish(run: Path, step: int, keep: int) -> Path:
    """Make what was written the checkpoint of its step, then drop the ones before the last `keep`."""
    folder, target = unfinished_folder(run, step), checkpoint_folder(run, step)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _flush(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    write_json(folder / COMPLETE, {"step": step, "files": sizes})
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)
    _flush(run)
    for old in complete_checkpoints(run)[:-keep]:
        (old / COMPLETE).unlink()
        shutil.rmtree(old)
    return target


def complete_checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = [path for path in run.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit() and is_complete(path)]
    return sorted(found, key=step_of)


def is_complete(checkpoint: Path) -> bool:
    """Return whether everything that was written is there, by its size."""
    if not (checkpoint / COMPLETE).exists():
        return False
    try:
        sizes: dict[str, Any] = read_json(checkpoint / COMPLETE).get("files", {})
    except UserError:
        return False
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size for name, size in sizes.items()
    )


def drop_incomplete(run: Path) -> None:
    """Remove what a killed run left unfinished."""
    for path in [*run.glob(f"{PREFIX}*"), *run.glob(f".{PREFIX}*{PART}")]:
        if path.is_dir() and (path.name.startswith(".") or not is_complete(path)):
            shutil.rmtree(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
