"""Megatron-LM's cached log-probabilities: tar shards named by rank and global sample range.

    dp0__0-512.tar
        _meta.json              what was saved, and a hash that stands for the text's order
        0-1.pt.zst              samples 0 to 1: torch.save of values, indices_low, bit_17, format_version
        1-2.pt.zst

`values` is `[S, B, K]`, log-probabilities of position s of sample b; entry -1000 is absent. Ids are the lower 16 bits
in `indices_low` (uint16, `[S, B, K]`) and the 17th in `bit_17` (all of them, packed, most significant bit first). So a
vocabulary has at most 131,072 tokens. Of `dp_size_save` ranks with `mbs_save` samples at a time, row r of rank d is
sample ((r div M) * D + d) * M + r mod M of its range.

The shards hold no tokens: Megatron makes them again from its own data. They come from files beside the shards, or from
elsewhere: a table with `input_ids`, one row a sample, in the same order. Position s is about token s + 1. A sample has
S tokens, or S + 1, or fewer, and then nothing is said behind its last one. Any other number is refused.
"""

import io
import json
import pickle
import re
import tarfile
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.topk_entries import signal_of_entries
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert.importing import Identity, files_digest, vocabulary_or
from limbeck.signals.convert.tables import open_parquet
from limbeck.signals.dataset import SignalRow

