"""Triton kernels for a block of logits: the same numbers as in torch, in fewer passes over a GPU's memory.

With a sparse teacher one kernel reads the logits for the sums of their exponentials, and one overwrites them by the
gradient; losses see only the listed tokens and the tail, so any loss runs that way. With a teacher over the whole
vocabulary one kernel does it all, with `kl`, `reverse_kl` and `jsd` written out in it.

With TRITON_INTERPRET=1 the kernels run on a CPU, slowly: that is how tests hold them to the plain formulas.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from limbeck.distill.losses.outcomes import ABSENT
from limbeck.distill.softmax import Tail

WIDTH = 4096  # logits of a row that a program holds at a time
WARPS = 8


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _sum_kernel(z: Any, maxima: Any, sums: Any, stride: Any, V: Any, inverse: Any, width: tl.constexpr) -> None:
    """Write the largest of a row's logits over T, and the sum of exponentials below it."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.full((), -1e30, tl.float32)
    total = tl.zeros((), tl.float32)
    for first in range(0, V, width):
        columns = first + tl.arange(0, width)
        x = tl.load(z + row * stride + columns, mask=columns < V, other=-float("inf")) * inverse
        above = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(x - above), 0)
        largest = above
    tl.store(maxima + row, largest)
    tl.store(sums + row, total)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _scale_kernel(z: Any, offsets: Any, factors: Any, stride: Any, V: Any, inverse: Any, width: tl.constexpr) -> None:
    """Overwrite a row's logits by `factor * exp(logit / T - offset)`."""
    row = tl.program_id(0).to(tl.int64)
    offset = tl.load(offsets + row)
    factor = tl.load(factors + row)
    for first in range(0, V, width):
        columns = first + tl.arange(0, width)
        x = tl.load(z + row * stride + columns, mask=columns < V, other=-float("inf")) * inverse
        tl.store(z + row * stride + columns, factor * tl.exp(x - offset), mask=columns < V)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _whole_kernel(
    z: Any, t: Any, values: Any, log_sums: Any, teacher_log_sums: Any, weights: Any, stride: Any, stride_t: Any, V: Any,
    inverse: Any, kl: Any, reverse_kl: Any, jsd: Any, beta: Any, others: Any, absent: Any, width: tl.constexpr,
) -> None:  # fmt: skip
    """Write a row's three divergences, and overwrite its logits by the gradient of their sum with these weights.

    `others` is what losses on the target add to the sum of derivatives by log-probabilities.
    """
    row = tl.program_id(0).to(tl.int64)
    z += row * stride
    t += row * stride_t
    log_sum = tl.load(log_sums + row)
    log_sum_t = tl.load(teacher_log_sums + row)
    weight = tl.load(weights + row)
    value_kl = tl.zeros((), tl.float32)
    value_reverse = tl.zeros((), tl.float32)
    value_jsd = tl.zeros((), tl.float32)
    slopes = tl.zeros((), tl.float32)
    for first in range(0, V, width):
        columns = first + tl.arange(0, width)
        inside = columns < V
        log_q = tl.load(z + columns, mask=inside, other=-float("inf")) * inverse - log_sum
        log_p = tl.load(t + columns, mask=inside, other=-float("inf")) * inverse - log_sum_t
        q = tl.exp(log_q)
        p = tl.exp(log_p)
        log_q = tl.where(inside, log_q, 0.0)
        log_p = tl.where(log_p == -float("inf"), absent, log_p)
        log_p = tl.where(inside, log_p, 0.0)
        log_m = tl.log(tl.maximum(beta * p + (1 - beta) * q, 1.2e-38))
        value_kl += tl.sum(p * (log_p - log_q), 0)
        value_reverse += tl.sum(q * (log_q - log_p), 0)
        students = q * (log_q - log_m)
        value_jsd += tl.sum(beta * p * (log_p - log_m) + (1 - beta) * students, 0)
        slope = -kl * p + reverse_kl * q * (log_q - log_p + 1) + jsd * (1 - beta) * students
        slopes += tl.sum(slope, 0)
    tl.store(values + 3 * row, value_kl)
    tl.store(values + 3 * row + 1, value_reverse)
    tl.store(values + 3 * row + 2, value_jsd)
    slopes += others
    for first in range(0, V, width):
        columns = first + tl.arange(0, width)
        inside = columns < V
        log_q = tl.load(z + columns, mask=inside, other=0.0) * inverse - log_sum
        log_p = tl.load(t + columns, mask=inside, other=0.0) * inverse - log_sum_t
        q = tl.exp(log_q)
        p = tl.exp(log_p)
        log_p = tl.where(log_p == -float("inf"), absent, log_p)
        log_m = tl.log(tl.maximum(beta * p + (1 - beta) * q, 1.2e-38))
        slope = -kl * p + reverse_kl * q * (log_q - log_p + 1) + jsd * (1 - beta) * q * (log_q - log_m)
        tl.store(z + columns, (slope - q * slopes) * weight * inverse, mask=inside)


