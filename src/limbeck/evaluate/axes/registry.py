"""The registry of axes: what an axis is, and the one door by which built-ins and plug-ins come in.

An axis is a pure generator `(rng, difficulty) -> Item`. Everything random comes from the generator that it is handed,
so an item is the same on every machine and for every `PYTHONHASHSEED`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from limbeck.errors import UserError
from limbeck.evaluate.grading import by_answer
from limbeck.evaluate.items import Grade, Grader, Item, Response, Workbench

Generator = Callable[[Random, int], Item]
__all__ = ["Axis", "Generator", "Item", "Scale", "all_axes", "axis", "get_axis"]


@dataclass(frozen=True)
class Scale:
    """What the difficulty of an axis counts, and the range in which it makes sense."""

    low: int
    default: int
    high: int
    unit: str


@dataclass(frozen=True)
class Axis:
    """A registered axis.

    Attributes:
        name: as settings and results spell it.
        generator: makes one item.
        difficulty: its scale.
        about: what it asks for, in one line.
        story: the docstring of its module: what it measures, how, after whom, and what its difficulty counts.
        grader: what a response is worth.
        guess: expected score of the best responder that can't do the task, at default difficulty: where the axis' zero
            lies.
        tokens: longest response, in tokens.
    """

    name: str
    generator: Generator
    difficulty: Scale
    about: str
    story: str = ""
    grader: Grader = by_answer
    guess: float = 0.0
    tokens: int = 512

    def draw(self, rng: Random, difficulty: int | None = None) -> Item:
        """Draw one item; `difficulty` defaults to the scale's default.

        Raises:
            UserError: the difficulty is outside the axis' scale.
        """
        level = self.difficulty.default if difficulty is None else difficulty
        scale = self.difficulty
        if not scale.low <= level <= scale.high:
            raise UserError(f"axis {self.name}: difficulty {level} is outside {scale.low}..{scale.high} {scale.unit}.")
        return self.generator(rng, level)

    def grade(self, item: Item, response: Response, bench: Workbench) -> Grade:
        """Return what a response to an item of this axis is worth; one with a fault is worth nothing."""
        if response.fault:
            return Grade(0.0, None, response.fault)
        return self.grader(item, response, bench)


_AXES: dict[str, Axis] = {}


def axis(
    name: str, *, difficulty: Scale, grader: Grader = by_answer, guess: float = 0.0, tokens: int = 512
) -> Callable[[Generator], Generator]:
    """Register the decorated generator as the axis `name`; its docstring's first line says what it asks for.

    Args:
        name: of the axis.
        difficulty: its scale.
        grader: by default the declared answer's; see `limbeck.evaluate.grading`.
        guess: see `Axis`.
        tokens: longest response, in tokens.
    """

    def register(generator: Generator) -> Generator:
        if name in _AXES:
            raise ValueError(f"axis {name} is registered twice")
        about = (generator.__doc__ or "").strip().splitlines()
        story = (sys.modules[generator.__module__].__doc__ or "").strip()
        _AXES[name] = Axis(name, generator, difficulty, about[0] if about else "", story, grader, guess, tokens)
        return generator

    return register


def get_axis(name: str) -> Axis:
    """Return a registered axis.

    Raises:
        UserError: there is none of that name; the message lists those there are.
    """
    try:
        return _AXES[name]
    except KeyError:
        raise UserError(f"no axis is called {name!r}. Registered: {', '.join(sorted(_AXES))}.") from None


def all_axes(prefix: str = "") -> list[Axis]:
    """Return the registered axes whose names start with `prefix`, sorted by name."""
    return [_AXES[name] for name in sorted(_AXES) if name.startswith(prefix)]
