"""Reverse Kullback-Leibler divergence, KL(student || teacher).

    RKL = sum_v q(v) * (log q(v) - log p(v))       p: teacher, q: student

The mode-seeking direction: the student pays for mass where the teacher has little (Gu et al., MiniLLM,
arXiv:2306.08543). On a `topk` signal the tail is one bucket, as in the forward direction; stored tokens that are
absent (`-inf`) belong to the tail, so that the value stays finite. It is not defined on `sampled`, whose tokens are
drawn from the teacher and say nothing of where only the student has mass.
"""

from torch import Tensor

from limbeck.distill.losses.expectation import expectation, weighted
from limbeck.distill.losses.registry import StudentChunk, TeacherChunk, loss
from limbeck.signals.tail import log_complement

# A teacher's tail of rounding size would charge the student without bound: e^-30 is far below float32's resolution.
LOG_FLOOR = -30.0


@loss("reverse_kl", signals=("dense", "hidden", "topk"))
def reverse_kl(student: StudentChunk, teacher: TeacherChunk) -> Tensor:
    """Return KL(student || teacher) for each token of a chunk, `[N]`, in nats, float32."""
    if teacher.dense is not None:
        return expectation(student.logprobs.exp(), student.logprobs - teacher.dense)
    sparse = teacher.known_sparse()
    absent_NK = sparse.logprobs.isneginf()
    log_q_NK = student.logprobs.gather(-1, sparse.ids).masked_fill(absent_NK, float("-inf"))
    head_N = expectation(log_q_NK.exp(), log_q_NK - sparse.logprobs)
    log_q_tail_N = log_complement(log_q_NK.logsumexp(-1))
    return head_N + weighted(log_q_tail_N.exp(), log_q_tail_N - sparse.log_tail_mass.clamp_min(LOG_FLOOR))
