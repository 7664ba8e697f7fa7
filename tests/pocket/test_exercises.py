"""Exercises: gold answers are right, what is asked was never taught, and nobody is talked into credit."""

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
    "call_function": "2e6c9b2f3825c643",
    "complete_function": "2830067299d747fd",
    "copy_by_key": "f4ceae969efd4dbb",
    "counting": "7d18c5f6e9a0c4ff",
    "largest": "188cab18f0ce52cd",
    "lookup": "77316903f7203e3b",
    "missing": "695e22f76ebbabc1",
    "multiplication": "5c7a05ee1789a8f0",
    "progression": "254290f31e31e0c7",
    "remainder": "e4e1c98987c36bd2",
    "reverse": "9e018464ce4c0cbc",
    "sorting": "28a6a55f7b63f82b",
    "subtraction": "369880d289b114b5",
    "truth": "4108adc3b886c9f9",
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


def test_a_product_of_two_digits_is_never_asked() -> None:
    """3 * 5 may be taught where 5 * 3 is held out, so neither is asked."""
    asked_products = generate("pocket_multiplication", seed=1, count=150)
    factors = [item.operands.split() for item in asked_products]
    assert min(max(len(a), len(b)) for a, b in factors) == 2


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
