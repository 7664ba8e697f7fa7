"""Forward Kullback-Leibler divergence, KL(teacher || student).

    KL = sum_v p(v) * (log p(v) - log q(v))        p: teacher, q: student

The mean-covering direction: the student pays wherever the teacher has mass (Hinton et al., arXiv:1503.02531).

With a tail bucket the value is a lower bound of the full one (merging outcomes never increases a divergence), equal to
it when both tails have the same shape. Nothing is renormalised: a student that puts mass on the wrong tail token is
charged for it. On `sampled` the value and its gradient are unbiased estimates, and the value may be negative.
"""

from torch import Tensor

from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss


def derivative(outcomes: Outcomes) -> Tensor:
    """Return `-p`."""
    return outcomes.copy(outcomes.p).neg_()


@loss("kl", signals=("dense", "hidden", "topk", "sampled"), derivative=derivative)
def forward_kl(outcomes: Outcomes) -> Tensor:
    """Return `p * (log p - log q)`, `[n, M]`, in nats."""
    return outcomes.difference(outcomes.log_p, outcomes.log_q).mul_(outcomes.p)