FORMAT = "megatron"
META = "_meta.json"
SHARD = re.compile(r"^dp(\d+)__(\d+)-(\d+)\.tar$")
MEMBER = re.compile(r"^(\d+)-(\d+)\.pt\.zst$")
OLDER = re.compile(r"^(cp\d+_)?dp\d+__\d+\.tar$")
TOKENS, TRAINED, DOCUMENTS = "input_ids", "trained", "documents"
BITS, LOW_BITS = 17, 16
ABSENT = -1e3
VERSION = 2
PARTS_KEPT = 8
BROKEN = (
    OSError,
    pa.ArrowException,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Part:
    """One member of one rank's shard.

    Attributes:
        path: of the shard.
        name: of the member.
        start: the first sample of the range that all ranks' members of this name share.
        stop: behind the last.
        offset: where its bytes begin in the file.
        size: how many they are.
    """

    path: Path
    name: str
    start: int
    stop: int
    offset: int
    size: int


class MegatronReader:
    """Reads a folder of shards; see the module and `Reader`.

    Args:
        folder: of the shards.
        identity: whose words they are; the vocabulary has to be named.
        tokens: a Parquet file, or a folder of them, with `input_ids` and perhaps `trained` and `documents`; those
            beside the shards by default.

    Raises:
        UserError: there are no such shards, they don't cover a whole range of samples from 0 on, or there are no
            tokens.
    """

    format = FORMAT

    def __init__(self, folder: Path, identity: Identity, tokens: Path | None = None) -> None:
        self.where = str(folder)
        shards = sorted(path for path in folder.glob("*.tar") if SHARD.match(path.name))
        if not shards:
            older = any(OLDER.match(path.name) for path in folder.glob("*.tar"))
            form = "shards named by iteration, an older form. Save them again with a newer Megatron-LM" if older else ""
            raise UserError(f"{folder}: {form or 'no shard dpD__START-END.tar here'}.")
        self._saver = _saver_of(shards[0])
        self._ranks: list[list[Part]] = [[] for _ in range(self._saver["dp_size_save"])]
        for path in shards:
            self._list(path)
        for rank in self._ranks:
            rank.sort(key=lambda part: part.start)
        self._ranges = self._whole_range()
        self.samples = self._ranges[-1][1] if self._ranges else 0
        self.vocabulary = vocabulary_or(identity, None, self.where)
        most = min(int(self._saver["k"]), self.vocabulary)
        self.spec: Settings = TopkSpec(select="count", cap=most, temperatures=(1.0,))
        if tokens is None and not any(folder.glob("*.parquet")):
            raise UserError(
                f"{folder}: the shards hold no tokens, and no *.parquet beside them does. Name one: --tokens."
            )
        self._tokens = open_parquet(tokens or folder)
        self._columns = [name for name in (TOKENS, TRAINED, DOCUMENTS) if name in self._tokens.names]
        if TOKENS not in self._columns or len(self._tokens) != self.samples:
            raise UserError(
                f"{tokens or folder}: {len(self._tokens)} rows with the columns {', '.join(self._tokens.names)}, "
                f"but {TOKENS!r} of {self.samples} samples are needed."
            )
        self.documents = DOCUMENTS in self._columns
        self.text_digest = files_digest([*shards, *self._tokens.files], "hashing megatron (files)")
        self._decoded = lru_cache(maxsize=PARTS_KEPT * len(self._ranks))(_decoded)

    def rows(self, samples: range) -> list[SignalRow]:
        """Return some rows with their signals; see `Reader`."""
        table = self._tokens.slice(samples, self._columns).to_pydict()
        return [self._row(sample, {name: table[name][index] for name in table}) for index, sample in enumerate(samples)]

    def _row(self, sample: int, text: dict[str, list[Any]]) -> SignalRow:
        values_SK, ids_SK = self._entries(sample)
        ids, positions = torch.tensor(text[TOKENS], dtype=torch.int64), len(values_SK)
        where = f"{self.where}, sample {sample}"
        total = len(ids)
        if total > positions + 1:
            raise UserError(f"{where}: {total} tokens for {positions} positions; there can be one more token at most.")
        if total > positions:  # nothing was saved of what follows the last token
            values_SK = torch.cat([values_SK, torch.full((1, values_SK.shape[1]), -torch.inf)])
            ids_SK = np.concatenate([ids_SK, np.zeros((1, ids_SK.shape[1]), dtype=np.int64)])
        if bool((values_SK[total:] > -torch.inf).any()):
            raise UserError(
                f"{where}: {total} tokens, but positions up to {positions} say something. They don't match."
            )
        trained = torch.tensor(text.get(TRAINED, [True] * total), dtype=torch.bool)
        documents = torch.tensor(text[DOCUMENTS], dtype=torch.int64) if self.documents else None
        if len(trained) != total or (documents is not None and len(documents) != total):
            raise UserError(f"{self._tokens.where(sample)}: its lists are not equally long.")
        try:
            signal = signal_of_entries(ids_SK[:total], values_SK[:total], [total], self.vocabulary, FORMAT)
        except LimbeckError as error:
            raise type(error)(f"{where}: {error}") from error
        return SignalRow(ids, trained, signal, documents)

    def _entries(self, sample: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Return log-probabilities (absent: `-inf`) and ids of one sample, `[S, K]` both."""
        index = bisect_right(self._ranges, (sample, self.samples)) - 1
        ranks, each = len(self._ranks), self._saver["mbs_save"]
        block, inside = divmod(sample - self._ranges[index][0], each)
        part = self._ranks[block % ranks][index]
        row = block // ranks * each + inside
        values_SBK, ids_SBK = self._decoded(part)
        if row >= values_SBK.shape[1]:
            raise IntegrityError(
                f"{part.path}, {part.name}: {values_SBK.shape[1]} samples, so it lacks sample {sample}."
            )
        values_SK = values_SBK[:, row].double()
        return values_SK.masked_fill(values_SK <= ABSENT, -torch.inf), ids_SBK[:, row]

    def _list(self, path: Path) -> None:
        match = SHARD.match(path.name)
        rank = int(match[1]) if match else 0
        if rank >= len(self._ranks):
            raise UserError(f"{path}: of rank {rank}, but {META} says there were {len(self._ranks)}.")
        try:
            with tarfile.open(path, "r:") as tar:
                members = tar.getmembers()
        except (tarfile.TarError, OSError) as error:
            raise IntegrityError(f"{path}: not a whole tar file ({error}). Copy it anew.") from error
        for member in members:
            if found := MEMBER.match(member.name):
                start, stop = int(found[1]), int(found[2])
                self._ranks[rank].append(Part(path, member.name, start, stop, member.offset_data, member.size))

    def _whole_range(self) -> list[tuple[int, int]]:
        """Return the sample ranges of the members, which follow one another from 0 on and are every rank's."""
        ranges = [[(part.start, part.stop) for part in rank] for rank in self._ranks]
        for number, found in enumerate(ranges):
            if found != ranges[0]:
                raise UserError(
                    f"{self.where}: rank {number} holds other sample ranges than rank 0. A shard is missing."
                )
        following = 0
        for start, stop in ranges[0]:
            if start != following:
                raise UserError(f"{self.where}: samples {following} to {start} are missing (or there twice).")
            following = stop
        return ranges[0]


def _saver_of(path: Path) -> dict[str, int]:
    """Return what `_meta.json` says of how the shards were saved."""
    try:
        with tarfile.open(path) as tar:
            first = tar.next()
            file = tar.extractfile(first) if first is not None and first.name == META else None
            saver = json.loads(file.read())["saver"] if file is not None else {}
    except (tarfile.TarError, OSError, json.JSONDecodeError, KeyError) as error:
        raise IntegrityError(f"{path}: no readable {META} ({type(error).__name__}: {error}). Copy it anew.") from error
    wanted = ("k", "mbs_save", "dp_size_save", "gbs_save", "format_version")
    if any(not isinstance(saver.get(name), int) for name in wanted) or saver["format_version"] != VERSION:
        raise UserError(
            f"{path}: {META} has to say {', '.join(wanted)}, with format_version {VERSION}. "
            "Save the log-probabilities again with a newer Megatron-LM."
        )
    return {name: int(saver[name]) for name in wanted}


def _decoded(part: Part) -> tuple[Tensor, NDArray[np.int64]]:
    """Return log-probabilities and ids `[S, B, K]` of one member."""
    try:
        with part.path.open("rb") as file:
            file.seek(part.offset)
            packed = file.read(part.size)
        data = pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read()
        saved = torch.load(io.BytesIO(data), weights_only=True)  # tensors and numbers; any other pickle is refused
        values, low, bits = saved["values"], saved["indices_low"], saved["bit_17"]
        high = np.unpackbits(bits.numpy(), count=low.numel()).reshape(tuple(low.shape))
    except BROKEN as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise IntegrityError(
            f"{part.path}, {part.name}: can't be read ({type(error).__name__}: {first_line}). Copy the shard anew."
        ) from error
    if values.shape != low.shape or values.dim() != 3:
        raise IntegrityError(f"{part.path}, {part.name}: values {list(values.shape)} and ids {list(low.shape)}.")
    return values, (high.astype(np.int64) << LOW_BITS) | low.numpy().astype(np.int64)
