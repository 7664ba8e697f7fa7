"""What a run does with ternary layers: sets how strongly they round before each step, and reports on their health.

Strength and weight decay are functions of the step alone, so a run that is resumed needs nothing to go on with them.
Held-out rows are measured, and students saved, with all of the rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from limbeck.distill.recipe import OptimizerSettings, QuantisationSettings
from limbeck.errors import UserError
from limbeck.models.bitnet.health import HealthMonitor, summary
from limbeck.models.bitnet.linear import set_strength, ternary_layers
from limbeck.progress import say

PREFIX = "ternary/"


def ramp_of(settings: QuantisationSettings | None, steps: int) -> int:
    """Return the first step, counted from 0, that is taken with all of the rounding.

    Raises:
        UserError: the run has ended by then.
    """
    if settings is None:
        return 0
    ramp = settings.ramp_steps if settings.ramp_steps is not None else round((settings.ramp or 0.0) * steps)
    if steps > 0 and ramp >= steps:
        raise UserError(
            f"quantisation.ramp_steps: {ramp} steps, but the run has {steps}: no step would see all of the rounding. "
            "Choose fewer."
        )
    return ramp


def strength_at(step: int, ramp: int) -> float:
    """Return how much of the rounding a step, counted from 0, sees: 0 at the first, 1 from step `ramp` on."""
    return 1.0 if step >= ramp else step / ramp


def decay_at(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Return the weight decay of hidden matrices in a step, counted from 0, of so many."""
    return settings.weight_decay if step < settings.decay_until * steps or settings.decay_until == 1 else 0.0


class TernaryTraining:
    """The ternary layers of a student in training; does nothing for a student that has none.

    Args:
        student: not wrapped.
        settings: how the rounding sets in; None: all of it from the first step on.
    """

    def __init__(self, student: nn.Module, settings: QuantisationSettings | None) -> None:
        self._student = student
        self._settings = settings
        self._here = bool(ternary_layers(student))
        self._monitor: HealthMonitor | None = None
        self._looked = -1
        self._alarmed = False
        self._strength = 1.0

    def before_step(self, step: int, steps: int) -> None:
        """Set the strength of the rounding for a step, counted from 0, of so many."""
        if self._here:
            self._set(strength_at(step, ramp_of(self._settings, steps)))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Apply all of the rounding while the block runs."""
        before = self._strength
        self._set(1.0)
        try:
            yield
        finally:
            self._set(before)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Watch the layers while the block runs, and leave them with all of the rounding."""
        if not self._here:
            yield
            return
        self._monitor = HealthMonitor(self._student)
        try:
            with self._monitor.watching():
                yield
        finally:
            self._monitor = None
            self._set(1.0)

    def logged(self, step: int, largest: Callable[[float], float], *, speaks: bool) -> dict[str, float]:
        """Return what a log shows of the layers; say once if a scale fell tenfold.

        Args:
            step: that was just taken.
            largest: returns the largest of a number over ranks.
            speaks: whether this process may say something.
        """
        if self._monitor is None or self._sharded():
            return {}
        found = self._monitor.look()
        self._looked = step
        lines = self._monitor.alarms(found)
        if lines and not self._alarmed and speaks:
            more = f" (and {len(lines) - 1} more layers)" if len(lines) > 1 else ""
            say(f"warning: step {step}: {lines[0]}{more}")
        self._alarmed = self._alarmed or bool(lines)
        shown = summary(found)
        return {
            **shown,
            "ternary_largest_input": largest(shown["ternary_largest_input"]),
            "ternary_strength": self._strength,
            "ternary_fallen": float(len(lines)),
        }

    def unlogged(self, step: int) -> dict[str, Tensor]:
        """Return what the next log needs to be the same after a resume; behind a log it is little."""
        if self._monitor is None or self._sharded():
            return {}
        state = self._monitor.state(everything=self._looked != step)
        return {PREFIX + name: value for name, value in state.items()}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from what `unlogged` returned; without it, from the layers as they are."""
        if self._monitor is not None and not self._sharded():
            self._monitor.restore({name.removeprefix(PREFIX): v for name, v in sums.items() if name.startswith(PREFIX)})

    def _set(self, strength: float) -> None:
        if self._here and strength != self._strength:
            set_strength(self._student, strength)
            self._strength = strength

    def _sharded(self) -> bool:
        return any(isinstance(layer.weight, DTensor) for layer in ternary_layers(self._student).values())


def largest_over_ranks(gather: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[float], float]:
    """Return a function that returns the largest of a number over ranks."""
    return lambda value: float(gather(torch.tensor([value], device=device)).max().item())
