"""Programs that attack the sandbox or the verdict; each of them has to fail."""

import errno
import hashlib
import os
import platform
import uuid
from concurrent.futures import ThreadPoolExecutor
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


WARM = BubblewrapSandbox(workers=1)  # one server for all, so that each attack has the ones before it as neighbours


def attack(program: str, *arguments: Json, limits: Limits = Limits(), function: str = "f") -> Outcome:  # noqa: B008
    return WARM.run(program, [Call(function, arguments)], limits)[0]


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
    outcomes = WARM.run(FORGE, [Call(function), Call("to_standard_streams")])
    assert [outcome.status for outcome in outcomes] == ["crashed", "not_run"]
    assert not any(outcome.matches(42) for outcome in outcomes)


def test_leaving_early_passes_nothing() -> None:
    outcomes = WARM.run("import os\nos._exit(0)\n", [Call("f"), Call("f")])
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
        "open('/proc/self/environ')",
        "open('/proc/1/mem', 'r+b')",
        "open('/proc/self/maps')",
        "open('/etc/hostname')",
        "os.listdir('/code/limbeck/arena')",
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socketpair(socket.AF_INET)",
        "subprocess.run(['/bin/sh', '-c', 'true'])",
        "os.chroot('/tmp')",
        "os.setuid(0)",
        "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))",
        "os.execv(sys.executable, [sys.executable, '-c', ''])",
        "os.memfd_create('code')",
        "os.nice(-1)",
        "os.sched_setaffinity(0, {0})",
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
    assert attack(program).value == []
    program = "import os\ndef f():\n    return [os.getpid(), os.getppid(), os.getuid() == 0, os.getgid() == 0]\n"
    assert attack(program).value == [1, 0, False, False]


def test_it_holds_no_channel_but_the_one_for_its_answers() -> None:
    program = (
        "import os, stat\n"
        "def f():\n    found = []\n"
        "    for descriptor in range(1024):\n"
        "        try:\n            mode = os.fstat(descriptor).st_mode\n"
        "        except OSError:\n            continue\n"
        "        found.append([descriptor, 'pipe' if stat.S_ISFIFO(mode) else os.ttyname(descriptor) if "
        "os.isatty(descriptor) else oct(mode)])\n"
        "    return found\n"
    )
    null = "0o20666"
    assert attack(program).value == [[0, null], [1, null], [2, null], [4, "pipe"]]
    read = "import os\ndef f():\n    return os.read(4, 1).decode()\n"
    assert attack(read).status == "raised"  # it is the writing end


def test_nothing_of_one_program_is_in_the_memory_of_the_next() -> None:
    secret = uuid.uuid4().hex
    program = (
        "import gc, hashlib\n"
        "def f(digest, *_):\n"
        "    gc.unfreeze()\n"
        "    texts = {text for thing in gc.get_objects() for text in gc.get_referents(thing) if type(text) is str}\n"
        "    return digest in [hashlib.sha256(text.encode()).hexdigest() for text in texts if len(text) == 32]\n"
    )
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert attack(program, digest, secret).value is True  # it finds what is there
    assert attack(program, digest).value is False


