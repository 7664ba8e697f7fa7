"""Runs inside: carries out a job, a program and calls of its functions, and answers on a private descriptor.

Standard library only, and complete in itself: where there is no warm server, the interpreter inside the sandbox is
started on this one file, with the job on standard input. Nothing that matters rests on its honesty, since the program
shares its process: it holds no expected values and no secret, and the reader outside checks every line it writes.

Answers are lines of JSON: `{"ready": true}` once the limits are in force, then one line a call, `{"call": i, …}` with
`value`, `error` or `not_plain`; or a single `{"load_error": …}` when the program itself could not be run.
"""

import json
import os
import resource
import sys
from typing import Any

DETAIL_CHARACTERS = 500


def main(descriptor: int) -> None:
    """Carry out the job on standard input and answer on `descriptor` (standard output is freed for it)."""
    job = json.load(sys.stdin.buffer)
    answers = os.dup(descriptor)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    if descriptor > 2:
        os.close(descriptor)
    for name, value in job["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (ceiling, ceiling))
    os.environ.clear()
    tell(answers, {"ready": True})
    answer_job(job, answers)


def answer_job(job: dict[str, Any], answers: int) -> None:
    """Run the program, make its calls in order, and write a line for each."""
    namespace: dict[str, Any] = {"__name__": "candidate"}
    try:
        exec(compile(job["program"], "program.py", "exec"), namespace)  # noqa: S102 - what a sandbox is for
    except BaseException as error:  # noqa: BLE001 - an untrusted program may raise anything
        tell(answers, {"load_error": describe(error)})
        return
    for index, (function, arguments) in enumerate(job["calls"]):
        tell(answers, {"call": index, **answer(namespace, function, arguments)})


def answer(namespace: dict[str, Any], function: str, arguments: list[Any]) -> dict[str, Any]:
    """Call one function and say what came of it."""
    try:
        value = namespace[function](*arguments)
        fault = why_not_plain(value)
        return {"value": value} if fault is None else {"not_plain": fault}
    except BaseException as error:  # noqa: BLE001 - an untrusted program may raise anything
        return {"error": describe(error)}


def why_not_plain(value: Any) -> str | None:
    """Return what keeps `value` from being plain JSON, by exact type, or None when it is."""
    kind = type(value)
    if kind is list:
        return next((fault for item in value if (fault := why_not_plain(item))), None)
    if kind is dict:
        if any(type(key) is not str for key in value):
            return "a dict with keys that are not str"
        return next((fault for item in value.values() if (fault := why_not_plain(item))), None)
    if kind is float and (value != value or value in (float("inf"), float("-inf"))):
        return "a float that is not finite"
    return None if kind in (bool, int, float, str, type(None)) else f"a value of type {kind.__name__}"


def describe(error: BaseException) -> str:
    """Return the exception's name and, where it can be had, its message."""
    try:
        return f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]
    except BaseException:  # noqa: BLE001 - its own __str__ may raise anything
        return type(error).__name__[:DETAIL_CHARACTERS]


def tell(answers: int, line: dict[str, Any]) -> None:
    """Write one line at once, so that it is out before the next call can end the process."""
    try:
        text = json.dumps(line, allow_nan=False)
    except (ValueError, RecursionError, MemoryError) as error:  # an int of thousands of digits, a deep list
        text = json.dumps({"call": line.get("call"), "not_plain": describe(error)})
    rest = memoryview(text.encode("ascii") + b"\n")
    while rest:
        rest = rest[os.write(answers, rest) :]


if __name__ == "__main__":
    main(int(sys.argv[1]))
