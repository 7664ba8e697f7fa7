"""Foreign formats by name: how each is read, and how it is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.settings import Settings, nearest
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec
from limbeck.signals.convert import axolotl, distillkit_tables, megatron
from limbeck.signals.convert.axolotl import AxolotlReader, Tokenise
from limbeck.signals.convert.axolotl_export import AxolotlExporter, MessagesOf
from limbeck.signals.convert.distillkit_export import DistillkitExporter, LastPosition
from limbeck.signals.convert.distillkit_tables import DistillkitReader
from limbeck.signals.convert.exporting import Exporter
from limbeck.signals.convert.importing import Identity, Reader
from limbeck.signals.convert.megatron import MegatronReader
from limbeck.signals.convert.megatron_export import Dtype, MegatronExporter
from limbeck.signals.dataset import SignalDataset

OURS = "limbeck"
FOREIGN = (distillkit_tables.PARQUET, distillkit_tables.ARROW, axolotl.FORMAT, megatron.FORMAT)


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may need to be told; each format takes its own of these.

    Attributes:
        config: DistillKit: settings of the compression.
        logprobs_field: Axolotl: the field of the lists.
        entries: Axolotl: the most entries of a position.
        tokenise: Axolotl: for records without tokens.
        tokens: Megatron-LM: a table of the tokens.
    """

    config: Path | None = None
    logprobs_field: str | None = None
    entries: int | None = None
    tokenise: Tokenise | None = None
    tokens: Path | None = None


@dataclass(frozen=True)
class WriteOptions:
    """What a writer may be told; each format takes its own of these.

    Attributes:
        spec: DistillKit: settings of the compression; by default the dataset's own, if it is in them.
        last_position: DistillKit: whether a row's last position is written.
        entries: Axolotl, Megatron-LM: entries of a position.
        messages_of: Axolotl: says which conversation a row is, for rows of messages.
        dtype: Megatron-LM: of log-probabilities.
        identifiers: Megatron-LM: of the student's run.
    """

    spec: Settings | None = None
    last_position: LastPosition | None = None
    entries: int | None = None
    messages_of: MessagesOf | None = None
    dtype: Dtype | None = None
    identifiers: dict[str, Any] | None = None


READS: dict[str, frozenset[str]] = {
    distillkit_tables.PARQUET: frozenset({"config"}),
    distillkit_tables.ARROW: frozenset({"config"}),
    axolotl.FORMAT: frozenset({"logprobs_field", "entries", "tokenise"}),
    megatron.FORMAT: frozenset({"tokens"}),
}
WRITES: dict[str, frozenset[str]] = {
    distillkit_tables.PARQUET: frozenset({"spec", "last_position"}),
    distillkit_tables.ARROW: frozenset({"spec", "last_position"}),
    axolotl.FORMAT: frozenset({"entries", "messages_of"}),
    megatron.FORMAT: frozenset({"entries", "dtype", "identifiers"}),
}


def open_reader(format: str, source: Path, identity: Identity, options: ReadOptions) -> Reader:
    """Return the reader of a format.

    Raises:
        UserError: there is no such format, an option is another format's, or the files are not what they should be.
    """
    _check(format, options, READS)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder.")
    if format == axolotl.FORMAT:
        return AxolotlReader(
            source, identity, field=options.logprobs_field or axolotl.FIELD, entries=options.entries,
            tokenise=options.tokenise,
        )  # fmt: skip
    if format == megatron.FORMAT:
        return MegatronReader(source, identity, options.tokens)
    return DistillkitReader(source, format, identity, options.config)


def make_exporter(format: str, dataset: SignalDataset, options: WriteOptions) -> Exporter:
    """Return what writes a dataset in a format.

    Raises:
        UserError: there is no such format, an option is another format's, or the dataset can't be written in it.
    """
    _check(format, options, WRITES)
    if format == axolotl.FORMAT:
        return AxolotlExporter(dataset, options.entries, options.messages_of)
    if format == megatron.FORMAT:
        return MegatronExporter(dataset, options.entries, options.dtype or "fp16", options.identifiers)
    spec = options.spec or dataset.codec.spec
    if not isinstance(spec, DistillkitSpec | DistillkitLegacySpec):
        raise UserError(
            f"{dataset.storage.where()}: in codec {dataset.manifest.codec['codec']}. Name DistillKit's settings to "
            "write it with: --codec FILE."
        )
    return DistillkitExporter(dataset, format, spec, options.last_position)


def check_format(name: str) -> str:
    """Return the name of a format, ours or another.

    Raises:
        UserError: there is none of this name; the nearest is named.
    """
    if name not in (OURS, *FOREIGN):
        raise UserError(f"no format is called {name!r}.{nearest(name, [OURS, *FOREIGN])}")
    return name


def _check(format: str, options: object, takes: dict[str, frozenset[str]]) -> None:
    check_format(format)
    for name, value in vars(options).items():
        if value is not None and name != "tokenise" and name not in takes.get(format, ()):
            option = name.removesuffix("_of").replace("_", "-")
            raise UserError(f"--{option}: not an option of the format {format}. Leave it out.")
