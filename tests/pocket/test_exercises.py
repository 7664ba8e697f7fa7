"""Exercises: gold answers are right, what is asked was never taught, and nobody is talked into credit."""

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.evaluate.axes import Item, all_axes, generate, get_axis
from limbeck.evaluate.grading import grade
from limbeck.pocket.exercises import Family, all_families, held_out
from limbeck.pocket.exercises.registry import HELD_OUT_SHARE
from limbeck.seeds import derive_random
from tests.evaluate.adversaries import ADVERSARIES, Adversary
from tests.pocket.solvers import SOLVERS, does_what_is_described

FAMILIES = all_families()
GOLDEN = {  # how the digests of the first fifty items begin
    "addition": "337bbdb460f15423",
    "call_function": "85c4fa5aae7b0c21",
    "complete_function": "9b5a554709bbd52a",
    "copy_by_key": "f4ceae969efd4dbb",
    "counting": "21a476e53966a44a",
    "largest": "188cab18f0ce52cd",
    "lookup": "77316903f7203e3b",
    "missing": "695e22f76ebbabc1",
    "multiplication": "92b97b8871fc7979",
    "progression": "254290f31e31e0c7",
    "remainder": "e4e1c98987c36bd2",
    "reverse": "9e018464ce4c0cbc",
    "sorting": "28a6a55f7b63f82b",
    "subtraction": "369880d289b114b5",
    "truth": "6f4efbf800768e56",
    "two_hops": "34d7981a9f038a9c",
    "variables": "63d0c59b2e37d040",
}

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def asked(family: Family, count: int, seed: int = 1) -> list[Item]:
    """Items as they are asked, at every difficulty in turn."""
    scale, axis = family.difficulty, get_axis(family.axis_name)
    levels = range(scale.low, scale.high + 1)
    return [axis.draw(derive_random(seed, family.name, i), levels[i % len(levels)]) for i in range(count)]


def taught(family: Family, count: int, seed: int = 1) -> list[Item]:
    return [family.draw_for_training(derive_random(seed, "taught", family.name, i)) for i in range(count)]


def test_there_are_at_least_twelve_families_each_with_its_axis() -> None:
    assert len(FAMILIES) >= 12
    assert {family.axis_name for family in FAMILIES} == {axis.name for axis in all_axes("pocket_")}
    assert all(get_axis(family.axis_name).about for family in FAMILIES)


@each_family
def test_an_independent_solver_agrees_with_the_gold_answer(family: Family) -> None:
    """It reads the prompt alone; over items as they are taught and as they are asked, of every difficulty."""
    items = taught(family, 150) + asked(family, 150)
    if family.name == "complete_function":
        assert all(does_what_is_described(item.prompt, item.answer.written()) for item in items)
    else:
        assert [SOLVERS[family.name](item.prompt) for item in items] == [item.answer.written() for item in items]


@each_family
def test_every_difficulty_of_the_scale_can_be_drawn(family: Family) -> None:
    name, scale = family.axis_name, family.difficulty
    for level in range(scale.low, scale.high + 1):
        assert len(generate(name, seed=1, count=3, difficulty=level)) == 3


@each_family
def test_the_gold_answer_is_graded_right(family: Family) -> None:
    for item in asked(family, 100):
        assert grade(item, f"Answer: {item.answer.written()}").score == 1.0


@each_family
def test_what_is_asked_is_never_taught(family: Family) -> None:
    """The two sides share no content, and both are drawn from."""
    lessons, questions = taught(family, 800), asked(family, 200)
    assert not any(held_out(family.name, item) for item in lessons)
    assert all(held_out(family.name, item) for item in questions)
    assert not {item.key for item in lessons} & {item.key for item in questions}
    assert not {item.prompt for item in lessons} & {item.prompt for item in questions}


@each_family
def test_about_one_item_in_eight_is_kept_for_asking(family: Family) -> None:
    rng = Random(1)
    keys = {item.key: item for item in (family.generator(rng, family.difficulty.default) for _ in range(2000))}
    share = sum(held_out(family.name, item) for item in keys.values()) / len(keys)
    assert share == pytest.approx(1 / HELD_OUT_SHARE, abs=5 * (7 / 64 / len(keys)) ** 0.5)


@given(a=st.integers(0, 9999), b=st.integers(0, 9999))
def test_a_sum_stays_on_its_side_in_any_order(a: int, b: int) -> None:
    assert held_out("addition", sum_of(a, b)) is held_out("addition", sum_of(b, a))


