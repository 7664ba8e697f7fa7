"""Merging: every row once, byte for byte, in order; what differs is refused with both sides named."""

from pathlib import Path

import pytest
import torch

from limbeck.errors import IntegrityError, UserError
from limbeck.files import sha256_file
from limbeck.signals import merging
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.hidden_head import HiddenSpec, hidden_spec, write_head
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.manifest import TeacherRef
from limbeck.signals.merging import merge
from limbeck.signals.types import HiddenSignal, OutputHead
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import SPEC, VOCABULARY, header_of, make_rows


def write(folder: Path, samples: range, *, documents: bool = False, **changes: object) -> Path:
    codec = changes.get("codec", SPEC)
    header = header_of(len(samples), documents=documents, **changes)
    with DatasetWriter(folder, header) as writer:
        for part in writer.missing_ranges():
            indices = [samples[index] for index in part]
            writer.write_shard(part, make_rows(indices, spec=codec, documents=documents))
        writer.finish()
    return folder


def strings_of(folder: Path) -> list[tuple[list[int], list[bool], dict[str, bytes]]]:
    dataset = SignalDataset.open(folder)
    found = []
    for index in range(len(dataset)):
        (row,), columns = dataset.encoded([index])
        stored = {name: column.data.tobytes() for name, column in columns.items()}
        found.append((row.input_ids.tolist(), row.trained.tolist(), stored))
    return found


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


@pytest.mark.parametrize("documents", [False, True])
def test_all_rows_come_in_order_and_byte_for_byte(tmp_path: Path, documents: bool) -> None:
    parts = [
        write(tmp_path / name, samples, documents=documents, text_digest=name * 64, samples_per_shard=size)
        for name, samples, size in (("a", range(7), 5), ("b", range(7, 9), 3), ("c", range(9, 20), 4))
    ]
    manifest = merge(parts, tmp_path / "out")
    assert strings_of(tmp_path / "out") == [row for part in parts for row in strings_of(part)]
    assert manifest.complete and manifest.samples == 20 and manifest.samples_per_shard == 5
    SignalDataset.open(tmp_path / "out").verify()
    named = [source["manifest"] for source in manifest.capture["merged"]]
    assert named == [SignalDataset.open(part).digest for part in parts]


def test_document_numbers_stay_apart(tmp_path: Path) -> None:
    parts = [write(tmp_path / name, samples, documents=True) for name, samples in (("a", range(6)), ("b", range(6, 9)))]
    merge(parts, tmp_path / "out")
    dataset = SignalDataset.open(tmp_path / "out")
    first, second = ({int(n) for row in dataset.rows(part) for n in row.documents} for part in (range(6), range(6, 9)))
    assert first == {0, 1} and second == {2, 3, 4}  # in the sources 0 and 1, and 0, 1 and 2


def test_the_order_is_part_of_what_a_merge_is(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, samples) for name, samples in (("a", range(3)), ("b", range(3, 6))))
    assert merge([a, b], tmp_path / "ab").digest != merge([b, a], tmp_path / "ba").digest
    with pytest.raises(UserError, match="holds another capture"):
        merge([b, a], tmp_path / "ab")


class KilledError(Exception):
    pass


def test_killed_and_resumed_is_as_if_never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        write(tmp_path / name, samples, documents=True) for name, samples in (("a", range(8)), ("b", range(8, 15)))
    ]
    merge(parts, tmp_path / "whole")
    write_encoded, written = merging.write_encoded, []

    def dying(writer: DatasetWriter, samples: range, rows: object) -> object:
        if len(written) == 2:
            raise KilledError
        written.append(samples)
        return write_encoded(writer, samples, rows)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(merging, "write_encoded", dying)
        with pytest.raises(KilledError):
            merge(parts, tmp_path / "out")
    with pytest.raises(UserError, match="not finished"):
        SignalDataset.open(tmp_path / "out")
    merge(parts, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": TeacherRef(repo="org/other", revision="abc")}, "teacher org/teacher in the first, org/other in"),
        ({"teacher": TeacherRef(repo="org/teacher", revision="def")}, "revision abc in the first, def in the second"),
        ({"tokenizer_digest": "u" * 64}, "tokenizer t+ in the first, u+ in the second"),
        ({"vocabulary": VOCABULARY + 1}, "vocabulary 50 in the first, 51 in the second"),
        ({"codec": TopkSpec(threshold=1e-2, cap=19)}, "codec setting cap 20 in the first, 19 in the second"),
        ({"codec": DenseSpec()}, "codec setting cap 20 in the first, none in the second"),
        ({"documents": True}, "document numbers no in the first, yes in the second"),
    ],
)
def test_what_differs_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    a, b = write(tmp_path / "a", range(3)), write(tmp_path / "b", range(3, 6), **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message) as caught:
        merge([a, b], tmp_path / "out")
    assert "/a and " in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_same_rows_twice_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", range(3)), write(tmp_path / "b", range(3))
    with pytest.raises(UserError, match="hold the same rows"):
        merge([a, b], tmp_path / "out")
    with pytest.raises(UserError, match="at least two"):
        merge([a], tmp_path / "out")


def test_a_damaged_source_stops_the_merge(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", range(3)), write(tmp_path / "b", range(3, 6))
    shard = next(b.glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=shard.name):
        merge([a, b], tmp_path / "out")


def write_hidden(folder: Path, seed: int, head: OutputHead) -> Path:
    spec: HiddenSpec = hidden_spec(head)
    states = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
    signal = HiddenSignal(states, head, torch.tensor([True, True, True, False]))
    row = SignalRow(torch.tensor([seed, 1, 2, 3]), torch.ones(4, dtype=torch.bool), signal)
    with DatasetWriter(folder, header_of(1, codec=spec, text_digest=str(seed) * 64)) as writer:
        writer.write_beside(lambda beside: write_head(beside, head, spec))
        writer.write_shard(range(1), [row])
        writer.finish()
    return folder


def test_an_output_head_comes_along(tmp_path: Path) -> None:
    head = OutputHead(torch.randn(VOCABULARY, 3, generator=torch.Generator().manual_seed(9)))
    a, b = write_hidden(tmp_path / "a", 1, head), write_hidden(tmp_path / "b", 2, head)
    merge([a, b], tmp_path / "out")
    dataset = SignalDataset.open(tmp_path / "out")
    dataset.verify()
    signals = [row.signal for row in dataset]
    for signal, source in zip(signals, (a, b), strict=True):
        assert isinstance(signal, HiddenSignal)
        assert torch.equal(signal.head.weight, head.weight)
        assert torch.equal(signal.hidden, SignalDataset.open(source).row(0).signal.hidden)  # type: ignore[union-attr]
