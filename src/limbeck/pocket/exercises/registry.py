"""Exercise families: what the pocket teacher is taught, and what its students are asked.

A family is an axis whose items are split by their operands: `held_out` says by the SHA-256 of family and operands
whether an item may ever be trained on. The axis `pocket_<family>` draws only held-out items; training draws only the
others. So an exercise that is asked was never seen, in any order of its operands.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from limbeck.evaluate.axes.registry import Generator, Item, Scale, axis

HELD_OUT_SHARE = 8  # one item in eight is only ever asked


@dataclass(frozen=True)
class Family:
    """One family of exercises."""

    name: str
    generator: Generator
    difficulty: Scale

    @property
    def axis_name(self) -> str:
        """Return the name of the axis that asks this family's held-out items."""
        return f"pocket_{self.name}"

    def draw_for_training(self, rng: Random) -> Item:
        """Draw an item that is never asked, at a difficulty between the scale's low and default."""
        while True:
            item = self.generator(rng, rng.randint(self.difficulty.low, self.difficulty.default))
            if not held_out(self.name, item):
                return item


def held_out(family: str, item: Item) -> bool:
    """Say whether an item is kept for asking."""
    return hashlib.sha256(f"{family}\0{item.key}".encode()).digest()[0] % HELD_OUT_SHARE == 0


_FAMILIES: dict[str, Family] = {}


def exercise(name: str, *, difficulty: Scale) -> Callable[[Generator], Generator]:
    """Register the decorated generator as a family and, over its held-out items, as the axis `pocket_<name>`.

    Args:
        name: of the family.
        difficulty: its scale.
    """

    def register(generator: Generator) -> Generator:
        def asked(rng: Random, level: int) -> Item:
            while True:
                item = generator(rng, level)
                if held_out(name, item):
                    return item

        asked.__doc__ = generator.__doc__
        axis(f"pocket_{name}", difficulty=difficulty)(asked)
        _FAMILIES[name] = Family(name, generator, difficulty)
        return generator

    return register


def all_families() -> list[Family]:
    """Return the families, sorted by name."""
    return [_FAMILIES[name] for name in sorted(_FAMILIES)]
