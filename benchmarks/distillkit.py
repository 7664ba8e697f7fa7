"""Speed of storing and reading signals against DistillKit: k = 128, V = 151,936, one row of 8,192 tokens.

Where the environment variable `LIMBECK_DISTILLKIT` names a checkout of DistillKit, that is the other side. Otherwise it
is an *imitation* in this file: what DistillKit documents of its path, step by step (a Python loop over the entries that
vLLM returns, an SVD per call, bits spread out over int64, lists of Python integers between Parquet and tensors). An
imitation may be faster or slower than the original.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.timing import Row, in_turn
from limbeck.signals.codecs.bit_packing import bits_for
from limbeck.signals.codecs.columns import Columns
from limbeck.signals.codecs.distillkit import DistillkitCodec
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.topk import TopkCodec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.from_arrays import padded, topk_of_arrays
from limbeck.signals.loader import SignalBatch, SignalLoader
from limbeck.signals.manifest import TeacherRef, make_header
from limbeck.signals.types import TopkSignal, at
from limbeck.signals.writer import DatasetWriter

TITLE = "Storing and reading signals: 8,192 tokens, k = 128, V = 151,936"
V, K, N, EXACT, TERMS = 151_936, 128, 8192, 16, 6
LENGTH, ROWS = 1024, 64
SETTINGS = {
    "d": V, "k": K, "exact_k": EXACT, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
    "term_dtype": "float32", "residual_bins": [], "delta_encoding": False, "error_diffusion": False,
    "normalize_t": True,
}  # fmt: skip


@dataclass(frozen=True)
class Logprob:
    """What vLLM returns for an entry where it is not asked for flat lists."""

    logprob: float
    rank: int


@dataclass(frozen=True)
class Other:
    """The other side: functions of `[N, K]` ids and log-probabilities, and its own bytes."""

    name: str
    encode: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
    decode: Callable[[dict[str, torch.Tensor]], object]


def run() -> list[Row]:
    torch.set_num_threads(int(os.environ.get("LIMBECK_BENCH_THREADS", "2")))
    other = _original() or Other("an imitation of DistillKit", _imitated_encode, _imitated_decode)
    signal = _workload()
    ids, logprobs = signal.ids, signal.logprobs
    topk = TopkCodec(TopkSpec(select="count", cap=K, temperatures=(1.0,)), V)
    same = DistillkitCodec(DistillkitSpec(**SETTINGS), V)
    theirs = other.encode(ids, logprobs)
    rows = []
    for name, codec in (("topk", topk), ("distillkit", same)):
        columns = codec.encode(signal, [N])
        rows += [
            _row(
                f"decode, codec {name}", lambda c=codec, b=columns: c.decode(b, [N]),
                lambda: other.decode(theirs), other,
            ),
            _row(
                f"encode from sparse, codec {name}", lambda c=codec: c.encode(signal, [N]),
                lambda: other.encode(ids, logprobs), other,
            ),
        ]  # fmt: skip
    rows += _from_engine(signal, topk, other)
    rows += _from_disk(signal, other)
    return rows


def _row(what: str, ours: Callable[[], object], others: Callable[[], object], other: Other, tokens: int = N) -> Row:
    mine, his = in_turn(ours, others, runs=3)
    return Row(f"{what}: {tokens / mine:,.0f} tokens/s, {his / mine:,.0f}x", mine, his, other.name)


def _workload() -> TopkSignal:
    """Return the most probable of peaked distributions, 256 different ones over and over."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for _ in range(4):
        sharpness = 1.3 * (1 + 1.5 * torch.rand(64, 1, generator=generator))
        logits = -sharpness * torch.arange(1, V + 1).log() + 0.5 * torch.randn(64, V, generator=generator)
        order = torch.randperm(V, generator=generator)
        logprobs, ids = logits.log_softmax(-1).topk(K)
        parts.append((order[ids], logprobs))
    ids, logprobs = (torch.cat([part[index] for part in parts]).repeat(N // 256, 1) for index in (0, 1))
    return topk_of_arrays(ids.numpy(), logprobs.numpy(), V)


def _from_engine(signal: TopkSignal, codec: TopkCodec, other: Other) -> list[Row]:
    n = 1024
    ids, logprobs = signal.ids[:n].numpy(), signal.logprobs[:n].numpy()
    flat_ids, flat_logprobs = ids.reshape(-1).tolist(), logprobs.reshape(-1).tolist()
    starts = np.arange(0, (n + 1) * K, K)
    ranks = [*range(1, K + 1)] * n
    dicts = [
        {token: Logprob(value, rank + 1) for rank, (token, value) in enumerate(zip(*pair, strict=True))}
        for pair in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]

    def from_arrays(ids: np.ndarray, logprobs: np.ndarray) -> Columns:
        return codec.encode(topk_of_arrays(ids, logprobs, V), [n])

    def from_flat() -> Columns:
        return from_arrays(*padded(np.array(flat_ids), np.array(flat_logprobs), starts, K))

    def from_dicts() -> Columns:
        every = np.fromiter(chain.from_iterable(dicts), dtype=np.int64)
        values = chain.from_iterable(place.values() for place in dicts)
        return from_arrays(*padded(every, np.fromiter(map(attrgetter("logprob"), values), dtype=np.float64), starts, K))

    def loop_over_flat() -> object:
        found_ids, found = torch.zeros(n, K, dtype=torch.int64), torch.full((n, K), float("-inf"))
        for place in range(n):
            for index in range(starts[place], starts[place + 1]):
                if ranks[index] <= K:
                    found_ids[place, ranks[index] - 1] = flat_ids[index]
                    found[place, ranks[index] - 1] = flat_logprobs[index]
        return {name: part.tolist() for name, part in other.encode(found_ids, found).items()}

    return [
        _row("engine to bytes, from arrays", lambda: from_arrays(ids, logprobs), loop_over_flat, other, n),
        _row("engine to bytes, from vLLM's flat lists", from_flat, loop_over_flat, other, n),
        _row("engine to bytes, from lists of dicts", from_dicts, loop_over_flat, other, n),
    ]


def _from_disk(signal: TopkSignal, other: Other) -> list[Row]:
    rows = [
        SignalRow(
            torch.arange(LENGTH),
            torch.ones(LENGTH, dtype=torch.bool),
            at(signal, slice(start, start + LENGTH)),
        )
        for start in range(0, N, LENGTH)
    ] * (ROWS * LENGTH // N)  # fmt: skip
    tokens = ROWS * LENGTH
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = _write_theirs(folder / "theirs.parquet", rows, other)
        for codec in (TopkSpec(select="count", cap=K, temperatures=(1.0,)), DistillkitSpec(**SETTINGS)):
            header = make_header(
                codec=codec, teacher=TeacherRef(repo="org/teacher", revision="1"), tokenizer_digest="t", vocabulary=V,
                text_digest="x", samples=ROWS, samples_per_shard=16,
            )  # fmt: skip
            place = folder / codec.codec
            with DatasetWriter(place, header) as writer:
                for samples in writer.missing_ranges():
                    writer.write_shard(samples, rows[samples.start : samples.stop])
                stored = sum(shard.bytes for shard in writer.finish().shards)

            def read(decode: bool, place: Path = place) -> list[SignalBatch]:
                loader = SignalLoader(SignalDataset.open(place), 8, seed=1, decode=decode)
                return list(loader.batches(0))

            held = sum(_held(batch) for batch in read(False))
            print(
                f"{codec.codec}: {stored / tokens:.0f} bytes a token on disk, {held / tokens:.0f} in memory "
                f"({held / stored:.2f}x); {other.name}: {theirs / tokens:,.0f} in memory before decoding"
            )
            for what, decode in (("bytes in tensors", False), ("decoded", True)):
                table.append(
                    _row(
                        f"disk to {what}, codec {codec.codec}", lambda d=decode, r=read: r(d),
                        lambda d=decode: _read_theirs(folder / "theirs.parquet", other, decode=d), other, tokens,
                    )
                )  # fmt: skip
    return table


def _held(batch: SignalBatch) -> int:
    """Return the bytes of an undecoded batch."""
    encoded = batch.encoded
    assert encoded is not None
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    return sum(value.nbytes for value in [*tensors, *encoded.data.values(), *encoded.offsets.values()])


def _write_theirs(path: Path, rows: list[SignalRow], other: Other) -> int:
    """Write list<list<uint8>> columns, as documented, and return the bytes of the tensors they become."""
    encoded = []
    for row in rows[: N // LENGTH]:
        assert isinstance(row.signal, TopkSignal)
        encoded.append(other.encode(row.signal.ids, row.signal.logprobs))
    encoded *= len(rows) // len(encoded)
    lists = pa.list_(pa.list_(pa.uint8()))
    columns = {name: pa.array([part[name].tolist() for part in encoded], type=lists) for name in encoded[0]}
    columns["input_ids"] = pa.array([row.input_ids.tolist() for row in rows], type=pa.list_(pa.uint64()))
    pq.write_table(pa.table(columns), path)
    return sum(8 * part[name].numel() for part in encoded for name in part)


def _read_theirs(path: Path, other: Other, *, decode: bool) -> list[Any]:
    """Read lists of Python integers and make int64 tensors of them, eight rows at a time."""
    table = pq.read_table(path)
    batches = []
    for start in range(0, table.num_rows, 8):
        part = table.slice(start, 8).to_pydict()
        batch = {name: torch.tensor(values) for name, values in part.items()}
        batch.pop("input_ids")
        batches.append(
            other.decode({name: value.to(torch.uint8).flatten(0, 1) for name, value in batch.items()})
            if decode
            else batch
        )
    return batches


def _original() -> Other | None:
    """Return DistillKit itself, from a checkout that the environment names."""
    checkout = os.environ.get("LIMBECK_DISTILLKIT")
    if not checkout:
        print("LIMBECK_DISTILLKIT is not set: DistillKit itself was skipped, an imitation of its path stands in")
        return None
    sys.path.insert(0, checkout)
    from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor  # type: ignore[import-not-found]

    compressor = LogprobCompressor(DistributionQuantizationConfig.model_validate(SETTINGS))
    decode = getattr(compressor, "decompress_to_sparse", None) or compressor.decompress
    return Other(
        "DistillKit",
        lambda ids, logprobs: {
            name: part[0] for name, part in compressor.compress_from_sparse(ids[None], logprobs[None]).items()
        },
        lambda parts: decode({name: part[None] for name, part in parts.items()}),
    )


def _imitated_encode(ids: torch.Tensor, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    logprobs, order = logprobs.float().sort(-1, descending=True)
    ids = ids.gather(-1, order)
    basis = _imitated_basis()
    left, scale, right = torch.linalg.svd(basis, full_matrices=False)
    inverse = right.T @ torch.diag(torch.where(scale > 1e-5, 1 / scale, 0.0)) @ left.T
    coefficients = torch.einsum("mj,nj->nm", inverse, logprobs[:, EXACT:]).contiguous()
    values = [logprobs[:, :EXACT].bfloat16().contiguous().view(torch.uint8), coefficients.view(torch.uint8)]
    width = bits_for(V)
    bits = (ids[..., None] >> torch.arange(width - 1, -1, -1)) & 1
    powers = 2 ** torch.arange(7, -1, -1)
    packed = (bits.to(torch.uint8).view(len(ids), -1, 8) * powers).sum(-1).to(torch.uint8)
    return {"compressed_logprobs": torch.cat(values, -1), "bytepacked_indices": packed}


def _imitated_decode(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    values, packed = parts["compressed_logprobs"], parts["bytepacked_indices"]
    exact = values[:, : 2 * EXACT].contiguous().view(torch.bfloat16)
    coefficients = values[:, 2 * EXACT :].contiguous().view(torch.float32)
    tail = sum(term[None] * column[:, None] for term, column in zip(_imitated_basis().T, coefficients.T, strict=True))
    width = bits_for(V)
    bits = (packed[..., None] >> torch.arange(7, -1, -1, dtype=torch.uint8)) & 1
    spread = bits.view(len(packed), -1)[:, : K * width].view(len(packed), K, width)
    return (spread * 2 ** torch.arange(width - 1, -1, -1)).sum(-1), torch.cat([exact, tail], -1)


def _imitated_basis() -> torch.Tensor:
    t = torch.linspace(0, 1, K - EXACT)
    return torch.stack([*(t**power for power in range(TERMS - 1)), t.sqrt()], -1)
