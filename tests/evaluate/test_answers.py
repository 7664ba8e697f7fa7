"""Answers and grading: the documented spellings are read, everything else is refused, with a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.evaluate.answers import Integer, Words, declared_answer
from limbeck.evaluate.axes import Item
from limbeck.evaluate.grading import grade
from tests.evaluate.adversaries import ADVERSARIES, Adversary

ITEM = Item("1233 + 1 = ?", Integer(1234))


@pytest.mark.parametrize(
    "text",
    ["1234", "+1234", "1,234", "+1,234", " 1234 ", "1234.", r"\boxed{1234}", r"\boxed{1,234}.", r"$\boxed{1234}$"],
)
def test_documented_spellings_of_a_number(text: str) -> None:
    assert Integer(1234).accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "-1234", "1235", "12 34", "1234.0", "1234.5", "1_234", "12,34", "1,2,3,4", ",1234", "1,234,", "1234 5",
        "1234 or 5", "x1234", "1234x", "= 1234", "0x4d2", "1.234e3", "one", "++1234", "+-1234", "(1234)", "1234,",
        r"\boxed{1234} or 5", r"\boxed{}", r"\boxed{1234", "1234\n5", "1234!", "1" * 5000, ".*", "None", "nan",
    ],
)  # fmt: skip
def test_anything_else_is_no_number(text: str) -> None:
    assert not Integer(1234).accepts(text)


@pytest.mark.parametrize(
    "text", [str(1234).translate({48 + digit: zero + digit for digit in range(10)}) for zero in (0x660, 0x966, 0xFF10)]
)
def test_only_the_digits_0_to_9_are_digits(text: str) -> None:
    assert not Integer(1234).accepts(text)


@given(value=st.integers(), other=st.integers())
def test_a_number_accepts_itself_alone(value: int, other: int) -> None:
    answer = Integer(value)
    assert answer.accepts(answer.written())
    assert answer.accepts(f"{value:,}")
    assert answer.accepts(f"\\boxed{{{value}}}.")
    assert answer.accepts(str(other)) is (value == other)


def test_a_minus_sign_may_be_the_typographic_one() -> None:
    assert Integer(-5).accepts("\N{MINUS SIGN}5")
    assert not Integer(5).accepts("\N{MINUS SIGN}5")


def test_words_are_compared_after_white_space_is_collapsed() -> None:
    assert Words("a b c").accepts("  a\tb   c . ")
    assert Words("a  b").accepts("a b")
    assert Words("a b").accepts(r"\boxed{a b}")
    for text in ("", "a", "ab", "A b", "a b c", "a, b", "b a", "'a b'", "a b or c"):
        assert not Words("a b").accepts(text), text


def test_case_counts_unless_it_is_to_be_ignored() -> None:
    assert not Words("True").accepts("true")
    assert Words("True", ignore_case=True).accepts("TRUE")
    assert not Words("True", ignore_case=True).accepts("truth")


@given(value=st.text("ab Z(){}[]<>+-*/%01\\,", min_size=1).filter(lambda text: not text.isspace()))
def test_words_accept_themselves(value: str) -> None:
    assert Words(value).accepts(Words(value).written())


@pytest.mark.parametrize("value", ["a.", "end .", r"\boxed{a}"])
def test_words_that_look_wrapped_accept_themselves(value: str) -> None:
    assert Words(value).accepts(value)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 5", "5"),
        ("Answer:5", "5"),
        ("  Answer:   5  \n\n  ", "5"),
        ("3 + 2 is 5.\n\nAnswer: 5", "5"),
        ("The Answer: line comes last\nAnswer: 5", "5"),
        ("Answer:", ""),
        ("Answer: 5 or 6", "5 or 6"),
        ("", None),
        (" \n ", None),
        ("5", None),
        ("The answer is 5", None),
        ("answer: 5", None),
        ("ANSWER: 5", None),
        ("Answer 5", None),
        ("**Answer:** 5", None),
        ("Answer: 5\nAnswer: 5", None),
        ("Answer: 5\nor so", None),
        ("Answer: 5\x0bor so", None),
    ],
)
def test_the_declared_answer_is_the_one_last_line(response: str, answer: str | None) -> None:
    assert declared_answer(response) == answer


@given(response=st.text(max_size=60))
def test_any_text_can_be_graded(response: str) -> None:
    graded = grade(ITEM, response)
    assert graded.score in (0.0, 1.0)
    assert (graded.answer is None) is (declared_answer(response) is None)


def test_a_grade_says_why() -> None:
    assert (grade(ITEM, "so\nAnswer: 1,234.").score, grade(ITEM, "Answer: 1234").reason) == (1.0, "right")
    wrong = grade(ITEM, "Answer: 12")
    assert (wrong.score, wrong.answer, wrong.reason) == (0.0, "12", "expected 1234")
    silent = grade(ITEM, "1234")
    assert (silent.score, silent.answer) == (0.0, None)
    assert "no single 'Answer:' line" in silent.reason


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("answer", [Integer(1234), Words("x + 3"), Words("Ann", ignore_case=True)])
def test_no_adversary_is_credited(adversary: Adversary, answer: Integer | Words) -> None:
    assert grade(Item("What is it ?", answer), adversary(Item("What is it ?", answer))).score == 0.0
