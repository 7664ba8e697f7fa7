"""Megatron-LM's tar shards: member by member what its saver writes, and back, in the order its loader has them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from limbeck.errors import IntegrityError, UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert.exporting import export
from limbeck.signals.convert.importing import Identity, import_rows
from limbeck.signals.convert.megatron import MegatronReader
from limbeck.signals.convert.megatron_export import MegatronExporter
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.manifest import TeacherRef
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import DenseSignal, TokenSignal, TopkSignal
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import draw_logits, header_of

VOCABULARY = 70_000  # ids beyond 16 bits
IDENTITY = Identity(TeacherRef(repo="org/teacher", revision="abc"), "t" * 64, VOCABULARY)
COUNT = TopkSpec(select="count", cap=4, temperatures=(1.0,))
SAVER = {
    "k": 2, "p": None, "min_k": 1, "save_dtype": "fp16", "format_version": 2, "mbs_save": 1, "dp_size_save": 1,
    "gbs_save": 1,
}  # fmt: skip


def member(values: torch.Tensor, ids: torch.Tensor) -> bytes:
    """A payload, by the format's description."""
    high = np.packbits((ids >> 16).to(torch.uint8).reshape(-1).numpy())
    buffer = io.BytesIO()
    saved = {"values": values, "indices_low": (ids & 0xFFFF).to(torch.uint16), "bit_17": torch.from_numpy(high)}
    torch.save({**saved, "format_version": 2}, buffer)
    return bytes(pa.Codec("zstd").compress(buffer.getvalue(), asbytes=True))


