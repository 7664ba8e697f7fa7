"""The warm server: stays inside the walls that bubblewrap made, and forks a process for each program.

The interpreter is started once; a program costs a fork. Orders come on a socket that only the host holds:

    {"prepare": {…}}    with two descriptors: shut a process in, to read its job from one and answer on the other
    {"begin": seconds}  its time runs
    {"end": true}       kill it and all it started; answered when none of them is left, with why it ended before

A program's process has a process namespace of its own, so it sees and reaches no other, and when it is gone so is all
it started. The server reads no job and no answer: its memory, which each program begins with, holds nothing of another.
While a program runs, the server adds up the memory of its processes; it ends them at the limit, and past their time
even if the host hangs. When the host closes the socket, the server and everything in it end.

Standard library only: this runs inside.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.sandbox.inside.candidate import answer_job, tell
from limbeck.sandbox.inside.confinement import become_nobody, enter_namespaces, give_up_rights

LOADED_BEFOREHAND = (
    "bisect", "collections", "copy", "datetime", "functools", "heapq", "itertools", "math", "operator", "random", "re",
    "string", "typing",
)  # fmt: skip
MOST_DESCRIPTORS = 1 << 20
LOOK_SECONDS = 0.05
MESSAGE_BYTES = 1 << 16
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Running:
    """The process of one program, as the server sees it.

    Attributes:
        process: its id here.
        memory_bytes: what all its processes may hold together.
        deadline: when it is ended at the latest, by `time.monotonic`; None until it begins.
        reason: why the server ended it: `memory`, `time`, or nothing.
    """

    process: int
    memory_bytes: int
    deadline: float | None = None
    reason: str = ""

    def look(self) -> None:
        """End it when it is past its time or holds too much."""
        if self.deadline is None or self.reason:
            return
        if time.monotonic() > self.deadline:
            self.reason = "time"
        elif resident_bytes() > self.memory_bytes:
            self.reason = "memory"
        if self.reason:
            os.kill(self.process, signal.SIGKILL)

    def end(self) -> str:
        """Kill it, wait until everything it started is gone too, and return `reason`."""
        os.kill(self.process, signal.SIGKILL)  # a process that has ended stays ours until it is waited for
        os.waitpid(self.process, 0)
        return self.reason


def main(descriptor: int) -> None:
    """Serve the host at the other end of `descriptor` until it closes it."""
    become_nobody()
    for name in LOADED_BEFOREHAND:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "limbeck"]:
        del sys.modules[name]  # nothing of ours is for the program to import
    os.environ.clear()
    gc.freeze()
    with socket.socket(fileno=descriptor) as host:
        serve(host)


def serve(host: socket.socket) -> None:
    """Carry out orders until the host is gone."""
    running: Running | None = None
    while True:
        wait = LOOK_SECONDS if running and running.deadline is not None else None
        if not select.select([host], [], [], wait)[0]:
            assert running is not None
            running.look()
            continue
        message, descriptors, _, _ = socket.recv_fds(host, MESSAGE_BYTES, 2)
        if not message:
            return
        order: dict[str, Any] = json.loads(message)
        if "prepare" in order:
            running = prepare(host, order["prepare"], descriptors[0], descriptors[1])
        elif running is not None and "begin" in order:
            running.deadline = time.monotonic() + order["begin"]
        elif running is not None:
            host.send(json.dumps({"ended": running.end()}).encode("ascii"))
            running = None


def prepare(host: socket.socket, order: dict[str, Any], job: int, answers: int) -> Running:
    """Fork a process that waits, shut in, for its job.

    Two forks: the first enters the namespaces, the second is the first process in them. The first then ends, and the
    second is the server's own child, since the server is the one that orphans fall to.
    """
    known, told = os.pipe()
    first = os.fork()
    if first == 0:
        try:
            enter_namespaces(order["folder_bytes"])
            second = os.fork()
            if second == 0:
                host.close()
                program_process(order["limits"], job, answers)
            os.write(told, b"%d" % second)
        except OSError as error:
            tell(answers, {"not_confined": str(error)})
        finally:
            os._exit(0)
    for mine in (told, job, answers):
        os.close(mine)
    found = os.read(known, 32)
    os.close(known)
    os.waitpid(first, 0)
    return Running(int(found) if found else nobody_at_home(), order["memory_bytes"])


def program_process(limits: dict[str, int], job: int, answers: int) -> None:
    """Be the process of one program: shut yourself in, say so, read the job, carry it out. Never returns."""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        job, answers, nowhere = rearranged(job, answers, nowhere)
        give_up_rights(limits)
    except (OSError, ValueError) as error:
        tell(answers, {"not_confined": str(error)})
        os._exit(1)
    tell(answers, {"ready": True})
    with os.fdopen(job, "rb") as source:
        work = json.load(source)
    answer_job(work, answers)
    os._exit(0)


def rearranged(job: int, answers: int, nowhere: int) -> tuple[int, int, int]:
    """Keep these three descriptors only: as standard streams nowhere, then the job, then the answers."""
    kept = [os.dup(descriptor) for descriptor in (nowhere, nowhere, nowhere, job, answers)]
    base = max(kept) + 1
    high = [os.dup2(descriptor, base + index) for index, descriptor in enumerate(kept)]
    for index, descriptor in enumerate(high):
        os.dup2(descriptor, index)
    os.closerange(len(high), MOST_DESCRIPTORS)
    return 3, 4, 0


def nobody_at_home() -> int:
    """Return a child that has ended, to stand where a process could not be made."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    return child


def resident_bytes() -> int:
    """Return the memory of every process but this one; pages that several share count for each."""
    pages = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.name != "1":
            try:
                pages += int((folder / "statm").read_text().split()[1])
            except (OSError, IndexError):
                continue  # it ended while we looked
    return pages * PAGE
