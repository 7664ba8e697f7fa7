"""Drawing items of an axis: distinct, reproducible, and named by a digest."""

from collections.abc import Iterator
from dataclasses import dataclass

from limbeck.errors import LimbeckError
from limbeck.evaluate.axes.registry import Item, get_axis
from limbeck.files import digest_of
from limbeck.seeds import derive_random

MAX_REPEATS = 1000


@dataclass(frozen=True)
class ItemSet:
    """The items of one axis in one evaluation."""

    axis: str
    items: tuple[Item, ...]

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def digest(self) -> str:
        """Return the SHA-256 over the items' prompts and answers, in order."""
        return digest_of([[item.prompt, type(item.answer).__name__, item.answer.written()] for item in self.items])


def generate(name: str, *, seed: str | int, count: int, difficulty: int | None = None) -> ItemSet:
    """Draw `count` different items of axis `name`; item `i` comes from `derive_seed(seed, name, i, attempt)`.

    Args:
        name: a registered axis.
        seed: a block hash, or a run's seed.
        count: how many items; they differ in what identifies them, not only in wording.
        difficulty: in the axis' unit; its default when absent.

    Raises:
        UserError: an unknown axis, or a difficulty outside its scale.
        LimbeckError: the axis has fewer than `count` different items at this difficulty.
    """
    drawn_from = get_axis(name)
    seen: set[str] = set()
    items: list[Item] = []
    for index in range(count):
        for attempt in range(MAX_REPEATS):
            item = drawn_from.draw(derive_random(seed, name, index, attempt), difficulty)
            if item.key not in seen:
                seen.add(item.key)
                items.append(item)
                break
        else:
            raise LimbeckError(
                f"axis {name}: fewer than {count} different items at difficulty {difficulty or 'default'}."
            )
    return ItemSet(name, tuple(items))
