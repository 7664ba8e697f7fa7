"""Jensen-Shannon divergence: both directions against the mean of the two distributions.

    JSD = KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2        p: teacher, q: student

Symmetric and at most log 2 (Agarwal et al., GKD, arXiv:2306.13649, with beta = 1/2). On `topk` the tail is one
bucket; merging outcomes never increases the divergence.
"""

import math

import torch
from torch import Tensor

from limbeck.distill.losses.expectation import expectation
from limbeck.distill.losses.registry import StudentChunk, TeacherChunk, loss
from limbeck.signals.tail import log_complement


@loss("jsd", signals=("dense", "hidden", "topk"))
def jensen_shannon(student: StudentChunk, teacher: TeacherChunk) -> Tensor:
    """Return the Jensen-Shannon divergence for each token of a chunk, `[N]`, in nats, float32."""
    if teacher.dense is not None:
        return _between(teacher.dense, student.logprobs)
    sparse = teacher.known_sparse()
    absent_NK = sparse.logprobs.isneginf()
    log_q_NK = student.logprobs.gather(-1, sparse.ids).masked_fill(absent_NK, float("-inf"))
    log_q_tail_N = log_complement(log_q_NK.logsumexp(-1))
    log_p = torch.cat([sparse.logprobs, sparse.log_tail_mass.unsqueeze(-1)], dim=-1)
    log_q = torch.cat([log_q_NK, log_q_tail_N.unsqueeze(-1)], dim=-1)
    return _between(log_p, log_q)


def _between(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (expectation(log_p.exp(), log_p - log_m) + expectation(log_q.exp(), log_q - log_m)) / 2
