"""Scoring rows: what is captured is what the model's logits say, whatever the batches were."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.engines.scoring import score_rows
from limbeck.errors import UserError
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import DenseSignal, TokenSignal, TopkSignal
from tests.engines.tiny import new_model

VOCABULARY = 300
MODEL = new_model()
K = 5

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
    for spec in (TopkSpec(), DenseSpec(), TokenSpec()):
        assert [signal.mask.any().item() for signal in score_rows(MODEL, rows, spec, batch_tokens=100)] == [False] * 2


def test_a_kind_that_it_cannot_make_is_named() -> None:
    class Other(TokenSpec):
        codec: str = "other"  # type: ignore[assignment]

    with pytest.raises(UserError, match="codec 'other'"):
        score_rows(MODEL, ROWS, Other(), batch_tokens=100)
