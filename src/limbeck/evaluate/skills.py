"""Asking a model the items of skill axes, and grading what it writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.data.chat import prompt_ids
from limbeck.engines.transformers import answer_greedily
from limbeck.evaluate.axes import ItemSet
from limbeck.evaluate.grading import Grade, grade
from limbeck.evaluate.statistics import Estimate, proportion


@dataclass(frozen=True)
class GradedItem:
    """One item as it was asked and answered."""

    prompt: str
    gold: str
    response: str
    grade: Grade


@dataclass(frozen=True)
class AxisResult:
    """A model's result on one axis: the share of items answered right, with Wilson's 95 % interval."""

    axis: str
    accuracy: Estimate
    items: tuple[GradedItem, ...]


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sequence[ItemSet],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 100,
    on_item: Callable[[], None] = lambda: None,
) -> list[AxisResult]:
    """Ask all items of all sets, greedily, in one batched pass.

    Items are asked shortest first, so that a batch holds prompts of similar length; results keep the items' order.

    Args:
        model: in evaluation mode.
        tokenizer: the model's, with a chat template.
        sets: the items.
        max_new_tokens: an answer that is not finished by then is graded as it stands.
        batch_size: prompts in a batch.
        on_item: called after each answer, for progress.
    """
    asked = [(which, index, item) for which, items in enumerate(sets) for index, item in enumerate(items)]
    prompts = [prompt_ids(tokenizer, item.prompt) for _, _, item in asked]
    order = sorted(range(len(asked)), key=lambda place: len(prompts[place]))
    written = answer_greedily(
        model, tokenizer, [prompts[place] for place in order], max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    graded: dict[tuple[int, int], GradedItem] = {}
    for place, response in zip(order, written, strict=True):
        which, index, item = asked[place]
        graded[which, index] = GradedItem(item.prompt, item.answer.written(), response, grade(item, response))
        on_item()
    results = []
    for which, items in enumerate(sets):
        of_axis = tuple(graded[which, index] for index in range(len(items)))
        right = sum(one.grade.score == 1.0 for one in of_axis)
        results.append(AxisResult(items.axis, proportion(right, len(of_axis)), of_axis))
    return results
