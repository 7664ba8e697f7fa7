"""Settings: pydantic models loaded from YAML, with the same names in the file, on the command line and in the docs.

Unknown keys are errors that name the nearest valid key. `--set a.b=c` overrides one value, `--set a.0.b=c` one in the
first entry of a list; `c` is read as YAML.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from limbeck.errors import UserError

MOST_LISTED = 40  # names in a message


class Settings(BaseModel):
    """Base of every settings model: frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Model = TypeVar("Model", bound=BaseModel)


def load_settings(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file into `model`, after applying `a.b=c` overrides.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown (the nearest valid one is named), or a value is
            not what the key takes; the message names file and key.
    """
    return validate_settings(with_overrides(read_yaml(path), overrides), model, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values.

    Raises:
        UserError: the file is missing, is not YAML, or holds something else.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys and values at the top level, found {type(data).__name__}.")
    return data


def validate_settings(data: dict[str, Any], model: type[Model], source: str) -> Model:
    """Validate already-read `data`; `source` is what messages call it."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors()  # a key that is misspelt is unknown, and what it should have been is missing
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        raise UserError(f"{source}: {_explain(first, model)}") from error


def with_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `data` with each `a.b=c` set; `data` itself is left alone."""
    result = yaml.safe_load(yaml.safe_dump(data))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: expected key=value, such as training.steps=100.")
        *parents, last = key.split(".")
        node: Any = result
        for depth, parent in enumerate(parents):
            node = _inside(node, parent, override)
            if not isinstance(node, dict | list):
                raise UserError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value, not a section.")
        _place(node, last, override)
        node[int(last) if isinstance(node, list) else last] = yaml.safe_load(text)
    return result


def _inside(node: Any, key: str, override: str) -> Any:
    """Return what stands at a key of a section, which is made where there is none, or at a place of a list."""
    if isinstance(node, list):
        return node[_place(node, key, override)]
    return node.setdefault(key, {})


def _place(node: Any, key: str, override: str) -> int:
    """Return a place in a list; 0 in a section, where any key will do."""
    if not isinstance(node, list):
        return 0
    if not key.isdecimal() or int(key) >= len(node):
        raise UserError(f"--set {override}: {key!r} is no place in a list of {len(node)}, which are counted from 0.")
    return int(key)


def nearest(name: str, known: Sequence[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name closest to `name`, or a short list of those that exist."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(sorted(known))}." if 0 < len(known) <= MOST_LISTED else ""


def _explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    path = ".".join(_keys_of(model, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key {path!r}.{nearest(str(error['loc'][-1]), _keys_at(model, error['loc'][:-1]))}"
    return f"{path or 'value'}: {error['msg'].lower()} (got {error.get('input')!r})."


def _keys_of(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return a location as it stands in the file: without the tags by which a union tells its members apart."""
    last = len(location) - 1
    kept = []
    for index, part in enumerate(location):
        if isinstance(part, int) or index == last or part in _keys_at(model, location[:index]):
            kept.append(str(part))
    return kept


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the field names of the (nested) model that `location` leads to."""
    current: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        found: list[type[BaseModel]] = []
        for candidate in current:
            field = candidate.model_fields.get(part)
            if field is not None:
                found += _models_in(field.annotation)
        current = found or current  # a tag of a union names no field: stay
    return sorted({name for candidate in current for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]
