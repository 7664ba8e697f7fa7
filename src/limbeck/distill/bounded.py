"""What a list of the most probable tokens says of the others: none of them is more probable than the last of the list.

A bucket knows the mass m of the teacher's tail and takes its shape from the student: of all distributions with this
mass, `m * x(v)` is the one nearest to the student's tail (x: its shares, which sum to 1). But the student may give a
token of the tail more than b, the least that a listed token has. Of all distributions that keep to this bound,

    p(v) = m * min(c * x(v), b / m),   c such that the sum is m

is the nearest, in whichever f-divergence: where the bound is not met, the ratio p/q has to be the same everywhere. So
tokens that the student overrates become outcomes of their own, with b as the teacher's probability, and the rest stays
a bucket. The divergence is a lower bound of the full one still, and never less than the bucket's.

For a student that is close to its teacher both are the same to three digits. For one that is far off, its mass is on
tokens that the list excludes, and only this sees it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 1024  # tokens that become outcomes of their own at one position
ROUNDS = 16  # at most, to find c; four to six are usual


@dataclass(frozen=True)
class Bound:
    """What a teacher says of its tail, `[n, 1]`: the logarithms of its mass, and of the most that a token can have.

    The latter is infinite where nothing is listed.
    """

    log_mass: Tensor
    log_most: Tensor


@dataclass(frozen=True)
class Completion:
    """Tokens of the tail that became outcomes, and the teacher's probabilities in parts of the tail's mass.

    Attributes:
        ids: `[n, J]`; where `present` is False, one that is not.
        present: `[n, J]`, bool.
        shares: `[n, J]`, of the student's tail.
        rest: `[n, 1]`, the student's share that is left.
        teacher: `[n, J + 1]`, for these tokens and for what is left; sums to 1.
    """

    ids: Tensor
    present: Tensor
    shares: Tensor
    rest: Tensor
    teacher: Tensor


def complete(q_nV: Tensor, sums_n1: Tensor, bound: Bound, listed_n1: Tensor) -> Completion:
    """Return the completion of a tail, and set the tokens that became outcomes to 0 in `q_nV`.

    Args:
        q_nV: the student's tail, non-negative; 0 at listed tokens.
        sums_n1: what its rows sum to.
        bound: what the teacher says of it.
        listed_n1: a listed token of each row, or any where nothing is listed.
    """
    bounds_n1 = (bound.log_most - bound.log_mass).exp().to(q_nV.dtype)
    ids_nJ, present_nJ = _overrated(q_nV, _least_overrated(q_nV, sums_n1, bounds_n1), listed_n1)
    q_nJ = q_nV.gather(-1, ids_nJ)
    q_nV.scatter_(-1, ids_nJ, q_nJ.masked_fill(present_nJ, 0.0))
    shares_nJ, rest_n1 = q_nJ.masked_fill(~present_nJ, 0.0) / sums_n1, q_nV.sum(-1, keepdim=True) / sums_n1
    teacher_nM = _fill(shares_nJ, rest_n1, bounds_n1.clamp(max=1.0))
    return Completion(ids_nJ, present_nJ, shares_nJ, rest_n1, teacher_nM)


def _least_overrated(q_nV: Tensor, sums_n1: Tensor, bounds_n1: Tensor) -> Tensor:
    """Return above which a token is overrated, `[n, 1]`: `bound / c`, in units of `q_nV`.

    c is 1 as long as no token is, and grows as tokens that are give up what they have above the bound to the others.
    """
    tiny = torch.finfo(q_nV.dtype).tiny
    least_n1, counts_n1 = sums_n1 * bounds_n1, torch.zeros_like(sums_n1)
    for _ in range(ROUNDS):
        above_nV = q_nV > least_n1
        before, counts_n1 = counts_n1, above_nV.sum(-1, keepdim=True).to(q_nV.dtype)
        if torch.equal(before, counts_n1):
            break
        left_n1 = (q_nV - q_nV * above_nV).sum(-1, keepdim=True)
        c_n1 = (1 - counts_n1 * bounds_n1).clamp(min=0.0) * sums_n1 / left_n1.clamp(min=tiny)
        least_n1 = torch.where(counts_n1 > 0, sums_n1 * bounds_n1 / c_n1.clamp(min=1.0), least_n1)
    return least_n1


def _overrated(q_nV: Tensor, least_n1: Tensor, listed_n1: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids of tokens above `least_n1`, and which of them are meant, both `[n, J]`."""
    above_nV = q_nV > least_n1
    counts_n = above_nV.sum(-1)
    width = int(counts_n.max()) if len(counts_n) else 0
    if width > MOST:
        values_nJ, ids_nJ = q_nV.topk(MOST)
        present_nJ = values_nJ > least_n1
        return torch.where(present_nJ, ids_nJ, listed_n1), present_nJ
    rows_m, tokens_m = above_nV.nonzero(as_tuple=True)
    places_m = torch.arange(len(rows_m), device=rows_m.device) - (counts_n.cumsum(0) - counts_n)[rows_m]
    ids_nJ = listed_n1.expand(-1, width).clone()
    ids_nJ[rows_m, places_m] = tokens_m
    return ids_nJ, torch.arange(width, device=rows_m.device) < counts_n.unsqueeze(-1)


def _fill(shares_nJ: Tensor, rest_n1: Tensor, bounds_n1: Tensor) -> Tensor:
    """Return `min(c * x, bound)` of J shares and of what is left, which is below the bound, `[n, J + 1]`; sums to 1."""
    falling_nJ, order_nJ = shares_nJ.sort(-1, descending=True)
    counts_J = torch.arange(shares_nJ.shape[-1], device=shares_nJ.device, dtype=shares_nJ.dtype)
    # what is left once the j largest are at the bound: of the student's mass, and of the teacher's
    students_nJ = rest_n1 + falling_nJ.flip(-1).cumsum(-1).flip(-1)
    teachers_nJ = (1 - counts_J * bounds_n1).clamp(min=0.0)
    tiny = torch.finfo(shares_nJ.dtype).tiny
    above_nJ = falling_nJ * teachers_nJ > bounds_n1 * students_nJ
    above_nJ = above_nJ.to(torch.uint8).cumprod(-1).bool()
    number_n1 = above_nJ.sum(-1, keepdim=True)
    left_n1 = rest_n1 + falling_nJ.masked_fill(above_nJ, 0.0).sum(-1, keepdim=True)
    scale_n1 = (1 - number_n1 * bounds_n1).clamp(min=0.0) / left_n1.clamp(min=tiny)
    filled_nJ = torch.where(above_nJ, bounds_n1, scale_n1 * falling_nJ)
    return torch.cat([torch.empty_like(filled_nJ).scatter_(-1, order_nJ, filled_nJ), scale_n1 * rest_n1], -1)
