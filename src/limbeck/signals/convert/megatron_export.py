"""Writing Megatron-LM's cached log-probabilities; see `megatron`.

Shards are those of one rank, a sample a member, so that Megatron can share them out among any number of ranks and any
batch size. All samples have the positions of the longest row; behind a shorter one nothing is said.

Megatron compares a hash of seed, sample count and data blend with its own run's. Given these identifiers it is written
as Megatron computes it; without, the student's run needs `--logits-load-ignore-hash`.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.files import publish
from limbeck.signals.convert.dropping import left_out_as_entries
from limbeck.signals.convert.exporting import TopRows
from limbeck.signals.convert.megatron import (
    ABSENT,
    BITS,
    DOCUMENTS,
    FORMAT,
    LOW_BITS,
    META,
    TOKENS,
    TRAINED,
    VERSION,
)
from limbeck.signals.convert.tables import write_parquet
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.types import TopkSignal

Dtype = Literal["fp16", "bf16", "fp32"]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
IDENTIFIERS = ("seed", "train_samples", "blend")
LEVEL = 3


class MegatronExporter:
    """Writes shards, and beside each a Parquet file with its tokens; see the module and `Exporter`.

    Args:
        dataset: what is written.
        entries: the most entries a position; those that the codec keeps by default, or 128 of whole distributions.
        dtype: of the log-probabilities.
        identifiers: `seed`, `train_samples` and `blend` of the student's run.

    Raises:
        UserError: the dataset doesn't say which tokens are the most probable, its vocabulary is too large for 17 bits,
            or the identifiers are not these three.
    """

    format = FORMAT

    def __init__(
        self,
        dataset: SignalDataset,
        entries: int | None = None,
        dtype: Dtype = "fp16",
        identifiers: dict[str, Any] | None = None,
    ) -> None:
        vocabulary = dataset.manifest.vocabulary
        if vocabulary > 1 << BITS:
            raise UserError(
                f"{dataset.storage.where()}: a vocabulary of {vocabulary}, and Megatron-LM's shards hold ids of {BITS} "
                f"bits: {1 << BITS} tokens at most. Write another format."
            )
        if identifiers is not None and set(identifiers) != set(IDENTIFIERS):
            raise UserError(
                f"identifiers: expected {', '.join(IDENTIFIERS)}; found {', '.join(identifiers) or 'none'}."
            )
        self._top = TopRows.of(dataset, entries)
        stored = int(getattr(self._top.spec, "cap", 0) or getattr(self._top.spec, "k", 0) or vocabulary)
        self._entries = min(entries or stored, vocabulary)
        self._dtype = DTYPES[dtype]
        self._dataset = dataset
        named = None if identifiers is None else {name: identifiers[name] for name in IDENTIFIERS}
        self.left_out = left_out_as_entries(dataset, self._entries)
        self.options: dict[str, Any] = {"entries": self._entries, "dtype": dtype, "identifiers": named}

    def name(self, samples: range) -> str:
        """Return the name of the shard that holds these rows."""
        return f"dp0__{samples.start}-{samples.stop}.tar"

    def write(self, folder: Path, samples: range) -> None:
        """Publish the tokens of these rows, and then their shard."""
        rows = self._top.rows(samples)
        tokens = folder / f"tokens-{samples.start:010d}-{samples.stop:010d}.parquet"
        write_parquet(tokens, self._tokens([row for row, _ in rows]))
        with publish(folder / self.name(samples)) as temporary, tarfile.open(temporary, "w") as tar:
            for name, data in self._members(samples, [signal for _, signal in rows]):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    def finish(self, folder: Path, names: list[str]) -> None:
        """Nothing else stands beside the shards."""

    def _members(self, samples: range, signals: list[TopkSignal]) -> Iterator[tuple[str, bytes]]:
        yield META, self._meta()
        for sample, signal in zip(samples, signals, strict=True):
            yield f"{sample}-{sample + 1}.pt.zst", _compressed(self._payload(*self._padded(signal)))

    def _padded(self, signal: TopkSignal) -> tuple[Tensor, Tensor]:
        """Return one sample's log-probabilities and ids, filled up: `[S, K]` both."""
        shape = (self._dataset.longest, self._entries)
        values_SK, ids_SK = torch.full(shape, ABSENT), torch.zeros(shape, dtype=torch.int64)
        count = min(signal.ids.shape[1], self._entries)
        present = signal.logprobs[:, :count] > float("-inf")
        values_SK[: len(present), :count] = torch.where(present, signal.logprobs[:, :count], ABSENT)
        ids_SK[: len(present), :count] = torch.where(present, signal.ids[:, :count], 0)
        return values_SK, ids_SK

    def _payload(self, values_SK: Tensor, ids_SK: Tensor) -> bytes:
        """Return what Megatron's own saver would have written for a range of this one sample."""
        ids_SBK = ids_SK[:, None]
        high = (ids_SBK >> LOW_BITS).to(torch.uint8)
        buffer = io.BytesIO()
        torch.save(
            {
                "values": values_SK[:, None].to(self._dtype),
                "indices_low": (ids_SBK & 0xFFFF).to(torch.uint16),
                "bit_17": torch.from_numpy(np.packbits(high.reshape(-1).numpy())),
                "format_version": VERSION,
            },
            buffer,
        )
        return buffer.getvalue()

    def _meta(self) -> bytes:
        manifest = self._dataset.manifest
        identifiers = self.options["identifiers"] or {"limbeck": self._dataset.digest, "samples": manifest.samples}
        described = json.dumps(identifiers, separators=(",", ":"))
        meta = {
            "hash": hashlib.md5(described.encode(), usedforsecurity=False).hexdigest(),
            "identifiers": identifiers,
            "saver": {
                "k": self._entries,
                "p": None,
                "min_k": 1,
                "save_dtype": self.options["dtype"],
                "format_version": VERSION,
                "mbs_save": 1,
                "dp_size_save": 1,
                "gbs_save": 1,
            },
        }
        return json.dumps(meta, separators=(",", ":")).encode()

    def _tokens(self, rows: list[SignalRow]) -> Any:
        columns: dict[str, Any] = {
            TOKENS: pa.array([row.input_ids.numpy() for row in rows], type=pa.list_(pa.int32())),
            TRAINED: pa.array([row.trained.numpy() for row in rows], type=pa.list_(pa.bool_())),
        }
        if self._dataset.manifest.documents:
            numbers = [row.documents.numpy() for row in rows if row.documents is not None]
            columns[DOCUMENTS] = pa.array(numbers, type=pa.list_(pa.int32()))
        return pa.table(columns)


def _compressed(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd", compression_level=LEVEL).compress(data, asbytes=True))
