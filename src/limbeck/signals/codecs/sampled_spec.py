"""Settings of codec `sampled`, and the grids that weights lie on."""

import math
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from limbeck.settings import Settings

LARGEST_UNIT, UNIT_STEPS = (1 << 16) - 1, 2048  # a draw's weight is 2 ** (-code / 2048)
LARGEST_WEIGHT, WEIGHT_STEPS, WEIGHT_OCTAVES = (1 << 8) - 1, 8, 17  # an entry's own weight is 2 ** (17 - code / 8)
TOP_LEVEL = 1 << 20

Floats = NDArray[np.float64]


class SampledSpec(Settings):
    """How a distribution is drawn from.

    Attributes:
        threshold: tokens of this probability or more, the *head*, are all kept, each with its probability for weight.
            1 keeps none: then every token is drawn. With `draws` unset it is also the weight of a draw.
        draws: how many times the *tail*, all other tokens, is drawn from; by default as often as its mass is a multiple
            of `threshold`, which spends bytes on a position where there is mass to spend them on.
        proposal_temperature: draws are proportional to `p ** (1 / proposal_temperature)`; needs `draws` unless 1.
        head_step: probabilities of the head are rounded, at random and without bias, to uniform steps of their square
            root; this is the step in units of `sqrt(threshold)`.
        tail_logprob_bits: bits for the log-probability of a drawn token, in half octaves below the threshold. Gradients
            do not need it; the value of a divergence does. With 0 it reads as the threshold's.
    """

    codec: Literal["sampled"] = "sampled"
    version: Literal[1] = 1
    threshold: float = Field(default=6e-3, gt=0, le=1)
    draws: int | None = Field(default=None, ge=1, le=65536)
    proposal_temperature: float = Field(default=1.0, ge=1)
    head_step: float = Field(default=0.1, gt=0, le=4)
    tail_logprob_bits: int = Field(default=0, ge=0, le=8)

    @model_validator(mode="after")
    def _check(self) -> "SampledSpec":
        if self.draws is None and self.proposal_temperature != 1.0:
            raise ValueError("proposal_temperature needs draws: without it draws are proportional to probability")
        if self.draws is None and self.threshold == 1.0:
            raise ValueError("threshold 1 keeps no token for certain: set draws")
        if self.draws is None and self.threshold < 1e-6:
            raise ValueError("a threshold below 1e-6 draws more than a million times: set draws")
        if self.levels > TOP_LEVEL:
            raise ValueError(f"head_step {self.head_step:g} makes more than {TOP_LEVEL} levels")
        return self

    @property
    def levels(self) -> int:
        """Return how many steps there are from the threshold to the first one that is not below 1."""
        return math.ceil((1 - math.sqrt(self.threshold)) / (self.head_step * math.sqrt(self.threshold)))

    @property
    def edge(self) -> float:
        """Return the least float32 log-probability of an entry of the head; entries of the tail are below it."""
        return float(np.float32(math.log(self.threshold)))

    @property
    def mode(self) -> Literal["threshold", "counts", "weights"]:
        """Return how a drawn token's weight is stored: not at all, as a count of a common unit, or on its own."""
        if self.draws is None:
            return "threshold"
        return "counts" if self.proposal_temperature == 1.0 else "weights"


@lru_cache(maxsize=16)
def head_weights(spec: SampledSpec) -> Floats:
    """Return the `levels + 1` weights that a head token can have, rising from the threshold to above 1."""
    root = math.sqrt(spec.threshold)
    weights: Floats = np.square(root + spec.head_step * root * np.arange(spec.levels + 1, dtype=np.float64))
    weights[0] = spec.threshold
    return weights


@cache
def unit_weights() -> Floats:
    """Return the weights that one draw can have, by code."""
    return np.asarray(2.0 ** (-np.arange(LARGEST_UNIT + 1) / UNIT_STEPS))


@cache
def entry_weights() -> Floats:
    """Return the weights that a token drawn at another temperature can have, by code; falling, the last one 0."""
    weights = 2.0 ** (WEIGHT_OCTAVES - np.arange(LARGEST_WEIGHT + 1) / WEIGHT_STEPS)
    weights[-1] = 0.0
    return np.asarray(weights)


def round_at_random(values: Floats, grid: Floats, numbers: Floats) -> NDArray[np.int64]:
    """Return indices into a monotone `grid` whose expected grid value is `values`, which lie within its range.

    Each value becomes one of its two neighbours, by its own uniform number, with the odds that make the mean right.
    """
    rising = grid if grid[0] < grid[-1] else grid[::-1]
    low = np.clip(np.searchsorted(rising, values, side="right") - 1, 0, len(grid) - 2)
    share = (values - rising[low]) / (rising[low + 1] - rising[low])
    index = low + (numbers < share)
    return np.asarray(index if grid[0] < grid[-1] else len(grid) - 1 - index, dtype=np.int64)
