"""One writer a folder: a lock that the operating system lets go of when its holder dies."""

import fcntl
import os
from pathlib import Path
from typing import Protocol, TextIO

from limbeck.errors import UserError

LOCK = ".lock"


class Lock(Protocol):
    """Keeps other writers out of a folder."""

    def check(self) -> None:
        """Raise LimbeckError if another process has taken the folder over."""
        ...

    def release(self) -> None:
        """Let go. A second call does nothing."""
        ...


class FolderLock:
    """Holds `folder` for this process until `release`.

    Raises:
        UserError: another process holds it, or the folder can't be made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._acquire()
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}). Choose another output folder.") from error

    def _acquire(self) -> TextIO:
        while True:
            file = self.path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                file.close()
                raise UserError(
                    f"{self.path.parent}: another process ({holder}) is writing here. "
                    "Wait for it, or choose another folder."
                ) from None
            if self._is_current(file):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                return file
            file.close()  # its last holder removed the file while this process waited to lock it

    def _is_current(self, file: TextIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Nothing to do: the operating system takes the lock from its holder only when that ends."""

    def release(self) -> None:
        """Let go, and leave no file behind. A second call does nothing."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self._file.close()
