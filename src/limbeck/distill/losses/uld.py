"""Universal Logit Distillation: the sorted probabilities of two models, whose vocabularies may differ.

    ULD = sum_r |p_(r) - q_(r)|        p_(r): the teacher's r-th largest probability, q_(r): the student's

The shorter list is filled up with zeros (Boizard et al., arXiv:2402.12030). That is the Wasserstein-1 distance of the
two distributions where moving mass from any token to any other costs the same, so it asks no question about which token
is which: only how certain the teacher is, and among how many. It lies between 0 and 2, and tells nothing of *what* to
say; recipes combine it with `cross_entropy`, as the authors do.

The matching of ranks is constant where no two of the student's probabilities are equal, so the derivative by a token's
probability is the sign of its difference from its partner; at a tie it is one of the subgradients.

It is a distance of probabilities, like `tvd`: not multiplied by T squared. It is exact, and costs a sort of both
vocabularies at each position. Defined where a teacher tells of its whole vocabulary; a sorted list of K of them says
nothing of the ranks behind.
"""

import numpy as np
import torch
from torch import Tensor

from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import loss


@loss("uld", signals=("dense", "hidden"), over="ranks", scales_with_temperature=False)
def universal_logit_distance(outcomes: Outcomes) -> Tensor:
    """Return `|q - partner|`, `[n, V]`, in probability; what the teacher has beyond V ranks is added to the first."""
    partners_nV, beyond_n = partners(outcomes.q, outcomes.p)
    values_nV = (outcomes.q - partners_nV).abs()
    values_nV[:, 0] += beyond_n
    return values_nV


@torch.no_grad()
def partners(q_nV: Tensor, p_nW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the teacher's probability of the rank of each of the student's tokens, and its mass in further ranks.

    Args:
        q_nV: the student's probabilities.
        p_nW: the teacher's.

    Returns:
        `[n, V]`, 0 for ranks that the teacher does not have; and `[n]`, 0 unless W is larger than V.
    """
    v, w = q_nV.shape[-1], p_nW.shape[-1]
    both = min(v, w)
    rising_nW = _sorted(p_nW)
    matched_nV = torch.zeros_like(q_nV)
    matched_nV.scatter_(-1, _order(q_nV)[:, v - both :], rising_nW[:, w - both :].to(q_nV.dtype))
    return matched_nV, rising_nW[:, : w - both].sum(-1).to(q_nV.dtype)


def _sorted(x: Tensor) -> Tensor:
    """Return `x` with rising rows; numpy sorts a row of a vocabulary three times as fast as torch does on a CPU."""
    return torch.from_numpy(np.sort(x.detach().numpy(), -1)) if x.device.type == "cpu" else x.sort(-1).values


def _order(x: Tensor) -> Tensor:
    """Return the places of the entries of `x` in rising order."""
    return torch.from_numpy(np.argsort(x.detach().numpy(), -1)) if x.device.type == "cpu" else x.argsort(-1)
