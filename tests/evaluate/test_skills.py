"""Asking: the right item is graded with the right response, in the items' order, whatever order they are asked in."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from limbeck.data.chat import prompt_ids
from limbeck.evaluate import skills
from limbeck.evaluate.answers import Integer
from limbeck.evaluate.axes import Item, ItemSet
from limbeck.evaluate.skills import ask
from limbeck.evaluate.statistics import proportion
from tests.engines.tiny import new_model, tokenizer_of

TOKENIZER = tokenizer_of()


def items_of(axis: str, lengths: Sequence[int]) -> ItemSet:
    """Items of these prompt lengths; the answer is the length."""
    return ItemSet(axis, tuple(Item(f"{axis}{'x' * length}", Integer(length)) for length in lengths))


SETS = [items_of("b", [9, 1, 5, 5]), items_of("a", [3, 12, 2])]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """A model that counts the letters of its prompt, and is wrong beyond eight; what it was asked, in order."""
    prompts: list[list[int]] = []

    def answers(model: object, tokenizer: Any, given: Sequence[list[int]], **_: Any) -> Iterator[str]:
        prompts.extend(given)
        for ids in given:
            count = tokenizer.decode(ids).count("x")
            yield f"I count.\nAnswer: {count if count <= 8 else 0}"

    monkeypatch.setattr(skills, "answer_greedily", answers)
    return prompts


def test_results_keep_the_order_of_the_items(asked: list[list[int]]) -> None:
    results = ask(new_model(), TOKENIZER, SETS)
    assert [result.axis for result in results] == ["b", "a"]
    for result, items in zip(results, SETS, strict=True):
        assert [graded.prompt for graded in result.items] == [item.prompt for item in items]
        assert [graded.gold for graded in result.items] == [item.answer.written() for item in items]
        for graded in result.items:
            count = graded.prompt.count("x")
            assert graded.response.endswith(f"Answer: {count if count <= 8 else 0}")
            assert graded.grade.score == (count <= 8)
    assert [result.accuracy for result in results] == [proportion(3, 4), proportion(2, 3)]


def test_prompts_are_chat_turns_asked_shortest_first(asked: list[list[int]]) -> None:
    calls: list[int] = []
    ask(new_model(), TOKENIZER, SETS, on_item=lambda: calls.append(1))
    expected = [prompt_ids(TOKENIZER, item.prompt) for items in SETS for item in items]
    assert sorted(asked) == sorted(expected)
    assert [len(ids) for ids in asked] == sorted(len(ids) for ids in expected)
    assert len(calls) == len(expected)


def test_a_real_models_responses_do_not_depend_on_the_batch() -> None:
    model = new_model().double()
    alone = ask(model, TOKENIZER, SETS, max_new_tokens=5, batch_size=1)
    together = ask(model, TOKENIZER, SETS, max_new_tokens=5, batch_size=100)
    assert alone == together
    assert len({graded.response for result in alone for graded in result.items}) > 1
