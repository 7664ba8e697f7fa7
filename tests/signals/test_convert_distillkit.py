"""DistillKit's Parquet and Arrow datasets: field by field what its own programs write, and back without loss."""

import json
import struct
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from limbeck.errors import LimbeckError, UserError
from limbeck.files import sha256_file
from limbeck.settings import Settings
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert import exporting
from limbeck.signals.convert.distillkit_export import DistillkitExporter
from limbeck.signals.convert.distillkit_tables import ARROW, PARQUET, DistillkitReader
from limbeck.signals.convert.exporting import export
from limbeck.signals.convert.importing import Identity, import_rows
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.manifest import TeacherRef
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import TopkSignal
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import VOCABULARY, draw_logits, header_of

IDENTITY = Identity(TeacherRef(repo="org/teacher", revision="abc"), "t" * 64)
KIT = DistillkitSpec(
    d=VOCABULARY, k=6, exact_k=2, exact_dtype="bfloat16", polynomial_terms=(0, 1, "sqrt"), residual_bins=(),
    delta_encoding=False,
)  # fmt: skip
LEGACY = DistillkitLegacySpec(vocab_size=VOCABULARY, k=6, exact_k=4, polynomial_degree=1)
COUNT = TopkSpec(select="count", cap=6, temperatures=(1.0,))


def write_config(folder: Path, spec: Settings) -> None:
    (folder / "compression_config.yaml").write_text(
        yaml.safe_dump(spec.model_dump(exclude={"codec", "version"}, mode="json"))
    )


def one_entry(folder: Path, **changes: Any) -> Path:
    """A folder as a capture writes it, by hand: d = 16, one float32 a position, ids of 4 bits."""
    folder.mkdir(exist_ok=True)
    spec = DistillkitSpec(d=16, k=1, exact_k=1, residual_bins=(), delta_encoding=False)
    write_config(folder, spec)
    values = {
        "input_ids": [[3, 9, 14]],
        "compressed_logprobs": [[list(struct.pack("<f", -0.5)), list(struct.pack("<f", -1.25))]],
        "bytepacked_indices": [[[9 << 4], [14 << 4]]],
        **changes,
    }
    types = {
        "input_ids": pa.list_(pa.uint64()),
        "compressed_logprobs": pa.list_(pa.list_(pa.uint8())),
        "bytepacked_indices": pa.list_(pa.list_(pa.uint8())),
    }
    table = pa.table({name: pa.array(column, type=types.get(name)) for name, column in values.items()})
    pq.write_table(table, folder / "data_0.parquet")
    return folder


def take_in(
    folder: Path, output: Path, format: str = PARQUET, spec: Settings | None = None, **options: Any
) -> SignalDataset:
    import_rows(DistillkitReader(folder, format, IDENTITY, **options), IDENTITY, output, spec, samples_per_shard=3)
    return SignalDataset.open(output)


def test_a_capture_has_one_position_less_than_tokens(tmp_path: Path) -> None:
    dataset = take_in(one_entry(tmp_path / "kit"), tmp_path / "out")
    row = dataset.row(0)
    assert isinstance(row.signal, TopkSignal)
    assert row.input_ids.tolist() == [3, 9, 14] and row.trained.tolist() == [True] * 3
    assert row.signal.mask.tolist() == [True, True, False]
    assert row.signal.ids[:2, 0].tolist() == [9, 14]
    assert row.signal.logprobs[:2, 0].tolist() == [-0.5, -1.25]
    assert dataset.manifest.teacher == IDENTITY.teacher and dataset.manifest.vocabulary == 16
    assert dataset.manifest.capture["imported"]["format"] == PARQUET


def test_a_packed_dataset_has_as_many_positions_as_tokens(tmp_path: Path) -> None:
    two = one_entry(tmp_path / "kit", input_ids=[[3, 9]])
    row = take_in(two, tmp_path / "out").row(0)
    assert isinstance(row.signal, TopkSignal)
    assert row.signal.mask.tolist() == [True, True]
    assert row.signal.ids[:, 0].tolist() == [9, 14]  # position 1 is about the token behind the row


