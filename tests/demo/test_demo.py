"""The demo: killed in every step and taken up it ends as if nothing had happened; and its own check can fail."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, UserError
from limbeck.files import sha256_file
from limbeck.pocket.demo import Budget, check_distilled_is_closer, run_demo
from limbeck.pocket.measure import load_measurement

pytestmark = pytest.mark.xdist_group("demo")  # one process makes the undisturbed demo, once

SCRIPT = Path(__file__).with_name("killed.py")
RESULTS = (
    "teacher.json",
    "signals/manifest.json",
    "students/hard-labels/model.safetensors",
    "students/distilled/model.safetensors",
    "measurements/teacher.json",
    "measurements/hard-labels.json",
    "measurements/distilled.json",
    "arena/crowning.json",
    "report.html",
)


def demo(folder: Path, step: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder), *([] if step is None else [str(step)])]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "demo"
    done = demo(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html")
    return folder


def test_killed_in_every_step_it_ends_the_same(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for step in range(1, 7):
        died = demo(folder, step)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert f"Step {step} of 6" in died.stderr
        assert f"Step {step + 1} of 6" not in died.stderr
    assert not (folder / "report.html").exists()
    resumed = demo(folder)
    assert resumed.returncode == 0, resumed.stderr
    same = {name: sha256_file(folder / name) == sha256_file(whole / name) for name in RESULTS[1:]}
    paths = {"signals/manifest.json": True, "report.html": True}
    assert same == dict.fromkeys(RESULTS[1:], True) | paths


def test_again_it_does_nothing_twice(whole: Path) -> None:
    before = {name: (whole / name).stat().st_mtime_ns for name in RESULTS[:-1]}
    again = demo(whole)
    assert again.returncode == 0, again.stderr
    assert {name: (whole / name).stat().st_mtime_ns for name in RESULTS[:-1]} == before


def test_the_distilled_student_is_crowned(whole: Path) -> None:
    crowning = json.loads((whole / "arena" / "crowning.json").read_text())
    assert crowning["names"][crowning["king"]] == "distilled"
    assert sorted(crowning["weights"].values())[-1] == 65535


def test_the_report_stands_alone(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    assert "<script" not in page
    assert 'src="http' not in page and "url(http" not in page
    for words in ("KL by position", "The crown", "What they can do", "identical to the byte"):
        assert words in page


def test_the_demos_check_fails_when_both_students_are_the_same(whole: Path) -> None:
    distilled = load_measurement(whole / "measurements" / "distilled.json")
    with pytest.raises(LimbeckError, match=r"the demo's own check failed: .* not measurably closer"):
        check_distilled_is_closer(distilled, replace(distilled, name="a copy"))


def test_the_demos_check_fails_when_distillation_did_harm(whole: Path) -> None:
    hard = load_measurement(whole / "measurements" / "hard-labels.json")
    distilled = load_measurement(whole / "measurements" / "distilled.json")
    assert check_distilled_is_closer(hard, distilled).low > 0
    with pytest.raises(LimbeckError, match="KL saved -"):
        check_distilled_is_closer(distilled, hard)


def test_a_folder_with_another_demo_is_refused(whole: Path) -> None:
    with pytest.raises(UserError, match="holds a demo of another seed or budget"):
        run_demo(whole, seed=4, budget=Budget.quick())
