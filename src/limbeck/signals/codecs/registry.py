"""The registry of codecs: what a codec is, and the one door by which built-ins and plug-ins come in.

A codec turns the positions of some rows into columns of bytes and back. It is described by a settings model with the
tags `codec` and `version`; the digest of that description stands in a dataset's manifest, so that bytes are never read
by other rules than those they were written by. A package adds codecs by the entry point group `limbeck.codecs`: the
entry names a module, which is imported for its decorators.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

from limbeck.errors import LimbeckError, UserError
from limbeck.files import digest_of
from limbeck.settings import Settings, nearest, validate_settings
from limbeck.signals.codecs.columns import Columns
from limbeck.signals.types import TeacherSignal

BUILT_IN = ("topk", "dense", "token", "distillkit", "distillkit_legacy", "sampled", "hidden")
ENTRY_POINTS = "limbeck.codecs"


class Codec(Protocol):
    """What every codec does. Positions are those of all rows, one row after the other (`[N, ...]`)."""

    spec: Any
    vocabulary: int
    kind: str
    columns: tuple[str, ...]

    def __init__(self, spec: Any, vocabulary: int) -> None: ...

    def encode(self, signal: Any, lengths: Sequence[int]) -> Columns:
        """Return the columns of `signal`, whose `sum(lengths)` positions belong to `len(lengths)` rows.

        Raises:
            LimbeckError: the signal holds something that can't be represented; row and position are named.
        """
        ...

    def decode(self, columns: Columns, lengths: Sequence[int]) -> TeacherSignal:
        """Return the signal of rows of `lengths` positions.

        Raises:
            IntegrityError: the bytes are not what `encode` writes.
        """
        ...


CodecType = TypeVar("CodecType", bound=type[Codec])
_CODECS: dict[str, tuple[type[Settings], type[Codec]]] = {}


def codec(name: str, spec: type[Settings]) -> Callable[[CodecType], CodecType]:
    """Register the decorated class as the codec `name`, described by the settings model `spec`."""

    def register(kind: CodecType) -> CodecType:
        if name in _CODECS:
            raise ValueError(f"codec {name} is registered twice")
        _CODECS[name] = (spec, kind)
        return kind

    return register


def make_codec(spec: Settings, vocabulary: int) -> Codec:
    """Return the codec that `spec` describes, for a vocabulary of this size."""
    name = str(getattr(spec, "codec", ""))
    return _find(name)[1](spec, vocabulary)


def parse_spec(data: dict[str, Any], source: str = "codec") -> Settings:
    """Return the typed description of a codec; `source` is what messages call it.

    Raises:
        UserError: there is no such codec or no such key; the nearest is named.
    """
    return validate_settings(data, _find(str(data.get("codec", "")))[0], source)


def spec_digest(spec: Settings) -> str:
    """Return the digest that stands for a codec's description in manifests."""
    return digest_of(spec.model_dump(mode="json"))


def codec_names() -> list[str]:
    """Return the names of all codecs, sorted."""
    _load()
    return sorted(_CODECS)


def positions_of(lengths: Sequence[int], index: int) -> str:
    """Return `row r, position t` for the flat position `index`, for messages."""
    for row, length in enumerate(lengths):
        if index < length:
            return f"row {row}, position {index}"
        index -= length
    raise LimbeckError(f"position {index} lies behind the last row.")


def _find(name: str) -> tuple[type[Settings], type[Codec]]:
    _load()
    if name not in _CODECS:
        raise UserError(f"no codec is called {name!r}.{nearest(name, list(_CODECS))}")
    return _CODECS[name]


def _load() -> None:
    """Import the modules that register codecs: ours, and those of installed plug-ins."""
    for name in BUILT_IN:
        import_module(f"limbeck.signals.codecs.{name}")
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()
