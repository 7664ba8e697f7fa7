"""Generalised Jensen-Shannon divergence: both directions against a mixture of the two distributions.

    JSD = beta * KL(p || m) + (1 - beta) * KL(q || m),  m = beta * p + (1 - beta) * q      p: teacher, q: student

Bounded, and symmetric at beta = 1/2, where it is at most log 2 (Agarwal et al., GKD, arXiv:2306.13649). Divided by
beta it tends to the forward KL as beta goes to 0, divided by 1 - beta to the reverse KL as beta goes to 1.

It is an f-divergence, and with its linear growth left out (`slope`) its estimate from `sampled` tokens is unbiased
with a small variance.
"""

import math

from torch import Tensor

from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss


def derivative(outcomes: Outcomes, *, beta: float) -> Tensor:
    """Return `(1 - beta) * q * (log q - log m)`."""
    return outcomes.difference(outcomes.log_q, outcomes.log_mixture(beta)).mul_(outcomes.q).mul_(1 - beta)


@loss(
    "jsd",
    signals=("dense", "hidden", "topk", "sampled"),
    derivative=derivative,
    slope=lambda beta: -(1 - beta) * math.log(1 - beta),
    ranges={"beta": (0.0, 1.0)},
)
def jensen_shannon(outcomes: Outcomes, *, beta: float = 0.5) -> Tensor:
    """Return `beta * p * (log p - log m) + (1 - beta) * q * (log q - log m)`, `[n, M]`, in nats."""
    log_m = outcomes.log_mixture(beta)
    teachers = outcomes.difference(outcomes.log_p, log_m).mul_(outcomes.p).mul_(beta)
    students = outcomes.difference(outcomes.log_q, log_m).mul_(outcomes.q)
    return teachers.add_(students, alpha=1 - beta)
