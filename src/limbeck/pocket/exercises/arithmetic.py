"""Exercises with whole numbers: sum, difference, product, remainder, largest, next in a row."""

from random import Random

from limbeck.evaluate.answers import Integer
from limbeck.evaluate.axes.registry import Item, Scale
from limbeck.pocket.exercises.registry import exercise


def _below(rng: Random, digits: int) -> int:
    """Draw a number of at most `digits` digits, each length about as likely as any other."""
    return rng.randrange(10 ** rng.randint(1, digits))


@exercise("addition", difficulty=Scale(low=2, default=2, high=4, unit="digits"))
def addition(rng: Random, digits: int) -> Item:
    """Add two numbers."""
    a, b = rng.randrange(10**digits), rng.randrange(10**digits)
    return Item(f"{a} + {b} = ?", Integer(a + b), operands=f"{min(a, b)} {max(a, b)}")


@exercise("subtraction", difficulty=Scale(low=2, default=2, high=4, unit="digits"))
def subtraction(rng: Random, digits: int) -> Item:
    """Subtract the smaller of two numbers from the larger."""
    b, a = sorted((rng.randrange(10**digits), rng.randrange(10**digits)))
    return Item(f"{a} - {b} = ?", Integer(a - b), operands=f"{a} {b}")


@exercise("multiplication", difficulty=Scale(low=2, default=2, high=4, unit="digits behind a leading 0 or 1"))
def multiplication(rng: Random, digits: int) -> Item:
    """Multiply a number by one digit."""
    a, b = rng.randrange(2 * 10**digits), rng.randint(2, 9)
    return Item(f"{a} * {b} = ?", Integer(a * b), operands=f"{min(a, b)} {max(a, b)}")


@exercise("remainder", difficulty=Scale(low=2, default=2, high=4, unit="digits behind a leading 0 or 1"))
def remainder(rng: Random, digits: int) -> Item:
    """Give the remainder of a division by one digit."""
    a, b = rng.randrange(2 * 10**digits), rng.randint(2, 9)
    return Item(f"{a} % {b} = ?", Integer(a % b), operands=f"{a} {b}")


@exercise("largest", difficulty=Scale(low=2, default=4, high=12, unit="numbers"))
def largest(rng: Random, count: int) -> Item:
    """Name the largest of some numbers."""
    numbers = [_below(rng, 3) for _ in range(count)]
    shown = " ".join(map(str, numbers))
    return Item(f"Largest of {shown} ?", Integer(max(numbers)), operands=" ".join(map(str, sorted(numbers))))


@exercise("progression", difficulty=Scale(low=3, default=4, high=8, unit="terms shown"))
def progression(rng: Random, shown: int) -> Item:
    """Continue an arithmetic progression."""
    start, step = rng.randrange(200), rng.randint(2, 9)
    terms = [start + step * index for index in range(shown)]
    return Item(f"Next of {' '.join(map(str, terms))} ?", Integer(start + step * shown), operands=f"{start} {step}")
