"""How kernels are compiled by numba: on first use, without Python's lock, and kept on disk where there is a place.

What is kept is found again by the name of its function and the source of its module. That is not all that goes into it:
constants, and kernels that it calls, can come from other modules. So a digest of its module, and of all that the module
has imported, is made part of the name: what was compiled before any of it changed is never run.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

DIGITS = 12
CONSTANTS = (bool, int, float, str, bytes, tuple, np.generic, type(None))
OWN = __name__.split(".")[0]


def compiled(*fastmath: str) -> Callable[[F], F]:
    """Return a decorator that compiles, with these liberties about rounding (LLVM's names; none by default).

    Division by zero makes an infinity or NaN, as everywhere in numpy. What a function needs of other modules has to be
    imported above it.

    Raises:
        TypeError: (the decorator) the function's module has imported a module of its package whole: what is then used
            of that could change unnoticed.
    """

    def compile_later(function: F) -> F:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
        try:
            function.__qualname__ += f"_{_digest(function)}"
            return cast(F, numba.njit(cache=True, **options)(function))
        except (OSError, RuntimeError):  # sources are not files, or no folder can be written
            return cast(F, numba.njit(**options)(function))

    return compile_later


def _digest(function: Callable[..., Any]) -> str:
    """Return a digest of all that can be compiled into a function."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(Path(function.__code__.co_filename).read_bytes())
    for name, value in function.__globals__.items():
        if not name.startswith("__"):
            digest.update(name.encode())
            digest.update(_told_apart(value, function.__module__))
    return digest.hexdigest()[:DIGITS]


def _told_apart(value: Any, where: str) -> bytes:
    """Return bytes that change whenever what is compiled of a global value does."""
    if isinstance(value, np.ndarray):
        return repr((value.dtype.str, value.shape)).encode() + value.tobytes()
    if isinstance(value, CONSTANTS):
        return repr(value).encode()
    if (kernel := getattr(value, "py_func", None)) is not None:
        return f"{kernel.__module__}.{kernel.__qualname__}".encode()  # its own digest is in its name
    whole = isinstance(value, ModuleType)
    source = value.__name__ if whole else str(getattr(value, "__module__", None))
    if source.split(".")[0] not in (OWN, where.split(".")[0]) or source == where:
        return f"{source}.{getattr(value, '__qualname__', '')}".encode()
    if whole:
        raise TypeError(f"{where} has imported {source}: import what its kernels need by name.")
    return Path(str(sys.modules[source].__file__)).read_bytes()