@pytest.mark.parametrize("tokens", [[3], [3, 9, 14, 2]])
def test_any_other_number_of_positions_is_refused(tmp_path: Path, tokens: list[int]) -> None:
    with pytest.raises(UserError, match=r"data_0.parquet, row 0: \d tokens with 2 positions"):
        take_in(one_entry(tmp_path / "kit", input_ids=[tokens]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_and_documents_of_a_packed_row(tmp_path: Path) -> None:
    folder = one_entry(
        tmp_path / "kit", input_ids=[[3, 9]], labels=[[-100, 9]], attention_mask=[[1, 2]],
    )  # fmt: skip
    dataset = take_in(folder, tmp_path / "out")
    row = dataset.row(0)
    assert row.trained.tolist() == [False, True]
    assert dataset.manifest.documents and row.documents is not None and row.documents.tolist() == [1, 2]


def test_padding_is_left_out(tmp_path: Path) -> None:
    folder = one_entry(tmp_path / "kit", attention_mask=[[1, 1, 0]])
    dataset = take_in(folder, tmp_path / "out")
    assert dataset.row(0).input_ids.tolist() == [3, 9] and not dataset.manifest.documents


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": [[0, 1, 1]]}, "0 before the row's end"),
        ({"labels": [[9, 14, -100]]}, "not the tokens themselves"),
        ({"labels": [[9]]}, "3 tokens, but 1 values of 'labels'"),
        ({"input_ids": [[3, 9, 16]]}, "outside the vocabulary of 16"),
        ({"bytepacked_indices": [[[144], [144, 0]]]}, "not all of one size"),
        ({"bytepacked_indices": [[[144, 0], [144, 0]]]}, "2 bytes a position .* but the settings make 1"),
        ({"compressed_logprobs": [[[0, 0, 128, 127], [0, 0, 0, 191]]]}, r"row 0, position 0: .* \+inf"),
    ],
)
def test_rows_that_are_not_what_the_settings_say(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        take_in(one_entry(tmp_path / "kit", **change), tmp_path / "out")


def test_files_and_settings_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \*.parquet file"):
        take_in(tmp_path, tmp_path / "out")
    folder = one_entry(tmp_path / "kit")
    write_config(folder, LEGACY)
    with pytest.raises(UserError, match="no column 'packed_indices'"):
        take_in(folder, tmp_path / "out")
    (folder / "compression_config.yaml").unlink()
    with pytest.raises(UserError, match="--config"):
        take_in(folder, tmp_path / "out")
    (folder / "data_1.parquet").write_bytes(b"PAR1")
    write_config(folder, KIT)
    with pytest.raises(UserError, match=r"data_1.parquet: not a Parquet file"):
        take_in(folder, tmp_path / "out")


def test_distributions_that_are_moved_by_one_token_are_refused(tmp_path: Path) -> None:
    ids = torch.randint(16, (202,), generator=torch.Generator().manual_seed(1)).tolist()

    def folder_about(name: str, tokens: list[int]) -> Path:
        values = [[list(struct.pack("<f", -0.5))] * 201]
        return one_entry(
            tmp_path / name, input_ids=[ids], compressed_logprobs=values,
            bytepacked_indices=[[[token << 4] for token in tokens]],
        )  # fmt: skip

    take_in(folder_about("right", ids[1:]), tmp_path / "out")
    with pytest.raises(UserError, match="moved by one token"):
        take_in(folder_about("early", ids[:-1]), tmp_path / "no")
    with pytest.raises(UserError, match="the token after it"):
        take_in(folder_about("late", [*ids[2:], 0]), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def write_ours(folder: Path, spec: Settings, documents: bool = False, last: int = 1) -> SignalDataset:
    rows = []
    for index in range(8):
        size = 3 + index % 4
        signal = topk_of_logits(
            draw_logits(size, index), COUNT, mask_N=(torch.arange(size) % 3 != 2) & (torch.arange(size) < size - last)
        )
        ids = (torch.arange(size) * 7 + index) % VOCABULARY
        numbers = torch.arange(size) // 2 + 10 * index if documents else None
        rows.append(SignalRow(ids, torch.arange(size) > 0, signal, numbers))
    with DatasetWriter(folder, header_of(8, samples_per_shard=3, codec=spec, documents=documents)) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, rows[samples.start : samples.stop])
        writer.finish()
    return SignalDataset.open(folder)


def stored(dataset: SignalDataset) -> list[Any]:
    rows, columns = dataset.encoded(range(len(dataset)))
    strings = {name: [column.row(index).tobytes() for index in range(len(rows))] for name, column in columns.items()}
    return [[(row.input_ids.tolist(), row.trained.tolist()) for row in rows], strings]


@pytest.mark.parametrize("format", [PARQUET, ARROW])
@pytest.mark.parametrize("spec", [KIT, LEGACY], ids=["kit", "legacy"])
def test_there_and_back_byte_for_byte(tmp_path: Path, format: str, spec: Any) -> None:
    dataset = write_ours(tmp_path / "in", spec)
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, format, spec))
    assert stored(take_in(tmp_path / "kit", tmp_path / "out", format)) == stored(dataset)


