"""Exercises with simple Python functions: complete one from its description, or say what one returns."""

from random import Random

from limbeck.evaluate.answers import Integer, Words
from limbeck.evaluate.axes.registry import Item, Scale
from limbeck.pocket.exercises.registry import exercise

LETTERS = "abcdefghijklmnopqrstuvwxyz"

TASKS: tuple[tuple[str, str], ...] = (
    ("{x} plus {n}", "{x} + {n}"),
    ("{x} minus {n}", "{x} - {n}"),
    ("{x} times {n}", "{x} * {n}"),
    ("the remainder of {x} by {n}", "{x} % {n}"),
    ("whether {x} is more than {n}", "{x} > {n}"),
    ("whether {x} is less than {n}", "{x} < {n}"),
    ("whether {x} equals {n}", "{x} == {n}"),
    ("the larger of {x} and {n}", "max({x}, {n})"),
    ("the smaller of {x} and {n}", "min({x}, {n})"),
    ("{x} to the power {n}", "{x} ** {n}"),
    ("the first {n} of {x}", "{x}[:{n}]"),
    ("the last {n} of {x}", "{x}[-{n}:]"),
    ("{x} repeated {n} times", "[{x}] * {n}"),
    ("item {n} of {x}", "{x}[{n}]"),
    ("the sum of {x} and the length {n}", "sum({x}) + {n}"),
    ("the quotient of {x} by {n}", "{x} // {n}"),
)


@exercise("complete_function", difficulty=Scale(low=1, default=2, high=3, unit="digits of the constant"))
def complete_function(rng: Random, digits: int) -> Item:
    """Write the expression that a one-line function returns, from its docstring."""
    name, argument = rng.sample(LETTERS, 2)
    words, code = rng.choice(TASKS)
    constant = rng.randint(1, 10**digits - 1)
    described, expression = (text.format(x=argument, n=constant) for text in (words, code))
    operands = code.format(x="x", n=constant)  # the names are free
    prompt = f'Complete.\ndef {name}({argument}):\n    """Return {described}."""\n    return'
    return Item(prompt, Words(expression), operands=operands)


@exercise("call_function", difficulty=Scale(low=1, default=2, high=4, unit="digits of the argument"))
def call_function(rng: Random, digits: int) -> Item:
    """Say what a one-line function returns for an argument."""
    name, argument = rng.sample(LETTERS, 2)
    constant, given = rng.randint(1, 9), rng.randrange(10**digits)
    operator, value = rng.choice(
        (("+", given + constant), ("-", given - constant), ("*", given * constant), ("max", max(given, constant)))
    )
    body = f"max({argument}, {constant})" if operator == "max" else f"{argument} {operator} {constant}"
    prompt = f"def {name}({argument}):\n    return {body}\n{name}({given}) = ?"
    first, second = (given, constant) if operator == "-" else sorted((given, constant))  # the others commute
    return Item(prompt, Integer(value), operands=f"{first} {operator} {second}")
