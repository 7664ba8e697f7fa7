"""How kernels are compiled by numba: on first use, without Python's lock, and kept on disk where there is a place."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(*fastmath: str) -> Callable[[F], F]:
    """Return a decorator that compiles, with these liberties about rounding (LLVM's names; none by default)."""

    def compile_later(function: F) -> F:
        try:
            return cast(F, numba.njit(cache=True, nogil=True, fastmath=set(fastmath))(function))
        except RuntimeError:  # neither the package's folder nor the user's can be written
            return cast(F, numba.njit(nogil=True, fastmath=set(fastmath))(function))

    return compile_later
