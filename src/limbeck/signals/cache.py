"""Copies of remote files on this machine, named by the SHA-256 of their contents, and bounded in size.

A file that is downloaded is hashed as it arrives and kept only if it is what was asked for; a copy is hashed again by
whoever uses it first. Files that were not used for longest make room. Processes may share a cache: files appear whole,
and a file that one process removes stays readable to another that has it open.

`LIMBECK_CACHE` names the folder (by default `~/.cache/limbeck`), `LIMBECK_CACHE_GB` the bound (by default 50).
"""

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from limbeck.errors import IntegrityError, UserError
from limbeck.files import digest_of, publish, sha256_file
from limbeck.signals.mapping import changed

GIGABYTE = 1_000_000_000
DEFAULT_GIGABYTES = 50.0


@dataclass(frozen=True)
class FileCache:
    """A folder of files named by their SHA-256.

    Attributes:
        folder: made when it is needed.
        limit: bytes in all; one file is kept even if it is larger.
    """

    folder: Path
    limit: int

    def open(self, sha256: str, source: str, download: Callable[[Path], object], *, verify: bool) -> BufferedReader:
        """Return a file with these contents, open for reading.

        Args:
            sha256: of the contents.
            source: what messages call the file.
            download: writes the contents to a new file.
            verify: whether a copy that is here already is hashed again; a damaged one is replaced.

        Raises:
            IntegrityError: what was downloaded has other contents.
        """
        path = self.folder / sha256[:2] / sha256
        if (there := self._take(path)) is not None:
            if not verify or hashlib.file_digest(there, "sha256").hexdigest() == sha256:
                there.seek(0)
                return there
            there.close()
        with _DOWNLOADING, publish(path) as temporary:  # threads of one process would share the temporary name
            download(temporary)
            if sha256_file(temporary) != sha256:
                raise IntegrityError(changed(source))
            taken = temporary.open("rb")
        self._make_room(path)
        return taken

    def view(self, names: dict[str, str]) -> Path:
        """Return a folder of links to files of the cache: from a name to the SHA-256 of the contents."""
        folder = self.folder / "views" / digest_of(names)[:32]
        folder.mkdir(parents=True, exist_ok=True)
        for name, sha256 in names.items():
            with suppress(FileExistsError):
                (folder / name).symlink_to(Path("..", "..", sha256[:2], sha256))
        return folder

    def _take(self, path: Path) -> BufferedReader | None:
        try:
            file = path.open("rb")
            os.utime(path)
        except FileNotFoundError:
            return None
        return file

    def _make_room(self, newest: Path) -> None:
        files = []
        for path in self.folder.glob("??/*"):
            try:
                state = path.stat()
            except FileNotFoundError:
                continue  # another process made room
            files.append((state.st_mtime_ns, state.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


_DOWNLOADING = threading.Lock()


def default_cache() -> FileCache:
    """Return the cache that the environment names.

    Raises:
        UserError: `LIMBECK_CACHE_GB` is not a number.
    """
    folder = os.environ.get("LIMBECK_CACHE") or Path.home() / ".cache" / "limbeck"
    text = os.environ.get("LIMBECK_CACHE_GB") or str(DEFAULT_GIGABYTES)
    try:
        limit = int(float(text) * GIGABYTE)
    except ValueError as error:
        raise UserError(f"LIMBECK_CACHE_GB={text}: not a number of gigabytes.") from error
    return FileCache(Path(folder) / "signals", limit)
