"""Who and what an arena speaks of, as types; and the commit payload that a miner writes on the chain.

A payload is ASCII, at most 128 bytes (the chain's own limit for a raw commitment):

    L1:<repo>:<revision>:<manifest>

`repo` is `owner/name`; `revision` is 20 bytes (a git commit) and `manifest` 32 bytes (SHA-256 of the model's file
list, see `limbeck.arena.models`), both in URL-safe base64 without padding: 27 and 43 characters. A repository's name
may therefore have 53 characters. The manifest digest binds the commitment to the bytes that existed when it was
made: a repository filled later cannot match it.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from functools import total_ordering
from typing import NewType

from limbeck.errors import UserError

Hotkey = NewType("Hotkey", str)
"""SS58 address (format 42) of the key that commits models or sets weights."""

Coldkey = NewType("Coldkey", str)
"""SS58 address of the key that owns hotkeys."""

Uid = NewType("Uid", int)
"""A neuron's slot in the subnet: recycled on a chain, and therefore never the key of a result."""

BlockNumber = NewType("BlockNumber", int)

MAX_PAYLOAD_BYTES = 128
REPO_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
REVISION_PATTERN = re.compile(r"[0-9a-f]{40}")
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
_PAYLOAD_PATTERN = re.compile(r"L1:([^:]+):([A-Za-z0-9_-]{27}):([A-Za-z0-9_-]{43})")


class PayloadError(UserError):
    """Bytes that are no commit payload, or a commitment that does not fit into one."""


@dataclass(frozen=True)
class ModelRef:
    """A repository pinned to one revision.

    Raises:
        UserError: `repo` is not `owner/name`, or `revision` is not 40 hexadecimal digits.
    """

    repo: str
    revision: str

    def __post_init__(self) -> None:
        if not REPO_PATTERN.fullmatch(self.repo) or ".." in self.repo:
            raise UserError(f"{self.repo!r} is not a repository: write owner/name with letters, digits, . _ and -.")
        if not REVISION_PATTERN.fullmatch(self.revision):
            raise UserError(f"{self.repo}: revision {self.revision!r} is not pinned: give all 40 hexadecimal digits.")

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision[:12]}"


@total_ordering
@dataclass(frozen=True)
class CommitmentId:
    """One write of one hotkey: what every result belongs to. Ordered by block, then by hotkey."""

    hotkey: Hotkey
    block: BlockNumber

    def __lt__(self, other: "CommitmentId") -> bool:
        return (self.block, self.hotkey) < (other.block, other.hotkey)

    def __str__(self) -> str:
        return f"{self.hotkey}:{self.block}"

    @classmethod
    def parse(cls, text: str) -> "CommitmentId":
        """Read back what `str` wrote.

        Raises:
            UserError: the text is not `hotkey:block`.
        """
        hotkey, colon, block = text.partition(":")
        if not hotkey or not colon or not block.isascii() or not block.isdigit():
            raise UserError(f"{text!r} is not a commitment: write HOTKEY:BLOCK.")
        return cls(Hotkey(hotkey), BlockNumber(int(block)))


@dataclass(frozen=True)
class CommitPayload:
    """What a miner commits to: a model at a revision, and the digest of its manifest (64 hexadecimal digits)."""

    model: ModelRef
    manifest: str

    def __post_init__(self) -> None:
        if not DIGEST_PATTERN.fullmatch(self.manifest):
            raise PayloadError(f"{self.model}: the manifest digest must be 64 hexadecimal digits.")

    def encode(self) -> bytes:
        """Return the payload's bytes.

        Raises:
            PayloadError: the repository's name is too long for 128 bytes.
        """
        text = f"L1:{self.model.repo}:{_base64(self.model.revision)}:{_base64(self.manifest)}"
        if len(text) > MAX_PAYLOAD_BYTES:
            spare = MAX_PAYLOAD_BYTES - (len(text) - len(self.model.repo))
            raise PayloadError(
                f"{self.model.repo}: the name has {len(self.model.repo)} characters, and a commitment has room for"
                f" {spare}. Give the repository a shorter name."
            )
        return text.encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> "CommitPayload":
        """Read a payload; there is exactly one byte string for each.

        Raises:
            PayloadError: the bytes are not a payload, with the reason.
        """
        if len(data) > MAX_PAYLOAD_BYTES:
            raise PayloadError(f"a commit payload has at most {MAX_PAYLOAD_BYTES} bytes, this one has {len(data)}.")
        match = _PAYLOAD_PATTERN.fullmatch(data.decode("ascii", errors="replace"))
        if match is None:
            raise PayloadError("not a commit payload: expected L1:<repo>:<revision>:<manifest>.")
        repo, revision, manifest = match.groups()
        payload = cls(ModelRef(repo, _hexadecimal(revision)), _hexadecimal(manifest))
        if payload.encode() != data:
            raise PayloadError("not a commit payload: the base64 is not in its canonical form.")
        return payload


def _base64(hexadecimal: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(hexadecimal)).rstrip(b"=").decode("ascii")


def _hexadecimal(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
    except binascii.Error as error:
        raise PayloadError(f"not a commit payload: {text!r} is not base64 ({error}).") from error
