"""Ranking losses: the student is to order the listed tokens as the teacher does.

Over all pairs (k, l) of listed tokens with p(k) > p(l) + eps and p(l) > eps:

    hinge            = mean of max(0, margin - (q(k) - q(l)))          q: student's probability, p: teacher's
    logistic_ranking = mean of log(1 + exp(-(log q(k) - log q(l))))    log q(k) - log q(l): a difference of logits

`hinge` is in probability, `logistic_ranking` in nats (Burges et al., RankNet, 2005). `margin` is the same for all
pairs; `adaptive_hinge` takes the teacher's own, p(k) - p(l). A position without such a pair is worth 0.

Defined where a teacher lists tokens (`topk`, `sampled`). Not on `dense` and `hidden`: the pairs of a vocabulary can't
be held. The tail bucket is no token and has no rank. Neither is multiplied by T squared.
"""

import torch.nn.functional as F
from torch import Tensor

from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss

SIGNALS = ("topk", "sampled")
EPSILON = 1e-8  # probabilities that differ by less are a tie


@loss("hinge", signals=SIGNALS, scales_with_temperature=False, ranges={"margin": (0.0, 2.0)}, pairwise=True)
def hinge(outcomes: Outcomes, *, margin: float = 0.1) -> Tensor:
    """Return the loss of each token with those that it should outrank, `[n, K]`, in probability."""
    q = outcomes.listed().q
    return _mean_over_pairs(outcomes, F.relu(margin - _differences(q)))


@loss("adaptive_hinge", signals=SIGNALS, scales_with_temperature=False, pairwise=True)
def adaptive_hinge(outcomes: Outcomes) -> Tensor:
    """Return the same with the teacher's own margins, `[n, K]`, in probability."""
    listed = outcomes.listed()
    return _mean_over_pairs(outcomes, F.relu(_differences(listed.p) - _differences(listed.q)))


@loss("logistic_ranking", signals=SIGNALS, scales_with_temperature=False, pairwise=True)
def logistic_ranking(outcomes: Outcomes) -> Tensor:
    """Return the loss of each token with those that it should outrank, `[n, K]`, in nats."""
    return _mean_over_pairs(outcomes, F.softplus(-_differences(outcomes.listed().log_q)))


def _differences(x_nK: Tensor) -> Tensor:
    return x_nK.unsqueeze(-1) - x_nK.unsqueeze(-2)


def _mean_over_pairs(outcomes: Outcomes, values_nKK: Tensor) -> Tensor:
    p = outcomes.listed().p
    ordered_nKK = (_differences(p) > EPSILON) & (p > EPSILON).unsqueeze(-2)
    pairs_n1 = ordered_nKK.sum((-2, -1)).clamp_min(1).unsqueeze(-1)
    return values_nKK.masked_fill(~ordered_nKK, 0.0).sum(-1) / pairs_n1