def test_documents_survive(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", KIT, documents=True)
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, ARROW, KIT))
    again = take_in(tmp_path / "kit", tmp_path / "out", ARROW)
    for before, after in zip(dataset, again, strict=True):
        assert before.documents is not None and after.documents is not None
        assert (before.documents.diff() != 0).tolist() == (after.documents.diff() != 0).tolist()
        assert int(after.documents[0]) == 1


@pytest.mark.parametrize("term_dtype", ["float16", "bfloat16", "float64"])
def test_legacy_numbers_of_every_dtype(tmp_path: Path, term_dtype: Any) -> None:
    spec = LEGACY.model_copy(update={"term_dtype": term_dtype})
    dataset = write_ours(tmp_path / "in", spec)
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, PARQUET, spec))
    for before, after in zip(dataset, take_in(tmp_path / "kit", tmp_path / "out"), strict=True):
        assert isinstance(before.signal, TopkSignal) and isinstance(after.signal, TopkSignal)
        assert torch.equal(before.signal.logprobs, after.signal.logprobs)
        assert torch.equal(before.signal.ids, after.signal.ids)
    if term_dtype == "float16":
        write_config(tmp_path / "kit", LEGACY.model_copy(update={"term_dtype": "bfloat16"}))
        with pytest.raises(LimbeckError, match="not one of bfloat16"):
            take_in(tmp_path / "kit", tmp_path / "wrong")


def test_what_is_written_field_by_field(tmp_path: Path) -> None:
    spec = DistillkitSpec(d=16, k=2, exact_k=2, exact_dtype="float16", residual_bins=(), delta_encoding=False)
    signal = TopkSignal(
        ids=torch.tensor([[9, 2], [14, 3], [0, 0]]),
        logprobs=torch.tensor([[-0.5, -2.0], [-0.25, -4.0], [-torch.inf, -torch.inf]]),
        log_tail_mass=torch.tensor([-1.36, -1.6, 0.0]), log_normalisers=torch.zeros(3, 1), temperatures=(1.0,),
        mask=torch.tensor([True, True, False]),
    )  # fmt: skip
    row = SignalRow(torch.tensor([3, 9, 14]), torch.tensor([False, True, True]), signal, torch.tensor([5, 5, 8]))
    with DatasetWriter(tmp_path / "in", header_of(1, codec=spec, vocabulary=16, documents=True)) as writer:
        writer.write_shard(range(1), [row])
        writer.finish()
    dataset = SignalDataset.open(tmp_path / "in")
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, PARQUET, spec))
    table = pq.read_table(tmp_path / "kit" / "data_0.parquet")
    assert table.schema.field("input_ids").type == pa.list_(pa.uint64())
    assert table.schema.field("compressed_logprobs").type == pa.list_(pa.list_(pa.uint8()))
    assert table.schema.field("bytepacked_indices").type == pa.list_(pa.list_(pa.uint8()))
    halves = {-0.5: [0x00, 0xB8], -2.0: [0x00, 0xC0], -0.25: [0x00, 0xB4], -4.0: [0x00, 0xC4]}
    assert table.to_pydict() == {
        "input_ids": [[3, 9, 14]],
        "compressed_logprobs": [[halves[-0.5] + halves[-2.0], halves[-0.25] + halves[-4.0]]],
        "bytepacked_indices": [[[0x92], [0xE3]]],
        "labels": [[-100, 9, 14]],
        "attention_mask": [[1, 1, 2]],
    }
    config = yaml.safe_load((tmp_path / "kit" / "compression_config.yaml").read_text())
    assert config == {
        "d": 16, "k": 2, "exact_k": 2, "exact_dtype": "float16", "polynomial_terms": None, "term_dtype": "float32",
        "residual_bins": [], "delta_encoding": False, "error_diffusion": False, "normalize_t": False,
    }  # fmt: skip


def test_legacy_is_written_as_numbers(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", LEGACY)
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, PARQUET, LEGACY))
    table = pq.read_table(tmp_path / "kit" / "data_0.parquet")
    assert table.schema.field("exact_values").type == pa.list_(pa.list_(pa.float32()))
    assert table.schema.field("packed_indices").type == pa.list_(pa.list_(pa.int64()))
    signal = dataset.row(0).signal
    assert isinstance(signal, TopkSignal)
    word = sum(int(token) << (6 * place) for place, token in enumerate(signal.ids[0].tolist()))
    assert table.column("packed_indices").to_pylist()[0][0] == [word]
    assert table.column("exact_values").to_pylist()[0][0] == signal.logprobs[0, :4].tolist()


