"""A folder of a remote store, by fsspec.

A file is put in one piece, and is there when the store says so. What is read is copied to this machine's cache first,
by its SHA-256. The store's errors become ours, with the file's URL.
"""

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.files import CHUNK_BYTES, publish
from limbeck.signals.cache import FileCache
from limbeck.signals.lock import Lock
from limbeck.signals.mapping import StoredFile, changed, mapped, missing
from limbeck.signals.store_lock import StoreLock

HUB_KINDS = ("datasets/", "spaces/", "buckets/")
"""What the paths of `hf://` begin with, but for models."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of a store; see `limbeck.signals.storage.Storage`.

    Attributes:
        location: its URL, without a slash at the end.
        cache: holds copies of what is read.
    """

    location: str
    cache: FileCache

    def connect(self) -> tuple[Any, str]:
        """Return fsspec's file system and the folder's path in it.

        Asked for each time: fsspec keeps one for each process, and those of another process must not be used.
        """
        files, root = fsspec.core.url_to_fs(self.location)
        return files, str(root)

    def where(self, name: str = "") -> str:
        """Return the URL of a file, or of the folder."""
        return f"{self.location}/{name}" if name else self.location

    def names(self) -> list[str]:
        """Return the names of the files that are there, sorted."""
        files, root = self.connect()
        with self._asking(""):
            try:
                files.invalidate_cache(root)
                return sorted(path.rsplit("/", 1)[-1] for path in files.ls(root, detail=False))
            except FileNotFoundError:
                return []

    def size(self, name: str) -> int | None:
        """Return a file's bytes, or None."""
        files, root = self.connect()
        with self._asking(name):
            try:
                files.invalidate_cache(root)
                return int(files.info(f"{root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """Return a file's contents, or None."""
        files, root = self.connect()
        with self._asking(name):
            try:
                return bytes(files.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    @contextmanager
    def publish(self, name: str) -> Iterator[Path]:
        """Write a file here, and put it into the store in one piece."""
        with tempfile.TemporaryDirectory(prefix="limbeck-") as folder:
            path = Path(folder) / name
            with publish(path) as temporary:
                yield temporary
            self._put(lambda files, target: files.put_file(str(path), target), name)

    def write(self, name: str, data: bytes, *, create: bool = False) -> bool:
        """Publish a small file; with `create` only if there is none: False says that there is one already.

        Not every store can tell for sure, so the caller reads back what is there.
        """
        mode = "create" if create else "overwrite"
        try:
            self._put(lambda files, target: files.pipe_file(target, data, mode=mode), name)
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        files, root = self.connect()
        with self._asking(name):
            try:
                files.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

    def map(self, file: StoredFile, *, verify: bool) -> mmap.mmap:
        """Download a file to the cache, unless it is there, and map the copy."""
        source = self.where(file.name)

        def download(target: Path) -> None:
            files, root = self.connect()
            with self._asking(file.name):
                try:
                    files.get_file(f"{root}/{file.name}", str(target))
                except FileNotFoundError as error:
                    raise IntegrityError(missing(source)) from error

        return mapped(self.cache.open(file.sha256, source, download, verify=verify), file, source, verify=False)

    def check(self, file: StoredFile) -> None:
        """Hash a file of the store, whatever the cache holds."""
        files, root = self.connect()
        with self._asking(file.name):
            try:
                with files.open(f"{root}/{file.name}", "rb") as opened:
                    digest = hashlib.sha256()
                    while piece := opened.read(CHUNK_BYTES):
                        digest.update(piece)
            except FileNotFoundError as error:
                raise IntegrityError(missing(self.where(file.name))) from error
        if digest.hexdigest() != file.sha256:
            raise IntegrityError(changed(self.where(file.name)))

    def local(self, files: Sequence[StoredFile]) -> Path:
        """Return a folder of the cache that links to copies of these files."""
        for file in files:
            self.map(file, verify=True).close()
        return self.cache.view({file.name: file.sha256 for file in files})

    def clear(self) -> None:
        """Nothing to do: what a store has not taken whole, it does not list."""

    def lock(self) -> Lock:
        """Make a lock object."""
        return StoreLock(self)

    def _put(self, put: Callable[[Any, str], object], name: str) -> None:
        files, root = self.connect()
        with self._asking(name):
            try:
                put(files, f"{root}/{name}")
            except FileNotFoundError as error:  # a store that has folders, and not this one yet
                bucket = "/".join(root.split("/")[: self._bucket_depth(root)])
                if bucket and not files.exists(bucket):
                    raise UserError(
                        f"{self.where()}: there is no {bucket!r} there. Make it, or name another."
                    ) from error
                files.makedirs(root, exist_ok=True)
                put(files, f"{root}/{name}")

    def _bucket_depth(self, root: str) -> int:
        """Return how many parts of a path name what has to be there before anything can be written."""
        if not self.location.startswith("hf://"):
            return 1
        return 3 if root.startswith(HUB_KINDS) else 2

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Name the file and what to do in the errors of a store."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except _store_errors() as error:
            said = " ".join(str(error).split()) or type(error).__name__
            status = getattr(getattr(error, "response", None), "status_code", None)  # the Hub's errors have one
            keyless = "Credentials" in type(error).__name__  # of botocore: there are none, or half of them
            if isinstance(error, PermissionError) or status in (401, 403) or keyless:
                raise UserError(f"{self.where(name)}: access denied ({said}). Check the credentials.") from error
            raise LimbeckError(
                f"{self.where(name)}: the store failed ({said}). What was captured stays usable; run again when the "
                "store answers."
            ) from error


def _store_errors() -> tuple[type[Exception], ...]:
    """Return what stores raise: `OSError`, and for `s3://` what its client does not turn into one."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return (OSError,)
    return (OSError, BotoCoreError)
