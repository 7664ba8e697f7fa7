"""Files that are whole or absent, and the digests that name their contents.

`publish` writes beside the target under a temporary name, flushes to the disk and renames: a reader never sees half a
file, and a writer that fails (a full disk, a killed process) leaves nothing under the final name.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, UserError

CHUNK_BYTES = 1 << 20
NO_ROOM = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "larger than a file may be here (ulimit -f)",
}


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success make it `target` atomically, on failure remove it.

    Raises:
        LimbeckError: the disk is full, naming the file and the folder.
        UserError: the folder can't be written to.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        _discard(temporary)
        if error.errno in NO_ROOM:
            raise LimbeckError(
                f"{target}: {NO_ROOM[error.errno]}; nothing was left half-written. "
                f"Free space in {target.parent}, then run again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{target}: cannot be written ({error.strerror}). Choose another output folder.") from error
        raise
    except BaseException:
        _discard(temporary)
        raise


def _discard(temporary: Path) -> None:
    if temporary.exists():  # False, not an error, where a part of the path is no folder
        temporary.unlink()


def write_text(target: Path, text: str) -> None:
    """Publish `text` as UTF-8."""
    with publish(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Publish `value` as indented JSON with sorted keys and a final newline.

    Raises:
        LimbeckError: it holds NaN or an infinity, for which JSON has no words: a reader would refuse the file. The
            message says where.
    """
    if place := _not_finite(value):
        raise LimbeckError(f"{target}: {place} is no finite number, which JSON can't hold. Nothing was written.")
    write_text(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def _not_finite(value: Any, place: str = "the value") -> str:
    """Return where in a JSON value the first number that is not finite stands; empty: nowhere."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else place
    if isinstance(value, dict):
        inside: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        inside = enumerate(value)
    else:
        return ""
    return next((found for key, item in inside if (found := _not_finite(item, f"{place}[{key!r}]"))), "")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON (which has no NaN), naming it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are
        raise UserError(f"{path}: not valid JSON ({error}).") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the one byte string that stands for a JSON value: sorted keys, no spaces, UTF-8, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value's canonical bytes, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
