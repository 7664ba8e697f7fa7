"""A cold start: one interpreter for each program, inside the walls that a command puts around it.

The job goes in as a file that is complete before the process starts, so nothing outside ever waits for it to read. In
the end the whole process group is killed: the caller gets one outcome for every call, whatever happened.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from limbeck.errors import LimbeckError
from limbeck.sandbox.answers import DETAIL_CHARACTERS, READ_BYTES, Written, collect, job_text, outcomes, parse_lines
from limbeck.sandbox.contract import Call, Limits, Outcome

CANDIDATE = Path(__file__).with_name("inside") / "candidate.py"
STANDARD_OUTPUT = 1
FAREWELL_SECONDS = 1.0


def resource_limits(limits: Limits, processes: bool) -> dict[str, int]:
    """Return the `resource` limits that the candidate puts on itself before the program runs."""
    chosen = {
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }
    return chosen | ({"RLIMIT_NPROC": limits.processes} if processes else {})


def run_candidate(
    command: Callable[[int], Sequence[str]],
    program: str,
    calls: Sequence[Call],
    limits: Limits,
    resources: dict[str, int],
    folder: str,
    on_standard_output: bool = False,
    environment: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Start an interpreter on `candidate.py`, hand it its job, and read what it answers.

    Args:
        command: gives the command line, told the number of the descriptor for answers.
        program: the untrusted source.
        calls: what to call in it.
        limits: `wall_seconds` and `answer_bytes` are enforced here.
        resources: limits for the candidate to put on itself.
        folder: where the command is started.
        on_standard_output: the walls let no other descriptor through, so answers come on standard output, which the
            candidate keeps from the program.
        environment: of the command itself; empty unless given.

    Returns:
        One outcome a call, in order.

    Raises:
        LimbeckError: the process did not get as far as running the program.
    """
    with tempfile.TemporaryFile() as job_file:
        job_file.write(job_text(program, calls, resources))
        job_file.flush()
        job_file.seek(0)
        process, read_end = _start(command, job_file, folder, on_standard_output, environment or {})
    with os.fdopen(read_end, "rb", buffering=0) as answers, process:
        written = _collect(process, answers.fileno(), limits, len(calls))
    lines = parse_lines(written.answers)
    if not lines or lines[0] != {"ready": True}:
        said = written.complaint.decode("utf-8", "replace").strip().replace("\n", " ")[:DETAIL_CHARACTERS]
        raise LimbeckError(
            f"sandbox: the process did not start ({said or written.ending}); the program was not judged."
        )
    return outcomes(lines[1:], len(calls), written.ending)


def _start(
    command: Callable[[int], Sequence[str]],
    job_file: IO[bytes],
    folder: str,
    on_standard_output: bool,
    environment: Mapping[str, str],
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process in a group of its own; return it and the reading end of its answers."""
    read_end, write_end = os.pipe()
    line = [*command(STANDARD_OUTPUT if on_standard_output else write_end)]
    try:
        process = subprocess.Popen(
            line,
            stdin=job_file,
            stdout=write_end if on_standard_output else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=() if on_standard_output else (write_end,),
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        os.close(read_end)
        raise LimbeckError(f"sandbox: {line[0]} could not be started ({error.strerror}).") from error
    finally:
        os.close(write_end)
    return process, read_end


def _collect(process: subprocess.Popen[bytes], answers: int, limits: Limits, calls: int) -> Written:
    """Read until every call is answered, then kill everything."""
    assert process.stderr is not None
    try:
        return collect(answers, limits, 1 + calls, complaint=process.stderr.fileno())
    finally:
        with contextlib.suppress(ProcessLookupError):  # it and its group may have gone already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _wait_for_the_last(answers)


def _wait_for_the_last(answers: int) -> None:
    """Read on until nobody holds the writing end: then everything the program started has ended."""
    deadline = time.monotonic() + FAREWELL_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            if not os.read(answers, READ_BYTES):
                return
