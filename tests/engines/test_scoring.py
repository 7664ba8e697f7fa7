"""Scoring rows: what is captured is what the model's logits say, whatever the batches were."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.engines.scoring import complete_spec, score_rows, write_references
from limbeck.engines.transformers import output_head
from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec
from limbeck.signals.codecs.hidden_head import HiddenSpec, hidden_spec, read_head
from limbeck.signals.codecs.registry import make_codec
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalRow
from limbeck.signals.from_logits import logits_of
from limbeck.signals.types import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    TeacherSignal,
    TokenSignal,
    TopkSignal,
)
from limbeck.signals.writer import DatasetWriter
from tests.engines.tiny import new_model
from tests.signals.making import header_of

VOCABULARY = 300
MODEL = new_model()
K = 5
SAMPLED = [SampledSpec(threshold=0.02), SampledSpec(threshold=0.1, draws=6, proposal_temperature=1.5)]

Row = tuple[torch.Tensor, torch.Tensor]


def draw_row(length: int, seed: int) -> Row:
    generator = torch.Generator().manual_seed(seed)
    trained = torch.rand(length, generator=generator) < 0.6
    return torch.randint(VOCABULARY, (length,), generator=generator), trained


ROWS = [draw_row(length, seed) for seed, length in enumerate([7, 2, 19, 1, 12, 12, 3])]


@torch.no_grad()
def logprobs_of(ids: torch.Tensor) -> torch.Tensor:
    return MODEL(ids[None]).logits[0].log_softmax(-1)


def counted(row: Row) -> torch.Tensor:
    """Position t counts exactly where token t + 1 is there and trained."""
    return torch.tensor([t + 1 < len(row[0]) and bool(row[1][t + 1]) for t in range(len(row[0]))])


@pytest.mark.parametrize("batch_tokens", [1, 24, 60, 10_000])
def test_a_topk_signal_is_the_top_of_the_logits(batch_tokens: int) -> None:
    spec = TopkSpec(select="count", cap=K)
    for row, signal in zip(ROWS, score_rows(MODEL, ROWS, spec, batch_tokens=batch_tokens), strict=True):
        assert isinstance(signal, TopkSignal)
        where, logprobs = counted(row), logprobs_of(row[0])
        assert torch.equal(signal.mask, where)
        if not where.any():
            continue
        expected = logprobs[where].topk(K)
        torch.testing.assert_close(signal.logprobs[where], expected.values, atol=2e-5, rtol=0)
        assert torch.equal(signal.ids[where].long(), expected.indices)
        tail = logprobs[where].scatter(-1, expected.indices, float("-inf")).logsumexp(-1)
        torch.testing.assert_close(signal.log_tail_mass[where], tail, atol=2e-5, rtol=0)


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_dense_and_token_signals_are_the_log_probabilities(batch_tokens: int) -> None:
    dense = score_rows(MODEL, ROWS, DenseSpec(), batch_tokens=batch_tokens)
    token = score_rows(MODEL, ROWS, TokenSpec(), batch_tokens=batch_tokens)
    for row, whole, chosen in zip(ROWS, dense, token, strict=True):
        assert isinstance(whole, DenseSignal)
        assert isinstance(chosen, TokenSignal)
        where, logprobs = counted(row), logprobs_of(row[0])
        torch.testing.assert_close(whole.logprobs[where], logprobs[where], atol=2e-5, rtol=0)
        following = logprobs[:-1].gather(-1, row[0][1:, None])[:, 0]
        torch.testing.assert_close(chosen.logprobs[where], following[where[:-1]], atol=2e-5, rtol=0)


def test_the_chunk_of_logits_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_rows(MODEL, ROWS, DenseSpec(), batch_tokens=100)
    monkeypatch.setattr("limbeck.engines.scoring.CHUNK_LOGITS", 16 * VOCABULARY)
    for chunked, expected in zip(score_rows(MODEL, ROWS, DenseSpec(), batch_tokens=100), whole, strict=True):
        assert isinstance(chunked, DenseSignal)
        assert isinstance(expected, DenseSignal)
        torch.testing.assert_close(chunked.logprobs, expected.logprobs, atol=2e-5, rtol=0)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), max_size=8), batch_tokens=st.integers(1, 100))
def test_every_row_gets_one_signal_of_its_length_in_order(lengths: list[int], batch_tokens: int) -> None:
    rows = [draw_row(length, seed) for seed, length in enumerate(lengths)]
    finished: list[int] = []
    signals = score_rows(MODEL, rows, TokenSpec(), batch_tokens=batch_tokens, on_row=finished.append)
    assert [len(signal.mask) for signal in signals] == lengths
    assert all(torch.equal(signal.mask, counted(row)) for signal, row in zip(signals, rows, strict=True))
    assert sorted(finished) == sorted(lengths)


def test_rows_of_which_nothing_is_trained_say_nothing() -> None:
    rows = [(torch.tensor([5, 6, 7]), torch.zeros(3, dtype=torch.bool))] * 2
    for spec in (TopkSpec(), DenseSpec(), TokenSpec(), SampledSpec(), complete_spec(HiddenSpec(), MODEL)):
        assert [signal.mask.any().item() for signal in score_rows(MODEL, rows, spec, batch_tokens=100)] == [False] * 2


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_hidden_signals_are_the_states_that_the_head_makes_the_logits_of(batch_tokens: int) -> None:
    spec = complete_spec(HiddenSpec(dtype="float32"), MODEL)
    assert spec == hidden_spec(output_head(MODEL), "float32")
    for row, signal in zip(ROWS, score_rows(MODEL, ROWS, spec, batch_tokens=batch_tokens), strict=True):
        assert isinstance(signal, HiddenSignal)
        where = counted(row)
        assert torch.equal(signal.mask, where) and not signal.hidden[~where].any()
        logits = logits_of(signal.hidden[where], signal.head)
        torch.testing.assert_close(logits.log_softmax(-1), logprobs_of(row[0])[where], atol=2e-5, rtol=0)


def test_a_captured_dataset_of_states_gives_the_teachers_distribution_back(tmp_path: Path) -> None:
    spec = complete_spec(HiddenSpec(dtype="float32"), MODEL)
    signals = score_rows(MODEL, ROWS, spec, batch_tokens=100)
    header = header_of(samples=len(ROWS), samples_per_shard=len(ROWS), codec=spec, vocabulary=VOCABULARY)
    with DatasetWriter(tmp_path / "d", header) as writer:
        write_references(tmp_path / "d", spec, MODEL)
        rows = [SignalRow(*row, signal) for row, signal in zip(ROWS, signals, strict=True)]
        writer.write_shard(range(len(ROWS)), rows)
    head = read_head(tmp_path / "d", spec)  # type: ignore[arg-type]
    for row, signal in zip(ROWS, signals, strict=True):
        assert isinstance(signal, HiddenSignal)
        logits = logits_of(signal.hidden[signal.mask], head)
        torch.testing.assert_close(logits.log_softmax(-1), logprobs_of(row[0])[signal.mask], atol=2e-5, rtol=0)
    write_references(tmp_path, TopkSpec(), MODEL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_settings_that_name_another_teachers_head_are_refused() -> None:
    other = hidden_spec(output_head(new_model(seed=2)))
    with pytest.raises(UserError, match=f"SHA-256 {other.head_sha256} and width 16, but the teacher's"):
        complete_spec(other, MODEL)
    assert complete_spec(TopkSpec(), MODEL) == TopkSpec()
    with pytest.raises(UserError, match="its settings name no output head"):
        score_rows(MODEL, ROWS, HiddenSpec(), batch_tokens=100)


@pytest.mark.parametrize("spec", SAMPLED)
def test_sampled_signals_belong_to_seed_and_sample_whatever_the_batch(spec: SampledSpec) -> None:
    """Which tokens are drawn for a row does not depend on the rows it is scored with, only on its number."""
    model = new_model().double()  # so that a batch's rounding does not decide between two tokens
    whole = score_rows(model, ROWS, spec, batch_tokens=10_000, seed=3, first_sample=40)
    apart = score_rows(model, ROWS[:2], spec, batch_tokens=1, seed=3, first_sample=40)
    apart += score_rows(model, ROWS[2:], spec, batch_tokens=24, seed=3, first_sample=42)
    for row, one, other in zip(ROWS, whole, apart, strict=True):
        assert isinstance(one, SampledSignal) and isinstance(other, SampledSignal)
        assert torch.equal(one.mask, counted(row)) and torch.equal(other.mask, one.mask)
        assert torch.equal(weights_of(one), weights_of(other))
    drawn = [torch.cat([weights_of(signal) for signal in signals]) for signals in (
        whole,
        score_rows(model, ROWS, spec, batch_tokens=10_000, seed=4, first_sample=40),
        score_rows(model, ROWS, spec, batch_tokens=10_000, seed=3, first_sample=41),
    )]  # fmt: skip
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("spec", SAMPLED)
def test_sampled_weights_are_unbiased_over_seeds(spec: SampledSpec) -> None:
    """The mean weight of every token over 600 captures is its probability, within 5 standard errors."""
    row = ROWS[2]
    truth = logprobs_of(row[0])[counted(row)].double().exp()
    rows, captures = [row] * 200, 3
    found = torch.stack([
        weights_of(signal)[counted(row)]
        for capture in range(captures)
        for signal in score_rows(MODEL, rows, spec, batch_tokens=4000, seed=capture)
    ])  # fmt: skip
    error = found.std(0) / math.sqrt(len(found))
    often = truth > 5e-3
    assert often.any()
    assert ((found.mean(0) - truth).abs() <= 5 * error + 1e-5)[often].all()
    values = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimates = found @ values
    assert ((estimates.mean(0) - truth @ values).abs() <= 5 * estimates.std(0) / math.sqrt(len(found))).all()


def weights_of(signal: TeacherSignal) -> torch.Tensor:
    """Return `[T, V]`, the weight of each token; 0 where the signal says nothing."""
    assert isinstance(signal, SampledSignal)
    dense = torch.zeros(len(signal.mask), VOCABULARY, dtype=torch.float64)
    return dense.scatter_add(1, signal.ids, signal.weights.double() * signal.mask[:, None])


DISTILLKIT = DistillkitSpec(d=VOCABULARY, k=K, exact_k=K, residual_bins=(), delta_encoding=False)
LEGACY = DistillkitLegacySpec(vocab_size=VOCABULARY, k=K, exact_k=K, polynomial_degree=0)


@pytest.mark.parametrize(("spec", "tolerance"), [(DISTILLKIT, 2e-5), (LEGACY, 1e-2)])
def test_codecs_of_distillkit_get_the_entries_they_need(spec: Settings, tolerance: float) -> None:
    signals = score_rows(MODEL, ROWS, spec, batch_tokens=60)
    codec = make_codec(spec, VOCABULARY)
    for row, signal in zip(ROWS, signals, strict=True):
        assert isinstance(signal, TopkSignal)
        decoded = codec.decode(codec.encode(signal, [len(row[0])]), [len(row[0])])
        assert isinstance(decoded, TopkSignal)
        where = counted(row)
        assert torch.equal(decoded.mask, where)
        expected = logprobs_of(row[0])[where].topk(K)
        torch.testing.assert_close(decoded.logprobs[where], expected.values, atol=tolerance, rtol=0)


def test_a_model_that_scales_its_logits_is_refused() -> None:
    """Its head alone does not make its logits, and what would be captured is not what it says."""

    class Scaled(torch.nn.Module):
        device, config = MODEL.device, MODEL.config
        get_decoder, get_output_embeddings = MODEL.get_decoder, MODEL.get_output_embeddings

        def forward(self, **inputs: Any) -> Any:
            output = MODEL(**inputs)
            output.logits = output.logits / 8
            return output

    with pytest.raises(UserError, match="Scaled: its logits are not those of its output head"):
        score_rows(Scaled(), ROWS, TopkSpec(), batch_tokens=100)  # type: ignore[arg-type]


def test_a_codec_that_there_is_not_is_named() -> None:
    class Other(TokenSpec):
        codec: str = "other"  # type: ignore[assignment]

    with pytest.raises(UserError, match="no codec is called 'other'"):
        score_rows(MODEL, ROWS, Other(), batch_tokens=100)
