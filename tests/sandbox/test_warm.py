"""Warm servers: they serve several threads, survive what happens to a neighbour, and end with their host."""

import os
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError
from limbeck.sandbox.bubblewrap import BubblewrapSandbox, server_command, why_unavailable
from limbeck.sandbox.contract import Call, Limits, Outcome
from limbeck.sandbox.warm import WarmServer

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=f"{why_unavailable()}")
ONE = "def f(x=1):\n    return x\n"


def test_threads_share_the_servers() -> None:
    sandbox = BubblewrapSandbox(workers=2)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: sandbox.run(ONE, [Call("f", [n])])[0], range(24)))
    assert found == [Outcome("returned", n) for n in range(24)]
    sandbox.close()


def test_every_run_has_the_limits_it_asks_for() -> None:
    sandbox = BubblewrapSandbox(workers=1)
    program = (
        "import os, resource\n"
        "def f():\n"
        "    folder = os.statvfs('/tmp')\n"
        "    return [folder.f_blocks * folder.f_frsize, resource.getrlimit(resource.RLIMIT_NOFILE)[1]]\n"
    )
    for size, files in ((1 << 20, 20), (1 << 20, 20), (2 << 20, 30), (1 << 20, 20)):
        limits = Limits(file_bytes=size, open_files=files)
        assert sandbox.run(program, [Call("f")], limits)[0].value == [size, files]
    sandbox.close()


def test_a_job_larger_than_a_pipe_arrives() -> None:
    sandbox = BubblewrapSandbox(workers=1)
    text = "é" * 300_000
    program = f"def f(x):\n    return len(x)\n# {'-' * 500_000}\n"
    assert sandbox.run(program, [Call("f", [text])] * 2) == [Outcome("returned", 300_000)] * 2
    sandbox.close()


def test_programs_that_kill_each_other_s_time_leave_the_server_warm() -> None:
    server = WarmServer(server_command)
    for program in ("import os\nos._exit(3)\n", "while True:\n    pass\n", "def f(:\n", "import os\nos.abort()\n"):
        assert server.run(program, [Call("f")], Limits(wall_seconds=0.5))[0].status != "returned"
        assert server.run(ONE, [Call("f")], Limits()) == [Outcome("returned", 1)]
    server.close()


def test_a_server_that_was_killed_is_replaced() -> None:
    sandbox = BubblewrapSandbox(workers=1)
    assert sandbox.run(ONE, [Call("f")]) == [Outcome("returned", 1)]
    server = sandbox._pool._servers.queue[0]
    os.killpg(server._process.pid, signal.SIGKILL)
    server._process.wait()
    assert sandbox.run(ONE, [Call("f")]) == [Outcome("returned", 1)]
    sandbox.close()


def test_limits_that_cannot_be_set_are_an_error_and_judge_nothing() -> None:
    sandbox = BubblewrapSandbox(workers=1)
    with pytest.raises(LimbeckError, match="not judged"):
        sandbox.run(ONE, [Call("f")], Limits(open_files=-7))
    assert sandbox.run(ONE, [Call("f")]) == [Outcome("returned", 1)]
    sandbox.close()


def test_a_command_that_does_not_start_is_an_error() -> None:
    with pytest.raises(LimbeckError, match="could not be started"):
        WarmServer(lambda control: ["/nowhere/bwrap", str(control)])
    with pytest.raises(LimbeckError, match="not judged"):
        WarmServer(lambda control: [sys.executable, "-c", "raise SystemExit('no')"]).run(ONE, [Call("f")], Limits())


def test_no_descriptor_is_lost() -> None:
    sandbox = BubblewrapSandbox(workers=1)
    sandbox.run(ONE, [Call("f")])
    before = len(list(Path("/proc/self/fd").iterdir()))
    other = BubblewrapSandbox(workers=1)
    other.run(ONE, [Call("f")])
    other.close()
    for limits in (Limits(), Limits(wall_seconds=0.2), Limits(file_bytes=1 << 20)):
        sandbox.run("while True:\n    pass\n" if limits.wall_seconds < 1 else ONE, [Call("f")], limits)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    sandbox.close()


def test_a_process_has_no_rights_before_it_sees_its_job() -> None:
    server = WarmServer(server_command)
    server.run(ONE, [Call("f")], Limits())
    assert server._prepared is not None
    select.select([server._prepared.answers], [], [])  # it says so when it is shut in
    *_, program = [server._process.pid, *_children(server._process.pid)]
    lines = Path(f"/proc/{program}/status").read_text().splitlines()
    status = {name: text.split() for name, _, text in (line.partition(":") for line in lines)}
    assert {status[name][0] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"]
    assert status["NSpid"][-1] == "1"  # the first process of its namespace
    assert "0" not in status["Uid"] + status["Gid"]
    kinds = ("user", "pid", "mnt", "ipc", "uts", "net", "cgroup")
    own = {kind: Path(f"/proc/{program}/ns/{kind}").readlink() for kind in kinds}
    assert not set(own.values()) & {Path(f"/proc/self/ns/{kind}").readlink() for kind in kinds}
    servers = {Path(f"/proc/{_children(server._process.pid)[0]}/ns/{kind}").readlink() for kind in kinds}
    assert set(own.values()) & servers == {own["net"], own["cgroup"]}  # these two are the walls'
    server.close()


HOST = """
import os, sys
sys.path[:0] = {paths!r}
from limbeck.sandbox.bubblewrap import BubblewrapSandbox
from limbeck.sandbox.contract import Call
sandbox = BubblewrapSandbox(workers=1)
def answer():
    return sandbox.run("def f():\\n    return 5\\n", [Call("f")])[0].value
first = answer()
{then}
"""


def host(then: str) -> subprocess.Popen[str]:
    code = HOST.format(paths=sys.path, then=then)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def test_a_forked_host_starts_servers_of_its_own() -> None:
    then = (
        "child = os.fork()\n"
        "if child == 0:\n    os._exit(answer())\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print([first, status, answer()])"
    )
    with host(then) as process:
        assert process.communicate(timeout=30)[0].strip() == "[5, 5, 5]"


def test_servers_and_programs_end_when_the_host_is_killed() -> None:
    then = (
        "import select\n"
        "server = sandbox._pool._servers.queue[0]\n"
        "select.select([server._prepared.answers], [], [])\n"  # it says so when it is shut in
        "print(server._process.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with host(then) as process:
        assert process.stdout is not None
        walls = int(process.stdout.readline())
        family = [walls, *_children(walls)]
        assert len(family) >= 3  # bwrap, the server, and the process that waits for the next program
        ends = [os.pidfd_open(member) for member in family]
        process.kill()
        for end in ends:
            assert select.select([end], [], [], 20)[0]
            os.close(end)


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            mother = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it ended while we looked
        if mother == parent:
            found += [int(path.parent.name), *_children(int(path.parent.name))]
    return found
