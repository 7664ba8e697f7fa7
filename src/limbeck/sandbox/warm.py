"""Warm servers seen from outside: started behind walls once, then asked for a shut-in process for each program.

A `WarmServer` keeps one process prepared for the limits that were used last, so a program finds it waiting. Its
channels are pipes made here for one program: the job goes in on one, the answers come on the other, and neither is ever
handed to another process. When a run returns, everything that its program started is dead, and the next process is in
the making.

A `Pool` shares servers between threads. A fork of the host process leaves them alone and starts its own.
"""

import contextlib
import json
import os
import queue
import select
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.sandbox.answers import DETAIL_CHARACTERS, collect, job_text, outcomes, parse_lines
from limbeck.sandbox.contract import Call, Limits, Outcome
from limbeck.sandbox.process import resource_limits

START_SECONDS = 30.0
GRACE_SECONDS = 2.0
MESSAGE_BYTES = 1 << 16
REASONS = {"memory": "its processes together held more memory than allowed", "time": "time limit reached"}


@dataclass(frozen=True)
class _Prepared:
    """A process that waits for its job: made for these limits, with its two channels."""

    limits: Limits
    job: int
    answers: int


class WarmServer:
    """One server behind its walls; runs one program at a time. Not for several threads at once: see `Pool`."""

    def __init__(self, command: Callable[[int], Sequence[str]]) -> None:
        """Start it.

        Args:
            command: gives the command line, told the number of the server's end of the control socket.

        Raises:
            LimbeckError: the command can't be started.
        """
        self._host, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._complaint = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        self._host.settimeout(START_SECONDS)
        self._prepared: _Prepared | None = None
        line = [*command(inside.fileno())]
        try:
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._complaint,
                pass_fds=(inside.fileno(),),
                env={},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._host.close()
            raise LimbeckError(f"sandbox: {line[0]} could not be started ({error.strerror}).") from error
        finally:
            inside.close()
        self._channels: list[int] = []  # of the prepared process, for whoever ends this server
        self.close = weakref.finalize(self, _end, self._process, self._host, self._channels, os.getpid())

    def run(self, program: str, calls: Sequence[Call], limits: Limits) -> list[Outcome]:
        """Run `program` in the process that is prepared, or one that is prepared now; see `Sandbox.run`."""
        job = job_text(program, calls, {})
        if self._prepared is not None and self._prepared.limits != limits:
            self._dismiss(self._prepared)
        prepared = self._prepared or self._prepare(limits)
        self._prepared = None
        self._channels.clear()
        with os.fdopen(prepared.answers, "rb", buffering=0):
            try:
                self._wait_until_ready(prepared)
                self._tell({"begin": limits.wall_seconds + GRACE_SECONDS})
            except LimbeckError:
                os.close(prepared.job)
                raise
            written = collect(prepared.answers, limits, len(calls), job=(prepared.job, job))
            reason = self._end_program()
        self._prepared = self._prepare(limits)
        return outcomes(parse_lines(written.answers), len(calls), written.ending, REASONS.get(reason, ""))

    def alive(self) -> bool:
        """Return whether the server still runs."""
        return self._process.poll() is None

    def _prepare(self, limits: Limits) -> _Prepared:
        """Ask for a process; it is not there yet when this returns."""
        order = {
            "limits": resource_limits(limits, processes=True),
            "folder_bytes": limits.file_bytes,
            "memory_bytes": limits.memory_bytes,
        }
        job_read, job_write = os.pipe()
        answers_read, answers_write = os.pipe()
        try:
            message = json.dumps({"prepare": order}).encode("ascii")
            socket.send_fds(self._host, [message], [job_read, answers_write])
        except OSError as error:
            for descriptor in (job_write, answers_read):
                os.close(descriptor)
            raise self._failure(error.strerror or "") from error
        finally:
            for descriptor in (job_read, answers_write):
                os.close(descriptor)
        self._channels[:] = [job_write, answers_read]
        return _Prepared(limits, job_write, answers_read)

    def _wait_until_ready(self, prepared: _Prepared) -> None:
        """Read the line that says the process is shut in. No program has been near its channel yet."""
        line = b""
        deadline = time.monotonic() + START_SECONDS
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            chunk = os.read(prepared.answers, 1 << 12) if select.select([prepared.answers], [], [], left)[0] else b""
            if not chunk:
                raise self._failure("the server does not answer")
            line += chunk
        said = json.loads(line)
        if said != {"ready": True}:
            raise self._failure(str(said.get("not_confined")))

    def _dismiss(self, prepared: _Prepared) -> None:
        os.close(prepared.job)
        os.close(prepared.answers)
        self._prepared = None
        self._channels.clear()
        self._end_program()

    def _end_program(self) -> str:
        """Have the program killed; return why it had been ended before, once nothing of it is left."""
        self._tell({"end": True})
        try:
            said = json.loads(self._host.recv(MESSAGE_BYTES))
        except (OSError, ValueError) as error:
            raise self._failure("the server is gone") from error
        return str(said["ended"])

    def _tell(self, order: dict[str, Any]) -> None:
        try:
            self._host.send(json.dumps(order).encode("ascii"))
        except OSError as error:
            raise self._failure(error.strerror or "") from error

    def _failure(self, what: str) -> LimbeckError:
        self._complaint.seek(0)
        said = self._complaint.read().decode("utf-8", "replace").strip().replace("\n", " ")[-DETAIL_CHARACTERS:]
        return LimbeckError(f"sandbox: the process did not start ({said or what}); the program was not judged.")


class Pool:
    """Warm servers for several threads: as many as `workers`, started when they are first needed."""

    def __init__(self, command: Callable[[int], Sequence[str]], workers: int) -> None:
        self._command, self._workers = command, workers
        self._fill()

    def run(self, program: str, calls: Sequence[Call], limits: Limits) -> list[Outcome]:
        """Run `program` on a server that is free, waiting for one if need be; see `Sandbox.run`."""
        if self._owner != os.getpid():
            self._fill()  # servers belong to the process that started them
        servers = self._servers
        server = servers.get()
        whole = False
        try:
            if server is not None and not server.alive():
                server.close()
                server = None
            server = server or WarmServer(self._command)
            found = server.run(program, calls, limits)
            whole = True
            return found
        finally:
            if not whole and server is not None:
                server.close()
            servers.put(server if whole else None)

    def close(self) -> None:
        """End the servers that are free."""
        for _ in range(self._workers):
            with contextlib.suppress(queue.Empty):
                server = self._servers.get_nowait()
                if server is not None:
                    server.close()
                self._servers.put(None)

    def _fill(self) -> None:
        self._owner = os.getpid()
        self._servers: queue.LifoQueue[WarmServer | None] = queue.LifoQueue()
        for _ in range(self._workers):
            self._servers.put(None)


def _end(process: subprocess.Popen[bytes], host: socket.socket, channels: list[int], owner: int) -> None:
    """Close the socket, at which the server ends, and make sure of it."""
    host.close()
    for descriptor in channels:
        os.close(descriptor)
    if owner == os.getpid():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
