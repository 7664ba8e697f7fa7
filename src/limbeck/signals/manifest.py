"""The manifest of a dataset of signals: whose words these are, over which vocabulary, in which bytes, and if whole.

`manifest.json` lies beside the shards. Its header is fixed when the capture starts, and two captures are the same
capture exactly if their headers are equal. The list of shards grows as they are published.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.errors import UserError
from limbeck.files import digest_of, read_json, write_json
from limbeck.settings import Settings, validate_settings
from limbeck.signals.codecs.registry import make_codec, parse_spec, spec_digest

MANIFEST = "manifest.json"


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
    sha256: str


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
    schema_version: Literal[1] = 1
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
    """

    complete: bool = False
    shards: tuple[ShardRecord, ...] = ()


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


def load_manifest(folder: Path) -> Manifest:
    """Read a dataset's manifest.

    Raises:
        UserError: there is none, or it is not one that this version reads.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder}: no {MANIFEST} here. Name the folder that `limbeck capture` wrote.")
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: not the manifest of a dataset of signals.")
    manifest = validate_settings(data, Manifest, str(path))
    digest = spec_digest(parse_spec(manifest.codec, f"{path}: codec"))
    if digest != manifest.codec_digest:
        raise UserError(
            f"{path}: codec_digest is {manifest.codec_digest[:12]}…, but the codec described has {digest[:12]}…. "
            "The manifest was changed by hand or written by an incompatible version; capture again."
        )
    return manifest


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Publish a manifest."""
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
