"""`limbeck signals`: what is in a dataset, whether it is whole and right, and turning it into another one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from limbeck.signals.convert.axolotl import Tokenise
    from limbeck.signals.convert.axolotl_export import MessagesOf
    from limbeck.signals.dataset import SignalDataset

signals = typer.Typer(
    name="signals", help="Datasets of signals: inspect, verify, convert, pack, merge.", no_args_is_help=True
)

Dataset = Annotated[str, typer.Argument(help="The dataset: a folder, or a URL such as s3://….")]
Shard = Annotated[int | None, typer.Option(min=1, help="Rows in each shard. Default: as the source has them.")]


@signals.command("inspect")
def inspect_(
    dataset: Dataset,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Look at the signals of so many rows.")] = 256,
) -> None:
    """Say what is in a dataset: whose words, in which codec, how many bytes for what, and what the signals say."""
    from limbeck.signals.dataset import SignalDataset
    from limbeck.signals.inspection import inspect
    from limbeck.signals.inspection_page import page_of
    from limbeck.signals.inspection_table import print_inspection

    found = inspect(SignalDataset.open(dataset, incomplete=True), rows)
    print_inspection(found)
    if html is not None:
        page_of(found).save(html)
        typer.echo(html)


@signals.command()
def verify(
    dataset: Dataset,
    teacher: Annotated[
        str | None, typer.Option(help="Have this model read a sample again: a folder, a repository, or `pocket`.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the teacher's repository.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Rows that the teacher reads again.")] = 16,
    seed: Annotated[int, typer.Option(help="Decides which rows.")] = 0,
    device: Annotated[str, typer.Option(help="Where the teacher runs.")] = "cpu",
) -> None:
    """Check every byte against its hash and, with a teacher, what is stored against what it says now."""
    from limbeck.signals.dataset import SignalDataset

    opened = SignalDataset.open(dataset, incomplete=True)
    opened.verify()
    manifest = opened.manifest
    whole = "complete" if manifest.complete else f"not finished: {len(opened)} of {manifest.samples} rows are there"
    size = sum(record.bytes for record in manifest.shards)
    typer.echo(f"{dataset}: {len(manifest.shards)} shards, {size:,} bytes, all as the manifest says ({whole}).")
    if teacher is not None:
        _rescore(opened, teacher, revision, sample, seed, device)


def _rescore(dataset: "SignalDataset", teacher: str, revision: str | None, sample: int, seed: int, device: str) -> None:
    from limbeck.data.rescoring import rescore
    from limbeck.pocket.places import resolve

    found = rescore(dataset, resolve(teacher), revision=revision, sample=sample, seed=seed, device=device)
    if found.other_teacher:
        typer.echo(f"{teacher} is another teacher than the dataset's: {found.other_teacher}.")
    typer.echo(
        f"{len(found.rows)} rows, {found.positions:,} positions scored again. Probabilities stored are off by "
        f"{found.stored.largest:.2g} at most, {found.stored.mean:.2g} on average; the codec's rounding alone makes "
        f"{found.rounding.largest:.2g} and {found.rounding.mean:.2g}."
    )
    if not found.agrees:
        typer.echo(
            f"NOT what this teacher says: more than {found.allowed:.2g}, which rounding and computing again explain."
        )
        raise typer.Exit(1)
    typer.echo("What is stored is what this teacher says.")


@signals.command()
def convert(
    source: Annotated[str, typer.Argument(help="What is converted: a dataset, or a foreign file or folder.")],
    output: Annotated[str, typer.Argument(help="Folder for the result.")],
    from_: Annotated[str, typer.Option("--from", help="Format of the source.")] = "limbeck",
    to: Annotated[str, typer.Option(help="Format of the result.")] = "limbeck",
    codec: Annotated[
        Path | None, typer.Option(help="YAML with the codec's settings; DistillKit's own files are taken too.")
    ] = None,
    samples_per_shard: Shard = None,
    teacher: Annotated[str | None, typer.Option(help="Import: repository of the teacher.")] = None,
    revision: Annotated[str | None, typer.Option(help="Import: revision of the teacher.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Import, and Axolotl's messages: the tokenizer that made the ids.")
    ] = None,
    vocabulary: Annotated[int | None, typer.Option(min=2, help="Import: size of the teacher's distributions.")] = None,
    config: Annotated[Path | None, typer.Option(help="Import of DistillKit: settings of the compression.")] = None,
    logprobs_field: Annotated[str | None, typer.Option(help="Import of Axolotl: field of the entries.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Import of Megatron-LM: Parquet with `input_ids`.")] = None,
    entries: Annotated[int | None, typer.Option(min=1, help="Axolotl, Megatron-LM: entries a position.")] = None,
    messages: Annotated[
        bool, typer.Option("--messages", help="Export to Axolotl: messages, as its own reader wants them.")
    ] = False,
    last_position: Annotated[str | None, typer.Option(help="Export to DistillKit: keep or drop.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Export to Megatron-LM: fp16, bf16 or fp32.")] = None,
    identifiers: Annotated[
        Path | None, typer.Option(help="Export to Megatron-LM: JSON with seed, train_samples and blend.")
    ] = None,
) -> None:
    """Convert between codecs, and from and to distillkit-parquet, distillkit-arrow, axolotl and megatron."""
    from dataclasses import replace

    from limbeck.errors import UserError
    from limbeck.files import read_json
    from limbeck.signals.convert.formats import OURS, ReadOptions, WriteOptions, check_format

    foreign = [format for format in (check_format(from_), check_format(to)) if format != OURS]
    if len(foreign) == 2:
        raise UserError(f"--from {from_} --to {to}: one of them has to be {OURS}. Convert twice.")
    reading = ReadOptions(config, logprobs_field, entries if from_ != OURS else None, None, tokens)
    writing = WriteOptions(
        spec=None,
        last_position=_one_of("--last-position", last_position, "keep", "drop"),
        entries=entries if to != OURS else None,
        dtype=_one_of("--dtype", dtype, "fp16", "bf16", "fp32"),
        identifiers=None if identifiers is None else read_json(identifiers),
    )
    if messages and to == "axolotl" and from_ == OURS:
        writing = replace(writing, messages_of=_messages_of(source, tokenizer))
        tokenizer = None
    elif messages:
        raise UserError(f"--messages: not an option of the format {to}. Leave it out.")
    identity = {"teacher": teacher, "revision": revision, "tokenizer": tokenizer, "vocabulary": vocabulary}
    if from_ == OURS:
        _refuse_unused({**identity, **vars(reading)}, f"the source is a dataset of {OURS}'s own, which says it itself")
    if to == OURS:
        _refuse_unused(vars(writing), f"the result is a dataset of {OURS}'s own")
    elif samples_per_shard is not None:
        _refuse_unused({"samples_per_shard": samples_per_shard}, "files of other formats follow the source's shards")
    if from_ != OURS:
        _import(from_, Path(source), output, identity, reading, codec, samples_per_shard)
    elif to != OURS:
        _export(to, source, output, writing, codec)
    else:
        _recode(source, output, codec, samples_per_shard)
    typer.echo(output)


def _import(
    format: str, source: Path, output: str, given: dict[str, Any], options: Any, codec: Path | None, size: int | None
) -> None:
    from dataclasses import replace

    from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
    from limbeck.errors import UserError
    from limbeck.pocket.places import resolve
    from limbeck.settings import read_yaml
    from limbeck.signals.codecs.registry import parse_spec
    from limbeck.signals.convert.formats import open_reader
    from limbeck.signals.convert.importing import SAMPLES_PER_SHARD, Identity, import_rows
    from limbeck.signals.manifest import TeacherRef

    if missing := [f"--{name}" for name in ("teacher", "revision", "tokenizer") if given[name] is None]:
        raise UserError(
            f"{source}: {format} files don't say whose distributions they hold, or which tokenizer made the ids. "
            f"Say it: {', '.join(missing)}."
        )
    loaded = load_tokenizer(resolve(given["tokenizer"]))
    identity = Identity(
        TeacherRef(repo=given["teacher"], revision=given["revision"]), tokenizer_digest(loaded), given["vocabulary"]
    )
    reader = open_reader(format, source, identity, replace(options, tokenise=_tokenise(loaded)))
    spec = None if codec is None else parse_spec(read_yaml(codec), str(codec))
    import_rows(reader, identity, output, spec, samples_per_shard=size or SAMPLES_PER_SHARD)


def _tokenise(tokenizer: Any) -> "Tokenise":
    """Return what makes tokens of a record of chat messages, by the tokenizer's own template."""
    from limbeck.data.chat import conversation_row
    from limbeck.errors import UserError

    def tokens_of(record: dict[str, Any]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        lists = {name: value for name, value in record.items() if name.startswith("messages")}
        if len(lists) != 1:
            raise UserError(f"a row with neither 'input_ids' nor 'messages' (it has {', '.join(sorted(record))}).")
        try:
            row = conversation_row(tokenizer, next(iter(lists.values())))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"its messages can't be made tokens ({error}).") from error
        return row.ids, row.trained

    return tokens_of


