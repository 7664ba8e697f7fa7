"""Drawing items: distinct, the same everywhere, and only of axes and difficulties that exist."""

import os
import subprocess
import sys
from collections.abc import Iterator
from random import Random

import pytest

from limbeck.errors import LimbeckError, UserError
from limbeck.evaluate.answers import Integer, Words
from limbeck.evaluate.axes import Item, ItemSet, Scale, all_axes, axis, generate, get_axis, registry

GOLDEN = "c73a69285cf2491d4de021d2548a8b4e0c1ec4e4f1e53f6694963792645d4a60"


@pytest.fixture(autouse=True)
def own_axes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two axes that only these tests know: `test_sum` and `test_pick` (three different items)."""
    monkeypatch.setattr(registry, "_AXES", {})

    @axis("test_sum", difficulty=Scale(low=1, default=2, high=5, unit="digits"))
    def sums(rng: Random, digits: int) -> Item:
        """Add two numbers.

        More about it.
        """
        a, b = rng.randrange(10**digits), rng.randrange(10**digits)
        return Item(f"{a} + {b} = ?", Integer(a + b), operands=f"{min(a, b)} {max(a, b)}")

    @axis("test_pick", difficulty=Scale(low=1, default=1, high=1, unit="letters"))
    def pick(rng: Random, letters: int) -> Item:
        """Name the letter."""
        letter = rng.choice("abc")
        return Item(f"{rng.randrange(100)} {letter}", Words(letter), operands=letter)

    yield


def test_items_are_distinct_in_what_identifies_them() -> None:
    items = generate("test_sum", seed=1, count=40, difficulty=1)
    assert len({item.key for item in items}) == len(items) == 40


def test_all_items_there_are_can_be_drawn_and_no_more() -> None:
    assert {item.key for item in generate("test_pick", seed=1, count=3)} == {"a", "b", "c"}
    with pytest.raises(LimbeckError, match="axis test_pick: fewer than 4 different items"):
        generate("test_pick", seed=1, count=4)


def test_items_are_the_same_on_every_machine() -> None:
    assert generate("test_sum", seed="0xabc", count=50).digest == GOLDEN


def test_the_digest_names_prompts_answers_and_their_order() -> None:
    one, two = Item("p", Integer(1)), Item("q", Integer(2))
    digests = {
        ItemSet("x", items).digest
        for items in [(one, two), (two, one), (one,), (Item("p", Words("1")), two), (Item("p", Integer(2)), two)]
    }
    assert len(digests) == 5


def test_more_items_begin_with_the_same_ones() -> None:
    assert generate("test_sum", seed=1, count=20).items[:10] == generate("test_sum", seed=1, count=10).items


def test_neighbouring_seeds_share_almost_nothing() -> None:
    """Ten thousand draws from fifty million items: a chance repeat is rare, a shared stream is not."""
    keys = [item.key for seed in range(1000) for item in generate("test_sum", seed=seed, count=10, difficulty=4)]
    assert len(set(keys)) >= len(keys) - 10


def test_a_number_and_its_text_are_different_seeds() -> None:
    assert generate("test_sum", seed=1, count=5).digest != generate("test_sum", seed="1", count=5).digest


def test_the_hash_seed_of_the_process_does_not_matter() -> None:
    """Sets and dicts of strings are ordered by it, so a generator that walks one would give itself away."""
    code = (
        "from limbeck.pocket.exercises import all_families; from limbeck.evaluate.axes import generate; "
        "print(*[generate(family.axis_name, seed=3, count=20).digest for family in all_families()])"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "4242")
    ]  # fmt: skip
    assert found[0] == found[1]
    assert len(set(found[0].split())) >= 12


@pytest.mark.parametrize("difficulty", [0, 6, -1])
def test_a_difficulty_outside_the_scale_is_refused(difficulty: int) -> None:
    with pytest.raises(UserError, match=rf"axis test_sum: difficulty {difficulty} is outside 1..5 digits"):
        generate("test_sum", seed=1, count=1, difficulty=difficulty)


def test_the_default_difficulty_is_the_scales() -> None:
    assert generate("test_sum", seed=1, count=9) == generate("test_sum", seed=1, count=9, difficulty=2)


def test_an_unknown_axis_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no axis is called .test_sums.\. Registered: test_pick, test_sum"):
        generate("test_sums", seed=1, count=1)


def test_axes_are_listed_by_prefix_and_described_by_their_first_line() -> None:
    assert [one.name for one in all_axes()] == ["test_pick", "test_sum"]
    assert all_axes("test_s") == [get_axis("test_sum")]
    assert get_axis("test_sum").about == "Add two numbers."


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="axis test_sum is registered twice"):
        axis("test_sum", difficulty=Scale(1, 1, 1, "x"))(lambda rng, level: Item("", Integer(0)))
