"""Settings of codec `topk`, and which entries of a distribution they keep."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.settings import Settings

LEVEL_BITS = 16
TOP_LEVEL = (1 << LEVEL_BITS) - 1
DEFAULT_STEP = 0.01


class TopkSpec(Settings):
    """How much of each distribution is kept, and how exactly.

    Attributes:
        select: what decides how many entries a position keeps (at least one, at most `cap`): `threshold` keeps the
            tokens of probability `threshold` or more; `mass` the fewest whose mass reaches `mass`; `count` keeps `cap`.
        cap: the most entries a position keeps.
        power: probabilities are rounded in uniform steps of `p ** power`: 0.5 costs the least KL divergence for its
            bytes, 1 the least error of the gradient.
        step: the width of these steps; by default `threshold ** power`, or 0.01 where no threshold decides.
        temperatures: where the log-normaliser of the whole distribution is stored, ascending; 1 is always among them.
    """

    codec: Literal["topk"] = "topk"
    version: Literal[2] = 2
    select: Literal["threshold", "mass", "count"] = "threshold"
    threshold: float = Field(default=5e-4, gt=0, lt=1)
    mass: float = Field(default=0.99, gt=0, le=1)
    cap: int = Field(default=256, ge=1, le=65536)
    power: float = Field(default=0.5, ge=0.1, le=1)
    step: float | None = Field(default=None, gt=0, lt=1)
    temperatures: tuple[float, ...] = (1.0, 2.0)

    @model_validator(mode="after")
    def _check(self) -> "TopkSpec":
        if list(self.temperatures) != sorted(set(self.temperatures)) or min(self.temperatures, default=0) <= 0:
            raise ValueError("temperatures must be positive and ascending")
        if 1.0 not in self.temperatures:
            raise ValueError("temperatures must include 1")
        if (1 - self.origin) / self.width > TOP_LEVEL:
            raise ValueError(f"step {self.width:g} makes more than {TOP_LEVEL} levels")
        return self

    @property
    def origin(self) -> float:
        """Return `p ** power` at the lower end of level 0."""
        return float(self.threshold**self.power) if self.select == "threshold" else 0.0

    @property
    def width(self) -> float:
        """Return the width of a level, in units of `p ** power`."""
        if self.step is not None:
            return self.step
        return float(self.threshold**self.power) if self.select == "threshold" else DEFAULT_STEP


def kept_counts(logprobs_NK: Tensor, spec: TopkSpec) -> Tensor:
    """Return `[N]`, how many of the leading entries `spec` keeps.

    Args:
        logprobs_NK: falling along K; `-inf` means absent.
        spec: what to keep.
    """
    present_N = (logprobs_NK > float("-inf")).sum(-1)
    if spec.select == "threshold":
        chosen_N = (logprobs_NK.exp() >= spec.threshold).sum(-1).clamp(min=1)
    elif spec.select == "mass":
        chosen_N = 1 + (logprobs_NK.exp().cumsum(-1) < spec.mass).sum(-1)
    else:
        chosen_N = torch.full_like(present_N, spec.cap)
    return torch.minimum(chosen_N, present_N).clamp(max=spec.cap)
