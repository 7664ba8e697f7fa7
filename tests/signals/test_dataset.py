"""A dataset of signals on disk: what is written comes back; what is not what it says is refused by name."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.hidden_head import HEAD, hidden_spec, write_head
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import Expectation, SignalDataset, SignalRow
from limbeck.signals.manifest import MANIFEST, SEAL, ManifestHeader, load_manifest, manifest_bytes
from limbeck.signals.types import HiddenSignal, OutputHead
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import SPEC, header_of, make_row, make_rows


def write(folder: Path | str, header: ManifestHeader | None = None, **options: object) -> Path:
    header = header or header_of()
    with DatasetWriter(folder, header) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, make_rows(samples, **options))
        writer.finish()
    return folder


def keys_of(folder: Path) -> dict[str, Any]:
    """Return what a manifest says, but for its seal."""
    data: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    del data[SEAL]
    return data


def forge(folder: Path, data: dict[str, Any]) -> None:
    (folder / MANIFEST).write_bytes(manifest_bytes(data))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("signals") / "captured")


def hidden_rows(samples: Sequence[int]) -> list[SignalRow]:
    head = OutputHead(torch.arange(200.0).view(50, 4).bfloat16())
    rows = []
    for sample in samples:
        row = make_row(sample)
        states = torch.full((len(row.input_ids), 4), float(sample), dtype=torch.bfloat16)
        rows.append(replace(row, signal=HiddenSignal(states, head, torch.ones(len(states), dtype=torch.bool))))
    return rows


@pytest.fixture(scope="module")
def with_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hidden") / "captured"
    head = hidden_rows([0])[0].signal.head  # type: ignore[union-attr]
    spec = hidden_spec(head)
    with DatasetWriter(folder, header_of(samples=7, samples_per_shard=4, codec=spec)) as writer:
        writer.write_beside(lambda here: write_head(here, head, spec))
        for samples in writer.missing_ranges():
            writer.write_shard(samples, hidden_rows(samples))
        writer.finish()
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("spec", [SPEC, DenseSpec(dtype="float32"), TokenSpec()])
def test_rows_come_back(tmp_path: Path, spec: object, documents: bool) -> None:
    header = header_of(codec=spec, documents=documents)
    write(tmp_path / "d", header, spec=spec, documents=documents)
    dataset = SignalDataset.open(tmp_path / "d")
    assert len(dataset) == 23
    assert dataset.lengths.tolist() == [3 + index % 7 for index in range(23)]
    assert dataset.longest == 9
    for index in (22, 0, 7, 4, 5):
        row, expected = dataset.row(index), make_row(index, spec, documents)  # type: ignore[arg-type]
        assert torch.equal(row.input_ids, expected.input_ids)
        assert torch.equal(row.trained, expected.trained)
        assert (row.documents is None) == (not documents)
        assert row.documents is None or torch.equal(row.documents, expected.documents)  # type: ignore[arg-type]
        assert row.signal is not None and expected.signal is not None
        assert torch.equal(row.signal.mask, expected.signal.mask)
        if spec is not SPEC:
            assert torch.equal(row.signal.logprobs, expected.signal.logprobs)  # type: ignore[union-attr]


def test_iteration_and_random_access_agree_and_undecoded_rows_have_no_signal(folder: Path) -> None:
    dataset = SignalDataset.open(folder)
    for index, row in enumerate(dataset):
        alone = dataset.row(index)
        width = min(row.signal.ids.shape[1], alone.signal.ids.shape[1])  # type: ignore[union-attr]
        assert torch.equal(row.signal.ids[:, :width], alone.signal.ids[:, :width])  # type: ignore[union-attr]
        assert dataset.row(index, decode=False).signal is None
    assert [int(row.input_ids[0]) for row in dataset.rows([9, 3, 21, 3])] == [9, 3, 21, 3]
    for index in (-1, 23):
        with pytest.raises(IndexError):
            dataset.row(index)


def test_the_folder_is_what_the_documentation_says(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "0000000000-0000000005.parquet", "0000000005-0000000010.parquet", "0000000010-0000000015.parquet",
        "0000000015-0000000020.parquet", "0000000020-0000000023.parquet", "manifest.json",
    ]  # fmt: skip
    schema = pq.read_schema(folder / names[0])
    assert [str(schema.field(name).type) for name in ("input_ids", "trained", "topk")] == [
        "list<element: int32>", "list<element: bool>", "large_binary",
    ]  # fmt: skip
    manifest = load_manifest(folder)
    assert manifest.complete and manifest.codec["codec"] == "topk"
    assert sum(record.tokens for record in manifest.shards) == sum(3 + index % 7 for index in range(23))


def test_two_writings_are_byte_identical(original: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again")
    for path in original.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_any_flipped_byte_of_any_shard_is_found_on_first_reading(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for shard, record in enumerate(load_manifest(folder).shards):
        path = folder / record.name
        whole = path.read_bytes()
        for at in sorted(rng.choice(len(whole), 40, replace=False).tolist()):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
            dataset = SignalDataset.open(folder)
            with pytest.raises(IntegrityError, match=f"{record.name}.*run the capture again"):
                dataset.row(5 * shard)
            with pytest.raises(IntegrityError, match=record.name):
                dataset.verify()
        path.write_bytes(whole)
    SignalDataset.open(folder).verify()


def test_truncated_missing_and_swapped_shards_are_named(folder: Path) -> None:
    first, second = (folder / record.name for record in load_manifest(folder).shards[:2])
    whole = first.read_bytes()
    first.write_bytes(whole[:-7])
    with pytest.raises(
        IntegrityError, match=f"{first.name}: {len(whole) - 7} bytes, but the manifest says {len(whole)}"
    ):
        SignalDataset.open(folder).row(0)
    assert SignalDataset.open(folder).row(5).input_ids[0] == 5  # the others stay usable
    first.unlink()
    with pytest.raises(IntegrityError, match=f"{first.name}: this file is missing"):
        SignalDataset.open(folder).row(0)
    shutil.copy(second, first)
    manifest = keys_of(folder)
    manifest["shards"][0] |= {key: manifest["shards"][1][key] for key in ("sha256", "bytes")}
    forge(folder, manifest)
    with pytest.raises(IntegrityError, match=f"{first.name}: a shard of another capture or sample range"):
        SignalDataset.open(folder).row(0)


@pytest.mark.parametrize(
    ("expect", "theirs", "ours"),
    [
        (Expectation(tokenizer_digest="u" * 64), "tokenizer t{64}", "tokenizer u{64}"),
        (Expectation(vocabulary=51), "vocabulary 50", "vocabulary 51"),
        (Expectation(kind="hidden"), "kind of signal topk", "kind of signal hidden"),
        (Expectation(codec="sampled"), "codec topk", "codec sampled"),
        (Expectation(codec=TopkSpec(cap=3)), "codec [0-9a-f]{64}", "codec [0-9a-f]{64}"),
        (Expectation(teacher="org/other"), "teacher org/teacher", "teacher org/other"),
        (Expectation(revision="def"), "revision abc", "revision def"),
        (Expectation(text_digest="y" * 64), "source text x{64}", "source text y{64}"),
    ],
)
def test_a_mismatch_names_both_sides(original: Path, expect: Expectation, theirs: str, ours: str) -> None:
    with pytest.raises(UserError, match=f"{original}: captured with .*{theirs}, but .*{ours} is expected"):
        SignalDataset.open(original, expect)


def test_what_matches_opens(original: Path) -> None:
    expect = Expectation(
        tokenizer_digest="t" * 64, vocabulary=50, kind="topk", codec=SPEC, teacher="org/teacher", revision="abc"
    )
    assert len(SignalDataset.open(str(original), expect)) == 23


def test_manifests_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest.json here"):
        SignalDataset.open(tmp_path)
    original = keys_of(folder)
    shards = original["shards"]
    for change, complaint in [
        ({"schema_version": 1}, "schema_version 1, but this version of limbeck reads 2"),
        ({"codec": {**original["codec"], "cap": 21}}, "codec_digest is"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"shards": [{**shards[0], "name": "../../secret"}]}, "does not hold samples 0 to 5"),
        ({"shards": shards[::-1]}, "by rising start"),
        ({"shards": [shards[0], *shards]}, "by rising start"),
        ({"shards": shards[1:]}, "complete, but only 4 of 5 shards"),
        ({"files": [{"name": "../key", "bytes": 1, "sha256": "0" * 64}]}, "files.0.name"),
    ]:
        forge(folder, {**original, **change})
        with pytest.raises(UserError, match=complaint):
            SignalDataset.open(folder)
    for text, complaint in [("[]", "not the manifest"), ("{", "not valid JSON"), ("\xff", "not valid JSON")]:
        (folder / MANIFEST).write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=f"{folder / MANIFEST}: {complaint}"):
            SignalDataset.open(folder)
    (folder / MANIFEST).write_text(json.dumps(original))
    with pytest.raises(IntegrityError, match="changed since it was written"):
        SignalDataset.open(folder)


def test_the_seal_is_the_digest_of_the_file_with_zeros_in_its_place(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    seal = json.loads(text)["manifest_sha256"]
    assert hashlib.sha256(text.replace(seal, "0" * 64).encode()).hexdigest() == seal


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_found_and_its_file_named(
    with_head: Path, tmp_path: Path, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(sorted(with_head.iterdir())))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    copy = tmp_path / "flipped"
    copy.mkdir(exist_ok=True)
    for other in with_head.iterdir():
        (copy / other.name).unlink(missing_ok=True)
        (copy / other.name).symlink_to(other)
    (copy / path.name).unlink()
    (copy / path.name).write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    with pytest.raises(LimbeckError, match=path.name):
        SignalDataset.open(copy).verify()


def test_files_beside_the_manifest_are_listed_and_checked(with_head: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_head, tmp_path / "d"))
    dataset = SignalDataset.open(folder)
    assert [file.name for file in dataset.manifest.files] == [HEAD]
    assert isinstance(dataset.row(3).signal, HiddenSignal)  # the head was read on opening
    (folder / HEAD).unlink()
    with pytest.raises(IntegrityError, match=f"{HEAD}: the output head is missing"):
        SignalDataset.open(folder)
    header = dataset.manifest.model_dump(include=set(ManifestHeader.model_fields))
    with DatasetWriter(tmp_path / "e", ManifestHeader(**header)) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, hidden_rows(samples))
        with pytest.raises(IntegrityError, match="the output head is missing"):
            writer.finish()


def test_encoded_rows_are_written_as_they_are_and_checked(folder: Path, tmp_path: Path) -> None:
    dataset = SignalDataset.open(folder)
    with DatasetWriter(tmp_path / "d", header_of()) as writer:
        shard = dataset.shard(1)
        for change, complaint in [
            ({"offsets": shard.offsets[:-1]}, "4 rows do not make the shard"),
            ({"documents": shard.input_ids}, "other columns"),
            ({"columns": {}}, "other columns"),
            ({"input_ids": shard.input_ids + 50}, "outside the vocabulary of 50"),
        ]:
            with pytest.raises(LimbeckError, match=complaint):
                writer.write_encoded(range(5, 10), replace(shard, **change))  # type: ignore[arg-type]
        for number, samples in enumerate(writer.missing_ranges()):
            writer.write_encoded(samples, dataset.shard(number))
        writer.finish()
    for path in folder.iterdir():
        assert (tmp_path / "d" / path.name).read_bytes() == path.read_bytes()


def test_rows_that_do_not_fit_are_refused_by_sample(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", header_of()) as writer:
        rows = make_rows(range(5, 10))
        with pytest.raises(LimbeckError, match="4 rows do not make the shard"):
            writer.write_shard(range(5, 10), rows[:4])
        with pytest.raises(LimbeckError, match="do not make the shard"):
            writer.write_shard(range(4, 9), rows)
        for change, complaint in [
            ({"input_ids": torch.full((11,), 50)}, "sample 7: .*tokens, but"),
            (
                {"input_ids": torch.full_like(rows[2].input_ids, 50)},
                "sample 7: a token id is outside the vocabulary of 50",
            ),
            ({"signal": None}, "sample 7: its signal is missing"),
            ({"signal": make_row(7, TokenSpec()).signal}, "sample 7: a 'token' signal, not 'topk'"),
            ({"documents": rows[2].input_ids}, "sample 7: document numbers"),
        ]:
            wrong = [*rows]
            wrong[2] = type(rows[2])(**{**vars(rows[2]), **change})
            with pytest.raises(LimbeckError, match=complaint):
                writer.write_shard(range(5, 10), wrong)
        assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [".lock", "manifest.json"]
