"""Exercises on facts in a short context: look-up, chains of variables, two hops, truth values."""

from random import Random

from limbeck.evaluate.answers import Integer, Words
from limbeck.evaluate.axes.registry import Item, Scale
from limbeck.pocket.exercises.registry import exercise

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = (
    "Ann", "Ben", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo",
    "Max", "Nora", "Otto", "Pia", "Quin", "Ray", "Sue", "Tom", "Uma", "Vic", "Wes", "Zoe",
)  # fmt: skip


@exercise("lookup", difficulty=Scale(low=2, default=5, high=24, unit="pairs"))
def lookup(rng: Random, count: int) -> Item:
    """Give the number that stands beside a name."""
    keys = rng.sample(LETTERS, count)
    values = [rng.randrange(100) for _ in keys]
    wanted = rng.randrange(count)
    pairs = " , ".join(f"{key} = {value}" for key, value in zip(keys, values, strict=True))
    return Item(f"{pairs} . {keys[wanted]} = ?", Integer(values[wanted]), operands=f"{pairs} {keys[wanted]}")


@exercise("variables", difficulty=Scale(low=2, default=3, high=12, unit="assignments in the chain"))
def variables(rng: Random, count: int) -> Item:
    """Follow a chain of assignments from a number to its last name, past one assignment that leads nowhere."""
    names = rng.sample(LETTERS, count + 1)
    value, other = rng.randrange(100), rng.randrange(100)
    steps = [f"{names[0]} = {value}"] + [f"{names[i]} = {names[i - 1]}" for i in range(1, count)]
    steps.insert(rng.randint(0, count), f"{names[count]} = {other}")
    shown = " ; ".join(steps)
    return Item(f"{shown} . {names[count - 1]} = ?", Integer(value), operands=shown)


@exercise("two_hops", difficulty=Scale(low=3, default=4, high=12, unit="facts"))
def two_hops(rng: Random, count: int) -> Item:
    """Find whom someone's helper helps: two facts that have to be joined, among others."""
    first, middle, last, *others = rng.sample(NAMES, 3 + 2 * (count - 2))
    facts = [f"{first} helps {middle} .", f"{middle} helps {last} ."]
    facts += [f"{a} helps {b} ." for a, b in zip(others[::2], others[1::2], strict=True)]
    operands = f"{first} {middle} {last}"
    rng.shuffle(facts)
    return Item(f"{' '.join(facts)} {first} helps who helps who ?", Words(last), operands=operands)


@exercise("truth", difficulty=Scale(low=4, default=6, high=16, unit="truth values"))
def truth(rng: Random, count: int) -> Item:
    """Work out a row of truth values joined by `and` and `or`, from left to right."""
    value = rng.random() < 0.5
    words = [str(value)]
    for _ in range(count - 1):
        operator, other = rng.choice(("and", "or", "xor")), rng.random() < 0.5
        words += [operator, str(other)]
        value = (value and other) if operator == "and" else (value or other) if operator == "or" else value != other
    expression = " ".join(words)
    return Item(f"From left to right , {expression} is ?", Words(str(value)), operands=expression)
