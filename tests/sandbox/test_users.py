"""The sandbox started by root and by an ordinary user: the same walls, and a program that is nobody either way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.sandbox.bubblewrap import walls, why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=f"{why_unavailable()}")
NOBODY = 65534

JOB = """
import os, resource, sys
sys.path.insert(0, {source!r})
from limbeck.sandbox.bubblewrap import BubblewrapSandbox, why_unavailable
from limbeck.sandbox.contract import Call, Limits
program = '''
import os, signal
def who():
    return [os.getuid(), os.getgid(), os.getpid()]
def forks():
    for count in range(100):
        try:
            child = os.fork()
        except OSError:
            return count
        if child == 0:
            signal.pause()
def reads():
    return [path for path in ('/etc/shadow', '/proc/1/environ', {secret!r}) if os.access(path, os.R_OK)]
def writes():
    return [path for path in ('/', '/usr/lib', '/code', os.__file__) if os.access(path, os.W_OK)]
'''
assert why_unavailable() is None, why_unavailable()
sandbox = BubblewrapSandbox(workers=1)
calls = [Call(name) for name in ('who', 'reads', 'writes', 'forks')]
outcomes = sandbox.run(program, calls, Limits(processes=12))
print(os.geteuid(), [outcome.value for outcome in outcomes])
"""


def job(python: str, secret: Path, **identity: object) -> str:
    source = str(Path(__file__).parents[2] / "src")
    code = JOB.format(source=source, secret=str(secret))
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, cwd="/", **identity)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def system_python() -> str | None:
    """An interpreter that an ordinary user can reach, of a version that this package supports."""
    found = shutil.which("python3", path="/usr/bin:/bin")
    if found is None:
        return None
    source = Path(__file__).parents[2] / "src"
    check = (
        f"import sys; sys.path.insert(0, {str(source)!r}); assert sys.version_info >= (3, 11); import limbeck.errors"
    )
    nobody = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
    done = subprocess.run([found, "-c", check], capture_output=True, check=False, cwd="/", **nobody)
    return found if done.returncode == 0 else None


def expected(starter: int) -> str:
    return f"{starter} [[{NOBODY}, {NOBODY}, 1], [], [], 11]"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("x")
    path.chmod(0o644)
    return path


def test_started_by_whoever_runs_the_tests(secret: Path) -> None:
    assert job(sys.executable, secret) == expected(os.geteuid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_started_by_an_ordinary_user(secret: Path) -> None:
    python = system_python()
    if python is None:
        pytest.skip("no interpreter here that an ordinary user can reach")
    assert job(python, secret, user=NOBODY, group=NOBODY, extra_groups=[]) == expected(NOBODY)


@pytest.mark.parametrize("user", [0, 1000])
def test_the_walls_of_root_need_no_user_namespace_and_those_of_others_do(
    monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    command = walls()
    assert ("--unshare-user" in command) == (user != 0)
    kept = [command[index + 1] for index, part in enumerate(command) if part == "--cap-add"]
    assert kept == (["CAP_SETUID", "CAP_SETGID"] if user == 0 else [])
    assert command[command.index("--cap-drop") + 1] == "ALL"
