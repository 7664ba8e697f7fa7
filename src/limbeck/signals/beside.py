"""Files beside the manifest: what some codecs need once for a whole dataset, such as an output head or a prior.

A codec says so by having a method `attach`; a dataset calls it when it is opened. Every file of a dataset's folder that
is neither manifest nor shard counts as one of these: the manifest lists it with its SHA-256.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

from limbeck.files import sha256_file
from limbeck.signals.lock import LOCK
from limbeck.signals.manifest import MANIFEST, FileRecord
from limbeck.signals.storage import LocalFolder, Storage


@runtime_checkable
class AttachedCodec(Protocol):
    """A codec that reads files beside the manifest."""

    def attach(self, folder: Path) -> Any:
        """Read them from a local folder.

        Raises:
            IntegrityError: one is missing, or is not the one that the codec's settings name.
        """
        ...


def write_beside(storage: Storage, write: Callable[[Path], None], shards: set[str]) -> tuple[FileRecord, ...]:
    """Have `write` put files into a dataset's folder, and return the records of all that are there then.

    Args:
        storage: of the dataset.
        write: is given a local folder, which holds the files that are there already.
        shards: names of the dataset's shards.
    """
    if isinstance(storage, LocalFolder):
        write(storage.folder)
        return records_of(storage, shards)
    with TemporaryDirectory(prefix="limbeck-") as name:
        folder = LocalFolder(Path(name))
        for there in _names(storage, shards):
            (folder.folder / there).write_bytes(storage.read(there) or b"")
        before = records_of(folder, shards)
        write(folder.folder)
        after = records_of(folder, shards)
        for record in after:
            if record not in before:
                with storage.publish(record.name) as temporary:
                    temporary.write_bytes((folder.folder / record.name).read_bytes())
    return after


def records_of(folder: LocalFolder, shards: set[str]) -> tuple[FileRecord, ...]:
    """Return the records of all files of a local folder that are neither manifest nor shards, by name."""
    return tuple(
        FileRecord(name=name, bytes=folder.size(name) or 0, sha256=sha256_file(folder.folder / name))
        for name in _names(folder, shards)
    )


def _names(storage: Storage, shards: set[str]) -> list[str]:
    return [name for name in storage.names() if name not in shards | {MANIFEST, LOCK} and not name.startswith(".")]
