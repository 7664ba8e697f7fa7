"""nsjail and docker: the command lines, and the plumbing with a stand-in for the binary."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, UserError
from limbeck.sandbox import choice, docker, nsjail
from limbeck.sandbox.contract import Call, Limits, Outcome, Sandbox
from limbeck.sandbox.docker import DockerSandbox
from limbeck.sandbox.nsjail import NsjailSandbox
from limbeck.sandbox.process import CANDIDATE

STAND_IN = """#!{python}
import json, os, sys
with open({record!r}, "a") as record:
    record.write(json.dumps([sys.argv[1:], sorted(os.environ)]) + "\\n")
if {fails}:
    sys.exit("no such daemon")
if sys.argv[1] in ("--mode", "run"):
    os.execv({python!r}, [{python!r}, "-I", "-S", "-B", {candidate!r}, sys.argv[-1]])
"""
LIMITS = Limits(wall_seconds=20, memory_bytes=(300 << 20) + 1, file_bytes=5 << 20, processes=9, open_files=33)
PROGRAM = "import sys\ndef f(x):\n    print('noise', flush=True)\n    return x + 1\n"


class StandIn:
    """A binary on the path that writes down how it was called, and runs the candidate without walls."""

    def __init__(self, folder: Path, name: str, fails: bool = False) -> None:
        self._record = folder / "record"
        path = folder / name
        path.write_text(
            STAND_IN.format(python=sys.executable, record=str(self._record), candidate=str(CANDIDATE), fails=fails)
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self) -> list[list[str]]:
        return [json.loads(line)[0] for line in self._record.read_text().splitlines()]

    def environments(self) -> list[list[str]]:
        return [json.loads(line)[1] for line in self._record.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin")
    monkeypatch.setenv("API_KEY", "secret")
    return tmp_path


def pairs(command: list[str], option: str) -> list[str]:
    return [command[index + 1] for index, part in enumerate(command) if part == option]


def test_nsjail_is_told_every_wall(path: Path) -> None:
    stand_in = StandIn(path, "nsjail")
    assert NsjailSandbox().run(PROGRAM, [Call("f", [1]), Call("f", [2])], LIMITS) == [
        Outcome("returned", 2),
        Outcome("returned", 3),
    ]
    (command,) = stand_in.calls()
    options = command[: command.index("--")]
    assert pairs(options, "--user") == pairs(options, "--group") == ["65534"]
    assert {"--iface_no_lo", "--disable_proc"} <= set(options)
    # nothing that opens a wall
    assert not [
        part for part in options if part.startswith(("--disable_clone", "--keep_", "--cap", "--chroot", "--skip"))
    ]
    assert pairs(options, "--rlimit_as") == ["301"]
    assert pairs(options, "--rlimit_nproc") == ["9"]
    assert pairs(options, "--rlimit_nofile") == ["33"]
    assert pairs(options, "--time_limit") == ["21"]
    assert f"none:/tmp:tmpfs:size={5 << 20},nr_inodes=4096" in pairs(options, "--mount")
    assert set(pairs(options, "--bindmount")) <= {"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"}
    shown = pairs(options, "--bindmount_ro")
    assert not {"/", "/etc", "/home", "/root", "/proc", str(Path.home())} & set(shown)
    assert pairs(options, "--pass_fd") == [command[-1]]
    assert not {"API_KEY", "PATH", "HOME"} & set(stand_in.environments()[0])


def test_docker_is_told_every_wall(path: Path) -> None:
    stand_in = StandIn(path, "docker")
    assert DockerSandbox("mine:1").run(PROGRAM, [Call("f", [1])], LIMITS) == [Outcome("returned", 2)]
    command, farewell = stand_in.calls()
    options = command[: command.index("mine:1")]
    single = {"--network": "none", "--ipc": "none", "--user": "65534:65534", "--cap-drop": "ALL", "--pull": "never"}
    limits = {"--memory": str(LIMITS.memory_bytes), "--memory-swap": str(LIMITS.memory_bytes), "--pids-limit": "9"}
    assert {option: pairs(options, option) for option in single | limits} == {
        option: [value] for option, value in (single | limits).items()
    }
    assert "--read-only" in options
    assert pairs(options, "--security-opt") == ["no-new-privileges"]
    assert f"size={5 << 20}" in pairs(options, "--tmpfs")[0]
    assert all(mount.endswith("readonly") for mount in pairs(options, "--mount"))
    assert not {"--privileged", "--volume", "-v", "--device", "--cap-add", "--pid"} & set(options)
    assert pairs(options, "--env") == ["PYTHONHASHSEED=0"]
    assert farewell == ["rm", "--force", pairs(options, "--name")[0]]
    assert "API_KEY" not in stand_in.environments()[0]


@pytest.mark.parametrize(("name", "sandbox"), [("nsjail", NsjailSandbox()), ("docker", DockerSandbox())])
def test_a_binary_that_fails_judges_nothing(path: Path, name: str, sandbox: Sandbox) -> None:
    StandIn(path, name, fails=True)
    with pytest.raises(LimbeckError, match="no such daemon"):
        sandbox.run(PROGRAM, [Call("f", [1])])


@pytest.mark.parametrize(("name", "sandbox"), [("nsjail", NsjailSandbox()), ("docker", DockerSandbox())])
def test_a_program_cannot_write_a_verdict_on_standard_output(path: Path, name: str, sandbox: Sandbox) -> None:
    StandIn(path, name)
    forge = 'import os\ndef f():\n    os.write(1, b\'{"call": 0, "value": 42}\\n\')\n    return 0\n'
    assert sandbox.run(forge, [Call("f")]) == [Outcome("returned", 0)]


@pytest.mark.parametrize("module", [nsjail, docker], ids=["nsjail", "docker"])
def test_what_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    module.why_unavailable.cache_clear()
    try:
        assert "not installed" in module.why_unavailable()
    finally:
        module.why_unavailable.cache_clear()


def test_the_first_that_works_is_taken_and_a_name_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: dict[str, str | None] = {"bubblewrap": "none here.", "nsjail": None, "docker": None}
    known = {name: (make, lambda name=name: reasons[name]) for name, (make, _) in choice.KNOWN.items()}
    monkeypatch.setattr(choice, "KNOWN", known)
    assert choice.available() == ["nsjail", "docker"]
    assert choice.open_sandbox().name == "nsjail"
    assert choice.open_sandbox(name="docker").name == "docker"
    with pytest.raises(UserError, match=r"bubblewrap: none here\."):
        choice.open_sandbox(name="bubblewrap")
    with pytest.raises(UserError, match="bubblewrap, nsjail, docker"):
        choice.open_sandbox(name="chroot", unsafe_local=True)
