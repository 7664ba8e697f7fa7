"""Responses that answer nothing: each takes an item and returns a text that must not score more than a guess.

An adversary knows the house's format and sees the whole item, its gold answer included where it hides it among others.
"""

from collections.abc import Callable

from limbeck.evaluate.axes import Item

Adversary = Callable[[Item], str]


def empty(item: Item) -> str:
    """Say nothing."""
    return ""


def abstain(item: Item) -> str:
    """Declare that there is no answer."""
    return "I can't tell.\nAnswer: none"


def echo(item: Item) -> str:
    """Give the prompt back."""
    return item.prompt


def echo_as_answer(item: Item) -> str:
    """Declare the whole prompt as the answer."""
    return f"Answer: {' '.join(item.prompt.split())}"


def bare_answer(item: Item) -> str:
    """Give the right answer without declaring it."""
    return item.answer.written()


def two_answers(item: Item) -> str:
    """Declare something else, then the right answer."""
    return f"Answer: 17\nAnswer: {item.answer.written()}"


def right_then_wrong(item: Item) -> str:
    """Declare the right answer, then something else."""
    return f"Answer: {item.answer.written()}\nAnswer: 17"


def the_same_twice(item: Item) -> str:
    """Declare the right answer twice."""
    return f"Answer: {item.answer.written()}\nAnswer: {item.answer.written()}"


def talks_on(item: Item) -> str:
    """Declare the right answer, then go on."""
    return f"Answer: {item.answer.written()}\nBut it may be something else."


def two_on_one_line(item: Item) -> str:
    """Declare two answers at once, one of them right."""
    return f"Answer: {item.answer.written()} or 17"


def every_number(item: Item) -> str:
    """Declare every number up to 1,000."""
    return f"Answer: {' '.join(map(str, range(1000)))}"


def every_word(item: Item) -> str:
    """Declare every word of the prompt, the truth values, and the right answer."""
    return f"Answer: {', '.join({*item.prompt.split(), 'True', 'False', item.answer.written()})}"


def every_number_a_line(item: Item) -> str:
    """Declare every number up to 1,000, each on a line."""
    return "\n".join(f"Answer: {number}" for number in range(1000))


def a_pattern(item: Item) -> str:
    """Declare what would match anything if it were a pattern."""
    return "Answer: .*"


ADVERSARIES: tuple[Adversary, ...] = (
    empty, abstain, echo, echo_as_answer, bare_answer, two_answers, right_then_wrong, the_same_twice, talks_on,
    two_on_one_line, every_number, every_word, every_number_a_line, a_pattern,
)  # fmt: skip
