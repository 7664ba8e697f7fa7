"""The registry of losses: what each is made of, where it is defined, and which parameters it takes.

A loss is a function of `Outcomes`: it returns what each outcome contributes, `[n, M]`, and its value at a position is
the sum over outcomes. A second function may give the derivative of a contribution by the student's log-probability of
that outcome; where there is none, the executor differentiates the first. Everything else (temperature, masks,
averaging, chunks, the way from log-probabilities to logits) is the executor's.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from limbeck.errors import UserError
from limbeck.settings import nearest

LossFunction = Callable[..., Tensor]
Range = tuple[float, float]  # both ends excluded
Over = Literal["teacher", "target", "states", "ranks", "relations"]


@dataclass(frozen=True)
class Loss:
    """A registered loss.

    Attributes:
        name: as recipes spell it.
        contributions: `(outcomes, **parameters) -> [n, M]`, in nats unless its file says otherwise.
        signals: the kinds of signal on which it is defined; empty for a loss that needs no teacher.
        derivative: `(outcomes, **parameters) -> [n, M]`, of each contribution by `log_q` of its outcome; None: the
            contributions are differentiated.
        over: what it sees: the outcomes that the teacher tells of; the one token that the text goes on with; or no
            outcomes, but the final hidden states of both, as `(student_ND, teacher_ND) -> [N, M]`. `ranks` is as
            `teacher`, but the teacher's outcomes may be those of another vocabulary: only their order is looked at.
            `relations`: what positions attend with inside a block; not the executor's, but `alignment`'s.
        scales_with_temperature: multiply by T squared, so that gradients keep their size (Hinton et al.).
        slope: `(**parameters) -> c`, the growth of a contribution with q where q is far above p. `c * (q - p)` sums to
            0 over the vocabulary, so a `sampled` teacher may leave it out, and what is left has a small variance.
        ranges: the open interval that each parameter must lie in.
        pairwise: whether it compares all pairs of outcomes, and needs memory for M squared.
        parameters: the defaults of its parameters, or what a recipe sets.
    """

    name: str
    contributions: LossFunction
    signals: tuple[str, ...] = ()
    derivative: LossFunction | None = None
    over: Over = "teacher"
    scales_with_temperature: bool = True
    slope: Callable[..., float] = lambda **_: 0.0
    ranges: Mapping[str, Range] = field(default_factory=dict)
    pairwise: bool = False
    parameters: Mapping[str, float] = field(default_factory=dict)

    def with_parameters(self, given: Mapping[str, float]) -> "Loss":
        """Return the loss with other parameters.

        Raises:
            UserError: it has no such parameter, or the value is outside its range.
        """
        for name, value in given.items():
            if name not in self.parameters:
                raise UserError(f"{self.name}: no parameter is called {name!r}.{nearest(name, list(self.parameters))}")
            low, high = self.ranges.get(name, (-math.inf, math.inf))
            if not low < value < high:
                raise UserError(f"{self.name}: {name} is {value:g}, but has to lie between {low:g} and {high:g}.")
        return replace(self, parameters={**self.parameters, **given})


_LOSSES: dict[str, Loss] = {}


def loss(
    name: str,
    *,
    signals: Iterable[str] = (),
    derivative: LossFunction | None = None,
    over: Over = "teacher",
    scales_with_temperature: bool = True,
    slope: Callable[..., float] = lambda **_: 0.0,
    ranges: Mapping[str, Range] | None = None,
    pairwise: bool = False,
) -> Callable[[LossFunction], LossFunction]:
    """Register the decorated contributions as the loss `name`; see `Loss`. Keyword arguments are its parameters."""

    def register(contributions: LossFunction) -> LossFunction:
        parameters = {
            key: parameter.default
            for key, parameter in inspect.signature(contributions).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        if name in _LOSSES:
            raise ValueError(f"loss {name} is registered twice")
        _LOSSES[name] = Loss(
            name, contributions, tuple(signals), derivative, over, scales_with_temperature, slope, ranges or {},
            pairwise, parameters,
        )  # fmt: skip
        return contributions

    return register


def get_loss(name: str) -> Loss:
    """Return a registered loss.

    Raises:
        UserError: there is none of that name.
    """
    if name not in _LOSSES:
        raise UserError(f"no loss is called {name!r}.{nearest(name, list(_LOSSES))}")
    return _LOSSES[name]


def all_losses() -> list[Loss]:
    """Return the registered losses, sorted by name."""
    return [_LOSSES[name] for name in sorted(_LOSSES)]
