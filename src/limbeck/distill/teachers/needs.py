"""What the configured losses want of a teacher, known before it is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass

from limbeck.distill.term import Term
from limbeck.errors import UserError


@dataclass(frozen=True)
class Needs:
    """What a run asks of its teacher.

    Attributes:
        losses: the losses that read the teacher's signal: each one's name, and the kinds on which it is defined.
        temperatures: at which they compare.
        layers: the teacher's blocks whose outputs are compared, by index; for the `TeacherView`.
        relations: the teacher's blocks whose queries, keys and values are compared; for the `TeacherView`.
        ranks: whether all of them bear a teacher of another tokenizer.
        states: whether a loss compares final states themselves.
        vocabulary: size of the student's distributions; None: the teacher's own.
    """

    losses: tuple[tuple[str, tuple[str, ...]], ...] = ()
    temperatures: tuple[float, ...] = (1.0,)
    layers: tuple[int, ...] = ()
    relations: tuple[int, ...] = ()
    ranks: bool = False
    states: bool = False
    vocabulary: int | None = None

    @staticmethod
    def of(
        terms: Iterable[Term],
        *,
        layers: Iterable[int] = (),
        relations: Iterable[int] = (),
        vocabulary: int | None = None,
    ) -> "Needs":
        """Return what the terms that the executor computes need, and the blocks that the alignment looks at."""
        reading = [term for term in terms if term.loss.signals]
        return Needs(
            losses=tuple((term.name, term.loss.signals) for term in reading),
            temperatures=tuple(sorted({1.0, *(term.temperature for term in reading)})),
            layers=tuple(sorted(set(layers))),
            relations=tuple(sorted(set(relations))),
            ranks=bool(reading) and all(term.loss.over == "ranks" for term in reading),
            states=any(term.loss.over == "states" for term in reading),
            vocabulary=vocabulary,
        )

    def check(self, kind: str, advice: str, key: str = "teacher") -> None:
        """Refuse a kind of signal that can't feed a loss.

        Args:
            kind: what the teacher gives.
            advice: what to change.
            key: where the teacher stands in the recipe, for messages.

        Raises:
            UserError: a loss is not defined on it.
        """
        for name, kinds in self.losses:
            if kind not in kinds:
                raise UserError(
                    f"{key}: {name!r} is not defined on a {kind!r} signal, which this teacher gives "
                    f"(only on {', '.join(kinds)}). {advice}"
                )
