"""What a recipe's `dataset:` names: datasets of signals (ours, or DistillKit's files) and text, opened and told apart.

Opening reads headers only: manifests, schemas, settings of compressions. DistillKit's files don't say whose tokens
they hold; they are taken to be the student's, and read into a dataset of ours once, before training.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from limbeck.data.shapes import Columns
from limbeck.data.sources import TextSource
from limbeck.distill.recipe import DatasetSettings, DatasetTeacher, DataSource
from limbeck.errors import UserError
from limbeck.files import digest_of
from limbeck.settings import Settings, read_yaml, validate_settings
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec, read_config
from limbeck.signals.convert.distillkit_tables import ARROW, CONFIG, PARQUET, DistillkitReader, fields_of
from limbeck.signals.convert.importing import Identity, import_rows
from limbeck.signals.convert.tables import SPLITS, STATE, open_arrow, open_parquet
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.manifest import MANIFEST, TeacherRef

MARKS = ({"compressed_logprobs", "bytepacked_indices"}, {"packed_indices", "exact_values", "coeffs"})
NOT_CODEC = {"codec", "version"}


@dataclass(frozen=True)
class Stored:
    """Signals on disk, and what their headers say.

    Attributes:
        where: what messages call them.
        kind: of the signals.
        spec: of their codec.
        vocabulary: size of the teacher's distributions.
        rows: how many there are.
        longest: the most tokens of a row.
        tokens: of all rows.
        tokenizer_digest: of the tokenizer that made the tokens; None: the files don't say.
        opened: a dataset of ours, or folder and format of DistillKit's files.
    """

    where: str
    kind: str
    spec: Settings
    vocabulary: int
    rows: int
    longest: int
    tokens: int
    tokenizer_digest: str | None
    opened: SignalDataset | tuple[Path, str]

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Return the temperatures whose normaliser is stored."""
        return tuple(getattr(self.spec, "temperatures", (1.0,)))

    @property
    def width(self) -> int | None:
        """Return the width of hidden states; None for other kinds."""
        return getattr(self.spec, "width", None)

    def differs_from(self, other: "Stored") -> str | None:
        """Return what keeps these signals and others from being trained together, in words; None: nothing."""
        if self.vocabulary != other.vocabulary:
            return f"vocabulary is {self.vocabulary}, and that of {other.where} is {other.vocabulary}"
        ours, theirs = (one.spec.model_dump(mode="json", exclude={"head_sha256"}) for one in (self, other))
        for name in sorted(ours.keys() | theirs.keys(), key=lambda name: name != "codec"):
            if ours.get(name) != theirs.get(name):
                what = "codec" if name == "codec" else f"codec's {name}"
                return f"{what} is {ours.get(name)}, and that of {other.where} is {theirs.get(name)}"
        return None


Opened = Stored | TextSource


