"""Infill evaluation: spans are cut as said, figures are those of answers that are known."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.fim import infill_prompt
from limbeck.engines.completions import Completion, Usage
from limbeck.errors import UserError
from limbeck.evaluate.infill import (
    Infilled,
    InfillSettings,
    Span,
    draw_spans,
    edit_distance,
    edit_similarity,
    infill,
    summarise,
)
from tests.engines.tiny import TEXT, tokenizer_of

TOKENIZER = tokenizer_of()
DOCUMENTS = [(f"{index}.py", f"# {index}\n" + TEXT * (1 + index % 3)) for index in range(12)]
SETTINGS = InfillSettings(spans=30, longest=9, around=60, max_tokens=5)
letters = st.text("abc", max_size=7)


@given(letters, letters, letters)
def test_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
    assert edit_distance(a, a + b) == len(b)


def test_known_distances() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert edit_similarity("", "") == 1
    assert edit_similarity("", "abc") == 0


def test_spans_are_pieces_of_their_documents() -> None:
    texts = dict(DOCUMENTS)
    spans = draw_spans(DOCUMENTS, SETTINGS)
    assert len(spans) == 30
    for span in spans:
        assert span.prefix + span.middle + span.suffix in texts[span.document]
        assert 1 <= len(span.middle) <= 9
        assert len(span.prefix + span.suffix) <= 60
    counts = [sum(span.document == name for span in spans) for name in texts]
    assert set(counts) == {2, 3}
    assert len({len(span.middle) for span in spans}) > 4


def test_spans_follow_from_seed_and_documents_in_any_order() -> None:
    assert draw_spans(DOCUMENTS[::-1], SETTINGS) == draw_spans(DOCUMENTS, SETTINGS)
    assert draw_spans(DOCUMENTS, SETTINGS) != draw_spans(DOCUMENTS, SETTINGS.model_copy(update={"seed": "2"}))
    assert draw_spans(DOCUMENTS, SETTINGS)[:5] == draw_spans(DOCUMENTS, SETTINGS.model_copy(update={"spans": 5}))


def test_documents_without_text_are_refused() -> None:
    with pytest.raises(UserError, match="nothing to cut a span out of"):
        draw_spans([("a", "short")], SETTINGS)


class Knowing:
    """A generator that knows what was cut out, but writes `wrong` for every third span, and never stops there."""

    description: dict[str, Any] = {}  # noqa: RUF012
    context = None
    ends = frozenset({1})

    def __init__(self, spans: Sequence[Span], wrong: str) -> None:
        self.answers = {tuple(infill_prompt(TOKENIZER, span.prefix, span.suffix)): span.middle for span in spans}
        self.wrong = wrong

    def generate(self, prompts: Any, sampling: Any, *, first_prompt: int = 0, on_token: Any = None) -> list[Completion]:
        assert sampling.temperature == 0
        found = []
        for number, prompt in enumerate(prompts, start=first_prompt):
            text, reason = (self.answers[tuple(prompt)], "stop") if number % 3 else (self.wrong, "length")
            found.append(Completion(number, 0, text, None, reason, Usage(1, 1), "knowing"))
        return found

    def close(self) -> None: ...


def test_figures_are_those_of_the_answers() -> None:
    spans = draw_spans(DOCUMENTS, SETTINGS.model_copy(update={"spans": 60}))
    summary = summarise(infill(Knowing(spans, "\u2603"), TOKENIZER, spans, SETTINGS))
    assert (summary.spans, summary.documents) == (60, 12)
    assert summary.exact_match.value == summary.stop_rate.value == pytest.approx(40 / 60)
    assert summary.exact_match.low < 40 / 60 < summary.exact_match.high
    assert summary.edit_similarity.value == pytest.approx(40 / 60)


def test_a_rate_without_exceptions_still_has_an_interval() -> None:
    found = [Infilled(Span(str(index % 5), "a", "b", "c"), "b", False) for index in range(20)]
    summary = summarise(found)
    assert (summary.exact_match.value, summary.stop_rate.value) == (1, 0)
    assert summary.exact_match.low < 0.7
    assert summary.stop_rate.high > 0.3
