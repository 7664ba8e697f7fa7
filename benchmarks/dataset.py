"""From a dataset on disk to training tensors: together or one by one, read ahead or not, near or far."""

import os
import tempfile
from collections.abc import Iterable

import torch

from benchmarks.timing import Row, in_turn
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.from_arrays import topk_of_arrays
from limbeck.signals.loader import SignalBatch, SignalLoader, collate
from limbeck.signals.manifest import TeacherRef, make_header
from limbeck.signals.writer import DatasetWriter

TITLE = "A dataset of 512 rows of 256 tokens to batches of 16 rows; V = 32,768, codec topk"
ROWS, LENGTH, V = 512, 256, 32_768


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        os.environ["LIMBECK_CACHE"] = f"{name}/cache"
        near, far = _write(f"{name}/near"), _write("memory://far")
        loader, from_far = (SignalLoader(dataset, 16, seed=1) for dataset in (near, far))
        batches = [list(range(first, first + 16)) for first in range(0, ROWS, 16)]

        def together() -> None:
            for batch in batches:
                collate(near.rows(batch))

        def one_by_one() -> None:
            for batch in batches:
                collate([near.row(row) for row in batch])

        def train(batches: Iterable[SignalBatch]) -> None:
            weight = torch.zeros(256, 256)
            for batch in batches:
                for _ in range(20):
                    _ = batch.counted.float() @ weight

        def first_reading() -> None:
            for record in near.manifest.shards:
                near.storage.check(record)

        return [
            Row("read, decode, collate", *in_turn(together, one_by_one), "rows decoded one by one"),
            Row(
                "an epoch of the loader, one thread ahead",
                *in_turn(lambda: train(loader.batches(0)), lambda: train(loader.batches(0, threads=0))),
                "none ahead",
            ),
            Row(
                "an epoch from a remote store, copies in the cache",
                *in_turn(lambda: train(from_far.batches(0)), lambda: train(loader.batches(0))),
                "a local folder",
            ),
            Row("SHA-256 of all shards", *in_turn(first_reading, together), "read, decode, collate"),
        ]


def _write(location: str) -> SignalDataset:
    spec = TopkSpec(temperatures=(1.0,))
    header = make_header(
        codec=spec, teacher=TeacherRef(repo="org/teacher", revision="1"), tokenizer_digest="t", vocabulary=V,
        text_digest="x", samples=ROWS, samples_per_shard=64,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    logits = -1.6 * torch.arange(1, V + 1).log() + 0.5 * torch.randn(LENGTH, V, generator=generator)
    logprobs, ids = logits.log_softmax(-1).topk(spec.cap)
    signal = topk_of_arrays(torch.randperm(V, generator=generator)[ids].numpy(), logprobs.numpy(), V)
    row = SignalRow(torch.arange(LENGTH), torch.ones(LENGTH, dtype=torch.bool), signal)
    with DatasetWriter(location, header) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, [row] * len(samples))
        writer.finish()
    return SignalDataset.open(location)