class Scripted(Random):
    """A generator that draws given numbers."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(0)
        self.numbers = list(numbers)

    def randrange(self, *args: int, **_: int) -> int:  # type: ignore[override]
        return self.numbers.pop(0)

    def randint(self, a: int, b: int) -> int:
        return self.numbers.pop(0)


def sum_of(a: int, b: int) -> Item:
    item = next(family for family in FAMILIES if family.name == "addition").generator(Scripted(a, b), 4)
    assert item.prompt == f"{a} + {b} = ?"
    return item


@pytest.mark.parametrize(
    ("family", "prompts"),
    [
        ("multiplication", ("3 * 5 = ?", "5 * 3 = ?")),
        ("call_function", ("def f(x):\n    return x + 7\nf(4) = ?", "def g(y):\n    return y + 4\ng(7) = ?")),
        ("call_function", ("def f(x):\n    return max(x, 7)\nf(4) = ?", "def f(x):\n    return max(x, 4)\nf(7) = ?")),
        ("counting", ("How many a in a b a b ?", "How many x in x q x q ?")),
    ],
)
def test_what_differs_in_order_or_names_alone_is_one_exercise(family: str, prompts: tuple[str, str]) -> None:
    assert operands_of(family, prompts[0]) == operands_of(family, prompts[1])


@pytest.mark.parametrize(
    ("family", "prompts"),
    [
        ("call_function", ("def f(x):\n    return x - 7\nf(4) = ?", "def f(x):\n    return x - 4\nf(7) = ?")),
        ("call_function", ("def f(x):\n    return x + 7\nf(4) = ?", "def f(x):\n    return x * 7\nf(4) = ?")),
        ("counting", ("How many a in a b a b ?", "How many b in a b a b ?")),
        ("counting", ("How many a in a b a b ?", "How many a in a b b a ?")),
    ],
)
def test_what_differs_in_content_is_two(family: str, prompts: tuple[str, str]) -> None:
    assert operands_of(family, prompts[0]) != operands_of(family, prompts[1])


def operands_of(name: str, prompt: str) -> str:
    """The operands of the exercise that reads like `prompt`, found by drawing until it comes (letters apart)."""
    family = next(family for family in FAMILIES if family.name == name)
    wanted = without_names(prompt)
    for seed in range(40_000):
        item = family.generator(Random(seed), family.difficulty.low)
        if without_names(item.prompt) == wanted:
            return item.operands
    raise AssertionError(f"never drawn: {prompt}")


def without_names(prompt: str) -> str:
    """The prompt with single letters renamed by their first appearance."""
    names: dict[str, str] = {}
    return re.sub(r"\b[a-z]\b", lambda match: names.setdefault(match[0], f"v{len(names)}"), prompt)


@each_family
def test_items_are_the_same_on_every_machine(family: Family) -> None:
    assert generate(family.axis_name, seed="golden", count=50).digest.startswith(GOLDEN[family.name])


@each_family
def test_taught_items_are_the_same_for_the_same_seed(family: Family) -> None:
    assert taught(family, 50, seed=3) == taught(family, 50, seed=3)
    assert taught(family, 50, seed=3) != taught(family, 50, seed=4)


@each_family
def test_lessons_are_no_harder_than_questions(family: Family) -> None:
    """Lessons range from the easiest to the level that is asked by default."""
    levels = []

    def spy(rng: Random, level: int) -> Item:
        levels.append(level)
        return family.generator(rng, level)

    watched = Family(family.name, spy, family.difficulty)
    for item in range(200):
        watched.draw_for_training(derive_random(1, item))
    assert set(levels) == set(range(family.difficulty.low, family.difficulty.default + 1))


@each_family
def test_a_card_can_ask_its_hundred_items(family: Family) -> None:
    items = generate(family.axis_name, seed=1, count=100)
    assert len({item.prompt for item in items}) == 100


@each_family
def test_every_word_of_a_prompt_and_answer_is_plain_ascii(family: Family) -> None:
    assert all((item.prompt + item.answer.written()).isascii() for item in asked(family, 50))


@each_family
@pytest.mark.parametrize("adversary", ADVERSARIES, ids=lambda adversary: adversary.__name__)
def test_adversaries_score_no_more_than_a_guess(family: Family, adversary: Adversary) -> None:
    """Saying nothing, echoing, listing every candidate, answering twice: none of it pays."""
    items = asked(family, 100)
    assert sum(grade(item, adversary(item)).score for item in items) <= 1
