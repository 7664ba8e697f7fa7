"""A sandbox for machines that have `nsjail` instead of `bwrap`: the same walls, and a cold start for each program.

A program costs an interpreter's start here, tens of milliseconds. The limit on processes needs a kernel from 5.14 on,
or an account that runs nothing else. The limits hold for each process, not for all of a program's together.
"""

import shutil
from collections.abc import Sequence
from functools import cache, partial

from limbeck.errors import LimbeckError
from limbeck.sandbox.contract import Call, Limits, Outcome
from limbeck.sandbox.interpreter import CODE, DEVICES, ENVIRONMENT, INSIDE, interpreter, start, visible
from limbeck.sandbox.process import resource_limits, run_candidate

MEBIBYTE = 1 << 20


class NsjailSandbox:
    """Runs each program in a fresh `nsjail`. Safe to use from several threads."""

    name = "nsjail"

    def run(self, program: str, calls: Sequence[Call], limits: Limits = Limits()) -> list[Outcome]:  # noqa: B008 - frozen
        """Run `program` and make `calls`; see `Sandbox.run`."""
        resources = resource_limits(limits, processes=True)
        return run_candidate(partial(command, limits), program, calls, limits, resources, folder="/")


@cache
def why_unavailable() -> str | None:
    """Return what keeps nsjail from working here, in words for an operator, or None when it works."""
    binary = shutil.which("nsjail")
    if binary is None:
        return "nsjail is not installed."
    try:
        NsjailSandbox().run("def one():\n    return 1\n", [Call("one")])
    except LimbeckError as error:
        return f"{binary} cannot make a sandbox here: {error}"
    return None


def command(limits: Limits, answers: int) -> list[str]:
    """Return the command line.

    `nsjail` starts with an empty root and an empty environment, drops every capability and every other descriptor, and
    has a network namespace without even a loopback here. Sizes of its own limits are in MiB; the candidate sets the
    exact ones on itself.
    """
    seen = visible()
    binds = [*seen.paths, *seen.links]
    return [
        shutil.which("nsjail") or "nsjail",
        *("--mode", "o", "--really_quiet", "--hostname", "sandbox", "--user", "65534", "--group", "65534"),
        *(part for name, value in ENVIRONMENT.items() for part in ("--env", f"{name}={value}")),
        *("--iface_no_lo", "--disable_proc", "--pass_fd", str(answers), "--cwd", "/tmp"),  # noqa: S108 - its own
        *("--time_limit", str(int(limits.wall_seconds) + 1), "--rlimit_cpu", str(limits.cpu_seconds)),
        *("--rlimit_as", _mebibytes(limits.memory_bytes), "--rlimit_fsize", _mebibytes(limits.file_bytes)),
        *("--rlimit_nofile", str(limits.open_files), "--rlimit_nproc", str(limits.processes), "--rlimit_core", "0"),
        *(part for path in binds for part in ("--bindmount_ro", str(path))),
        *(part for folder in seen.hidden for part in ("--mount", f"none:{folder}:tmpfs:ro")),
        *("--bindmount_ro", f"{INSIDE}:{CODE}/limbeck/sandbox/inside"),
        *(part for device in DEVICES for part in ("--bindmount", device)),
        *("--mount", f"none:/tmp:tmpfs:size={limits.file_bytes},nr_inodes=4096"),
        *("--", interpreter(), *start("cold"), str(answers)),
    ]


def _mebibytes(count: int) -> str:
    return str(-(-count // MEBIBYTE))
