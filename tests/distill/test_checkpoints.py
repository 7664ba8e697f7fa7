"""A checkpoint is whole or not there, whatever was cut off or cut short; the last k are kept."""

from pathlib import Path

import pytest

from limbeck.distill.checkpoints import (
    COMPLETE,
    begin,
    complete_checkpoints,
    drop_incomplete,
    publish,
    step_of,
    unfinished_folder,
)


def written(run: Path, step: int, keep: int = 10) -> Path:
    folder = begin(run, step)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "inside").mkdir()
    (folder / "inside" / "state.json").write_text("{}")
    return publish(run, step, keep)


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10, 12):
        written(tmp_path, step, keep=2)
    assert [step_of(path) for path in complete_checkpoints(tmp_path)] == [10, 12]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12"]


def test_what_was_not_published_is_not_used_and_is_removed(tmp_path: Path) -> None:
    written(tmp_path, 2)
    (begin(tmp_path, 4) / "model.safetensors").write_bytes(b"half")
    assert [step_of(path) for path in complete_checkpoints(tmp_path)] == [2]
    drop_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("name", ["model.safetensors", "inside/state.json", COMPLETE])
@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_checkpoint_that_lost_something_is_not_used(tmp_path: Path, name: str, content: str | None) -> None:
    kept, broken = written(tmp_path, 2), written(tmp_path, 4)
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_text(content)
    assert complete_checkpoints(tmp_path) == [kept]
    drop_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    written(tmp_path, 2)
    (begin(tmp_path, 2) / "model.safetensors").write_bytes(b"newer weights")
    assert (publish(tmp_path, 2, 1) / "model.safetensors").read_bytes() == b"newer weights"
    assert not unfinished_folder(tmp_path, 2).exists()


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    written(tmp_path, 2, keep=1)
    drop_incomplete(tmp_path)
    assert (tmp_path / "runs").is_dir()
