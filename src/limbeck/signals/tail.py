"""The logarithm of what is left: stable complements of probabilities that are known by their logarithm."""

import math

import torch
from torch import Tensor

LOG_HALF = -math.log(2.0)


def log_complement(x: Tensor) -> Tensor:
    """Return `log(1 - exp(x))` for `x <= 0`, elementwise.

    Two branches keep all digits: `log(-expm1(x))` close to 0 and `log1p(-exp(x))` far from it (Mächler, "Accurately
    computing log(1 - exp(-|a|))", 2012). Where `x` rounds to 0, or above it, the result is the logarithm of the
    dtype's smallest normal number and the gradient is 0: the complement is not known there, only that it is tiny.

    Args:
        x: log-probabilities, any shape; `-inf` gives 0. Half precision is computed in float32.

    Returns:
        The same shape, float32 or float64; finite with a finite gradient wherever `x` is not NaN.
    """
    x = x if x.dtype == torch.float64 else x.float()
    floor = torch.finfo(x.dtype).tiny
    close = x > LOG_HALF
    # each branch sees a harmless constant where the other one is taken: a NaN gradient times 0 is still NaN
    near = torch.log(-torch.expm1(torch.where(close, x, LOG_HALF).clamp(max=-floor)))
    far = torch.log1p(-torch.exp(torch.where(close, LOG_HALF, x)))
    return torch.where(close, near, far)
