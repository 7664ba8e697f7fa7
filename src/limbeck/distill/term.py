"""A configured loss: which, at which temperature, and how it enters the sum."""

from collections.abc import Mapping
from dataclasses import dataclass

from limbeck.distill.losses.registry import Loss
from limbeck.distill.teacher import Missing, check_missing, check_temperature
from limbeck.errors import UserError


@dataclass(frozen=True)
class Term:
    """One loss of a weighted sum.

    Attributes:
        loss: what is computed, with its parameters.
        weight: its share, used as given.
        temperature: of both distributions.
        missing: how mass that a `topk` signal doesn't list is accounted for; None: as well as the signal allows.
    """

    loss: Loss
    weight: float = 1.0
    temperature: float = 1.0
    missing: Missing | None = None

    @staticmethod
    def of(
        loss: Loss,
        weight: float = 1.0,
        temperature: float = 1.0,
        *,
        missing: str | None = None,
        parameters: Mapping[str, float] | None = None,
    ) -> "Term":
        """Return the term of a registered loss.

        Raises:
            UserError: the temperature is not positive, or the loss has no such parameter, or it is out of its range.
        """
        if not 0 < temperature < float("inf"):
            raise UserError(f"{loss.name}: temperature is {temperature:g}, but has to be positive.")
        chosen = None if missing is None else check_missing(missing)
        return Term(loss.with_parameters(parameters or {}), weight, temperature, chosen)

    @property
    def name(self) -> str:
        """The loss's name, as logs show it."""
        return self.loss.name

    @property
    def factor(self) -> float:
        """T squared where the loss asks for it, else 1."""
        return self.temperature**2 if self.loss.scales_with_temperature else 1.0

    def check(self, kind: str, captured: tuple[float, ...] = ()) -> None:
        """Refuse a signal that can't feed this loss.

        Args:
            kind: of the signal.
            captured: the temperatures whose normaliser a `topk` signal holds.

        Raises:
            UserError: the loss is not defined on this kind, or not at this temperature.
        """
        if not self.loss.signals:
            return
        if kind not in self.loss.signals:
            raise UserError(
                f"{self.name!r} is not defined on a {kind!r} signal (only on {', '.join(self.loss.signals)})."
            )
        check_temperature(kind, captured, self.temperature, self.missing)
