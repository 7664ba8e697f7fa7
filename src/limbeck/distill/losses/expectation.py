"""Expectations in which a zero weight silences even an infinite value."""

from torch import Tensor


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Return `weights * values` element by element, 0 wherever the weight is 0 (also where the value is not finite).

    The value is masked before the product as well as after it, so that no NaN reaches a gradient.
    """
    silent = weights == 0
    return (weights * values.masked_fill(silent, 0.0)).masked_fill(silent, 0.0)


def expectation(weights: Tensor, values: Tensor) -> Tensor:
    """Return `sum(weights * values)` over the last dimension, silent where a weight is 0."""
    return weighted(weights, values).sum(-1)