def write_tar(path: Path, members: dict[str, bytes], saver: dict[str, Any] | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    meta = json.dumps({"hash": "0" * 32, "identifiers": {}, "saver": saver or SAVER}).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in {"_meta.json": meta, **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_tokens(folder: Path, rows: list[list[int]], **more: Any) -> None:
    pq.write_table(pa.table({"input_ids": rows, **more}), folder / "tokens.parquet")


def sample_of(number: int, positions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries that tell the sample and the position: ids 65,530 + 10 * sample + position, and that plus 5."""
    first = 65_530 + 10 * number + torch.arange(positions)
    ids = torch.stack([first, first + 5], -1)
    return torch.tensor([-0.5, -2.0]).expand(positions, 2).half(), ids


def take_in(folder: Path, output: Path, spec: Settings | None = None, **options: Any) -> SignalDataset:
    reader = MegatronReader(folder, IDENTITY, **options)
    import_rows(reader, IDENTITY, output, spec, samples_per_shard=3)
    return SignalDataset.open(output)


@pytest.mark.parametrize(("ranks", "each", "batch"), [(1, 1, 1), (1, 2, 8), (2, 1, 4), (2, 2, 8), (4, 1, 4)])
def test_samples_are_found_in_every_rank_and_batch(tmp_path: Path, ranks: int, each: int, batch: int) -> None:
    """Megatron gives each rank `each` consecutive samples in turn, batch after batch."""
    saver = {**SAVER, "mbs_save": each, "dp_size_save": ranks, "gbs_save": batch}
    for rank in range(ranks):
        members = {}
        for start in range(0, 8, batch):
            own = [start + index for index in range(batch) if index // each % ranks == rank]
            values, ids = zip(*map(sample_of, own), strict=True)
            members[f"{start}-{start + batch}.pt.zst"] = member(torch.stack(values, 1), torch.stack(ids, 1))
        write_tar(tmp_path / "in" / f"dp{rank}__0-8.tar", members, saver)
    write_tokens(tmp_path / "in", [[number, 1, 2, 3] for number in range(8)])
    for number, row in enumerate(MegatronReader(tmp_path / "in", IDENTITY).rows(range(8))):
        assert isinstance(row.signal, TopkSignal)
        assert row.input_ids.tolist() == [number, 1, 2, 3] and row.trained.tolist() == [True] * 4
        assert row.signal.mask.tolist() == [True, True, True, False]
        assert torch.equal(row.signal.ids[:3], sample_of(number)[1])
        assert row.signal.logprobs[:3].tolist() == [[-0.5, -2.0]] * 3


def one_shard(folder: Path, tokens: list[int], values: torch.Tensor | None = None) -> Path:
    given, ids = sample_of(0)
    write_tar(
        folder / "dp0__0-1.tar", {"0-1.pt.zst": member((given if values is None else values)[:, None], ids[:, None])}
    )
    write_tokens(folder, [tokens])
    return folder


def test_as_many_tokens_as_positions(tmp_path: Path) -> None:
    (row,) = MegatronReader(one_shard(tmp_path / "in", [1, 2, 3]), IDENTITY).rows(range(1))
    assert row.signal is not None and row.signal.mask.tolist() == [True, True, True]


def test_absent_entries_and_a_short_sample(tmp_path: Path) -> None:
    values = torch.tensor([[-0.5, -1000.0], [-0.5, -2.0], [-1000.0, -1000.0]]).half()
    (row,) = MegatronReader(one_shard(tmp_path / "in", [1, 2], values), IDENTITY).rows(range(1))
    assert isinstance(row.signal, TopkSignal)
    assert row.signal.mask.tolist() == [True, True]
    assert (row.signal.logprobs > -torch.inf).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([1, 2, 3, 4, 5], "5 tokens for 3 positions"), ([1, 2], "2 tokens, but positions up to 3 say")],
)
def test_tokens_that_do_not_match(tmp_path: Path, tokens: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        take_in(one_shard(tmp_path / "in", tokens), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_cache(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(UserError, match="no shard"):
        MegatronReader(folder, IDENTITY)
    write_tar(folder / "dp0__17.tar", {})
    with pytest.raises(UserError, match="an older form"):
        MegatronReader(folder, IDENTITY)
    one_shard(folder, [1, 2, 3])
    with pytest.raises(UserError, match="--vocabulary"):
        MegatronReader(folder, Identity(IDENTITY.teacher, IDENTITY.tokenizer_digest))
    (folder / "tokens.parquet").unlink()
    with pytest.raises(UserError, match="hold no tokens"):
        MegatronReader(folder, IDENTITY)
    write_tokens(folder, [[1, 2, 3]] * 2)
    with pytest.raises(UserError, match="2 rows with the columns input_ids, but 'input_ids' of 1 samples"):
        MegatronReader(folder, IDENTITY)
    write_tar(folder / "dp0__5-6.tar", {"5-6.pt.zst": b""})
    with pytest.raises(UserError, match="samples 1 to 5 are missing"):
        MegatronReader(folder, IDENTITY)
    write_tar(folder / "dp1__5-6.tar", {"5-6.pt.zst": b""})
    with pytest.raises(UserError, match=r"dp1__5-6.tar: of rank 1, but _meta.json says there were 1"):
        MegatronReader(folder, IDENTITY)


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    folder = one_shard(tmp_path / "in", [1, 2, 3])
    write_tar(folder / "dp0__0-1.tar", {"0-1.pt.zst": b"not a frame"})
    with pytest.raises(IntegrityError, match=r"dp0__0-1.tar, 0-1.pt.zst: can't be read"):
        take_in(folder, tmp_path / "out")


class Dangerous:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/limbeck-was-here"),))


def test_no_code_is_run_by_reading(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"values": Dangerous()}, buffer)
    folder = one_shard(tmp_path / "in", [1, 2, 3])
    write_tar(
        folder / "dp0__0-1.tar", {"0-1.pt.zst": bytes(pa.Codec("zstd").compress(buffer.getvalue(), asbytes=True))}
    )
    with pytest.raises(IntegrityError, match="can't be read"):
        take_in(folder, tmp_path / "out")
    assert not Path("/tmp/limbeck-was-here").exists()


def write_ours(folder: Path, spec: Settings, vocabulary: int = 90, documents: bool = False) -> SignalDataset:
    rows = []
    for index in range(7):
        size = 4 + index % 4
        logits, mask = draw_logits(size, index, vocabulary), torch.arange(size) % 4 != 3
        signal: Any = DenseSignal(logits.log_softmax(-1), mask)
        if isinstance(spec, TopkSpec):
            signal = topk_of_logits(logits, spec, mask_N=mask)
        numbers = torch.arange(size) // 2 if documents else None
        rows.append(SignalRow((torch.arange(size) * 7 + index) % vocabulary, torch.arange(size) > 1, signal, numbers))
    header = header_of(7, samples_per_shard=3, codec=spec, vocabulary=vocabulary, documents=documents)
    with DatasetWriter(folder, header) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, rows[samples.start : samples.stop])
        writer.finish()
    return SignalDataset.open(folder)


def test_what_is_written_member_by_member(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", DenseSpec(dtype="float32"), VOCABULARY)
    identifiers = {"seed": 1, "train_samples": 7, "blend": {"kind": "mock", "mock": True}}
    export(dataset, tmp_path / "out", MegatronExporter(dataset, 3, identifiers=identifiers))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [
        "dp0__0-3.tar", "dp0__3-6.tar", "dp0__6-7.tar",
    ]  # fmt: skip
    with tarfile.open(tmp_path / "out" / "dp0__3-6.tar") as tar:
        assert tar.getnames() == ["_meta.json", "3-4.pt.zst", "4-5.pt.zst", "5-6.pt.zst"]
        meta = json.load(tar.extractfile("_meta.json"))  # type: ignore[arg-type]
        packed = tar.extractfile("4-5.pt.zst").read()  # type: ignore[union-attr]
    assert meta["identifiers"] == identifiers and meta["saver"] == {**SAVER, "k": 3}
    saved = torch.load(io.BytesIO(pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read()), weights_only=True)
    assert set(saved) == {"values", "indices_low", "bit_17", "format_version"} and saved["format_version"] == 2
    assert saved["values"].shape == saved["indices_low"].shape == (7, 1, 3)  # the longest row has 7 tokens
    assert saved["values"].dtype == torch.float16 and saved["indices_low"].dtype == torch.uint16
    assert saved["bit_17"].dtype == torch.uint8 and saved["bit_17"].shape == (3,)  # 21 bits
    logits = draw_logits(4, 4, VOCABULARY)
    best = logits.log_softmax(-1).topk(3)
    ids = torch.from_numpy(np.unpackbits(saved["bit_17"].numpy(), count=21)).reshape(7, 3).long() << 16
    ids |= saved["indices_low"][:, 0].long()
    assert torch.equal(ids[:3], best.indices[:3]) and int(ids.max()) > 65_535
    torch.testing.assert_close(saved["values"][:3, 0].float(), best.values[:3], atol=2e-3, rtol=1e-3)
    assert (saved["values"][3:] == -1000).all() and (ids[3:] == 0).all()


def test_the_hash_is_megatrons(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", COUNT)
    identifiers = {"blend": {"kind": "mock", "mock": True}, "train_samples": 7, "seed": 1}  # in whatever order
    export(dataset, tmp_path / "out", MegatronExporter(dataset, identifiers=identifiers))
    with tarfile.open(tmp_path / "out" / "dp0__0-3.tar") as tar:
        meta = json.load(tar.extractfile("_meta.json"))  # type: ignore[arg-type]
    # md5sum of {"seed":1,"train_samples":7,"blend":{"kind":"mock","mock":true}}
    assert meta["hash"] == "d4071cf16cf9e9f605123a8df868712e"
    with pytest.raises(UserError, match="expected seed, train_samples, blend; found seed"):
        MegatronExporter(dataset, identifiers={"seed": 1})


@pytest.mark.parametrize("documents", [False, True])
def test_there_and_back(tmp_path: Path, documents: bool) -> None:
    dataset = write_ours(tmp_path / "in", DenseSpec(dtype="float32"), documents=documents)
    export(dataset, tmp_path / "tars", MegatronExporter(dataset, 4, "fp32"))
    identity = Identity(IDENTITY.teacher, IDENTITY.tokenizer_digest, 90)
    reader = MegatronReader(tmp_path / "tars", identity)
    import_rows(reader, identity, tmp_path / "out", samples_per_shard=3)
    assert SignalDataset.open(tmp_path / "out").manifest.documents is documents
    for before, after in zip(dataset, reader.rows(range(7)), strict=True):
        assert torch.equal(before.input_ids, after.input_ids) and torch.equal(before.trained, after.trained)
        if documents:
            assert torch.equal(before.documents, after.documents)  # type: ignore[arg-type]
        assert isinstance(before.signal, DenseSignal) and isinstance(after.signal, TopkSignal)
        said = before.signal.mask
        assert torch.equal(said, after.signal.mask)
        best = before.signal.logprobs[said].log_softmax(-1).topk(4)
        assert torch.equal(after.signal.logprobs[said], best.values) and torch.equal(
            after.signal.ids[said], best.indices
        )


def test_a_large_vocabulary_is_refused(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", COUNT, 131_073)
    with pytest.raises(UserError, match="a vocabulary of 131073, and Megatron-LM's shards hold ids of 17 bits"):
        MegatronExporter(dataset)


def test_a_dataset_without_entries_is_refused(tmp_path: Path) -> None:
    everywhere = torch.ones(3, dtype=torch.bool)
    row = SignalRow(torch.arange(3), everywhere, TokenSignal(-torch.ones(3), everywhere))
    with DatasetWriter(tmp_path / "in", header_of(1, codec=TokenSpec())) as writer:
        writer.write_shard(range(1), [row])
        writer.finish()
    with pytest.raises(UserError, match="doesn't tell those of the others"):
        MegatronExporter(SignalDataset.open(tmp_path / "in"))
