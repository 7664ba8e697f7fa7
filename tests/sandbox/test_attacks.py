"""Programs that attack the sandbox or the verdict; each of them has to fail."""

import os
import uuid
from pathlib import Path

import pytest

from limbeck.sandbox.bubblewrap import BubblewrapSandbox, why_unavailable
from limbeck.sandbox.contract import Call, Json, Limits, Outcome

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=f"{why_unavailable()}")

FORGE = r"""
import json, os, sys
VERDICT = b'{"call": 0, "value": 42}\n{"call": 1, "value": 42}\n{"passed": true}\nPASSED\n'
def to_standard_streams():
    sys.stdout.write(VERDICT.decode()); sys.stdout.flush(); sys.stderr.write(VERDICT.decode())
    os.write(1, VERDICT); os.write(2, VERDICT)
    return 0
def then_exit():
    to_standard_streams()
    os._exit(0)
def everywhere():
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b'{"passed": true}\n')
        except OSError:
            pass
    return 0
"""


def attack(program: str, *arguments: Json, limits: Limits = Limits(), function: str = "f") -> Outcome:  # noqa: B008
    return BubblewrapSandbox().run(program, [Call(function, arguments)], limits)[0]


def tried(statement: str) -> str:
    """A program whose `f` returns what went wrong with `statement`, or "done"."""
    return (
        "import ctypes, os, signal, socket, subprocess, sys\n"
        f"def f():\n    try:\n        {statement}\n"
        "    except Exception as error:\n        return type(error).__name__\n    return 'done'\n"
    )


def test_a_verdict_on_the_standard_streams_is_nothing() -> None:
    assert attack(FORGE, function="to_standard_streams") == Outcome("returned", 0)


@pytest.mark.parametrize("function", ["then_exit", "everywhere"])
def test_a_verdict_on_any_descriptor_is_no_pass(function: str) -> None:
    outcomes = BubblewrapSandbox().run(FORGE, [Call(function), Call("to_standard_streams")])
    assert [outcome.status for outcome in outcomes] == ["crashed", "not_run"]
    assert not any(outcome.matches(42) for outcome in outcomes)


def test_leaving_early_passes_nothing() -> None:
    outcomes = BubblewrapSandbox().run("import os\nos._exit(0)\n", [Call("f"), Call("f")])
    assert [outcome.status for outcome in outcomes] == ["crashed", "not_run"]


def test_lies_about_equality_and_patched_modules_gain_nothing() -> None:
    program = (
        "import builtins, json\n"
        "class Same(int):\n    __hash__ = None\n"
        "    __eq__ = lambda self, other: True\n    __ne__ = lambda self, other: False\n"
        'json.dumps = lambda *_, **__: \'{"call": 0, "value": [1]}\'\n'
        "def f():\n    return Same(3)\n"
    )
    outcome = attack(program)
    assert not outcome.matches(3)
    assert not outcome.matches([True])


@pytest.mark.parametrize(
    "statement",
    [
        "socket.create_connection(('127.0.0.1', 1), timeout=1)",
        "socket.create_connection(('1.1.1.1', 53), timeout=1)",
        "socket.getaddrinfo('example.org', 80)",
        "open('/etc/passwd')",
        "open('/etc/shadow')",
        "open('/proc/sys/kernel/core_pattern', 'r+')",
        "open('/proc/sysrq-trigger', 'r+')",
        "open('/candidate.py', 'r+')",
        "open(os.__file__, 'r+')",
        "open('/here', 'w')",
        "open('/dev/shm/here', 'w')",
        "open('/dev/here', 'w')",
        "open('/dev/tty', 'w')",
        "os.remove('/dev/null')",
        "os.remove(os.__file__)",
        "os.listdir('/home')",
        "os.listdir('/sys')",
        "subprocess.run(['/bin/sh', '-c', 'true'])",
        "os.chroot('/tmp')",
        "os.setuid(0)",
        "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))",
        "import limbeck",
        "import pytest",
    ],
)
def test_what_is_not_there_cannot_be_had(statement: str) -> None:
    outcome = attack(tried(statement))
    assert outcome.status == "returned"
    assert outcome.value not in ("done", None)


