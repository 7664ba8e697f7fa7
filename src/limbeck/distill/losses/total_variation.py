"""Total variation distance: the mass that has to move to make one distribution of the other.

    TVD = 1/2 * sum_v |p(v) - q(v)|                p: teacher, q: student

Between 0 and 1, and not in nats (Wen et al., f-Distill, arXiv:2307.15190). It is not multiplied by T squared: its
gradient does not shrink with T squared, and its value would leave [0, 1].

From `sampled` tokens it is estimated as the expectation of `max(0, 1 - q/p)`, which is the same number.
"""

from torch import Tensor

from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss


def derivative(outcomes: Outcomes) -> Tensor:
    """Return `1/2 * sign(q - p) * q`."""
    return outcomes.difference(outcomes.q, outcomes.p).sign_().mul_(outcomes.q).mul_(0.5)


@loss(
    "tvd",
    signals=("dense", "hidden", "topk", "sampled"),
    derivative=derivative,
    scales_with_temperature=False,
    slope=lambda: 0.5,
)
def total_variation(outcomes: Outcomes) -> Tensor:
    """Return `1/2 * |p - q|`, `[n, M]`, as a share of the mass."""
    return outcomes.difference(outcomes.p, outcomes.q).abs_().mul_(0.5)