def open_source(source: DataSource, key: str, settings: DatasetSettings, teacher: object, length: int) -> Opened:
    """Open one source.

    Args:
        source: where it is.
        key: where it stands in the recipe, for messages.
        settings: of all sources.
        teacher: the recipe's; one that stands in the dataset may name the codec.
        length: the longest row, in tokens.

    Raises:
        UserError: there is nothing here, or it is in another codec than the recipe says.
    """
    try:
        if source.disk_path is not None and _is_ours(source.disk_path):
            return _ours(SignalDataset.open(source.disk_path), source, teacher)
        wants_signals = isinstance(teacher, DatasetTeacher)
        if source.repo_id is not None and wants_signals:
            return _open_repository(source, teacher)
        folder = Path(source.disk_path or "")
        if source.disk_path is not None and (found := _distillkit_folder(folder, source.split)):
            return _open_distillkit(*found, teacher)
        if isinstance(teacher, DatasetTeacher) and teacher.codec() is not None:
            raise UserError(f"{source.name}: no {MANIFEST} here, nor files with the columns of a compressed signal.")
        return _text(source, settings, length)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def dataset_of(stored: Stored, tokenizer_digest: str, teacher: object, folder: Path) -> SignalDataset:
    """Return a dataset of ours: the one that is stored, or what DistillKit's files become.

    These are read once, and the bytes of their signals copied; where that was stopped, it goes on.

    Args:
        stored: what to read.
        tokenizer_digest: of the student's tokenizer.
        teacher: the recipe's; it may say whose words DistillKit's files hold.
        folder: datasets that are made go to folders within, named by what they are made from.
    """
    if isinstance(stored.opened, SignalDataset):
        return stored.opened
    files, format = stored.opened
    name = getattr(teacher, "name", None) or files.name
    identity = Identity(TeacherRef(repo=name, revision="unknown"), tokenizer_digest)
    with _config(files, stored.spec) as config:
        reader = DistillkitReader(files, format, identity, config)
    made_of = {
        "files": reader.text_digest,
        "codec": stored.spec.model_dump(mode="json"),
        "tokenizer": tokenizer_digest,
        "teacher": name,
    }
    target = folder / digest_of(made_of)[:16]
    if not (target / MANIFEST).exists() or not SignalDataset.open(target, incomplete=True).manifest.complete:
        import_rows(reader, identity, target)
    return SignalDataset.open(target)


def _is_ours(path: str) -> bool:
    return "://" in path or (Path(path) / MANIFEST).is_file()


def _ours(dataset: SignalDataset, source: DataSource, teacher: object) -> Stored:
    manifest = dataset.manifest
    if isinstance(teacher, DatasetTeacher):
        _compare_codecs(teacher.codec(), dataset.codec.spec, f"{source.name}/{MANIFEST}")
    return Stored(
        where=source.name, kind=dataset.kind, spec=dataset.codec.spec, vocabulary=manifest.vocabulary,
        rows=len(dataset), longest=dataset.longest, tokens=sum(shard.tokens for shard in manifest.shards),
        tokenizer_digest=manifest.tokenizer_digest, opened=dataset,
    )  # fmt: skip


def _compare_codecs(given: Settings | None, stored: Settings, where: str) -> None:
    """Refuse a codec of the recipe that is not the data's; the first key that differs is named."""
    if given is None or given == stored:
        return
    legacy = isinstance(given, DistillkitLegacySpec)
    section = "teacher.legacy_logit_compression" if legacy else "teacher.logprob_compressor"
    ours, theirs = given.model_dump(mode="json"), stored.model_dump(mode="json")
    if ours["codec"] != theirs["codec"]:
        raise UserError(
            f"{section}: the recipe gives codec {ours['codec']!r}, but {where} is in {theirs['codec']!r}. "
            "Leave the section out: the data say what they are in."
        )
    name = next(key for key in ours if ours[key] != theirs.get(key))
    raise UserError(
        f"{section}.{name}: the recipe says {ours[name]}, but {where} says {theirs.get(name)}. "
        "Leave the section out, or name the dataset that it belongs to."
    )


def _distillkit_folder(folder: Path, split: str | None) -> tuple[Path, str] | None:
    """Return the folder and format of DistillKit's files, if that is what lies here."""
    if (folder / SPLITS).is_file():
        names = sorted(path.name for path in folder.iterdir() if (path / STATE).is_file())
        chosen = split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
        if chosen not in names:
            raise UserError(f"{folder}: holds the splits {', '.join(names)}. Name one of them by the key `split`.")
        folder = folder / str(chosen)
    if (folder / STATE).is_file():
        tables = open_arrow(folder)
        return (folder, ARROW) if any(mark <= set(tables.names) for mark in MARKS) else None
    if folder.suffix == ".parquet" or (folder.is_dir() and any(folder.glob("*.parquet"))):
        tables = open_parquet(folder)
        return (folder, PARQUET) if any(mark <= set(tables.names) for mark in MARKS) else None
    return None