def test_datasets_loads_what_is_written(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", KIT)
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, ARROW, KIT))
    loaded = datasets.load_from_disk(str(tmp_path / "kit"))
    assert len(loaded) == 8
    assert loaded[5]["input_ids"] == dataset.row(5).input_ids.tolist()
    assert len(loaded[5]["compressed_logprobs"]) == len(loaded[5]["input_ids"])  # as many as tokens, as packed ones are
    assert len(loaded.select(range(2, 6))) == 4


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", KIT)
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, PARQUET, KIT))
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "kit" / "data_0.parquet"), cache_dir=str(tmp_path / "cache"))
    loaded.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    config = tmp_path / "kit" / "compression_config.yaml"
    again = take_in(tmp_path / "saved", tmp_path / "out", ARROW, config=config)
    assert [row.input_ids.tolist() for row in again] == [row.input_ids.tolist() for row in dataset.rows(range(3))]
    datasets.DatasetDict({"train": loaded}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(UserError, match=r"holds the splits train. Name one"):
        take_in(tmp_path / "splits", tmp_path / "no", ARROW, config=config)
    with pytest.raises(UserError, match=r"no state.json here"):
        take_in(tmp_path / "kit", tmp_path / "no", ARROW)


def test_another_codec_can_be_asked_for_on_the_way_in_and_out(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", COUNT)
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, PARQUET, KIT))
    again = take_in(tmp_path / "kit", tmp_path / "out", spec=COUNT)
    assert again.manifest.codec["codec"] == "topk"
    with pytest.raises(UserError, match="at most 6 entries"):
        take_in(tmp_path / "kit", tmp_path / "more", spec=TopkSpec(select="count", cap=7, temperatures=(1.0,)))
    with pytest.raises(UserError, match="at most 6 entries"):
        DistillkitExporter(dataset, PARQUET, KIT.model_copy(update={"k": 8}))


def test_a_last_position_that_says_something_is_not_dropped_unasked(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", KIT, last=0)
    with pytest.raises(UserError, match="sample 1: its last position says something"):
        export(dataset, tmp_path / "kit", DistillkitExporter(dataset, PARQUET, KIT))
    export(dataset, tmp_path / "dropped", DistillkitExporter(dataset, PARQUET, KIT, "drop"))
    assert take_in(tmp_path / "dropped", tmp_path / "out").row(1).signal.mask.tolist() == [True, True, False, False]  # type: ignore[union-attr]


def test_the_last_position_is_kept_if_asked(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", KIT, last=0)
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, PARQUET, KIT, "keep"))
    lists = pq.read_table(tmp_path / "kit" / "data_0.parquet").to_pydict()
    assert [len(row) for row in lists["compressed_logprobs"]] == [len(row) for row in lists["input_ids"]]
    assert stored(take_in(tmp_path / "kit", tmp_path / "out")) == stored(dataset)


class KilledError(Exception):
    pass


def test_an_export_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_ours(tmp_path / "in", KIT)
    export(dataset, tmp_path / "whole", DistillkitExporter(dataset, ARROW, KIT))
    exporter, write, written = DistillkitExporter(dataset, ARROW, KIT), DistillkitExporter.write, []

    def dying(self: DistillkitExporter, folder: Path, samples: range) -> None:
        if written:
            raise KilledError
        written.append(samples)
        write(self, folder, samples)

    with monkeypatch.context() as patch:
        patch.setattr(DistillkitExporter, "write", dying)
        with pytest.raises(KilledError):
            export(dataset, tmp_path / "out", exporter)
    with pytest.raises(UserError, match="holds another export"):
        export(dataset, tmp_path / "out", DistillkitExporter(dataset, ARROW, KIT, "drop"))
    export(dataset, tmp_path / "out", exporter)
    first, second = ({p.name: sha256_file(p) for p in (tmp_path / name).iterdir()} for name in ("whole", "out"))
    assert first == second and len(first) == 3 + 4
    assert json.loads((tmp_path / "out" / exporting.RECORD).read_text())["source"] == dataset.digest


def test_an_output_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", KIT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(it holds thesis.tex\)"):
        export(dataset, tmp_path / "out", DistillkitExporter(dataset, PARQUET, KIT))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_an_import_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_ours(tmp_path / "in", KIT)
    export(dataset, tmp_path / "kit", DistillkitExporter(dataset, PARQUET, KIT))
    take_in(tmp_path / "kit", tmp_path / "whole")
    rows, calls = DistillkitReader.rows, []

    def dying(self: DistillkitReader, samples: range) -> Any:
        calls.append(samples)
        if len(calls) > 2:
            raise KilledError
        return rows(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(DistillkitReader, "rows", dying)
        with pytest.raises(KilledError):
            take_in(tmp_path / "kit", tmp_path / "out")
    take_in(tmp_path / "kit", tmp_path / "out")
    first, second = ({p.name: sha256_file(p) for p in (tmp_path / name).iterdir()} for name in ("whole", "out"))
    assert first == second