def tail_in_triton(logits_nV: Tensor, temperature: float, in_place: bool) -> Tail:
    """Return the tail of logits, whose memory is taken over; see `softmax.tail_in_torch`."""
    if not in_place:
        raise ValueError("the kernels write to the logits")
    log_sums_n = _log_sums(logits_nV, temperature)

    def spread(factors_n1: Tensor) -> Tensor:
        _launch(
            _scale_kernel, logits_nV, log_sums_n, factors_n1.flatten().contiguous(), logits_nV.stride(0),
            logits_nV.shape[1], 1 / temperature,
        )  # fmt: skip
        return logits_nV

    return Tail(log_sums_n.unsqueeze(-1), spread)


def whole_gradient(
    logits_nV: Tensor, scores_nV: Tensor, targets_n: Tensor, temperature: float, shares: dict[str, float], beta: float,
    target_share: float, weights_n: Tensor | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return `kl`, `reverse_kl`, `jsd` and `cross_entropy`, each `[n]`, and overwrite the logits by the gradient.

    Args:
        logits_nV: the student's.
        scores_nV: the teacher's logits or log-probabilities, float32.
        targets_n: the tokens that follow.
        temperature: of both.
        shares: of each divergence in the sum that the gradient is of; 0 where it is not named.
        beta: the teacher's share of the mixture in `jsd`.
        target_share: of the cross-entropy.
        weights_n: multiply the gradient of each position; None: 1.
    """
    weights_n = torch.ones_like(logits_nV[:, 0]) if weights_n is None else weights_n.contiguous()
    student_n, teacher_n = _log_sums(logits_nV, temperature), _log_sums(scores_nV, temperature)
    targets_n1 = targets_n.unsqueeze(-1)
    target_log_q_n1 = logits_nV.gather(-1, targets_n1) / temperature - student_n.unsqueeze(-1)
    values_n3 = torch.empty((len(logits_nV), 3), dtype=logits_nV.dtype, device=logits_nV.device)
    names = ("kl", "reverse_kl", "jsd")
    _launch(
        _whole_kernel, logits_nV, scores_nV, values_n3, student_n, teacher_n, weights_n, logits_nV.stride(0),
        scores_nV.stride(0), logits_nV.shape[1], 1 / temperature, *(shares.get(name, 0.0) for name in names), beta,
        -target_share, ABSENT,
    )  # fmt: skip
    if target_share:
        at_target_n1 = (-target_share / temperature * weights_n).unsqueeze(-1)
        logits_nV.scatter_add_(-1, targets_n1, at_target_n1)
    return {**dict(zip(names, values_n3.unbind(-1), strict=True)), "cross_entropy": -target_log_q_n1[:, 0]}


def _log_sums(logits_nV: Tensor, temperature: float) -> Tensor:
    """Return `logsumexp(logits / T)` of each row, `[n]`; of a row of `-inf`, a finite number below any other."""
    maxima_n, sums_n = torch.empty_like(logits_nV[:, 0]), torch.empty_like(logits_nV[:, 0])
    _launch(_sum_kernel, logits_nV, maxima_n, sums_n, logits_nV.stride(0), logits_nV.shape[1], 1 / temperature)
    return maxima_n + sums_n.clamp(min=torch.finfo(sums_n.dtype).tiny).log()


def _launch(kernel: Any, logits_nV: Tensor, *arguments: Any) -> None:
    if len(logits_nV):
        kernel[(len(logits_nV),)](logits_nV, *arguments, width=WIDTH, num_warps=WARPS)
