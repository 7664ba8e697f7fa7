"""Divergences on text: token by token against the plain formulas in float64."""

import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from limbeck.errors import UserError
from limbeck.evaluate.divergences import RowDivergence, TextRow, measure, summarise
from tests.engines.tiny import new_model, tokenizer_of

TEACHER, STUDENT = new_model(1).double(), new_model(2).double()
LENGTHS = (9, 2, 17, 5, 5)


def draw_rows() -> list[TextRow]:
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randint(300, (length,), generator=generator).tolist() for length in LENGTHS]
    return [TextRow(f"d{index // 2}", tuple(ids), 3 * len(ids)) for index, ids in enumerate(drawn)]


ROWS = draw_rows()


@torch.no_grad()
def probabilities(model: PreTrainedModel, row: TextRow) -> np.ndarray:
    """`[T - 1, V]`, one row alone, softmax in numpy."""
    logits = model(torch.tensor([row.ids])).logits[0, :-1].double().numpy()
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def plainly(row: TextRow) -> dict[str, np.ndarray]:
    p, q = probabilities(TEACHER, row), probabilities(STUDENT, row)
    following = np.arange(len(row.ids) - 1), np.array(row.ids[1:])
    return {
        "kl": (p * np.log(p / q)).sum(-1),
        "reverse_kl": (q * np.log(q / p)).sum(-1),
        "agreement": (p.argmax(-1) == q.argmax(-1)).astype(float),
        "student_nll": -np.log(q[following]),
        "teacher_nll": -np.log(p[following]),
    }


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_every_token_is_as_the_formulas_say(batch_size: int) -> None:
    """Whatever rows stand beside it in a batch: padding is never measured."""
    for row, found in zip(ROWS, measure(STUDENT, TEACHER, ROWS, batch_size=batch_size), strict=True):
        for name, expected in plainly(row).items():
            np.testing.assert_allclose(getattr(found, name), expected, atol=1e-6, rtol=1e-6, err_msg=name)


def test_float32_models_are_measured_to_their_precision() -> None:
    found = measure(new_model(2), new_model(1), ROWS)
    for row, one in zip(ROWS, found, strict=True):
        np.testing.assert_allclose(one.kl, plainly(row)["kl"], atol=1e-4, rtol=1e-4)


def test_the_models_differ() -> None:
    """Without this, the comparisons above could pass on zeros."""
    found = measure(STUDENT, TEACHER, ROWS)
    assert min(float(row.kl.min()) for row in found) > 0.01


@pytest.mark.parametrize("model", [TEACHER, new_model(1)], ids=["float64", "float32"])
def test_a_model_against_itself_has_no_divergence(model: PreTrainedModel) -> None:
    for row in measure(model, model, ROWS):
        assert not row.kl.any()
        assert not row.reverse_kl.any()
        assert row.agreement.all()
        np.testing.assert_array_equal(row.student_nll, row.teacher_nll)


def test_the_vocabulary_is_walked_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(STUDENT, TEACHER, ROWS)
    monkeypatch.setattr("limbeck.distill.walk.CHUNK_LOGITS", 1)
    for chunked, expected in zip(measure(STUDENT, TEACHER, ROWS), whole, strict=True):
        np.testing.assert_allclose(chunked.kl, expected.kl, atol=1e-9)


def test_other_vocabularies_are_refused_before_anything_is_read() -> None:
    other = new_model(tokenizer=tokenizer_of(290))
    with pytest.raises(UserError, match="different vocabularies \\(290 and 300 entries\\)"):
        measure(other, TEACHER, [])


def test_progress_is_told_row_by_row() -> None:
    calls: list[int] = []
    measure(STUDENT, TEACHER, ROWS, batch_size=2, on_row=lambda: calls.append(1))
    assert len(calls) == len(ROWS)


def row_of(document: str, kl: list[float], nll: float = 0.0, size: int = 1) -> RowDivergence:
    values = np.array(kl)
    return RowDivergence(document, size, values, 2 * values, values > 2, np.full(len(kl), nll), np.zeros(len(kl)))


def test_a_summary_weighs_tokens_and_clusters_documents() -> None:
    """Two rows of one document are one cluster: sums 1, 3, 8 over 1, 2, 3 tokens, as in the statistics' example."""
    rows = [row_of("c", [2.0, 4.0]), row_of("a", [1.0]), row_of("b", [1.0, 2.0]), row_of("c", [2.0])]
    summary = summarise(rows)
    assert (summary.tokens, summary.documents, summary.kl.clusters) == (6, 3, 3)
    assert summary.kl.value == 2.0
    assert summary.kl.high == pytest.approx(2 + 4.302653 / 2, rel=1e-6)
    assert summary.reverse_kl.value == 4.0
    assert summary.agreement.value == pytest.approx(1 / 6)


def test_bits_per_byte_are_per_byte() -> None:
    """Three tokens of 2 bits each over 4 bytes: 1.5 bits a byte."""
    rows = [row_of("a", [0.0, 0.0], 2 * math.log(2), 3), row_of("b", [0.0], 2 * math.log(2), 1)]
    assert summarise(rows).bits_per_byte.value == pytest.approx(1.5)


def test_one_document_has_no_interval() -> None:
    summary = summarise([row_of("a", [1.0, 2.0]), row_of("a", [3.0])])
    assert not summary.kl.excludes(0.0)
    assert summary.kl.high == math.inf


def test_nothing_measured_is_nothing_to_summarise() -> None:
    with pytest.raises(UserError, match="no rows were measured"):
        summarise([])
