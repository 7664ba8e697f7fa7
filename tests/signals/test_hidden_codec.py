"""Codec `hidden`: states come back, the head is the right one, and the distribution is the teacher's own."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.signals.codecs.columns import Column
from limbeck.signals.codecs.hidden import HiddenCodec
from limbeck.signals.codecs.hidden_head import HEAD, HiddenSpec, hidden_spec, read_head, write_head
from limbeck.signals.codecs.registry import make_codec, parse_spec
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.loader import SignalLoader
from limbeck.signals.types import HiddenSignal, OutputHead
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import VOCABULARY, header_of

D = 8
INF = float("inf")


def head_of(seed: int = 0, bias: bool = True) -> OutputHead:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(VOCABULARY, D, generator=generator).bfloat16()
    return OutputHead(weight, torch.randn(VOCABULARY, generator=generator).bfloat16() if bias else None, 30.0)


def states(positions: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(positions, D, generator=torch.Generator().manual_seed(seed)).bfloat16()


def signal_of(positions: int, seed: int = 1) -> HiddenSignal:
    return HiddenSignal(states(positions, seed), head_of(), torch.arange(positions) % 4 != 1)


def codec_in(folder: Path, dtype: Any = "bfloat16", head: OutputHead | None = None) -> HiddenCodec:
    head = head or head_of()
    spec = hidden_spec(head, dtype)
    write_head(folder, head, spec)
    codec = HiddenCodec(spec, VOCABULARY)
    codec.attach(folder)
    return codec


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_states_and_distributions_come_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    codec = codec_in(tmp_path, dtype)
    signal = signal_of(9)
    decoded = codec.decode(codec.encode(signal, [4, 0, 5]), [4, 0, 5])
    assert torch.equal(decoded.mask, signal.mask)
    assert torch.equal(decoded.hidden[signal.mask].bfloat16(), signal.hidden[signal.mask])
    assert decoded.hidden.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert decoded.hidden.isfinite().all()
    logits = [
        torch.nn.functional.linear(part.hidden.bfloat16(), part.head.weight, part.head.bias)
        for part in (signal, decoded)
    ]
    assert torch.equal(logits[0][signal.mask], logits[1][signal.mask])


def test_eight_bits_are_within_half_a_step(tmp_path: Path) -> None:
    codec = codec_in(tmp_path, "int8")
    signal = signal_of(9)
    signal.hidden[3] = 0.0
    columns = codec.encode(signal, [9])
    assert {name: len(column.data) for name, column in columns.items()} == {"hidden": 9 * D, "scales": 9 * 4}
    decoded = codec.decode(columns, [9])
    assert torch.equal(decoded.mask, signal.mask)
    truth = signal.hidden.float()
    step = truth.abs().amax(1, keepdim=True) / 127
    assert ((decoded.hidden - truth).abs() <= 0.5001 * step)[signal.mask].all()
    assert not decoded.hidden[3].any()


def test_bytes_are_little_endian_numbers_and_masks_are_nan(tmp_path: Path) -> None:
    signal = HiddenSignal(torch.tensor([[1.0, -2.5] + [0.0] * 6] * 2), head_of(), torch.tensor([True, False]))
    data = codec_in(tmp_path, "float32").encode(signal, [2])["hidden"].data.tobytes()
    assert data[:32] == struct.pack("<8f", 1.0, -2.5, *[0.0] * 6)
    assert np.isnan(struct.unpack("<f", data[32:36])[0]) and data[36:] == bytes(28)
    (tmp_path / "b").mkdir()
    columns = codec_in(tmp_path / "b", "int8").encode(signal, [2])
    assert columns["hidden"].data[:8].tobytes() == struct.pack("<8b", 51, -127, *[0] * 6)
    assert struct.unpack("<2f", columns["scales"].data.tobytes())[0] == np.float32(2.5) / np.float32(127)
    assert np.isnan(struct.unpack("<2f", columns["scales"].data.tobytes())[1])


@pytest.mark.parametrize(("dtype", "value"), [("bfloat16", float("nan")), ("int8", INF), ("float32", -INF)])
def test_what_is_not_finite_is_refused_by_place(tmp_path: Path, dtype: str, value: float) -> None:
    codec = codec_in(tmp_path, dtype)
    signal = signal_of(9)
    signal.hidden[6, 5] = value
    with pytest.raises(LimbeckError, match=rf"row 1, position 2: number 5 of the state is .*not finite in {dtype}"):
        codec.encode(signal, [4, 5])
    decoded = codec.decode(codec.encode(replace(signal, mask=torch.arange(9) < 6), [4, 5]), [4, 5])
    assert decoded.hidden.isfinite().all()
    too_much = replace(signal, hidden=torch.full((9, D), 3.4e38))
    if dtype == "bfloat16":
        with pytest.raises(LimbeckError, match=r"row 0, position 0: .*not finite in bfloat16"):
            codec.encode(too_much, [4, 5])


def test_shapes_cut_columns_and_foreign_heads_are_refused(tmp_path: Path) -> None:
    codec = codec_in(tmp_path)
    with pytest.raises(LimbeckError, match=r"expected \[9, 8\], got \[9, 7\]"):
        codec.encode(replace(signal_of(9), hidden=torch.zeros(9, 7)), [9])
    for other in (head_of(5), replace(head_of(), soft_cap=None), replace(head_of(), bias=None)):
        with pytest.raises(LimbeckError, match="not the dataset's"):
            codec.encode(replace(signal_of(9), head=other), [9])
    column = codec.encode(signal_of(9), [9])["hidden"]
    cut = Column(column.data[:-1], np.array([0, len(column.data) - 1]))
    with pytest.raises(IntegrityError, match="row 0 of hidden has 143 bytes, 9 positions need 144"):
        codec.decode({"hidden": cut}, [9])
    fresh = make_codec(codec.spec, VOCABULARY)
    with pytest.raises(UserError, match="the output head is not read yet"):
        fresh.decode({"hidden": column}, [9])
    with pytest.raises(UserError, match=rf"a head of \[{VOCABULARY}, 8\], but .* vocabulary of 51"):
        HiddenCodec(codec.spec, 51).attach(tmp_path)


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_is_one_file_named_by_its_digest(tmp_path: Path, bias: bool) -> None:
    head = head_of(bias=bias)
    spec = hidden_spec(head)
    assert parse_spec(spec.model_dump(mode="json")) == spec == hidden_spec(head_of(bias=bias))
    assert hidden_spec(replace(head, soft_cap=None)).head_sha256 != spec.head_sha256
    write_head(tmp_path, head, spec)
    write_head(tmp_path, head, spec)
    assert [path.name for path in tmp_path.iterdir()] == [HEAD]
    read = read_head(tmp_path, spec)
    assert torch.equal(read.weight, head.weight) and read.weight.dtype == torch.bfloat16
    assert read.soft_cap == 30.0 and (read.bias is None) == (not bias)
    assert read.bias is None or torch.equal(read.bias, head.bias)  # type: ignore[arg-type]


def test_another_or_a_damaged_head_is_named(tmp_path: Path) -> None:
    spec = hidden_spec(head_of())
    with pytest.raises(IntegrityError, match=f"{HEAD}: the output head is missing"):
        read_head(tmp_path, spec)
    with pytest.raises(UserError, match=f"{HEAD}: the head has SHA-256"):
        write_head(tmp_path, head_of(1), spec)
    write_head(tmp_path, head_of(), spec)
    path = tmp_path / HEAD
    whole = path.read_bytes()
    for at in range(0, len(whole), 41):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(IntegrityError, match=f"{HEAD}: has SHA-256 .* the manifest names {spec.head_sha256}"):
            read_head(tmp_path, spec)
    with pytest.raises(IntegrityError, match=HEAD):
        write_head(tmp_path, head_of(), spec)
    with pytest.raises(ValueError):
        HiddenSpec(width=8, head_sha256="short")


def test_a_dataset_of_states_is_read_in_batches(tmp_path: Path) -> None:
    head = head_of()
    spec = hidden_spec(head)
    rows = [
        SignalRow(
            torch.arange(6), torch.ones(6, dtype=torch.bool), HiddenSignal(states(6, seed), head, torch.ones(6) > 0)
        )
        for seed in range(3)
    ]
    with DatasetWriter(tmp_path / "d", header_of(samples=3, samples_per_shard=2, codec=spec)) as writer:
        write_head(writer.folder, head, spec)
        for samples in writer.missing_ranges():
            writer.write_shard(samples, [rows[sample] for sample in samples])
        writer.finish()
    dataset = SignalDataset.open(tmp_path / "d")
    assert dataset.kind == "hidden"
    dataset.codec.attach(dataset.folder)  # type: ignore[attr-defined]
    batch = SignalLoader(dataset, batch_size=3, shuffle=False).batch(0, 0)
    assert isinstance(batch.signal, HiddenSignal)
    assert torch.equal(batch.signal.hidden, torch.stack([states(6, seed) for seed in range(3)]))
    assert torch.equal(batch.signal.head.weight, head.weight)