def _open_distillkit(folder: Path, format: str, teacher: object) -> Stored:
    given = teacher.codec() if isinstance(teacher, DatasetTeacher) else None
    beside = (folder if folder.is_dir() else folder.parent) / CONFIG
    if beside.is_file():
        spec = read_config(read_yaml(beside), str(beside))
        _compare_codecs(given, spec, str(beside))
    elif given is not None:
        spec = given
    else:
        raise UserError(
            f"{folder}: no {CONFIG} here. Give the settings that the data were written with: "
            "teacher.logprob_compressor or teacher.legacy_logit_compression."
        )
    tables = open_parquet(folder) if format == PARQUET else open_arrow(folder)
    if missing := [name for name in fields_of(spec) if name not in tables.names]:
        raise UserError(f"{folder}: no column {missing[0]!r}, which the codec {spec.codec!r} calls for.")
    lengths = _lengths(tables)
    return Stored(
        where=str(folder), kind="topk", spec=spec,
        vocabulary=spec.d if isinstance(spec, DistillkitSpec) else spec.vocab_size,
        rows=len(tables), longest=max(lengths, default=0), tokens=sum(lengths), tokenizer_digest=None,
        opened=(folder, format),
    )  # fmt: skip


def _lengths(tables: Any) -> list[int]:
    """Return the tokens of every row; only the column of tokens is read."""
    lengths: list[int] = []
    for first in range(0, len(tables), 4096):
        part = tables.slice(range(first, min(first + 4096, len(tables))), ["input_ids"])
        lengths += pc.list_value_length(part.column("input_ids")).to_pylist()
    return lengths


def _open_repository(source: DataSource, teacher: object) -> Stored:
    """Bring a repository of signals here (the hub's cache keeps it) and open it."""
    try:
        root = Path(snapshot_download(str(source.repo_id), repo_type="dataset", revision=source.revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source.repo_id}: this dataset can't be fetched ({first.rstrip('.')}).") from error
    if (root / MANIFEST).is_file():
        return _ours(SignalDataset.open(root), source, teacher)
    for folder in sorted({path.parent for path in root.rglob("*.parquet")} | {root}):
        splits = {path.name.partition("-")[0] for path in folder.glob("*-of-*.parquet")}
        if source.config_name not in (None, folder.name):
            continue
        if len(splits) > 1:
            raise UserError(
                f"{source.repo_id}: {folder.name} holds the splits {', '.join(sorted(splits))} side by side. "
                "Download the files of one into a folder, and name that by disk_path."
            )
        if found := _distillkit_folder(folder, source.split):
            return _open_distillkit(*found, teacher)
    raise UserError(f"{source.repo_id}: holds no signals: neither {MANIFEST} nor files with compressed ones.")


@contextmanager
def _config(folder: Path, spec: Settings) -> Iterator[Path]:
    """Yield the file of settings that a reader wants: the one beside the data, or one that is gone afterwards."""
    beside = (folder if folder.is_dir() else folder.parent) / CONFIG
    if beside.is_file():
        yield beside
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(spec.model_dump(mode="json", exclude=NOT_CODEC), file)
        file.flush()
        yield Path(file.name)


def _text(source: DataSource, settings: DatasetSettings, length: int) -> TextSource:
    path = source.disk_path
    if path is not None and not any(sign in path for sign in "*?[") and not Path(path).exists():
        raise UserError(f"{path}: no {MANIFEST} here: there is no such file or folder.")
    data: Mapping[str, Any] = {
        "path": source.name,
        "format": "huggingface" if source.repo_id else "auto",
        "configuration": source.config_name,
        "split": source.split or "train",
        "revision": source.revision,
        "columns": validate_settings(source.columns, Columns, "columns"),
        "seed": settings.seed or None,
        "sequence_length": length,
    }
    names = ("chat_template", "template_arguments", "separator", "trained", "turns_apart", "too_long")
    return validate_settings({**data, **{name: getattr(source, name) for name in names}}, TextSource, source.name)
