"""Entropy-aware divergence: reverse KL where the teacher is sure, forward KL where it is not.

    EKL = g * KL(p || q) + (1 - g) * KL(q || p),  g = sigmoid((H(p) - threshold) / width)

Seeking one mode is right where the teacher has one, and loses the alternatives where it has many (Jin et al.,
arXiv:2603.07079). H is the entropy of the teacher's outcomes in nats: with a tail bucket a lower bound of the full one.
Not defined on `sampled`, as the reverse direction is not.
"""

import torch
from torch import Tensor

from limbeck.distill.losses.forward_kl import derivative as forward_derivative
from limbeck.distill.losses.forward_kl import forward_kl
from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss
from limbeck.distill.losses.reverse_kl import derivative as reverse_derivative
from limbeck.distill.losses.reverse_kl import reverse_kl


def derivative(outcomes: Outcomes, *, threshold: float, width: float) -> Tensor:
    """Return the mixture of both directions' derivatives; the gate does not depend on the student."""
    gate = _gate(outcomes, threshold, width)
    return reverse_derivative(outcomes).lerp_(forward_derivative(outcomes), gate)


@loss(
    "entropy_aware_kl",
    signals=("dense", "hidden", "topk"),
    derivative=derivative,
    ranges={"threshold": (0.0, float("inf")), "width": (0.0, float("inf"))},
)
def entropy_aware_kl(outcomes: Outcomes, *, threshold: float = 1.5, width: float = 0.5) -> Tensor:
    """Return `g * p * (log p - log q) + (1 - g) * q * (log q - log p)`, `[n, M]`, in nats."""
    return reverse_kl(outcomes).lerp_(forward_kl(outcomes), _gate(outcomes, threshold, width))


def _gate(outcomes: Outcomes, threshold: float, width: float) -> Tensor:
    entropy_n1 = outcomes.copy(outcomes.log_p).mul_(outcomes.p).sum(-1, keepdim=True).neg_()
    return torch.sigmoid((entropy_n1 - threshold) / width)
