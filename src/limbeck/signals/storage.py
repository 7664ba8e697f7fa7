"""Where a dataset lies: a local folder, or a store that fsspec reaches (`s3://`, `hf://`, `memory://`, ...).

Both do the same few things with named files. A file is published whole: locally by a rename, remotely by one put of the
whole object, which is as atomic as the store makes it. What is read from a store is first copied to this machine's
cache, by its SHA-256, and mapped from there.
"""

import mmap
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import fsspec

from limbeck.errors import IntegrityError, UserError
from limbeck.files import publish
from limbeck.settings import nearest
from limbeck.signals.cache import default_cache
from limbeck.signals.lock import FolderLock, Lock
from limbeck.signals.mapping import StoredFile, mapped, missing
from limbeck.signals.remote import RemoteFolder

LOCAL = ("file", "local")


class Storage(Protocol):
    """A folder, wherever it is."""

    def where(self, name: str = "") -> str:
        """Return what messages call a file, or the folder."""
        ...

    def names(self) -> list[str]:
        """Return the names of the files that are there, sorted; none if there is no folder."""
        ...

    def size(self, name: str) -> int | None:
        """Return a file's bytes; None: it is not there."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a small file's contents; None: it is not there."""
        ...

    def publish(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local path to write to; on success it becomes the file `name`, whole."""
        ...

    def map(self, file: StoredFile, *, verify: bool) -> mmap.mmap:
        """Return a file's contents, mapped into memory.

        Raises:
            IntegrityError: it is missing, or of another size, or (where `verify` has it hashed) has other contents.
        """
        ...

    def check(self, file: StoredFile) -> None:
        """Hash a file where it lies; raises as `map` does."""
        ...

    def local(self, files: Sequence[StoredFile]) -> Path:
        """Return a local folder in which these files lie under their names."""
        ...

    def clear(self) -> None:
        """Remove what killed writers left half-written."""
        ...

    def lock(self) -> Lock:
        """Keep other writers out until the lock is released.

        Raises:
            UserError: another process is writing here, or nothing can be written here.
        """
        ...


def open_storage(location: Path | str) -> Storage:
    """Return the folder that a path or a URL names.

    Raises:
        UserError: the URL is of a kind that is not known, or needs a package that is not installed.
    """
    text = str(location)
    if isinstance(location, Path):
        text = re.sub(r"^(\w[\w+]+):/+", r"\1://", text)  # pathlib makes one of the two slashes of a URL
    kind, separator, rest = text.partition("://")
    if not separator:
        return LocalFolder(Path(location))
    if kind in LOCAL:
        return LocalFolder(Path(rest))
    kind = kind.split("::")[0]
    known = sorted({*fsspec.available_protocols(), *fsspec.registry})
    if kind not in known:
        raise UserError(f"{text}: no store is called {kind!r}.{nearest(kind, known)}")
    folder = RemoteFolder(text.rstrip("/"), default_cache())
    try:
        folder.connect()
    except ImportError as error:
        raise UserError(f"{text}: {kind}:// needs a package that is not installed ({error}).") from error
    except ValueError as error:
        raise UserError(f"{text}: not a place to store files ({error}).") from error
    return folder


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine; see `Storage`."""

    folder: Path

    def where(self, name: str = "") -> str:
        """Return the path of a file, or of the folder."""
        return str(self.folder / name)

    def names(self) -> list[str]:
        """Return the names of the files that are there, sorted."""
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []

    def size(self, name: str) -> int | None:
        """Return a file's bytes, or None."""
        path = self.folder / name
        return path.stat().st_size if path.exists() else None

    def read(self, name: str) -> bytes | None:
        """Return a file's contents, or None."""
        path = self.folder / name
        return path.read_bytes() if path.exists() else None

    def publish(self, name: str) -> AbstractContextManager[Path]:
        """Write a file beside its name; see `limbeck.files.publish`."""
        return publish(self.folder / name)

    def map(self, file: StoredFile, *, verify: bool) -> mmap.mmap:
        """Map a file."""
        try:
            opened = (self.folder / file.name).open("rb")
        except FileNotFoundError as error:
            raise IntegrityError(missing(self.where(file.name))) from error
        return mapped(opened, file, self.where(file.name), verify=verify)

    def check(self, file: StoredFile) -> None:
        """Hash a file."""
        self.map(file, verify=True).close()

    def local(self, files: Sequence[StoredFile]) -> Path:
        """Return the folder itself."""
        return self.folder

    def clear(self) -> None:
        """Remove temporary files."""
        for leftover in self.folder.glob(".*.part"):
            leftover.unlink()

    def lock(self) -> Lock:
        """Lock the folder by `flock`."""
        return FolderLock(self.folder)