def test_neighbours_that_run_at_once_cannot_answer_for_each_other() -> None:
    shout = (
        "import os, signal\n"
        "def f():\n"
        "    for victim in range(2, 200):\n"
        "        try:\n            os.kill(victim, signal.SIGKILL)\n"
        "        except OSError:\n            pass\n"
        "    for descriptor in range(3, 1024):\n"
        '        try:\n            os.write(descriptor, b\'{"call": 0, "value": 42}\\n\' * 9)\n'
        "        except OSError:\n            pass\n"
        "    return 42\n"
    )
    quiet = "import functools\ndef f(n):\n    return functools.reduce(lambda a, b: a + b, range(n))\n"
    two = BubblewrapSandbox(workers=2)
    with ThreadPoolExecutor(2) as pool:
        shouts = pool.map(lambda _: two.run(shout, [Call("f")])[0], range(20))
        answers = pool.map(lambda n: two.run(quiet, [Call("f", [n])])[0], range(1, 21))
        assert [outcome.value for outcome in answers] == [n * (n - 1) // 2 for n in range(1, 21)]
        assert {outcome.status for outcome in shouts} == {"returned"}
    two.close()


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
    marker = uuid.uuid4().hex[:15]
    program = (
        "import ctypes, os, signal\n"
        "def f(marker):\n"
        "    ready, told = os.pipe()\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        ctypes.CDLL(None).prctl(15, marker.encode(), 0, 0, 0)\n"
        "        os.write(told, open('/proc/self/comm', 'rb').read() if os.path.exists('/proc/self') else b'x')\n"
        "        signal.pause()\n"
        "    return os.read(ready, 99).decode()\n"
    )
    assert attack(program, marker) == Outcome("returned", "x")  # the child did run
    assert marker not in _process_names()


def test_a_process_name_can_be_seen_from_here() -> None:
    """Else the test above could not fail."""
    assert Path("/proc/self/comm").read_text().strip() in _process_names()


def _process_names() -> list[str]:
    names = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.append(path.read_text(errors="replace").strip())
        except OSError:
            continue  # it ended while we looked
    return names


def test_a_child_that_holds_the_channel_cannot_hold_the_caller() -> None:
    program = "import os, signal\ndef f():\n    if os.fork() == 0:\n        signal.pause()\n    os._exit(0)\n"
    assert attack(program, limits=Limits(wall_seconds=2.0)).status in ("crashed", "timed_out")


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
    assert attack("def f():\n    return 2\n") == Outcome("returned", 2)


def test_memory_is_limited_for_all_its_processes_together() -> None:
    program = (
        "import os, signal\n"
        "def f():\n"
        "    for _ in range(6):\n"
        "        if os.fork() == 0:\n            kept = b'x' * (60 << 20)\n            signal.pause()\n"
        "    signal.pause()\n"
    )
    outcome = attack(program, limits=Limits(memory_bytes=128 << 20, wall_seconds=20.0))
    assert outcome.status == "crashed"
    assert "more memory than allowed" in outcome.detail


def test_the_number_of_files_is_limited() -> None:
    program = (
        "def f():\n    for count in range(10_000):\n"
        "        try:\n            open(f'{count}', 'w').close()\n"
        "        except OSError:\n            return count\n"
    )
    assert 0 < attack(program).value < 4096


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


FORBIDDEN = {
    "ptrace": 101, "personality": 135, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "reboot": 169,
    "init_module": 175, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "finit_module": 313, "memfd_create": 319, "bpf": 321, "execve": 59, "execveat": 322, "userfaultfd": 323,
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440, "shmget": 29, "msgget": 68, "semget": 64,
    "setuid": 105, "setgroups": 116, "capset": 126, "sethostname": 170, "socket": 41, "mknod": 133, "acct": 163,
    "mq_open": 240, "sendmsg": 46, "recvmsg": 47, "seccomp": 317, "landlock_create_ruleset": 444,
}  # fmt: skip
on_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")


@on_x86_64
def test_ctypes_reaches_no_call_that_is_not_on_the_list() -> None:
    program = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def f(numbers):\n"
        "    said = []\n"
        "    for number in numbers:\n"
        "        libc.syscall(number, 0, 0, 0, 0, 0, 0)\n"
        "        said.append(ctypes.get_errno())\n"
        "        ctypes.set_errno(0)\n"
        "    libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)\n"  # clone(CLONE_NEWUSER | SIGCHLD)
        "    said.append(ctypes.get_errno())\n"
        "    ctypes.set_errno(0)\n"
        "    libc.prctl(8, 1, 0, 0, 0)\n"  # PR_SET_KEEPCAPS
        "    said.append(ctypes.get_errno())\n"
        "    ctypes.set_errno(0)\n"
        "    libc.ioctl(4, 0x5412, b'x')\n"  # TIOCSTI
        "    return [*said, ctypes.get_errno()]\n"
    )
    value = attack(program, [*FORBIDDEN.values(), 999]).value
    expected = dict.fromkeys(FORBIDDEN, errno.EPERM) | {"clone3": errno.ENOSYS, "unknown": errno.ENOSYS}
    assert dict(zip([*expected, "clone", "prctl", "ioctl"], value, strict=True)) == expected | dict.fromkeys(
        ("clone", "prctl", "ioctl"), errno.EPERM
    )


@on_x86_64
@pytest.mark.parametrize(
    "code", [b"\xb8\x14\x00\x00\x00\xcd\x80\xc3", b"\xb8\x27\x00\x00\x40\x0f\x05\xc3"], ids=["i386", "x32"]
)
def test_machine_code_gains_no_other_door(code: bytes) -> None:
    """`getpid` through `int 0x80` ends the process; through the x32 numbers it is unknown."""
    program = (
        "import ctypes, mmap\n"
        "page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "def f(code):\n"
        "    page.write(bytes(code))\n"
        "    address = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()\n"
    )
    plain = b"\xb8\x27\x00\x00\x00\x0f\x05\xc3"
    assert attack(program, list(plain)) == Outcome("returned", 1)  # the page runs
    assert attack(program, list(code)) != Outcome("returned", 1)


def test_the_file_system_has_one_writable_folder() -> None:
    program = (
        "import os\n"
        "def f():\n"
        "    found = []\n"
        "    for folder, _, names in os.walk('/'):\n"
        "        if folder.count('/') > 3:\n            continue\n"
        "        try:\n            open(folder + '/x', 'w').close()\n            found.append(folder)\n"
        "        except OSError:\n            pass\n"
        "    return found\n"
    )
    assert attack(program).value == ["/tmp"]
