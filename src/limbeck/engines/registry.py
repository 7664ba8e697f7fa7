"""The registry of engines: the one door by which built-in engines and those of other packages come in.

An engine is a settings model with the tag `engine`, and up to two openers: one returns a scorer, one a generator. A
package adds engines by the entry point group `limbeck.engines`: the entry names a module, which is imported for its
decorators.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from limbeck.errors import UserError
from limbeck.settings import Settings, nearest, validate_settings

BUILT_IN = ("transformers_engine", "generation", "server", "chat", "vllm")
ENTRY_POINTS = "limbeck.engines"

Opener = TypeVar("Opener", bound=Callable[..., Any])
_SETTINGS: dict[str, type[Settings]] = {}
_OPENERS: dict[tuple[str, str], Callable[..., Any]] = {}


def opens(job: str, name: str, settings: type[Settings]) -> Callable[[Opener], Opener]:
    """Register the decorated function as what opens the engine `name` for a job.

    Args:
        job: `scorer` or `generator`; see `limbeck.engines.scorer` and `limbeck.engines.completions`.
        name: the engine, as recipes spell it.
        settings: the model of its settings; the same for both jobs.
    """

    def register(opener: Opener) -> Opener:
        if (job, name) in _OPENERS:
            raise ValueError(f"the {job} of engine {name} is registered twice")
        if _SETTINGS.setdefault(name, settings) is not settings:
            raise ValueError(f"engine {name} is registered with two settings models")
        _OPENERS[job, name] = opener
        return opener

    return register


def opener_of(job: str, name: str) -> Callable[..., Any]:
    """Return what opens an engine for a job.

    Raises:
        UserError: there is no such engine, or it does not do this job.
    """
    _load()
    if name not in _SETTINGS:
        raise UserError(f"no engine is called {name!r}.{nearest(name, engine_names())}")
    if (job, name) not in _OPENERS:
        able = [other for what, other in _OPENERS if what == job]
        raise UserError(f"engine {name!r} is no {job}. These are: {', '.join(sorted(able))}.")
    return _OPENERS[job, name]


def parse_engine(data: dict[str, Any], source: str = "engine") -> Settings:
    """Return the typed settings of an engine, of a plug-in too; `source` is what messages call them.

    Raises:
        UserError: there is no such engine or no such key; the nearest is named.
    """
    _load()
    name = str(data.get("engine", "transformers"))
    if name not in _SETTINGS:
        raise UserError(f"{source}: no engine is called {name!r}.{nearest(name, engine_names())}")
    return validate_settings(data, _SETTINGS[name], source)


def engine_names() -> list[str]:
    """Return the names of all engines, sorted."""
    _load()
    return sorted(_SETTINGS)


def _load() -> None:
    """Import the modules that register engines: ours, and those of installed plug-ins."""
    for name in BUILT_IN:
        import_module(f"limbeck.engines.{name}")
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()
