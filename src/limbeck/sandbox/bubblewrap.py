"""The default sandbox on Linux: a process with namespaces of its own, made by `bwrap`.

Inside there is no network, no other process, no user but nobody, no environment, and of the machine's files only the
interpreter, its standard library (without installed packages) and the system's shared libraries, all read-only. What
can be written is one small temporary folder in memory, gone with the process. Resource limits are set inside, before
the program runs. Killing `bwrap` kills everything in its process namespace.

docs/sandbox.md says what this does not do.
"""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.sandbox.contract import Call, Limits, Outcome
from limbeck.sandbox.process import CANDIDATE, resource_limits, run_candidate

INSIDE = "/candidate.py"
SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
PACKAGE_FOLDERS = ("site-packages", "dist-packages")


class BubblewrapSandbox:
    """Runs each program in a fresh `bwrap` sandbox. Safe to use from several threads."""

    name = "bubblewrap"

    def run(self, program: str, calls: Sequence[Call], limits: Limits = Limits()) -> list[Outcome]:  # noqa: B008 - frozen
        """Run `program` and make `calls`; see `Sandbox.run`."""
        command = _command(limits)
        return run_candidate(command, program, calls, limits, resource_limits(limits, processes=True), folder="/")


@cache
def why_unavailable() -> str | None:
    """Return what keeps bubblewrap from working here, in words for an operator, or None when it works."""
    if not sys.platform.startswith("linux"):
        return "bubblewrap needs Linux."
    binary = shutil.which("bwrap")
    if binary is None:
        return "bwrap is not installed; install the package `bubblewrap` (apt install bubblewrap)."
    known = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False)
    if "--disable-userns" not in known.stdout + known.stderr:
        return f"{binary} is too old; install bubblewrap 0.8 or newer."
    try:
        BubblewrapSandbox().run("def one():\n    return 1\n", [Call("one")])
    except LimbeckError as error:
        return f"{binary} cannot make a sandbox here: {error} Often unprivileged user namespaces are not allowed."
    return None


def _command(limits: Limits) -> list[str]:
    """Return the command up to the answer descriptor's number.

    `/proc` is read-only because whoever starts this as root is still root to the kernel's settings in `/proc/sys`, and
    `/` because it is memory that nothing else limits. Of devices there are only those that hold nothing.
    """
    namespaces = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts"]
    return [
        shutil.which("bwrap") or "bwrap",
        *namespaces,
        "--unshare-cgroup-try",
        "--disable-userns",
        *("--uid", "65534", "--gid", "65534", "--hostname", "sandbox"),
        *("--cap-drop", "ALL", "--new-session", "--die-with-parent", "--clearenv"),
        *_binds(),
        *("--ro-bind", str(CANDIDATE), INSIDE),
        *("--proc", "/proc", "--remount-ro", "/proc", "--dir", "/dev"),
        *(part for device in DEVICES for part in ("--dev-bind", device, device)),
        *("--size", str(limits.file_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"),  # noqa: S108 - its own
        *(_interpreter(), "-I", "-S", "-B", INSIDE),
    ]


@cache
def _binds() -> tuple[str, ...]:
    """Return the options that make the interpreter and its libraries visible, read-only."""
    options: list[str] = []
    shown: list[Path] = []

    def show(path: Path) -> None:
        if path.is_symlink() and path.parent == Path("/"):
            options.extend(("--symlink", str(path.readlink()), str(path)))  # /lib -> usr/lib
        elif path.exists() and not any(path.is_relative_to(folder) for folder in shown):
            options.extend(("--ro-bind", str(path), str(path)))
            shown.append(path)

    for library in SYSTEM_LIBRARIES:
        show(Path(library))
    standard = {Path(sysconfig.get_path(name, vars={"base": _base(), "platbase": _base()})) for name in STANDARD}
    for folder in sorted(standard):
        show(folder)
    library_folder = Path(sysconfig.get_config_var("LIBDIR") or "/")
    for shared in (sysconfig.get_config_var("INSTSONAME"), sysconfig.get_config_var("LDLIBRARY")):
        if shared and (library_folder / shared).is_file():
            show(library_folder / shared)
    show(Path(_interpreter()))
    for folder in sorted({*standard, Path("/usr/lib/python3")}):
        for packages in PACKAGE_FOLDERS:
            if (folder / packages).is_dir():
                options.extend(("--tmpfs", str(folder / packages), "--remount-ro", str(folder / packages)))
    return tuple(options)


STANDARD = ("stdlib", "platstdlib")


def _base() -> str:
    return sys.base_prefix


@cache
def _interpreter() -> str:
    """Return the interpreter that a virtual environment stands on, as a real file."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return str(Path(base).resolve())
