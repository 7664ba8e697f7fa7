"""The manifest of a dataset of signals: whose words these are, over which vocabulary, in which bytes, and if whole.

`manifest.json` lies beside the shards. Its header is fixed when the capture starts, and two captures are the same
capture exactly if their headers are equal. The list of shards grows as they are published. The file names the SHA-256
of its own bytes (with zeros in place of that digest), so that no byte of it can change unnoticed.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from limbeck.errors import IntegrityError, UserError
from limbeck.files import digest_of
from limbeck.settings import Settings, validate_settings
from limbeck.signals.codecs.registry import make_codec, parse_spec, spec_digest
from limbeck.signals.storage import Storage, open_storage

MANIFEST = "manifest.json"
SCHEMA_VERSION = 2  # as in ManifestHeader
SEAL, BLANK = "manifest_sha256", "0" * 64
SHA256 = "^[0-9a-f]{64}$"


class TeacherRef(Settings):
    """The model whose distributions were captured."""

    repo: str
    revision: str


class ShardRecord(Settings):
    """One shard: samples `start` up to, not including, `stop`."""

    name: str
    start: int = Field(ge=0)
    stop: int = Field(gt=0)
    tokens: int = Field(ge=0)
    longest: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=SHA256)

    @model_validator(mode="after")
    def _check(self) -> "ShardRecord":
        if self.name != shard_name(range(self.start, self.stop)):
            raise ValueError(f"shard {self.name!r} does not hold samples {self.start} to {self.stop}")
        return self


class FileRecord(Settings):
    """A file beside the manifest that the codec reads."""

    name: str = Field(pattern=r"^[\w-][\w.-]*$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=SHA256)


class ManifestHeader(Settings):
    """What identifies a capture.

    Attributes:
        teacher: repository (or digest of a local model) and revision.
        tokenizer_digest: of the tokenizer that made the ids.
        vocabulary: how many tokens the teacher's distributions are over.
        kind: of the signal (`topk`, `dense`, ...).
        codec: the codec's description; it is read back as the codec's settings.
        codec_digest: `spec_digest` of it.
        text_digest: of the source text.
        samples: rows in the whole dataset.
        samples_per_shard: rows in each shard but the last.
        documents: whether tokens carry document numbers.
        capture: how it was captured (engine, dtype, recipe): anything that a repetition needs.
    """

    format: Literal["limbeck-signals"] = "limbeck-signals"
    schema_version: Literal[2] = 2
    teacher: TeacherRef
    tokenizer_digest: str
    vocabulary: int = Field(gt=0)
    kind: str
    codec: dict[str, Any]
    codec_digest: str
    text_digest: str
    samples: int = Field(gt=0)
    samples_per_shard: int = Field(gt=0)
    documents: bool = False
    capture: dict[str, Any] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return the digest that stands for this capture; every shard carries it."""
        return digest_of(self.model_dump(mode="json", include=set(ManifestHeader.model_fields)))

    def ranges(self) -> list[range]:
        """Return the sample range of each shard, in order."""
        step = self.samples_per_shard
        return [range(start, min(start + step, self.samples)) for start in range(0, self.samples, step)]


class Manifest(ManifestHeader):
    """The header, and the shards that are there.

    Attributes:
        complete: whether all of them are.
        shards: by rising sample range.
        files: what else belongs to the dataset, by name.
    """

    complete: bool = False
    shards: tuple[ShardRecord, ...] = ()
    files: tuple[FileRecord, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        ranges = self.ranges()
        there = [range(shard.start, shard.stop) for shard in self.shards]
        starts = {samples.start for samples in there}
        if there != [samples for samples in ranges if samples.start in starts]:
            raise ValueError("shards are not ranges of samples_per_shard samples, by rising start")
        if self.complete and len(there) < len(ranges):
            raise ValueError(f"complete, but only {len(there)} of {len(ranges)} shards are listed")
        return self


def make_header(
    *,
    codec: Settings,
    teacher: TeacherRef,
    tokenizer_digest: str,
    vocabulary: int,
    text_digest: str,
    samples: int,
    samples_per_shard: int,
    documents: bool = False,
    capture: dict[str, Any] | None = None,
) -> ManifestHeader:
    """Return the header of a capture in the codec that the settings `codec` describe; see `ManifestHeader`."""
    return ManifestHeader(
        teacher=teacher,
        tokenizer_digest=tokenizer_digest,
        vocabulary=vocabulary,
        kind=make_codec(codec, vocabulary).kind,
        codec=codec.model_dump(mode="json"),
        codec_digest=spec_digest(codec),
        text_digest=text_digest,
        samples=samples,
        samples_per_shard=samples_per_shard,
        documents=documents,
        capture=capture or {},
    )


def shard_name(samples: range) -> str:
    """Return the file name of the shard that holds these samples."""
    return f"{samples.start:010d}-{samples.stop:010d}.parquet"


def load_manifest(folder: Storage | Path | str) -> Manifest:
    """Read a dataset's manifest.

    Raises:
        UserError: there is none, or it is not one that this version reads.
        IntegrityError: it was changed since it was written.
    """
    storage = open_storage(folder) if isinstance(folder, Path | str) else folder
    raw = storage.read(MANIFEST)
    if raw is None:
        raise UserError(f"{storage.where()}: no {MANIFEST} here. Name the folder that `limbeck capture` wrote.")
    path = storage.where(MANIFEST)
    try:
        data = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: not the manifest of a dataset of signals.")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version {data.get('schema_version')}, but this version of limbeck reads {SCHEMA_VERSION}. "
            "Read it with the version that wrote it, or capture again."
        )
    _check_seal(raw, data.pop(SEAL, None), path)
    manifest = validate_settings(data, Manifest, path)
    digest = spec_digest(parse_spec(manifest.codec, f"{path}: codec"))
    if digest != manifest.codec_digest:
        raise UserError(
            f"{path}: codec_digest is {manifest.codec_digest[:12]}…, but the codec described has {digest[:12]}…. "
            "The manifest was written by an incompatible version; capture again."
        )
    return manifest


def save_manifest(folder: Storage | Path | str, manifest: Manifest) -> None:
    """Publish a manifest."""
    storage = open_storage(folder) if isinstance(folder, Path | str) else folder
    with storage.publish(MANIFEST) as temporary:
        temporary.write_bytes(manifest_bytes(manifest.model_dump(mode="json")))


def manifest_bytes(data: dict[str, Any]) -> bytes:
    """Return the file that a manifest's keys make: indented JSON, sorted, with the digest of its own bytes."""
    blank = json.dumps({**data, SEAL: BLANK}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(blank.encode()).hexdigest()
    return blank.replace(f'"{SEAL}": "{BLANK}"', f'"{SEAL}": "{digest}"').encode()


def _check_seal(raw: bytes, seal: Any, path: str) -> None:
    whole = isinstance(seal, str) and re.fullmatch(SHA256, seal) and raw.count(seal.encode()) == 1
    if not whole or hashlib.sha256(raw.replace(seal.encode(), BLANK.encode())).hexdigest() != seal:
        raise IntegrityError(
            f"{path}: changed since it was written (its bytes are not those that {SEAL} names). "
            "Copy it anew from where the dataset came from, or capture into another folder."
        )
