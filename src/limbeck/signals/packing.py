"""Packing: documents of any length become rows of at most L tokens, with little room left and no token lost.

A document is a run of tokens with one document number; without such numbers each row is one. A document longer than L
is cut into consecutive pieces of L tokens and a rest. Pieces are placed best fit, longest first, into rows, a window of
documents at a time, so that reading stays local. Every token is in exactly one row, its signal and its `trained` flag
with it, and carries the number of its document: documents are counted in the order of the source, so that no two
neighbours in a row share a number, and neither training nor attention crosses from one to the next.

What a cut costs: the first token of a piece but the first has its predecessor in another row, so it is not trained on.
The signals there are the teacher's, who read the document from its start.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import limbeck
from limbeck.errors import UserError
from limbeck.progress import bar
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.encoded_rows import (
    FIXED_WIDTH,
    copy_beside,
    cut,
    encoded_rows,
    join,
    laid_end_to_end,
    write_encoded,
)
from limbeck.signals.manifest import Manifest, ManifestHeader, make_header
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import at
from limbeck.signals.writer import DatasetWriter

WINDOW = 16_384


@dataclass(frozen=True)
class Document:
    """A piece of a document.

    Attributes:
        number: of the document, counted over the source.
        row: of the source.
        first: its first token within the row.
        last: behind its last token.
    """

    number: int
    row: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Packed:
    """What packing made.

    Attributes:
        manifest: of the packed dataset.
        documents: how many there are.
        cuts: how often a document was cut.
        tokens: in all.
        fill: share of the rows' room, rows times L, that tokens take.
    """

    manifest: Manifest
    documents: int
    cuts: int
    tokens: int
    fill: float


def pack(
    source: Path | str,
    output: Path | str,
    length: int,
    *,
    samples_per_shard: int | None = None,
    window: int = WINDOW,
) -> Packed:
    """Write the documents of a dataset as rows of at most `length` tokens.

    Args:
        source: folder of a finished dataset.
        output: empty, absent, or the unfinished packing of the same dataset.
        length: L.
        samples_per_shard: rows in each shard; by default as many as hold about the tokens of a shard of the source.
        window: rows of the source whose documents are placed together.

    Raises:
        UserError: `length` is less than 2, or the output is another dataset's.
        IntegrityError: a shard of the source is missing or damaged.
    """
    if length < 2:
        raise UserError(f"pack: rows of {length} tokens have nothing to predict. Give a length of 2 or more.")
    dataset = SignalDataset.open(source)
    pieces = list(_pieces(dataset, length))
    rows = [row for part in _windows(pieces, window) for row in place(part, length)]
    tokens = sum(map(len, pieces))
    documents = 1 + max((piece.number for piece in pieces), default=-1)
    packed = {"source": dataset.digest, "length": length, "window": window, "cuts": len(pieces) - documents}
    header = _header(dataset, packed, len(rows), samples_per_shard or _samples(dataset, tokens, length))
    dataset.keep_shards(-(-window // max(dataset.shard_sizes)) + 1)
    with DatasetWriter(output, header) as writer:
        copy_beside(dataset, writer)
        missing = writer.missing_ranges()
        with bar("packing (rows)", len(rows), len(rows) - sum(map(len, missing))) as shown:
            for samples in missing:
                _write(writer, samples, dataset, [rows[sample] for sample in samples])
                shown.advance(len(samples))
        manifest = writer.finish()
    return Packed(manifest, documents, len(pieces) - documents, tokens, tokens / (len(rows) * length))


def place(pieces: Sequence[Document], length: int) -> list[list[Document]]:
    """Return the pieces in rows of at most `length` tokens: best fit, the longest first.

    A piece goes where the least room stays free, of several such rows to the oldest. Pieces of a row are in the order
    in which they were given, rows in that of their first pieces.
    """
    order = sorted(range(len(pieces)), key=lambda index: (-len(pieces[index]), index))
    rows: list[list[int]] = []
    with_room: dict[int, deque[int]] = {}
    rooms: list[int] = []
    for index in order:
        size = len(pieces[index])
        at_least = bisect_left(rooms, size)
        if at_least == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[at_least]
            row = with_room[room].popleft()
            if not with_room[room]:
                del with_room[room], rooms[at_least]
        rows[row].append(index)
        if left := room - size:
            if left not in with_room:
                with_room[left] = deque()
                insort(rooms, left)
            with_room[left].append(row)
    return [[pieces[index] for index in row] for row in sorted(sorted(row) for row in rows)]


def _pieces(dataset: SignalDataset, length: int) -> Iterator[Document]:
    """Yield the pieces of all documents, in the order of the source."""
    number, begin = 0, 0
    with bar("reading documents (rows)", len(dataset)) as shown:
        for size in dataset.shard_sizes:
            for index, row in enumerate(dataset.rows(range(begin, begin + size), decode=False), begin):
                ends = _ends(row)
                for first, last in zip([0, *ends], ends, strict=False):
                    for start in range(first, last, length):
                        yield Document(number, index, start, min(start + length, last))
                    number += 1
            begin += size
            shown.advance(size)


def _ends(row: SignalRow) -> list[int]:
    """Return where the documents of a row end; an empty row has none."""
    length = len(row.input_ids)
    if row.documents is None:
        return [length] if length else []
    changes = (row.documents[1:] != row.documents[:-1]).nonzero()[:, 0] + 1
    return [*changes.tolist(), length] if length else []


def _windows(pieces: Sequence[Document], window: int) -> Iterator[Sequence[Document]]:
    """Yield the pieces of each `window` consecutive rows of the source."""
    start = 0
    for index in range(1, len(pieces) + 1):
        if index == len(pieces) or pieces[index].row // window != pieces[start].row // window:
            yield pieces[start:index]
            start = index


def _samples(dataset: SignalDataset, tokens: int, length: int) -> int:
    """Return how many packed rows hold about the tokens of a shard of the source."""
    return max(1, -(-tokens // (len(dataset.manifest.shards) * length)))


def _header(dataset: SignalDataset, packed: dict[str, Any], rows: int, samples_per_shard: int) -> ManifestHeader:
    manifest = dataset.manifest
    if not rows:
        raise UserError(f"{dataset.storage.where()}: no tokens to pack.")
    return make_header(
        codec=dataset.codec.spec,
        teacher=manifest.teacher,
        tokenizer_digest=manifest.tokenizer_digest,
        vocabulary=manifest.vocabulary,
        text_digest=manifest.text_digest,
        samples=rows,
        samples_per_shard=samples_per_shard,
        documents=True,
        capture={"packed": packed, "source": manifest.capture, "limbeck": limbeck.__version__},
    )


def _write(writer: DatasetWriter, samples: range, dataset: SignalDataset, rows: Sequence[Sequence[Document]]) -> None:
    """Write one shard of packed rows."""
    needed = sorted({piece.row for row in rows for piece in row})
    index_of = {number: index for index, number in enumerate(needed)}
    packed = [[(index_of[piece.row], piece.first, piece.last) for piece in row] for row in rows]
    numbers = [torch.cat([torch.full((len(piece),), piece.number) for piece in row]) for row in rows]
    if dataset.manifest.codec["codec"] in FIXED_WIDTH:
        source = encoded_rows(dataset, needed)
        encoded = join([cut(source, pieces) for pieces in packed])
        told_apart = [replace(row, documents=number) for row, number in zip(encoded.rows, numbers, strict=True)]
        write_encoded(writer, samples, replace(encoded, rows=told_apart))
        return
    decoded = dataset.rows(needed)
    signals = [row.signal for row in decoded if row.signal is not None]
    whole = []
    for pieces, number in zip(packed, numbers, strict=True):
        signal = concatenate([at(signals[row], slice(first, last)) for row, first, last in pieces])
        whole.append(replace(laid_end_to_end(decoded, pieces), signal=signal, documents=number))
    writer.write_shard(samples, whole)
