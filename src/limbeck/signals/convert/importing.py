"""From a foreign format to a dataset: shard by shard, taken up again where it was stopped.

Other formats don't say whose distributions they hold, nor which tokenizer made the ids. Whoever imports them says so,
and it stands in the manifest from then on. Formats also differ in which token a stored distribution is about; a reader
knows its format's rule, and what it read is held against the tokens: where the distributions fit the text clearly
better when they are moved by one token, the import is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import limbeck
from limbeck.errors import LimbeckError, UserError
from limbeck.files import digest_of, sha256_file
from limbeck.progress import bar
from limbeck.settings import Settings
from limbeck.signals.codecs.registry import Codec, make_codec
from limbeck.signals.convert.kinds import conversion_between
from limbeck.signals.dataset import SignalRow
from limbeck.signals.encoded_rows import EncodedRows, write_encoded
from limbeck.signals.manifest import Manifest, TeacherRef, make_header
from limbeck.signals.stacking import split
from limbeck.signals.types import TopkSignal
from limbeck.signals.writer import DatasetWriter

SAMPLES_PER_SHARD = 512
FEWEST_POSITIONS, CLEARLY = 100, 0.2


@dataclass(frozen=True)
class Identity:
    """What a foreign format doesn't say of itself.

    Attributes:
        teacher: whose distributions these are.
        tokenizer_digest: of the tokenizer that made the ids.
        vocabulary: size of the teacher's distributions; None: what the format's own settings say.
    """

    teacher: TeacherRef
    tokenizer_digest: str
    vocabulary: int | None = None


class Reader(Protocol):
    """Rows of a foreign format.

    Attributes:
        where: what messages call it.
        format: its name.
        vocabulary: size of the distributions.
        samples: how many rows there are.
        documents: whether their tokens have document numbers.
        text_digest: of the files that were read.
    """

    where: str
    format: str
    vocabulary: int
    samples: int
    documents: bool
    text_digest: str

    @property
    def spec(self) -> Settings:
        """Return the settings of the codec that holds what the files say."""
        ...

    def rows(self, samples: range) -> list[SignalRow] | EncodedRows:
        """Return some rows, in order: with their signals, or with the bytes of these in codec `spec`.

        Raises:
            UserError, IntegrityError: a row is not what the format says; file and row are named.
        """
        ...


def import_rows(
    reader: Reader,
    identity: Identity,
    output: Path | str,
    spec: Settings | None = None,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
) -> Manifest:
    """Write what a reader reads as a dataset.

    Args:
        reader: of the foreign files.
        identity: whose words they are.
        output: empty, absent, or the unfinished import of the same files.
        spec: of the codec to store them in; by default the one that holds just what is there.
        samples_per_shard: rows in each shard.

    Raises:
        UserError: the codec would say more than the files do, or the distributions are not about the tokens that they
            should be about.
        LimbeckError: a row can't be read or represented; file and row are named.
    """
    spec = spec or reader.spec
    convert = conversion_between(reader.spec, spec, reader.vocabulary)
    header = make_header(
        codec=spec,
        teacher=identity.teacher,
        tokenizer_digest=identity.tokenizer_digest,
        vocabulary=reader.vocabulary,
        text_digest=reader.text_digest,
        samples=reader.samples,
        samples_per_shard=samples_per_shard,
        documents=reader.documents,
        capture={"imported": {"format": reader.format, "codec": reader.spec.model_dump(mode="json")}}
        | {"limbeck": limbeck.__version__},
    )
    codec = make_codec(reader.spec, reader.vocabulary)
    with_signals(reader, codec, range(min(reader.samples, samples_per_shard)), check=True)
    with DatasetWriter(output, header) as writer:
        missing = writer.missing_ranges()
        with bar(f"reading {reader.format} (rows)", header.samples, header.samples - sum(map(len, missing))) as shown:
            for samples in missing:
                found, rows = with_signals(reader, codec, samples)
                if isinstance(found, EncodedRows) and spec == reader.spec:
                    write_encoded(writer, samples, found)
                else:
                    converted = [
                        replace(row, signal=convert(row.signal, row.input_ids, sample))
                        for sample, row in zip(samples, rows, strict=True)
                        if row.signal is not None
                    ]
                    writer.write_shard(samples, converted)
                shown.advance(len(samples))
        return writer.finish()


def with_signals(
    reader: Reader, codec: Codec, samples: range, *, check: bool = False
) -> tuple[list[SignalRow] | EncodedRows, list[SignalRow]]:
    """Return what a reader reads, and the same as rows with their signals; decoding is what finds damaged bytes."""
    found = reader.rows(samples)
    try:
        rows = found if isinstance(found, list) else _decoded(found, codec)
    except LimbeckError as error:
        raise type(error)(f"{reader.where}, rows from {samples.start}: {error}") from error
    if check:
        check_alignment(rows, reader.where)
    return found, rows


def check_alignment(rows: Sequence[SignalRow], where: str) -> None:
    """Refuse distributions that are about the token before, or the one after, the token that they should be about.

    A teacher's most probable tokens contain the token that follows in most places. If they contain a neighbour of it
    clearly more often, the files were made by another rule than the format's.

    Raises:
        UserError: they are moved by one token.
    """
    hits, seen = {-1: 0, 0: 0, 1: 0}, 0
    for row in rows:
        signal = row.signal
        if not isinstance(signal, TopkSignal) or len(row.input_ids) < 4:
            continue
        positions = torch.arange(len(row.input_ids) - 2)
        positions = positions[signal.mask[:-2]]
        seen += len(positions)
        for offset in hits:
            hits[offset] += int(_is_among(signal, positions, row.input_ids[positions + 1 + offset]).sum())
    other = max((-1, 1), key=lambda offset: hits[offset])
    if seen >= FEWEST_POSITIONS and hits[other] - hits[0] > CLEARLY * seen:
        raise UserError(
            f"{where}: the stored distributions contain the token that follows in {hits[0] / seen:.0%} of "
            f"{seen} positions, but the token {'before' if other < 0 else 'after'} it in {hits[other] / seen:.0%}. "
            "They are moved by one token: name the files that they were made with, or make them again."
        )


def files_digest(files: Sequence[Path], title: str) -> str:
    """Return the digest of some files' names and contents."""
    digests = {}
    with bar(title, len(files)) as shown:
        for path in files:
            digests[path.name] = sha256_file(path)
            shown.advance()
    return digest_of(digests)


def vocabulary_or(identity: Identity, known: int | None, where: str) -> int:
    """Return the vocabulary that was named, or else the one that is known.

    Raises:
        UserError: neither is there.
    """
    size = identity.vocabulary or known
    if size is None:
        raise UserError(f"{where}: the files don't say how large the teacher's vocabulary is. Name it: --vocabulary.")
    return size


def _is_among(signal: TopkSignal, positions: Tensor, tokens: Tensor) -> Tensor:
    present = signal.logprobs[positions] > float("-inf")
    return ((signal.ids[positions] == tokens[:, None]) & present).any(1)


def _decoded(found: EncodedRows, codec: Codec) -> list[SignalRow]:
    signals: Sequence[Any] = split(codec.decode(found.columns, found.lengths), found.lengths)
    return [replace(row, signal=signal) for row, signal in zip(found.rows, signals, strict=True)]
