"""Losses on hidden states: the student's are to equal the teacher's, or to point the same way.

    hs_mse    = mean over d of (s_d - t_d)^2       s: student, t: teacher, both of width D
    hs_cosine = 1 - cos(s, t)

They say nothing of probabilities, and have no temperature. Where the two widths differ, the student's states go through
a learned projection first; that, and the choice of layers, is not here (Romero et al., FitNets, arXiv:1412.6550;
Sanh et al., DistilBERT, arXiv:1910.01108).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.distill.losses.registry import loss


@loss("hs_mse", signals=("hidden",), over="states", scales_with_temperature=False)
def hs_mse(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Return the squared difference of each number, over D, `[N, D]`."""
    return (_single(student_ND) - _single(teacher_ND)).square() / student_ND.shape[-1]


@loss("hs_cosine", signals=("hidden",), over="states", scales_with_temperature=False)
def hs_cosine(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Return 1 minus the cosine of each pair of states, `[N, 1]`, between 0 and 2."""
    return 1 - F.cosine_similarity(_single(student_ND), _single(teacher_ND), dim=-1).unsqueeze(-1)


def _single(states: Tensor) -> Tensor:
    return states if states.dtype == torch.float64 else states.float()
