"""Re-scoring: what a teacher said agrees with what it says; damage to meaning, and another teacher, are noticed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.capture.teacher import weights_digest
from limbeck.data.rescoring import rescore
from limbeck.data.tokenizer import tokenizer_digest
from limbeck.engines.transformers import final_hidden, load_model, output_head
from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.hidden_head import hidden_spec, write_head
from limbeck.signals.codecs.sampled_random import position_keys
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert.recoding import recode
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.from_logits import LogitsChunk, logits_of, maker_of
from limbeck.signals.manifest import TeacherRef, make_header
from limbeck.signals.packing import pack
from limbeck.signals.types import HiddenSignal
from limbeck.signals.writer import DatasetWriter
from tests.engines.tiny import save, tokenizer_of

VOCABULARY = len(tokenizer_of())
SPECS: list[Settings | str] = [
    TopkSpec(threshold=1e-3, cap=20),
    DistillkitSpec(d=VOCABULARY, k=8, exact_k=4, polynomial_terms=(0, 1), residual_bins=(), normalize_t=True),
    DenseSpec(),
    TokenSpec(),
    SampledSpec(threshold=0.02),
    "hidden",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("teacher"))


def write(folder: Path, teacher: Path, kind: Settings | str, turn: int = 0, rows: int = 6) -> SignalDataset:
    """A dataset of what the teacher says; with `turn`, of what it says about other tokens."""
    model = load_model(teacher)
    head = output_head(model)
    spec: Any = hidden_spec(head, "int8") if kind == "hidden" else kind
    made = []
    for index in range(rows):
        ids = torch.randint(10, VOCABULARY, (7 + index,), generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            states = final_hidden(model, torch.roll(ids, turn)[None])[0]
        mask = torch.arange(len(ids)) < len(ids) - 1
        signal: Any
        if kind == "hidden":
            signal = HiddenSignal(states, head, mask)
        else:
            chunk = LogitsChunk(logits_of(states, head), torch.roll(ids, -1), position_keys(index, len(ids)))
            signal = replace(maker_of(spec, VOCABULARY)(chunk), mask=mask)  # type: ignore[type-var]
        made.append(SignalRow(ids, torch.ones(len(ids), dtype=torch.bool), signal))
    header = make_header(
        codec=spec, teacher=TeacherRef(repo="tiny", revision=weights_digest(teacher)),
        tokenizer_digest=tokenizer_digest(tokenizer_of()), vocabulary=VOCABULARY, text_digest="x" * 64, samples=rows,
        samples_per_shard=4,
    )  # fmt: skip
    with DatasetWriter(folder, header) as writer:
        if kind == "hidden":
            writer.write_beside(lambda beside: write_head(beside, head, spec))
        for samples in writer.missing_ranges():
            writer.write_shard(samples, made[samples.start : samples.stop])
        writer.finish()
    return SignalDataset.open(folder)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: getattr(spec, "codec", spec))
def test_every_codec_agrees_with_its_teacher_and_with_no_other_text(
    tmp_path: Path, teacher: Path, spec: Settings | str
) -> None:
    found = rescore(write(tmp_path / "in", teacher, spec), str(teacher))
    assert found.agrees and found.other_teacher == ""
    assert len(found.rows) == 6 and found.positions == sum(6 + index for index in range(6))
    assert found.stored.mean <= found.stored.largest <= found.allowed
    turned = rescore(write(tmp_path / "turned", teacher, spec, turn=1), str(teacher))
    assert not turned.agrees and turned.stored.largest > 10 * found.stored.largest


def test_rounding_on_the_way_counts(tmp_path: Path, teacher: Path) -> None:
    """A converted dataset is as inexact as the codec that it comes from, however exact its own is."""
    rough = TopkSpec(select="count", cap=8, step=0.1, temperatures=(1.0,))
    exact = DistillkitSpec(d=VOCABULARY, k=8, exact_k=8, residual_bins=(), delta_encoding=False)
    recode(write(tmp_path / "in", teacher, rough), tmp_path / "out", exact)
    pack(tmp_path / "out", tmp_path / "packed", 30)
    found = rescore(SignalDataset.open(tmp_path / "packed"), str(teacher))
    assert found.agrees and found.stored.largest > 0.01
    assert not rescore(write(tmp_path / "turned", teacher, exact, turn=1), str(teacher)).agrees


def test_another_teacher_is_said_to_be_one(tmp_path: Path, teacher: Path) -> None:
    dataset = write(tmp_path / "in", teacher, DenseSpec())
    other = save(tmp_path / "other", seed=2)
    found = rescore(dataset, str(other))
    assert not found.agrees and "its weights are" in found.other_teacher
    strange = save(tmp_path / "strange", tokenizer=tokenizer_of(text="something else entirely " * 9))
    with pytest.raises(UserError, match="distributions over"):
        rescore(dataset, str(save(tmp_path / "small", tokenizer=tokenizer_of(290))))
    if len(tokenizer_of(text="something else entirely " * 9)) == VOCABULARY:
        assert "its tokenizer is" in rescore(dataset, str(strange)).other_teacher


def test_a_sample_is_a_sample(tmp_path: Path, teacher: Path) -> None:
    dataset = write(tmp_path / "in", teacher, DenseSpec())
    first, again, other = (rescore(dataset, str(teacher), sample=3, seed=seed).rows for seed in (1, 1, 4))
    assert len(first) == 3 and first == again and first != other


def test_packed_documents_are_read_on_their_own(tmp_path: Path, teacher: Path) -> None:
    write(tmp_path / "in", teacher, DenseSpec())
    pack(tmp_path / "in", tmp_path / "packed", 30)
    assert rescore(SignalDataset.open(tmp_path / "packed"), str(teacher)).agrees
    pack(tmp_path / "in", tmp_path / "cut", 8)
    with pytest.raises(UserError, match="packing cut documents in 4 places"):
        rescore(SignalDataset.open(tmp_path / "cut"), str(teacher))
