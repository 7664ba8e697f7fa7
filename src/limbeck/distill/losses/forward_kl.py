"""Forward Kullback-Leibler divergence, KL(teacher || student).

    KL = sum_v p(v) * (log p(v) - log q(v))        p: teacher, q: student

The mean-covering direction: the student pays wherever the teacher has mass (Hinton et al., arXiv:1503.02531).

On a sparse signal the sum runs over the K stored tokens and one more outcome, the tail bucket, which holds
all the rest of either distribution. Merging outcomes never increases a divergence, so the value is a lower
bound of the full one, equal to it when both tails have the same shape. Nothing is renormalised: a student
that puts mass on the wrong tail token is charged for it. A `sampled` signal has no tail: its weighted tokens
stand for the whole vocabulary.

Not here: temperature (the executor hands over distributions already at T, and scales by T squared), masks and
averaging (the executor's), chunking (the executor's).
"""

from torch import Tensor

from limbeck.distill.losses.expectation import expectation, weighted
from limbeck.distill.losses.registry import StudentChunk, TeacherChunk, loss
from limbeck.signals.tail import log_complement


@loss("kl", signals=("dense", "hidden", "topk", "sampled"))
def forward_kl(student: StudentChunk, teacher: TeacherChunk) -> Tensor:
    """Return KL(teacher || student) for each token of a chunk.

    Args:
        student: log-probabilities `[N, V]` of the student at the loss's temperature.
        teacher: the same positions of the teacher's signal, dense `[N, V]` or sparse `[N, K]`.

    Returns:
        `[N]`, in nats, float32, non-negative up to rounding (unbiased but not sign-definite for `sampled`).
    """
    if teacher.dense is not None:
        return expectation(teacher.dense.exp(), teacher.dense - student.logprobs)
    sparse = teacher.known_sparse()
    log_q_NK = student.logprobs.gather(-1, sparse.ids)
    head_N = expectation(sparse.weights, sparse.logprobs - log_q_NK)
    absent_NK = sparse.logprobs.isneginf()
    log_q_tail_N = log_complement(log_q_NK.masked_fill(absent_NK, float("-inf")).logsumexp(-1))
    return head_N + weighted(sparse.log_tail_mass.exp(), sparse.log_tail_mass - log_q_tail_N)
