"""Grading: a response against an item's typed answer, with the reason. A missing measurement is never credit."""

from dataclasses import dataclass

from limbeck.evaluate.answers import declared_answer
from limbeck.evaluate.axes.registry import Item


@dataclass(frozen=True)
class Grade:
    """What a response is worth (0 or 1), what was read as its answer, and why."""

    score: float
    answer: str | None
    reason: str


def grade(item: Item, response: str) -> Grade:
    """Grade one response: right only if its one declared last line states the gold value."""
    given = declared_answer(response)
    if given is None:
        return Grade(0.0, None, "no single 'Answer:' line at the end")
    if item.answer.accepts(given):
        return Grade(1.0, given, "right")
    return Grade(0.0, given, f"expected {item.answer.written()}")