def _messages_of(source: str, tokenizer: str | None) -> "MessagesOf":
    """Return what makes messages of a row's tokens, by the tokenizer that the dataset was captured with."""
    from limbeck.data.chat_reading import messages_of
    from limbeck.data.encoding import TokenRow
    from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
    from limbeck.errors import UserError
    from limbeck.pocket.places import resolve
    from limbeck.signals.dataset import Expectation, SignalDataset

    if tokenizer is None:
        raise UserError("--messages: which tokenizer made the ids? Name it: --tokenizer.")
    loaded = load_tokenizer(resolve(tokenizer))
    SignalDataset.open(source, Expectation(tokenizer_digest=tokenizer_digest(loaded)))
    return lambda ids, trained: messages_of(loaded, TokenRow(ids, trained))


def _export(format: str, source: str, output: str, options: Any, codec: Path | None) -> None:
    from dataclasses import replace

    from limbeck.signals.convert.exporting import export
    from limbeck.signals.convert.formats import make_exporter
    from limbeck.signals.dataset import SignalDataset

    dataset = SignalDataset.open(source)
    spec = None if codec is None else _spec_for(dataset, codec)
    export(dataset, output, make_exporter(format, dataset, replace(options, spec=spec)))


def _recode(source: str, output: str, codec: Path | None, size: int | None) -> None:
    from limbeck.errors import UserError
    from limbeck.signals.convert.recoding import recode
    from limbeck.signals.dataset import SignalDataset

    if codec is None:
        raise UserError("convert: to which codec? Name its settings: --codec FILE; or another format: --to FORMAT.")
    dataset = SignalDataset.open(source)
    recode(dataset, output, _spec_for(dataset, codec), samples_per_shard=size)


