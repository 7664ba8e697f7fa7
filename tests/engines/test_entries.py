"""Lists of log-probabilities: compiled reading against `json`, compiled ordering against a plain sort."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.engines.entries import (
    Entries,
    ShapeError,
    entries_of_lists,
    entries_of_tops,
    read_answer,
    signal_of_answer,
    signal_of_entries,
)
from limbeck.errors import LimbeckError
from limbeck.signals.types import TokenSignal, TopkSignal

VOCABULARY = 50

numbers = st.floats(-60, 0) | st.sampled_from([-9999.0, -0.0, 0, -1e-9, -5e-324, -1.25e2, -0.1, -12])
entry = st.fixed_dictionaries(
    {"logprob": numbers},
    optional={"rank": st.none() | st.integers(1, 999), "decoded_token": st.none() | st.text(), "other": st.booleans()},
)
place = st.none() | st.dictionaries(st.integers(0, VOCABULARY - 1).map(str), entry, max_size=6)
layouts = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@given(places=st.lists(place, max_size=6), layout=layouts, text=st.text())
def test_compiled_reading_is_jsons(places: list[Any], layout: dict[str, Any], text: str) -> None:
    answer = {"model": "m", "choices": [{"index": 0, "text": text, "prompt_logprobs": places, "after": [1]}], "z": text}
    read = read_answer(json.dumps(answer, **layout).encode())
    found, expected = read["choices"][0]["prompt_logprobs"], entries_of_lists(places)
    assert isinstance(found, Entries)
    for name in ("starts", "ids", "ranks"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=1e-14, atol=1e-300)
    read["choices"][0]["prompt_logprobs"] = places
    assert read == answer


def test_the_usual_shape_takes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.engines import entries

    monkeypatch.setattr(entries, "entries_of_lists", lambda _: pytest.fail("json read the lists"))
    lists = [None, {"7": {"logprob": -0.25, "rank": 1, "decoded_token": 'quote " and \\ and \u00e9'}}]
    answer = entries.read_answer(json.dumps({"choices": [{"prompt_logprobs": lists}]}).encode())
    assert answer["choices"][0]["prompt_logprobs"].logprobs.tolist() == [-0.25]


@pytest.mark.parametrize("odd", [[None, {"7": {"logprob": math.nan}}], [None, {" 7": {"logprob": -1, "x": {"y": []}}}]])
def test_an_unusual_shape_is_read_by_json(odd: list[Any]) -> None:
    body = json.dumps({"choices": [{"prompt_logprobs": odd}]}).encode()
    assert read_answer(body)["choices"][0]["prompt_logprobs"].ids.tolist() == [7]


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_half_an_answer_is_never_taken_for_a_whole_one(cut: int) -> None:
    lists = [None, {"7": {"logprob": -0.25, "rank": 1, "decoded_token": "x"}, "9": {"logprob": -3.5, "rank": 2}}]
    body = json.dumps({"choices": [{"index": 0, "prompt_logprobs": lists}], "model": "m"}).encode()
    with pytest.raises(ValueError):
        read_answer(body[:-cut])


@given(data=st.binary(max_size=80))
def test_garbage_is_refused_and_never_crashes(data: bytes) -> None:
    body = b'{"choices": [{"prompt_logprobs": [null, ' + data + b"]}]}"
    try:
        answer = read_answer(body)
    except (ValueError, ShapeError):
        return
    json.loads(body)
    assert isinstance(answer, dict)


@pytest.mark.parametrize(
    "lists", [[None, 5], [None, {"x": {"logprob": -1}}], [None, {"1": {"rank": 1}}], [None, {"1": 2}]]
)
def test_other_things_are_no_lists(lists: list[Any]) -> None:
    with pytest.raises(ShapeError, match="the list of token 1 is no list of log-probabilities"):
        entries_of_lists(lists)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[dict[int, float]], int]:
    """Tokens, and for each but the first its own and some of the most probable, as vLLM gives them."""
    length, count = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    tokens = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=length, max_size=length))
    places = []
    for token in tokens[1:]:
        logits = np.random.default_rng(draw(st.integers(0, 2**32))).normal(size=VOCABULARY) * 4
        logprobs = logits - np.log(np.exp(logits).sum())
        best = np.argsort(-logprobs, kind="stable")[:count]
        places.append({token: float(logprobs[token])} | {int(one): float(logprobs[one]) for one in best})
    return tokens, places, count


def entries_of(places: list[dict[int, float]], ranks: bool = True) -> Entries:
    lists: list[Any] = [None]
    for found in places:
        ordered = sorted(found.values(), reverse=True)
        lists.append(
            {
                str(token): {"logprob": value, "rank": ordered.index(value) + 1 if ranks else None}
                for token, value in found.items()
            }
        )
    return entries_of_lists(lists)


@given(row=rows(), ranks=st.booleans())
def test_ordering_is_a_plain_sort(row: tuple[list[int], list[dict[int, float]], int], ranks: bool) -> None:
    tokens, places, count = row
    counted = torch.tensor([True] * len(places) + [False])
    signal = signal_of_entries(
        entries_of(places, ranks),
        torch.tensor(tokens),
        counted,
        kind="topk",
        width=count,
        vocabulary=VOCABULARY,
        where="row 0",
    )
    assert isinstance(signal, TopkSignal)
    assert torch.equal(signal.mask, counted)
    for t, found in enumerate(places):
        expected = sorted(found.items(), key=lambda one: -one[1])[:count]
        assert signal.ids[t].tolist() == [token for token, _ in expected]
        values = [value for _, value in expected]
        assert signal.logprobs[t].tolist() == pytest.approx(values, rel=1e-6)
        tail = -math.expm1(math.log(math.fsum(map(math.exp, values))))
        assert math.exp(signal.log_tail_mass[t]) == pytest.approx(tail, rel=1e-4, abs=1e-9)
        assert signal.log_normalisers[t].tolist() == [0.0]


@given(row=rows())
def test_token_signals_are_the_next_tokens_own(row: tuple[list[int], list[dict[int, float]], int]) -> None:
    tokens, places, count = row
    counted = torch.tensor([True] * len(places) + [False])
    signal = signal_of_entries(
        entries_of(places),
        torch.tensor(tokens),
        counted,
        kind="token",
        width=count,
        vocabulary=VOCABULARY,
        where="row 0",
    )
    assert isinstance(signal, TokenSignal)
    expected = [found[token] for found, token in zip(places, tokens[1:], strict=True)]
    assert signal.logprobs[:-1].tolist() == pytest.approx(expected, rel=1e-6)


def test_the_whole_vocabulary_leaves_no_tail() -> None:
    logprobs = np.log(np.full(4, 0.25))
    place = {str(token): {"logprob": float(value)} for token, value in enumerate(logprobs)}
    signal = signal_of_entries(
        entries_of_lists([None, place]), torch.tensor([0, 3]), torch.tensor([True, False]), kind="topk", width=4,
        vocabulary=4, where="row 0",
    )  # fmt: skip
    assert isinstance(signal, TopkSignal)
    assert signal.log_tail_mass[0] == float("-inf")


def test_a_token_that_is_given_twice_with_two_values_is_refused() -> None:
    lists = Entries(np.array([0, 0, 3]), np.array([3, 9, 9]), np.array([-1.0, -2.0, -2.5]), np.zeros(3, dtype=np.int64))
    with pytest.raises(LimbeckError, match="row 5, position 0: token 9 is given twice"):
        signal_of_entries(
            lists, torch.tensor([1, 3]), torch.tensor([True, False]), kind="topk", width=3, vocabulary=50, where="row 5"
        )


def test_a_rival_that_cannot_be_told_leaves_the_less_probable_to_the_tail() -> None:
    entries = entries_of_tops([(4, -3.0)], [[(8, -0.5), (None, -1.5), (4, -3.0), (9, -4.0)]])
    signal, own = signal_of_answer(entries, [4], width=4, vocabulary=50, where="prompt 0")
    assert signal.ids[0, :1].tolist() == [8]
    assert (signal.logprobs[0] > float("-inf")).tolist() == [True, False, False, False]
    assert math.exp(signal.log_tail_mass[0]) == pytest.approx(1 - math.exp(-0.5), rel=1e-5)
    assert own.tolist() == [-3.0]
