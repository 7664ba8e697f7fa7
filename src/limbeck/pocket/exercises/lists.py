"""Exercises with rows of letters and digits: reverse, sort, count, find the missing one, copy by key."""

from random import Random

from limbeck.evaluate.answers import Integer, Words
from limbeck.evaluate.axes.registry import Item, Scale
from limbeck.pocket.exercises.registry import exercise

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@exercise("reverse", difficulty=Scale(low=3, default=5, high=16, unit="letters"))
def reverse(rng: Random, count: int) -> Item:
    """Write a row of letters backwards."""
    row = rng.choices(LETTERS, k=count)
    return Item(f"Reverse {' '.join(row)} .", Words(" ".join(reversed(row))))


@exercise("sorting", difficulty=Scale(low=3, default=5, high=16, unit="digits"))
def sorting(rng: Random, count: int) -> Item:
    """Sort digits from small to large."""
    row = [rng.randrange(10) for _ in range(count)]
    ordered = " ".join(map(str, sorted(row)))
    return Item(f"Sort {' '.join(map(str, row))} .", Words(ordered), operands=ordered)


@exercise("counting", difficulty=Scale(low=4, default=8, high=24, unit="letters"))
def counting(rng: Random, count: int) -> Item:
    """Count how often a letter stands in a row of three kinds of letters."""
    kinds = rng.sample(LETTERS, 3)
    row = rng.choices(kinds, k=count)
    wanted = rng.choice(kinds)
    places = list(dict.fromkeys(row))  # which letters they are does not matter: only which are the same
    pattern = "".join(str(places.index(letter)) for letter in row)
    asked_for = places.index(wanted) if wanted in places else "none"
    prompt = f"How many {wanted} in {' '.join(row)} ?"
    return Item(prompt, Integer(row.count(wanted)), operands=f"{pattern} {asked_for}")


@exercise("missing", difficulty=Scale(low=3, default=5, high=16, unit="letters"))
def missing(rng: Random, count: int) -> Item:
    """Find the letter of one row that a second, shuffled row lacks."""
    row = rng.sample(LETTERS, count)
    kept = list(row)
    lost = kept.pop(rng.randrange(count))
    rng.shuffle(kept)
    operands = f"{''.join(sorted(row))} {lost}"
    return Item(f"In {' '.join(row)} but not in {' '.join(kept)} ?", Words(lost), operands=operands)


@exercise("copy_by_key", difficulty=Scale(low=2, default=3, high=12, unit="rows"))
def copy_by_key(rng: Random, count: int) -> Item:
    """Copy the row of letters that stands after a key."""
    keys = rng.sample(LETTERS, count)
    rows = [" ".join(rng.choices(LETTERS, k=4)) for _ in keys]
    wanted = rng.randrange(count)
    table = "\n".join(f"{key} : {row}" for key, row in zip(keys, rows, strict=True))
    return Item(
        f"Copy the row {keys[wanted]} .\n{table}", Words(rows[wanted]), operands=f"{keys[wanted]} {rows[wanted]}"
    )