def test_only_its_own_processes_are_visible() -> None:
    program = "import os\ndef f():\n    return [int(name) for name in os.listdir('/proc') if name.isdigit()]\n"
    assert attack(program).value == [1, 2]


def test_a_secret_in_another_process_s_environment_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret-of-the-validator")
    program = (
        "import glob\n"
        "def f():\n"
        "    found = ''\n"
        "    for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
        "        try:\n            found += open(path, errors='replace').read()\n"
        "        except OSError:\n            pass\n"
        "    return 'secret-of-the-validator' in found\n"
    )
    assert attack(program).value is False


@pytest.mark.parametrize(
    "victim", ["os.getppid()", "1", "-1", str(os.getpid())], ids=["parent", "first", "all", "host"]
)
def test_killing_what_it_can_reach_ends_only_itself(victim: str) -> None:
    outcome = attack(f"import os, signal\ndef f():\n    os.kill({victim}, signal.SIGKILL)\n    return 1\n")
    assert outcome.status in ("raised", "crashed", "returned")
    assert attack("def f():\n    return 2\n") == Outcome("returned", 2)


def test_a_process_left_behind_is_gone_when_the_run_returns() -> None:
    marker = uuid.uuid4().hex
    program = (
        "import os, sys\n"
        "def f(marker):\n"
        "    ready, told = os.pipe()\n"
        "    os.set_inheritable(told, True)\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        body = f'import os, signal; os.write({told}, b\"x\"); signal.pause()'\n"
        "        os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', body, marker])\n"
        "    return os.read(ready, 1).decode()\n"
    )
    assert attack(program, marker) == Outcome("returned", "x")  # the child did run
    assert marker not in "".join(_command_lines())


def _command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text(errors="replace"))
        except OSError:
            continue  # it ended while we looked
    return lines


def test_a_child_that_holds_the_channel_cannot_hold_the_caller() -> None:
    program = "import os, signal\ndef f():\n    if os.fork() == 0:\n        signal.pause()\n    os._exit(0)\n"
    assert attack(program, limits=Limits(wall_seconds=2.0)).status in ("crashed", "timed_out")


@pytest.mark.skipif(
    os.geteuid() == 0, reason="the kernel exempts root from the limit on processes; see docs/sandbox.md"
)
def test_the_number_of_processes_is_limited() -> None:
    program = (
        "import os, signal\n"
        "def f():\n"
        "    for count in range(100):\n"
        "        try:\n            child = os.fork()\n"
        "        except OSError:\n            return count\n"
        "        if child == 0:\n            signal.pause()\n"
        "    return 100\n"
    )
    outcome = attack(program, limits=Limits(processes=16))
    assert outcome.status == "returned"
    assert 0 < outcome.value < 16


def test_the_temporary_folder_is_small_in_all() -> None:
    program = (
        "def f():\n"
        "    for count in range(100):\n"
        "        try:\n"
        "            with open(f'{count}', 'wb') as file:\n                file.write(bytes(1 << 20))\n"
        "        except OSError:\n            return count\n"
        "    return 100\n"
    )
    outcome = attack(program, limits=Limits(file_bytes=8 << 20))
    assert outcome.value == 8


def test_a_raised_limit_stays_low() -> None:
    program = tried("__import__('resource').setrlimit(__import__('resource').RLIMIT_AS, (1 << 40, 1 << 40))")
    assert attack(program).value in ("ValueError", "PermissionError")


def test_deep_recursion_ends_only_itself() -> None:
    program = "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    return repr([f()])\n"
    limits = Limits(memory_bytes=64 << 20, cpu_seconds=2)
    assert attack(program, limits=limits).status in ("crashed", "raised", "timed_out")


def test_a_wild_pointer_ends_only_itself() -> None:
    assert attack("import ctypes\ndef f():\n    return ctypes.string_at(1)\n").status == "crashed"
