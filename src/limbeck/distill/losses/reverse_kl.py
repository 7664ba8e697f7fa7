"""Reverse Kullback-Leibler divergence, KL(student || teacher).

    RKL = sum_v q(v) * (log q(v) - log p(v))       p: teacher, q: student

The mode-seeking direction: the student pays for mass where the teacher has little (Gu et al., MiniLLM,
arXiv:2306.08543). A teacher that gives a token no mass at all charges for it as for e^-110, so that the value stays
finite.

It is not defined on `sampled`: tokens drawn from the teacher estimate it with weights q/p, whose variance is not
bounded. `skew_reverse_kl` is.
"""

from torch import Tensor

from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss


def derivative(outcomes: Outcomes) -> Tensor:
    """Return `q * (log q - log p + 1)`."""
    return outcomes.difference(outcomes.log_q, outcomes.log_p).add_(1.0).mul_(outcomes.q)


@loss("reverse_kl", signals=("dense", "hidden", "topk"), derivative=derivative)
def reverse_kl(outcomes: Outcomes) -> Tensor:
    """Return `q * (log q - log p)`, `[n, M]`, in nats."""
    return outcomes.difference(outcomes.log_q, outcomes.log_p).mul_(outcomes.q)
