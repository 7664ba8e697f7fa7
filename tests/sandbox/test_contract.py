"""Comparison by exact type, and the reading of answers from a process that may lie."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.sandbox.answers import outcomes, parse_lines
from limbeck.sandbox.contract import Outcome, same

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_a_value_is_the_same_as_its_copy(value) -> None:
    assert same(value, json.loads(json.dumps(value)))


@given(PLAIN, PLAIN)
def test_different_texts_are_different_values(left, right) -> None:
    """Python's own serialisation keeps types apart (`1`, `1.0`, `true`), so it is an independent judge."""
    equal = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert same(left, right) == equal or {0.0, -0.0} <= _floats(left) | _floats(right)


def _floats(value) -> set[float]:
    if isinstance(value, float):
        return {value}
    if isinstance(value, list | dict):
        return set().union(*(_floats(item) for item in (value.values() if isinstance(value, dict) else value)))
    return set()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (True, 1),
        (1, 1.0),
        (0, False),
        ("1", 1),
        ([], {}),
        (None, False),
        ([1, [True]], [1, [1]]),
        ({"a": 1}, {"a": 1.0}),
    ],
)
def test_types_are_not_confused(left, right) -> None:
    assert not same(left, right)
    assert not same(right, left)


def test_nan_equals_nothing_and_depth_breaks_nothing() -> None:
    assert not same(math.nan, math.nan)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert same(deep, deep)
    assert not same(deep, [deep])


@pytest.mark.parametrize("status", ["raised", "not_plain", "timed_out", "output_limit", "crashed", "not_run"])
def test_only_a_returned_value_matches(status) -> None:
    assert Outcome("returned", None).matches(None)
    assert not Outcome(status, None).matches(None)


@pytest.mark.parametrize(
    "forged",
    [
        b'{"call": 1, "value": 5}\n',
        b'{"call": true, "value": 5}\n',
        b'{"call": 0}\n',
        b'{"call": 0, "value": 5, "verdict": "pass"}\n',
        b'{"call": 0, "verdict": "pass"}\n',
        b"[0, 5]\n",
        b"not json\n",
        b"\xff\xfe\n",
        b"[" * 200_000 + b"\n",
        b'{"call": 0, "value": ' + b"9" * 10_000 + b"}\n",
        b'{"call": 0, "value": 5}',
    ],
)
def test_a_line_that_is_not_the_expected_answer_ends_the_reading(forged: bytes) -> None:
    found = outcomes(parse_lines(forged + b'{"call": 0, "value": 1}\n'), 2, "crashed")
    assert [outcome.status for outcome in found] == ["crashed", "not_run"]


def test_a_detail_is_a_short_text() -> None:
    found = outcomes([{"call": 0, "error": "x" * 9999}, {"call": 1, "error": {"a": 1}}], 2, "crashed")
    assert [len(outcome.detail) for outcome in found] == [500, 0]
