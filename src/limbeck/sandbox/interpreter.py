"""What a program may see of the machine's files: the interpreter, its standard library, the system's shared libraries.

Every sandbox here shows these, read-only, and nothing else. Installed packages are hidden: a program that imports one
would depend on the machine it is judged on.
"""

import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INSIDE = Path(__file__).with_name("inside")
CODE = "/code"
SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
PACKAGE_FOLDERS = ("site-packages", "dist-packages")
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # all of it; so that a program that iterates over a set does the same each time
STANDARD = ("stdlib", "platstdlib")


@dataclass(frozen=True)
class Visible:
    """What is shown: files and folders under their own paths, links such as `/lib`, and folders to be hidden again."""

    paths: tuple[Path, ...]
    links: tuple[Path, ...]
    hidden: tuple[Path, ...]


@cache
def visible() -> Visible:
    """Return what has to be shown for this interpreter to run."""
    standard = sorted({Path(sysconfig.get_path(name, vars=_bases())) for name in STANDARD})
    library_folder = Path(sysconfig.get_config_var("LIBDIR") or "/")
    shared = (sysconfig.get_config_var("INSTSONAME"), sysconfig.get_config_var("LDLIBRARY"))
    wanted = [
        *(Path(library) for library in SYSTEM_LIBRARIES),
        *standard,
        *(library_folder / name for name in shared if name and (library_folder / name).is_file()),
        Path(interpreter()),
    ]
    links = [path for path in wanted if path.is_symlink() and path.parent == Path("/")]  # /lib -> usr/lib
    paths: list[Path] = []
    for path in wanted:
        if path.exists() and path not in links and not any(path.is_relative_to(folder) for folder in paths):
            paths.append(path)
    holders = sorted({*standard, Path("/usr/lib/python3")})
    hidden = [folder / name for folder in holders for name in PACKAGE_FOLDERS if (folder / name).is_dir()]
    return Visible(tuple(paths), tuple(links), tuple(hidden))


@cache
def interpreter() -> str:
    """Return the interpreter that a virtual environment stands on, as a real file."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return str(Path(base).resolve())


def start(module: str) -> list[str]:
    """Return the command, up to a descriptor's number, that runs `main` of a module of `inside`, shown under `CODE`."""
    code = (
        f"import sys; sys.path.insert(0, '{CODE}'); from limbeck.sandbox.inside.{module} import main; "
        "del sys.path[0]; main(int(sys.argv[1]))"
    )
    return ["-s", "-P", "-S", "-B", "-c", code]


def _bases() -> dict[str, str]:
    return {"base": sys.base_prefix, "platbase": sys.base_prefix}
