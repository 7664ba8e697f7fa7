"""Packing: no token is lost or doubled, documents are told apart, and little room is left."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.files import sha256_file
from limbeck.settings import Settings
from limbeck.signals import packing
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.loader import collate
from limbeck.signals.packing import Document, pack, place
from limbeck.signals.types import DenseSignal, tensors_of
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import VOCABULARY, header_of, make_signal

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=80)
DENSE = DenseSpec(dtype="float32")
DISTILLKIT = DistillkitSpec(d=VOCABULARY, k=6, exact_k=2, polynomial_terms=(0, 1), residual_bins=())


def write(folder: Path, sizes: list[int], spec: Settings = DENSE, documents: list[list[int]] | None = None) -> Path:
    """A dataset of rows of these sizes; the signal of a row says something everywhere but at its last position."""
    rows = []
    for index, size in enumerate(sizes):
        chosen = TopkSpec(select="count", cap=6, temperatures=(1.0,)) if isinstance(spec, DistillkitSpec) else spec
        signal = make_signal(size, index, chosen)
        signal.mask[-1] = False
        ids = torch.randint(VOCABULARY, (size,), generator=torch.Generator().manual_seed(index))
        trained = torch.rand(size, generator=torch.Generator().manual_seed(100 + index)) < 0.7
        rows.append(SignalRow(ids, trained, signal, torch.tensor(documents[index]) if documents else None))
    header = header_of(len(sizes), samples_per_shard=4, codec=spec, documents=documents is not None)
    with DatasetWriter(folder, header) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, rows[samples.start : samples.stop])
        writer.finish()
    return folder


def tokens_of(folder: Path, documents: dict[tuple[int, int], int] | None = None) -> Counter[object]:
    """Every token with its document, flag and signal; `documents` numbers the documents of the source, by row."""
    found: Counter[object] = Counter()
    for index, row in enumerate(SignalDataset.open(folder)):
        assert row.signal is not None
        parts = tensors_of(row.signal)
        for position, token in enumerate(row.input_ids.tolist()):
            if documents is None:
                assert row.documents is not None
                number = int(row.documents[position])
            else:
                number = documents[index, position]
            said = bool(row.signal.mask[position])
            signal = tuple((name, part[position].tolist()) for name, part in parts.items()) if said else None
            found[number, token, bool(row.trained[position]), repr(signal)] += 1
    return found


@given(sizes=lengths, length=st.integers(1, 50))
def test_pieces_are_placed_once_and_fit(sizes: list[int], length: int) -> None:
    pieces = [Document(index, index, 0, min(size, length)) for index, size in enumerate(sizes)]
    rows = place(pieces, length)
    assert sorted(piece.number for row in rows for piece in row) == list(range(len(sizes)))
    assert all(0 < sum(map(len, row)) <= length for row in rows)
    assert all([piece.number for piece in row] == sorted(piece.number for piece in row) for row in rows)
    assert [row[0].number for row in rows] == sorted(row[0].number for row in rows)


@given(sizes=lengths, length=st.integers(1, 50))
def test_best_fit_decreasing_needs_at_most_11_ninths_and_4_of_the_rows(sizes: list[int], length: int) -> None:
    """The bound that is proven of it (Johnson et al., 1974), against what no packing can do without."""
    pieces = [Document(index, index, 0, min(size, length)) for index, size in enumerate(sizes)]
    tokens = sum(map(len, pieces))
    halves = sum(2 * len(piece) > length for piece in pieces)
    needed = max(-(-tokens // length), halves)
    assert len(place(pieces, length)) <= max(11 * needed / 9 + 4, 2 * needed)


def test_a_piece_goes_where_it_fits_best() -> None:
    sizes = {"a": 6, "b": 5, "c": 4, "d": 3, "e": 2}
    pieces = [Document(index, index, 0, size) for index, size in enumerate(sizes.values())]
    assert [[piece.number for piece in row] for row in place(pieces, 10)] == [[0, 2], [1, 3, 4]]


@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 17), min_size=1, max_size=12), length=st.integers(2, 9), window=st.integers(1, 9))
def test_no_token_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], length: int, window: int
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    write(folder / "in", sizes)
    packed = pack(folder / "in", folder / "out", length, window=window)
    numbers = {(row, position): row for row, size in enumerate(sizes) for position in range(size)}
    assert tokens_of(folder / "out") == tokens_of(folder / "in", numbers)
    dataset = SignalDataset.open(folder / "out")
    assert dataset.longest <= length
    assert packed.tokens == sum(sizes) == int(dataset.lengths.sum())
    assert packed.fill == sum(sizes) / (len(dataset) * length)
    assert packed.documents == len(sizes)
    assert packed.cuts == sum(-(-size // length) - 1 for size in sizes)


@pytest.mark.parametrize("spec", [DISTILLKIT, TopkSpec(threshold=1e-2, cap=20, power=1.0)], ids=["distillkit", "topk"])
def test_signals_of_sparse_codecs_come_along(tmp_path: Path, spec: Settings) -> None:
    sizes = [3, 9, 1, 5, 12, 4, 4, 7]
    write(tmp_path / "in", sizes, spec)
    pack(tmp_path / "in", tmp_path / "out", 8)
    numbers = {(row, position): row for row, size in enumerate(sizes) for position in range(size)}
    before, after = tokens_of(tmp_path / "in", numbers), tokens_of(tmp_path / "out")
    without_signal = [Counter(entry[:3] for entry in found.elements()) for found in (before, after)]  # type: ignore[index]
    assert without_signal[0] == without_signal[1]
    if isinstance(spec, DistillkitSpec):
        assert before == after


def test_consecutive_pieces_keep_their_order(tmp_path: Path) -> None:
    write(tmp_path / "in", [20, 3])
    pack(tmp_path / "in", tmp_path / "out", 8)
    source = SignalDataset.open(tmp_path / "in").row(0).input_ids.tolist()
    pieces = [
        row.input_ids[row.documents == 0].tolist()  # type: ignore[operator]
        for row in SignalDataset.open(tmp_path / "out")
    ]
    assert [len(piece) for piece in pieces] == [8, 8, 4]
    assert [token for piece in pieces for token in piece] == source


def test_nothing_crosses_from_one_document_to_the_next(tmp_path: Path) -> None:
    sizes = [5, 4, 3, 6, 2]
    write(tmp_path / "in", sizes)
    pack(tmp_path / "in", tmp_path / "out", 11)
    apart = collate(SignalDataset.open(tmp_path / "in").rows(range(len(sizes))))
    together = collate(list(SignalDataset.open(tmp_path / "out")))
    assert together.documents is not None and together.input_ids.shape[0] == 2
    for number, size in enumerate(sizes):
        inside = together.documents == number
        assert together.counted[inside].tolist() == apart.counted[number, :size].tolist()
        assert not together.counted[inside][-1]
        counted = together.counted & inside
        assert together.targets[counted].tolist() == apart.targets[number][apart.counted[number]].tolist()


def test_documents_of_the_source_stay_documents(tmp_path: Path) -> None:
    documents = [[7, 7, 7, 2, 2], [2, 2, 2, 9], [9, 9]]
    write(tmp_path / "in", [5, 4, 2], documents=documents)
    packed = pack(tmp_path / "in", tmp_path / "out", 6)
    numbers = [0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 4]
    places = [(row, position) for row, part in enumerate(documents) for position in range(len(part))]
    assert tokens_of(tmp_path / "out") == tokens_of(tmp_path / "in", dict(zip(places, numbers, strict=True)))
    assert packed.documents == 5
    for row in SignalDataset.open(tmp_path / "out"):
        runs = torch.unique_consecutive(row.documents).tolist()  # type: ignore[no-untyped-call]
        assert len(runs) == len(set(runs))


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


class KilledError(Exception):
    pass


def test_killed_and_resumed_is_as_if_never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in", [5, 3, 8, 2, 2, 7, 1, 4, 6])
    pack(tmp_path / "in", tmp_path / "whole", 8, samples_per_shard=2)
    write_encoded, written = packing.write_encoded, []

    def dying(writer: DatasetWriter, samples: range, rows: object) -> object:
        if written:
            raise KilledError
        written.append(samples)
        return write_encoded(writer, samples, rows)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_encoded", dying)
        with pytest.raises(KilledError):
            pack(tmp_path / "in", tmp_path / "out", 8, samples_per_shard=2)
    pack(tmp_path / "in", tmp_path / "out", 8, samples_per_shard=2)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    with pytest.raises(UserError, match="holds another capture"):
        pack(tmp_path / "in", tmp_path / "out", 9, samples_per_shard=2)


def test_rows_of_one_token_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in", [5])
    with pytest.raises(UserError, match="2 or more"):
        pack(tmp_path / "in", tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_what_dense_signals_say_is_copied_to_the_bit(tmp_path: Path) -> None:
    write(tmp_path / "in", [9])
    pack(tmp_path / "in", tmp_path / "out", 4)
    before = SignalDataset.open(tmp_path / "in").row(0).signal
    after = [row.signal for row in SignalDataset.open(tmp_path / "out")]
    assert isinstance(before, DenseSignal)
    assert torch.equal(torch.cat([part.logprobs for part in after]), before.logprobs)  # type: ignore[union-attr]
