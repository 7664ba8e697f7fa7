"""Reverse KL estimated from the one token that the student drew: all that a teacher behind an API has to tell.

    d = log q(token) - log p(token),  token ~ q    p: teacher, q: student

    k1 = d                       unbiased, large variance
    k2 = d^2 / 2                 biased, small variance
    k3 = exp(-d) - 1 + d         unbiased, never negative, small variance

Schulman, "Approximating KL divergence" (2020), names the three. As losses they differ in their gradients. The gradient
of `k1` is taken as `d * grad log q(token)`, the score-function estimate: unbiased for the reverse KL's, and the same as
`k2`'s own. `k3`'s own gradient, `(1 - exp(-d)) * grad log q(token)`, is unbiased for the *forward* KL's instead.

All of this holds on text that the student wrote, at the temperature at which it wrote it; on other text the three say
how far apart the models are on that text's tokens, and no more. They are losses of single positions: that a token leads
to better or worse ones after it is not credited to it.
"""

from torch import Tensor

from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss

SIGNALS = ("dense", "hidden", "token")
LARGEST = 20.0  # exp(-d) where the student has e^-20 of the teacher's probability: enough to learn from


def _difference(outcomes: Outcomes) -> Tensor:
    return outcomes.log_q - outcomes.log_p


@loss("k1", signals=SIGNALS, over="target", derivative=_difference, scales_with_temperature=False)
def k1(outcomes: Outcomes) -> Tensor:
    """Return `d`, `[n, 1]`, in nats."""
    return _difference(outcomes)


@loss("k2", signals=SIGNALS, over="target", derivative=_difference, scales_with_temperature=False)
def k2(outcomes: Outcomes) -> Tensor:
    """Return `d^2 / 2`, `[n, 1]`, in square nats."""
    return _difference(outcomes).square_().mul_(0.5)


def k3_derivative(outcomes: Outcomes) -> Tensor:
    """Return `1 - exp(-d)`."""
    return 1 - _difference(outcomes).neg_().clamp_(max=LARGEST).exp_()


@loss("k3", signals=SIGNALS, over="target", derivative=k3_derivative, scales_with_temperature=False)
def k3(outcomes: Outcomes) -> Tensor:
    """Return `exp(-d) - 1 + d`, `[n, 1]`, in nats."""
    difference = _difference(outcomes)
    return difference.neg().clamp_(max=LARGEST).expm1_().add_(difference)
