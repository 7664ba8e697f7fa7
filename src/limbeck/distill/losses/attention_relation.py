"""How positions relate to each other inside a block, compared between teacher and student.

    R(X)  = softmax(X X^T / sqrt(d))         X: `[T, d]`, one relation head's queries, keys or values
    loss  = mean over heads of sum_u R_teacher(t, u) * (log R_teacher(t, u) - log R_student(t, u))       at position t

The two models may differ in width and in number of heads: heads are laid side by side and cut anew into a common number
of relation heads (Wang et al., MiniLMv2, arXiv:2012.15828, after MiniLM, arXiv:2002.10957). One late block is enough,
and better than many (BitDistill, arXiv:2510.13998); for a much deeper teacher one from its upper middle. The three
relations are summed.

A row of a decoder's relation reaches back only: position t is compared over u <= t, of the same document, padding left
out. Relations `[B, heads, T, T]` are never held: they are walked in chunks of rows, and their gradient is computed in
closed form as they pass, as the executor does with logits. All products are made in float32 at least: a score is the
square of a length, and half precision would round it by more than the differences that matter.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.distill.losses.registry import loss
from limbeck.errors import UserError

CHUNK = 1 << 23  # numbers in one relation of a chunk: 32 MiB in float32, of which four or five are held at a time
HIDDEN = -1e9  # the score of what can't be looked at: its exponential is 0, and differences of it stay finite


@dataclass(frozen=True)
class Sight:
    """Which positions are compared, and over which.

    Attributes:
        counted: `[B, T]`, bool, the rows that are compared.
        attended: `[B, T]`, bool, False on padding.
        documents: `[B, T]`, int64: a position looks at its own document only; None: each row is one.
    """

    counted: Tensor
    attended: Tensor
    documents: Tensor | None = None

    def visible(self, rows: slice) -> Tensor:
        """Return `[B, 1, rows, columns]`, bool: what each row is compared over, of the columns up to the last row."""
        columns = slice(0, rows.stop)
        places = torch.arange(rows.stop, device=self.counted.device)
        seen_BrT = (places[rows, None] >= places[columns]) & self.attended[:, None, columns]
        if self.documents is not None:
            seen_BrT = seen_BrT & (self.documents[:, rows, None] == self.documents[:, None, columns])
        return seen_BrT.unsqueeze(1)


@loss("attention_relation", over="relations", scales_with_temperature=False)
def attention_relation(student_BRTd: Tensor, teacher_BRTe: Tensor, sight: Sight) -> Tensor:
    """Return the sum of the loss over all counted positions, a scalar, in nats; gradients flow to the student.

    Args:
        student_BRTd: queries, keys or values of the student, regrouped into R relation heads.
        teacher_BRTe: the same of the teacher, of any width.
        sight: which positions are compared.
    """
    with_gradient = torch.is_grad_enabled() and student_BRTd.requires_grad
    return _RelationDivergence.apply(student_BRTd, teacher_BRTe.detach(), sight, with_gradient)


def regroup(heads_BHTd: Tensor, relation_heads: int) -> Tensor:
    """Return `[B, R, T, H * d / R]`: the heads side by side, cut anew into R of equal width.

    Raises:
        UserError: they can't be.
    """
    batch, heads, length, width = heads_BHTd.shape
    if heads * width % relation_heads:
        raise UserError(
            f"attention_relation.relation_heads: {heads} heads of {width} numbers can't be regrouped to "
            f"{relation_heads} relations of equal width. Choose a divisor of {heads * width}."
        )
    return heads_BHTd.transpose(1, 2).reshape(batch, length, relation_heads, -1).transpose(1, 2)


class _RelationDivergence(torch.autograd.Function):
    """Computes the gradient for the student's side while the relations are there."""

    @staticmethod
    def forward(ctx: Any, student_BRTd: Tensor, teacher_BRTe: Tensor, sight: Sight, with_gradient: bool) -> Tensor:
        with torch.autocast(student_BRTd.device.type, enabled=False):
            total, gradient_BRTd = _walk(student_BRTd, teacher_BRTe, sight, with_gradient)
        if gradient_BRTd is not None:
            ctx.save_for_backward(gradient_BRTd)
        ctx.dtype = student_BRTd.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_BRTd,) = ctx.saved_tensors
        return (gradient_BRTd * grads[0]).to(ctx.dtype), None, None, None


def _walk(
    student_BRTd: Tensor, teacher_BRTe: Tensor, sight: Sight, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the sum over counted positions, and its gradient by the student's side."""
    ours, theirs = _scaled(student_BRTd, sight), _scaled(teacher_BRTe, sight)
    batch, heads, length, _ = ours.shape
    total = ours.new_zeros(())
    gradient = torch.zeros_like(ours) if with_gradient else None
    compared = sight.counted.any(0).tolist()
    rows_a_chunk = max(1, CHUNK // (batch * heads * length))
    for start in range(0, length, rows_a_chunk):
        rows = slice(start, min(start + rows_a_chunk, length))
        if not any(compared[rows]):
            continue
        columns = slice(0, rows.stop)
        visible = sight.visible(rows)
        log_q, log_p = _log_relation(ours, rows, visible), _log_relation(theirs, rows, visible)
        share = (sight.counted[:, None, rows, None] / heads).to(ours.dtype)
        p = log_p.exp()
        total += (log_p.sub_(log_q).mul_(p) * share).sum()
        if gradient is not None:
            by_scores = log_q.exp_().sub_(p).mul_(share)
            gradient[:, :, rows] += by_scores @ ours[:, :, columns]
            gradient[:, :, columns] += by_scores.transpose(-1, -2) @ ours[:, :, rows]
    # the scores are products of vectors that were scaled, and gradients are by what they were before
    return total, None if gradient is None else gradient.mul_(student_BRTd.shape[-1] ** -0.25)


def _scaled(x_BRTd: Tensor, sight: Sight) -> Tensor:
    """Return vectors whose products are the scores; zeros on padding, where anything may stand."""
    exact = x_BRTd if x_BRTd.dtype == torch.float64 else x_BRTd.float()
    return torch.where(sight.attended[:, None, :, None], exact * math.pow(x_BRTd.shape[-1], -0.25), 0.0)


def _log_relation(x_BRTd: Tensor, rows: slice, visible: Tensor) -> Tensor:
    """Return the logarithms of the rows of a relation, `[B, R, rows, columns]`."""
    scores = x_BRTd[:, :, rows] @ x_BRTd[:, :, : rows.stop].transpose(-1, -2)
    return scores.masked_fill_(~visible, HIDDEN).log_softmax(-1)
