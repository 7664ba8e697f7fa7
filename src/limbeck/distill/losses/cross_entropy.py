"""Cross-entropy with the token that the text goes on with: the hard label.

    CE = -log q(target)                            q: student

Needs no teacher. Hard labels have no temperature: it is not multiplied by T squared.
"""

import torch
from torch import Tensor

from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss


def derivative(outcomes: Outcomes) -> Tensor:
    """Return -1."""
    return torch.full_like(outcomes.log_q, -1.0)


@loss("cross_entropy", over="target", derivative=derivative, scales_with_temperature=False)
def cross_entropy(outcomes: Outcomes) -> Tensor:
    """Return `-log q` of the target, `[n, 1]`, in nats."""
    return -outcomes.log_q
