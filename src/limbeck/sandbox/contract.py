"""What a sandbox promises: programs go in with arguments, plain values come out, and nobody inside knows what is right.

The program defines functions. A `Call` names one and gives JSON arguments. The process that runs the program receives
both, and answers each call with a plain JSON value; expected values never enter it. Values are compared outside, with
`same`: by exact type, so an object whose `__eq__` lies, `True` for `1`, or `1` for `1.0` gains nothing. A program can
write what it likes on the channel that carries its answers, since it may as well return it: a forged answer is only an
answer.

An outcome fails closed: only `returned` carries a value, and `Outcome.matches` is false for every other status.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

Status = Literal["returned", "raised", "not_plain", "timed_out", "output_limit", "crashed", "not_run"]


@dataclass(frozen=True)
class Call:
    """One call of a function that the program defines."""

    function: str
    arguments: Sequence[Json] = ()


@dataclass(frozen=True)
class Limits:
    """What one program may use, over all of its calls together.

    Attributes:
        wall_seconds: from its start until everything it started is killed.
        cpu_seconds: processor time of each of its processes.
        memory_bytes: address space of each of its processes; with bubblewrap and docker also what all of them hold.
        file_bytes: size of each file it writes, and of everything in its temporary folder together.
        answer_bytes: length of all its answers as JSON.
        open_files: open file descriptors of each process.
        processes: processes and threads at once.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 8
    memory_bytes: int = 512 << 20
    file_bytes: int = 16 << 20
    answer_bytes: int = 1 << 20
    open_files: int = 64
    processes: int = 32


@dataclass(frozen=True)
class Outcome:
    """What came of one call.

    Attributes:
        status: `returned` a plain value; `raised` an exception (also while the program was loading); returned
            something `not_plain`; `timed_out`; wrote more than `output_limit` allows; `crashed` (the process ended, or
            its answer could not be read); or was `not_run` because an earlier call ended the program.
        value: what was returned; None unless `returned`.
        detail: what happened, up to 500 characters. The program has a say in it: show it, never act on it.
    """

    status: Status
    value: Json = None
    detail: str = ""

    def matches(self, expected: Json) -> bool:
        """Return whether the call returned exactly `expected`."""
        return self.status == "returned" and same(self.value, expected)


class Sandbox(Protocol):
    """Runs untrusted programs. A program leaves nothing behind for the next one."""

    name: str

    def run(self, program: str, calls: Sequence[Call], limits: Limits = ...) -> list[Outcome]:
        """Run `program` once, make the calls in order in its process, and return one outcome a call.

        Raises:
            LimbeckError: the sandbox itself did not start; never because of what the program did.
        """
        ...


def same(left: Json, right: Json) -> bool:
    """Return whether two plain values are equal in value and in type, all the way down.

    `True`, `1` and `1.0` are three different values; a list is not a tuple; keys are strings; NaN equals nothing.
    Works without recursion, so that no depth of nesting can break it.
    """
    pending: list[tuple[Json, Json]] = [(left, right)]
    while pending:
        a, b = pending.pop()
        if type(a) is not type(b):
            return False
        if isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pending += zip(a, b, strict=True)
        elif isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pending += [(value, b[key]) for key, value in a.items()]
        elif a != b:
            return False
    return True
