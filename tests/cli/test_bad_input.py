"""Bad input on the command line: one clear line that names the thing and the fix, the right exit code, no traceback."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from limbeck.pocket.world import teacher_folder
from tests.small_world import recipe_data


def limbeck(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from limbeck.cli.main import run; run()", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, "COLUMNS": "200"}
    )


def complaint(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of an error; everything else about it is checked here."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("limbeck: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    "command", ["demo", "pocket", "capture", "train", "evaluate", "check", "submit", "validate", "verify", "serve"]
)
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    done = limbeck(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert done.stdout.count("\n") > 5


def test_wrong_paths(tmp_path: Path) -> None:
    assert "nowhere.yaml: no such file" in complaint(limbeck("train", "nowhere.yaml", cwd=tmp_path), 2)
    assert "nowhere.jsonl: no such file" in complaint(
        limbeck("capture", "--model", "pocket", "--dataset", "nowhere.jsonl", "--output", "out", cwd=tmp_path), 2
    )
    assert "nowhere" in complaint(limbeck("evaluate", "nowhere", cwd=tmp_path), 2)
    assert "nowhere: no such folder" in complaint(limbeck("check", "nowhere", cwd=tmp_path), 2)
    assert "nowhere: there is no arena" in complaint(
        limbeck("verify", "last", "--arena-dir", "nowhere", cwd=tmp_path), 2
    )
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(teacher_folder(), folder)
    (folder / "model.safetensors").unlink()
    (folder / "card.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    assert "pytorch_model.bin: a pickle checkpoint" in complaint(limbeck("evaluate", folder, cwd=tmp_path), 2)
    done = limbeck("check", folder, cwd=tmp_path)
    assert done.returncode == 1
    assert "pytorch_model.bin" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_student_with_another_tokenizer(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(world / "student", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_data(world, tmp_path / "out", model=str(folder))))
    line = complaint(limbeck("train", recipe, cwd=tmp_path), 2)
    assert "this student's tokenizer" in line and "is not the one that" in line
    assert not (tmp_path / "out").exists()


def test_a_truncated_shard_is_named(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "signals", tmp_path / "signals")
    shard = next((tmp_path / "signals").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-100])
    data = recipe_data(world, tmp_path / "out")
    data["dataset"]["train_dataset"]["disk_path"] = str(tmp_path / "signals")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    line = complaint(limbeck("train", "recipe.yaml", cwd=tmp_path), 1)
    assert shard.name in line and "Remove the file and run the capture again" in line


def test_an_unknown_key_names_the_nearest(world: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_data(world, tmp_path / "out")))
    line = complaint(limbeck("train", recipe, "--set", "optimizer.momntum=0.9", cwd=tmp_path), 2)
    assert "unknown key 'optimizer.momntum'. Did you mean 'momentum'?" in line


def test_the_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    done = limbeck("train", "nowhere.yaml", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr
