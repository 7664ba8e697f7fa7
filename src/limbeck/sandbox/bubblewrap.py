"""The default sandbox on Linux: a warm server behind walls that `bwrap` makes, and a process for each program.

Behind the walls there is no network, no other process, no user but nobody, no environment, and of the machine's files
only what `limbeck.sandbox.interpreter` shows, read-only. Each program then gets its own user, process, mount, IPC and
UTS namespaces, its own small folder in memory, resource limits and a filter of system calls: see
`limbeck.sandbox.inside`. Started by root, the server becomes nobody before it forks anything; started by an ordinary
user, it is nobody in a user namespace of its own.

docs/sandbox.md lists the attacks, what stops each, and what this does not do.
"""

import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.sandbox.contract import Call, Limits, Outcome
from limbeck.sandbox.inside.seccomp import this_machine
from limbeck.sandbox.interpreter import CODE, DEVICES, ENVIRONMENT, INSIDE, interpreter, start, visible
from limbeck.sandbox.warm import Pool

OLDEST_KERNEL = (5, 14)  # the first that counts processes for each user namespace


class BubblewrapSandbox:
    """Runs each program in a fresh process of a warm server. Safe to use from several threads."""

    name = "bubblewrap"

    def __init__(self, workers: int | None = None) -> None:
        """Set it up; servers start when they are first needed.

        Args:
            workers: how many programs may run at once; one for each processor unless given.
        """
        self._pool = Pool(server_command, workers or len(os.sched_getaffinity(0)))

    def run(self, program: str, calls: Sequence[Call], limits: Limits = Limits()) -> list[Outcome]:  # noqa: B008 - frozen
        """Run `program` and make `calls`; see `Sandbox.run`."""
        return self._pool.run(program, calls, limits)

    def close(self) -> None:
        """End the servers. They also end with this object, and with the process that made it."""
        self._pool.close()


@cache
def why_unavailable() -> str | None:
    """Return what keeps bubblewrap from working here, in words for an operator, or None when it works."""
    if not sys.platform.startswith("linux"):
        return "bubblewrap needs Linux."
    binary = shutil.which("bwrap")
    if binary is None:
        return "bwrap is not installed; install the package `bubblewrap` (apt install bubblewrap)."
    if this_machine() is None:
        return f"there is no table of system calls for {platform.machine()}; x86_64 and aarch64 have one."
    if tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2]) < OLDEST_KERNEL:
        return f"Linux {platform.release()} is too old; the walls need {OLDEST_KERNEL[0]}.{OLDEST_KERNEL[1]} or newer."
    trial = BubblewrapSandbox(workers=1)
    try:
        trial.run("def one():\n    return 1\n", [Call("one")])
    except LimbeckError as error:
        return f"{binary} cannot make a sandbox here: {error} Often unprivileged user namespaces are not allowed."
    finally:
        trial.close()
    return None


def server_command(control: int) -> list[str]:
    """Return the command that starts a server with its end of the control socket.

    Root makes the walls without a user namespace, since one that it makes would still map to root; all it keeps is the
    right to become nobody, which is the first thing the server does. `/proc` is for the server, which hides it from
    programs with the empty folder.
    """
    return [*walls(), *start("server"), str(control)]


def walls() -> list[str]:
    """Return the command up to the arguments of the interpreter."""
    root = os.geteuid() == 0
    user = ("--unshare-user", "--uid", "65534", "--gid", "65534")
    rights = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    return [
        shutil.which("bwrap") or "bwrap",
        *(() if root else user),
        *("--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", "--as-pid-1"),
        *("--hostname", "sandbox", "--cap-drop", "ALL", "--clearenv"),
        *(part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)),
        *(rights if root else ()),
        *_shown(),
        *("--proc", "/proc", "--dir", "/empty", "--dir", "/tmp", "--dir", "/dev"),  # noqa: S108 - its own
        *(part for device in DEVICES for part in ("--dev-bind", device, device)),
        *("--remount-ro", "/", "--chdir", "/"),
        interpreter(),
    ]


def _shown() -> list[str]:
    """Return the options that make files visible.

    The folders above them are named too, since those that `bwrap` makes unasked are closed to everyone but root.
    """
    seen = visible()
    inside = f"{CODE}/limbeck/sandbox/inside"
    above = {str(folder): None for path in (*seen.paths, Path(inside)) for folder in reversed(path.parents)}
    options = [part for folder in above if folder != "/" for part in ("--dir", folder)]
    for path in seen.paths:
        options += ["--ro-bind", str(path), str(path)]
    for link in seen.links:
        options += ["--symlink", str(link.readlink()), str(link)]
    for folder in seen.hidden:
        options += ["--tmpfs", str(folder), "--remount-ro", str(folder)]
    return [*options, "--ro-bind", str(INSIDE), inside]
