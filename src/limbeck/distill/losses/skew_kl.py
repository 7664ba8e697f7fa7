"""Skew divergences: KL against a mixture, so that no ratio of probabilities grows without bound.

    skew_kl         = KL(p || alpha * p + (1 - alpha) * q)             p: teacher, q: student
    skew_reverse_kl = KL(q || alpha * q + (1 - alpha) * p)

Their gradients are bounded where those of the plain directions are not (Ko et al., DistiLLM, arXiv:2402.03898, which
recommends alpha = 0.1). At alpha = 0 they are the plain directions. Both can be estimated from `sampled` tokens without
bias and with a small variance; the reverse one with its linear growth left out (`slope`).
"""

import math

from torch import Tensor

from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss

SIGNALS = ("dense", "hidden", "topk", "sampled")
RANGES = {"alpha": (0.0, 1.0)}


def forward_derivative(outcomes: Outcomes, *, alpha: float) -> Tensor:
    """Return `-p * (1 - alpha) * q / m`."""
    students_share = outcomes.difference(outcomes.log_q, outcomes.log_mixture(alpha)).exp_()
    return students_share.mul_(outcomes.p).mul_(alpha - 1)


@loss("skew_kl", signals=SIGNALS, derivative=forward_derivative, ranges=RANGES)
def skew_kl(outcomes: Outcomes, *, alpha: float = 0.1) -> Tensor:
    """Return `p * (log p - log m)`, `m = alpha * p + (1 - alpha) * q`, `[n, M]`, in nats."""
    return outcomes.difference(outcomes.log_p, outcomes.log_mixture(alpha)).mul_(outcomes.p)


def reverse_derivative(outcomes: Outcomes, *, alpha: float) -> Tensor:
    """Return `q * (log q - log m + 1 - alpha * q / m)`."""
    log_ratio = outcomes.log_q - outcomes.log_mixture(1 - alpha)
    return log_ratio.sub_(outcomes.copy(log_ratio).exp_(), alpha=alpha).add_(1.0).mul_(outcomes.q)


@loss(
    "skew_reverse_kl",
    signals=SIGNALS,
    derivative=reverse_derivative,
    slope=lambda alpha: -math.log(alpha),
    ranges=RANGES,
)
def skew_reverse_kl(outcomes: Outcomes, *, alpha: float = 0.1) -> Tensor:
    """Return `q * (log q - log m)`, `m = alpha * q + (1 - alpha) * p`, `[n, M]`, in nats."""
    return outcomes.difference(outcomes.log_q, outcomes.log_mixture(1 - alpha)).mul_(outcomes.q)
