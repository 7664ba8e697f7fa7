"""Architectures that `transformers` does not bring: rooms above register theirs by the entry points `limbeck.models`.

An entry point names a module whose import registers its classes with `transformers`' Auto classes. Nothing is ever
taken from a model's repository.
"""

from functools import lru_cache
from importlib.metadata import entry_points

GROUP = "limbeck.models"


@lru_cache(maxsize=1)
def register_architectures() -> None:
    """Import the modules that register architectures, once."""
    for entry_point in entry_points(group=GROUP):
        entry_point.load()
