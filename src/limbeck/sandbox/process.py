"""Starts a candidate process, hands it its job, and reads its answers without trusting a byte of them.

The job goes in as a file that is complete before the process starts, so nothing outside ever waits for it to read.
Answers are read up to a limit, within the time given, then the whole process group is killed: the caller gets one
outcome for every call, whatever happened.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from limbeck.errors import LimbeckError
from limbeck.sandbox.contract import Call, Limits, Outcome, Status

CANDIDATE = Path(__file__).with_name("candidate.py")
COMPLAINT_BYTES = 1 << 16
READ_BYTES = 1 << 16
FAREWELL_SECONDS = 1.0
DETAIL_CHARACTERS = 500


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
    command: Sequence[str], program: str, calls: Sequence[Call], limits: Limits, resources: dict[str, int], folder: str
) -> list[Outcome]:
    """Run `command` with the answer descriptor's number appended, and read what it answers.

    Args:
        command: starts the interpreter on `candidate.py`.
        program: the untrusted source.
        calls: what to call in it.
        limits: `wall_seconds` and `answer_bytes` are enforced here.
        resources: limits for the candidate to put on itself.
        folder: where the command is started.

    Returns:
        One outcome a call, in order.

    Raises:
        LimbeckError: the process did not get as far as running the program.
    """
    job = {
        "program": program,
        "calls": [[call.function, list(call.arguments)] for call in calls],
        "limits": resources,
    }
    with tempfile.TemporaryFile() as job_file:
        job_file.write(json.dumps(job).encode("ascii"))
        job_file.flush()
        job_file.seek(0)
        process, read_end = _start(command, job_file, folder)
    with os.fdopen(read_end, "rb", buffering=0) as answers, process:
        written, complaint, ending = _collect(process, answers, limits, len(calls))
    lines = _lines(written)
    if not lines or lines[0] != {"ready": True}:
        said = complaint.decode("utf-8", "replace").strip().replace("\n", " ")[:DETAIL_CHARACTERS]
        raise LimbeckError(f"sandbox: the process did not start ({said or ending}); the program was not judged.")
    return _outcomes(lines[1:], len(calls), ending)


def _start(command: Sequence[str], job_file: IO[bytes], folder: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process in a group of its own; return it and the reading end of its answers."""
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [*command, str(write_end)],
            stdin=job_file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(write_end,),
            env={},
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        os.close(read_end)
        raise LimbeckError(f"sandbox: {command[0]} could not be started ({error.strerror}).") from error
    finally:
        os.close(write_end)
    return process, read_end


def _collect(
    process: subprocess.Popen[bytes], answers: IO[bytes], limits: Limits, calls: int
) -> tuple[bytes, bytes, Status]:
    """Read until every call is answered, both channels close, the time is up or one overflows; then kill everything."""
    deadline = time.monotonic() + limits.wall_seconds
    received = {"answers": bytearray(), "complaint": bytearray()}
    allowed = {"answers": limits.answer_bytes, "complaint": COMPLAINT_BYTES}
    ending: Status = "crashed"
    assert process.stderr is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(answers, selectors.EVENT_READ, "answers")
            selector.register(process.stderr, selectors.EVENT_READ, "complaint")
            while selector.get_map() and ending == "crashed" and received["answers"].count(b"\n") < 1 + calls:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    ending = "timed_out"
                for key, _ in ready:
                    chunk = os.read(key.fd, READ_BYTES)
                    received[key.data] += chunk
                    if not chunk:
                        selector.unregister(key.fileobj)
                    elif len(received[key.data]) > allowed[key.data]:
                        ending = "output_limit"
    finally:
        with contextlib.suppress(ProcessLookupError):  # it and its group may have gone already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _wait_for_the_last(answers)
    return bytes(received["answers"][: limits.answer_bytes]), bytes(received["complaint"]), ending


def _wait_for_the_last(answers: IO[bytes]) -> None:
    """Read on until nobody holds the writing end: then everything the program started has ended."""
    deadline = time.monotonic() + FAREWELL_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            if not os.read(answers.fileno(), READ_BYTES):
                return


def _lines(written: bytes) -> list[Any]:
    """Parse whole lines up to the first that is not JSON; what follows it has no meaning."""
    parsed: list[Any] = []
    for line in written.split(b"\n")[:-1]:
        try:
            parsed.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return parsed


def _outcomes(lines: Sequence[Any], count: int, ending: Status) -> list[Outcome]:
    """Turn answers into outcomes: one a call, in order, up to the first line that is not the one expected."""
    if lines and isinstance(lines[0], dict) and set(lines[0]) == {"load_error"}:
        return [Outcome("raised", detail=_detail(lines[0]["load_error"]))] * count
    outcomes: list[Outcome] = []
    for index, line in enumerate(lines[:count]):
        outcome = _outcome(line, index)
        if outcome is None:
            break
        outcomes.append(outcome)
    missing = count - len(outcomes)
    reasons = {"timed_out": "time limit reached", "output_limit": "output limit reached"}
    stopped = Outcome(ending, detail=reasons.get(ending, "the process ended without a readable answer"))
    return outcomes + ([stopped] + [Outcome("not_run")] * (missing - 1) if missing else [])


def _outcome(line: Any, index: int) -> Outcome | None:
    if not isinstance(line, dict) or type(line.get("call")) is not int or line["call"] != index or len(line) != 2:
        return None
    if "value" in line:
        return Outcome("returned", value=line["value"])
    if "error" in line:
        return Outcome("raised", detail=_detail(line["error"]))
    return Outcome("not_plain", detail=_detail(line["not_plain"])) if "not_plain" in line else None


def _detail(text: object) -> str:
    return str(text)[:DETAIL_CHARACTERS] if isinstance(text, str) else ""
