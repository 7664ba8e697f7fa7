"""Compiles the kernels: once when the package is installed, or into the user's cache when they are first needed.

Without a compiler there are no kernels, and packed students run on PyTorch alone: the same numbers, more slowly and in
more memory. `LIMBECK_PACKED=torch` asks for that; `LIMBECK_PACKED=avx2` (or `plain`, `avx512vnni`, `neon`) for one
instruction set.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
SHIPPED = Path(__file__).with_name("kernels.so")
FLAGS = ("-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-std=gnu11")


def compiler() -> str | None:
    """Return the path of a C compiler: what CC names, else cc, gcc or clang; None where there is none."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return path
    return None


def compile_kernels(target: Path) -> bool:
    """Compile to `target`, which appears whole or not at all; return whether it did."""
    found = compiler()
    if found is None or sys.platform == "win32":
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for flags in (FLAGS, tuple(flag for flag in FLAGS if flag != "-fopenmp")):  # not every compiler has OpenMP
            command = [found, *flags, str(SOURCE), "-o", str(made), "-lm"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                made.replace(target)
                return True
    return False


def library() -> Path | None:
    """Return the compiled kernels, compiling them if need be; None where that can't be done."""
    if SHIPPED.exists() and SHIPPED.stat().st_mtime >= SOURCE.stat().st_mtime:
        return SHIPPED
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(FLAGS).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = home / "limbeck" / f"packed-{digest}.so"
    try:
        return target if target.exists() or compile_kernels(target) else None
    except OSError:  # no place to write to
        return None
