"""Reads what a candidate process answers, without trusting a byte of it.

Answers are read up to a limit and within the time given. What was read becomes one outcome for every call, in order, up
to the first line that is not the one expected.
"""

import contextlib
import json
import os
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.sandbox.contract import Call, Limits, Outcome, Status

READ_BYTES = 1 << 16
DETAIL_CHARACTERS = 500
REASONS = {"timed_out": "time limit reached", "output_limit": "output limit reached"}


@dataclass(frozen=True)
class Written:
    """What a process wrote on its channels, and how the reading ended (`crashed`: the process left off by itself)."""

    answers: bytes
    complaint: bytes
    ending: Status


def job_text(program: str, calls: Sequence[Call], limits: dict[str, int]) -> bytes:
    """Return the job as the candidate process reads it."""
    named = [[call.function, list(call.arguments)] for call in calls]
    return json.dumps({"program": program, "calls": named, "limits": limits}).encode("ascii")


def collect(
    answers: int, limits: Limits, lines: int, complaint: int | None = None, job: tuple[int, bytes] | None = None
) -> Written:
    """Read until all lines are there, the channels close, the time is up or the answers overflow.

    Args:
        answers: descriptor of the answers.
        limits: `wall_seconds` and `answer_bytes` hold here.
        lines: how many lines an honest process writes.
        complaint: descriptor of what the interpreter says when it can't start.
        job: descriptor and bytes of a job to write meanwhile; the descriptor is closed after it.
    """
    deadline = time.monotonic() + limits.wall_seconds
    received = {answers: bytearray()} | ({} if complaint is None else {complaint: bytearray()})
    rest = memoryview(b"" if job is None else job[1])
    ending: Status = "crashed"
    with selectors.DefaultSelector() as selector:
        for descriptor in received:
            selector.register(descriptor, selectors.EVENT_READ)
        if job is not None:
            os.set_blocking(job[0], False)
            selector.register(job[0], selectors.EVENT_WRITE)
        while received.keys() & selector.get_map() and ending == "crashed" and received[answers].count(b"\n") < lines:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                ending = "timed_out"
            for key, _ in ready:
                if key.fd not in received:
                    rest = _write(key.fd, rest)
                    if not rest:
                        selector.unregister(key.fd)
                        os.close(key.fd)
                    continue
                chunk = os.read(key.fd, READ_BYTES)
                received[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
                elif len(received[key.fd]) > limits.answer_bytes:
                    ending = "output_limit"
    if job is not None and rest:
        os.close(job[0])
    said = b"" if complaint is None else bytes(received[complaint])
    return Written(bytes(received[answers][: limits.answer_bytes]), said, ending)


def _write(descriptor: int, rest: memoryview) -> memoryview:
    """Write what fits; nothing is left for a reader that is gone."""
    with contextlib.suppress(BlockingIOError):
        try:
            return rest[os.write(descriptor, rest) :]
        except BrokenPipeError:
            return rest[:0]
    return rest


def parse_lines(written: bytes) -> list[Any]:
    """Parse whole lines up to the first that is not JSON; what follows it has no meaning."""
    parsed: list[Any] = []
    for line in written.split(b"\n")[:-1]:
        try:
            parsed.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return parsed


def outcomes(lines: Sequence[Any], count: int, ending: Status, reason: str = "") -> list[Outcome]:
    """Turn answers into outcomes: one a call, in order, up to the first line that is not the one expected.

    Args:
        lines: as `parse_lines` gives them, without the one that says the process is ready.
        count: how many calls were to be made.
        ending: how the reading ended.
        reason: why the program was ended, when more is known than `ending` says.
    """
    if lines and isinstance(lines[0], dict) and set(lines[0]) == {"load_error"}:
        return [Outcome("raised", detail=_detail(lines[0]["load_error"]))] * count
    found: list[Outcome] = []
    for index, line in enumerate(lines[:count]):
        outcome = _outcome(line, index)
        if outcome is None:
            break
        found.append(outcome)
    missing = count - len(found)
    said = reason or REASONS.get(ending, "the process ended without a readable answer")
    return found + ([Outcome(ending, detail=said)] + [Outcome("not_run")] * (missing - 1) if missing else [])


def _outcome(line: Any, index: int) -> Outcome | None:
    if not isinstance(line, dict) or type(line.get("call")) is not int or line["call"] != index or len(line) != 2:
        return None
    if "value" in line:
        return Outcome("returned", value=line["value"])
    if "error" in line:
        return Outcome("raised", detail=_detail(line["error"]))
    return Outcome("not_plain", detail=_detail(line["not_plain"])) if "not_plain" in line else None


def _detail(text: object) -> str:
    return text[:DETAIL_CHARACTERS] if isinstance(text, str) else ""
