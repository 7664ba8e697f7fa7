"""Grading: a response against an item's typed answer, with the reason. A missing measurement is never credit."""

from limbeck.evaluate.answers import declared_answer
from limbeck.evaluate.items import Grade, Item, Response, Workbench

__all__ = ["Grade", "by_answer", "grade"]


def grade(item: Item, response: str) -> Grade:
    """Grade one response: right only if its one declared last line states the gold value."""
    given = declared_answer(response)
    if given is None:
        return Grade(0.0, None, "no single 'Answer:' line at the end")
    if item.answer.accepts(given):
        return Grade(1.0, given, "right")
    return Grade(0.0, given, f"expected {item.answer.written()}")


def by_answer(item: Item, response: Response, bench: Workbench) -> Grade:
    """Grade a response by its declared answer: the grader of every axis that names no other."""
    if response.fault:
        return Grade(0.0, None, response.fault)
    return grade(item, response.text)
