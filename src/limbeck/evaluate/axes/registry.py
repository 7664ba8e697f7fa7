"""The registry of axes: what an axis is, and the one door by which built-ins and plug-ins come in.

An axis is a pure generator `(rng, difficulty) -> Item`. Everything random comes from the generator that it is handed,
so an item is the same on every machine and for every `PYTHONHASHSEED`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from limbeck.errors import UserError
from limbeck.evaluate.answers import Answer

Generator = Callable[[Random, int], "Item"]


@dataclass(frozen=True)
class Item:
    """One question with its gold answer.

    Attributes:
        prompt: what the model is asked, without any chat template.
        answer: the typed gold answer.
        operands: what makes this item this item, in canonical order (so that `3 + 4` and `4 + 3` are one): the key by
            which items are held out. Empty: the prompt itself.
    """

    prompt: str
    answer: Answer
    operands: str = ""

    @property
    def key(self) -> str:
        """Return what identifies the item's content."""
        return self.operands or self.prompt


@dataclass(frozen=True)
class Scale:
    """What the difficulty of an axis counts, and the range in which it makes sense."""

    low: int
    default: int
    high: int
    unit: str


@dataclass(frozen=True)
class Axis:
    """A registered axis."""

    name: str
    generator: Generator
    difficulty: Scale
    about: str

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


_AXES: dict[str, Axis] = {}


def axis(name: str, *, difficulty: Scale) -> Callable[[Generator], Generator]:
    """Register the decorated generator as the axis `name`; its docstring's first line says what it asks for."""

    def register(generator: Generator) -> Generator:
        if name in _AXES:
            raise ValueError(f"axis {name} is registered twice")
        about = (generator.__doc__ or "").strip().splitlines()
        _AXES[name] = Axis(name, generator, difficulty, about[0] if about else "")
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