def _spec_for(dataset: "SignalDataset", codec: Path) -> Any:
    """Return the settings in a file: of a codec of ours, or DistillKit's own."""
    from limbeck.settings import read_yaml
    from limbeck.signals.codecs.distillkit_spec import read_config
    from limbeck.signals.convert.recoding import completed_spec

    data = read_yaml(codec)
    return completed_spec(data, dataset, str(codec)) if "codec" in data else read_config(data, str(codec))


def _one_of(option: str, value: str | None, *choices: str) -> Any:
    from limbeck.errors import UserError

    if value is not None and value not in choices:
        raise UserError(f"{option} {value}: expected {', '.join(choices)}.")
    return value


def _refuse_unused(options: dict[str, Any], why: str) -> None:
    from limbeck.errors import UserError

    if unused := [name for name, value in options.items() if value is not None]:
        raise UserError(f"--{unused[0].replace('_', '-')}: {why}. Leave it out.")


@signals.command()
def pack(
    dataset: Dataset,
    output: Annotated[str, typer.Option(help="Folder for the packed dataset.")],
    length: Annotated[int, typer.Option(min=2, help="The most tokens of a row.")],
    samples_per_shard: Shard = None,
    window: Annotated[int, typer.Option(min=1, help="Rows whose documents are placed together.")] = 16_384,
) -> None:
    """Pack documents into rows of a fixed length: no token is lost, and none sees another document."""
    from limbeck.signals.packing import pack as pack_rows

    packed = pack_rows(dataset, output, length, samples_per_shard=samples_per_shard, window=window)
    typer.echo(
        f"{output}: {packed.documents:,} documents in {packed.manifest.samples:,} rows of at most {length:,} tokens, "
        f"{packed.fill:.2%} full; {packed.cuts:,} cuts of documents longer than a row."
    )


@signals.command()
def merge(
    datasets: Annotated[list[str], typer.Argument(help="Two datasets or more, in the order of their rows.")],
    output: Annotated[str, typer.Option(help="Folder for the merged dataset.")],
    samples_per_shard: Shard = None,
) -> None:
    """Merge datasets of one teacher, tokenizer and codec into one; signals are copied as they are."""
    from limbeck.signals.merging import merge as merge_datasets

    manifest = merge_datasets(datasets, output, samples_per_shard=samples_per_shard)
    typer.echo(f"{output}: {manifest.samples:,} rows in {len(manifest.shards):,} shards.")
