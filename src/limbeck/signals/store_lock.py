"""One writer a remote folder: a lock object that names its owner, expires, and is renewed while the owner lives.

A writer that is killed leaves the object behind. On the machine where it ran the next writer sees that it is dead and
takes over at once; elsewhere when the lock has expired (so the clocks of the machines must agree to within minutes).

What it does not do: a store that can't create an object only if there is none (`hf://`) may let in two writers that
start within the same second. Each looks before every shard that the lock is still its own, so that one of them stops;
and as both write the same bytes, none of them does harm.
"""

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from limbeck.errors import LimbeckError, UserError
from limbeck.signals.lock import LOCK

LIFETIME = 600.0


class Store(Protocol):
    """What a lock needs of a store; see `limbeck.signals.storage.RemoteFolder`."""

    def where(self, name: str = "") -> str:
        """Return what messages call a file, or the folder."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a file's contents, or None."""
        ...

    def write(self, name: str, data: bytes, *, create: bool = False) -> bool:
        """Write a file; with `create` only if there is none: False says that there is one."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        ...


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        token: random, of this lock alone.
        host: its name, for messages.
        machine: what a process number is unique in: the start of the machine and the name space.
        pid: of the process.
        started: when the process started, in the machine's ticks: numbers are used again.
        expires: seconds since 1970.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: int
    expires: float

    def is_gone(self, now: float) -> bool:
        """Return whether the holder is known to be dead, or has not renewed its lock in time."""
        here = self.machine and self.machine == _machine()
        return now > self.expires or bool(here and _started(self.pid) != self.started)


class StoreLock:
    """Holds a remote folder for this process until `release`.

    Args:
        store: the folder.
        lifetime: seconds until the lock expires if it is not renewed; a thread renews it four times as often.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, store: Store, lifetime: float = LIFETIME) -> None:
        self._store = store
        self._lifetime = lifetime
        self._token = uuid4().hex
        self._released = threading.Event()
        self._writing = threading.Lock()  # or a renewal could follow the release
        self._acquire()
        threading.Thread(target=self._keep, name="limbeck lock", daemon=True).start()

    def check(self) -> None:
        """Look that the lock is still this process's.

        Raises:
            LimbeckError: it expired while this process was held up, and another one has taken over.
        """
        holder = self._holder()
        if holder is None or holder.token != self._token:
            who = "nobody" if holder is None else f"{holder.host}, process {holder.pid}"
            raise LimbeckError(
                f"{self._store.where()}: this process no longer holds the lock ({who} does). "
                "Stop the other writer, or leave the capture to it."
            )

    def release(self) -> None:
        """Let go. A second call does nothing."""
        with self._writing:
            if self._released.is_set():
                return
            self._released.set()
            holder = self._holder()
            if holder is not None and holder.token == self._token:
                self._store.remove(LOCK)

    def renew(self) -> None:
        """Put off when the lock expires."""
        with self._writing:
            if not self._released.is_set():
                self.check()
                self._store.write(LOCK, self._record())

    def _acquire(self) -> None:
        while True:
            if self._store.write(LOCK, self._record(), create=True):
                self.check()
                return
            holder = self._holder()
            if holder is None:
                continue  # released in between
            left = holder.expires - time.time()
            if not holder.is_gone(time.time()):
                raise UserError(
                    f"{self._store.where()}: another process ({holder.host}, process {holder.pid}) is writing here. "
                    f"Wait for it, or choose another folder. (If it is dead, its lock expires in {left:.0f} seconds.)"
                )
            if self._holder() == holder:
                self._store.remove(LOCK)

    def _keep(self) -> None:
        while not self._released.wait(self._lifetime / 4):
            try:
                self.renew()
            except LimbeckError:
                continue  # a store that does not answer may do so next time; a lost lock is found before the next shard

    def _record(self) -> bytes:
        holder = Holder(
            self._token, socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()),
            round(time.time() + self._lifetime, 3),
        )  # fmt: skip
        return json.dumps(asdict(holder), sort_keys=True).encode()

    def _holder(self) -> Holder | None:
        data = self._store.read(LOCK)
        if data is None:
            return None
        try:
            return Holder(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self._store.where(LOCK)}: not a lock of ours ({error}). Remove it if no capture is running."
            ) from error


def _machine() -> str:
    """Return what makes a process number unique; empty where this system does not say."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists() or not space.is_symlink():
        return ""
    return f"{boot.read_text().strip()} {space.readlink()}"


def _started(pid: int) -> int:
    """Return when a process of this machine started, in ticks; 0: there is none, or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
