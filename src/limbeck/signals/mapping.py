"""Files of a dataset, mapped into memory and held to what the manifest says of them."""

import hashlib
import mmap
from typing import BinaryIO, Protocol

from limbeck.errors import IntegrityError

ADVICE = "Remove the file and run the capture again: it writes this one anew and keeps the others."


class StoredFile(Protocol):
    """What a manifest says of a file."""

    @property
    def name(self) -> str:
        """Return its name in the folder."""
        ...

    @property
    def bytes(self) -> int:
        """Return its size."""
        ...

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of its contents, in hexadecimal."""
        ...


def mapped(opened: BinaryIO, file: StoredFile, source: str, *, verify: bool) -> mmap.mmap:
    """Return the contents of an open file, which is closed.

    Args:
        opened: for reading.
        file: what it must be.
        source: what messages call it.
        verify: whether it is hashed.

    Raises:
        IntegrityError: it is of another size or has other contents.
    """
    with opened:
        size = opened.seek(0, 2)
        if size != file.bytes or not size:
            raise IntegrityError(f"{source}: {size} bytes, but the manifest says {file.bytes}. {ADVICE}")
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if verify and hashlib.sha256(data).hexdigest() != file.sha256:
        raise IntegrityError(changed(source))
    return data


def changed(source: str) -> str:
    """Return the message for a file whose contents are not the ones that the manifest names."""
    return f"{source}: its bytes are not those the manifest names (SHA-256 differs). {ADVICE}"


def missing(source: str) -> str:
    """Return the message for a file that is not there."""
    return f"{source}: this file is missing. Run the capture again: it writes what is missing."
