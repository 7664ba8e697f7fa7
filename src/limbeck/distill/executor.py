"""The chunked executor: from hidden states to losses and gradients without ever holding `[N, V]` logits.

It walks N positions in chunks. For each chunk it makes the student's logits once, computes every configured loss on
them, and (when training) the gradients of the weighted sum for the hidden states and the head, which it accumulates.
Peak memory is a few chunks of logits, whatever N is.

The gradients are computed in the forward pass, because that is where the logits are; the backward pass only scales
them. The same walk without gradients gives the per-token divergences that `evaluate` reports.

Not here: masks (callers hand over only the positions that count) and the sum over ranks (`denominator` is given).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.distill.losses.registry import Loss, LossFunction, SparseChunk, StudentChunk, TeacherChunk
from limbeck.errors import UserError
from limbeck.signals.tail import log_complement
from limbeck.signals.types import (
    DenseSignal,
    HiddenSignal,
    OutputHead,
    SampledSignal,
    TeacherSignal,
    TopkSignal,
    at,
    kind_of,
)

CHUNK_LOGITS = 1 << 23  # logits in a chunk: 32 MiB of float32
TEMPERATURE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Term:
    """One configured loss: a function, its name in logs, and how it enters the sum."""

    name: str
    function: LossFunction
    weight: float = 1.0
    temperature: float = 1.0
    factor: float = 1.0

    @staticmethod
    def of(loss: Loss, weight: float = 1.0, temperature: float = 1.0) -> "Term":
        """Return the term of a registered loss, scaled by T squared where the loss asks for it."""
        factor = temperature**2 if loss.scales_with_temperature else 1.0
        return Term(loss.name, loss.function, weight, temperature, factor)


@dataclass(frozen=True)
class Positions:
    """N positions to walk: the student's hidden states and what is known of the next token at each.

    Attributes:
        hidden: `[N, D]`, the student's final hidden states.
        targets: `[N]`, ids of the tokens that follow.
        teacher: the teacher's signal at the same positions, leading dimension N; None when no loss needs one.
    """

    hidden: Tensor
    targets: Tensor
    teacher: TeacherSignal | None = None


def chunk_length(vocabulary: int) -> int:
    """Return how many positions a chunk holds at this vocabulary size."""
    return max(16, CHUNK_LOGITS // vocabulary)


def total_loss(
    positions: Positions, head: OutputHead, terms: Sequence[Term], denominator: Tensor | float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of all terms over all positions, divided by `denominator`, with its gradient.

    Args:
        positions: the positions that count.
        head: the student's output head.
        terms: the configured losses.
        denominator: number of tokens that count in the whole optimisation step, over ranks and micro-batches.

    Returns:
        the loss (a scalar; gradients flow to `positions.hidden` and the head), and each term's unweighted mean over
        `denominator`, detached, by name.
    """
    sums: dict[str, Tensor] = {}
    total = _FusedLoss.apply(positions.hidden, head.weight, head.bias, positions, head, tuple(terms), sums)
    return total / denominator, {name: value / denominator for name, value in sums.items()}


@torch.no_grad()
def token_values(positions: Positions, head: OutputHead, terms: Sequence[Term]) -> dict[str, Tensor]:
    """Return each term's per-token values `[N]`, unweighted, float32, without gradients."""
    parts: dict[str, list[Tensor]] = {term.name: [] for term in terms}
    for chunk in _chunks(positions, head):
        logits = apply_head(chunk.hidden, head)
        for term, values in _values(logits, chunk, terms):
            parts[term.name].append(values)
    return {name: torch.cat(values) if values else positions.hidden.new_zeros(0) for name, values in parts.items()}


def apply_head(hidden_ND: Tensor, head: OutputHead) -> Tensor:
    """Return logits `[N, V]`, float32 (float64 if the head is)."""
    logits = F.linear(hidden_ND, head.weight, head.bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


class _FusedLoss(torch.autograd.Function):
    """Computes gradients for hidden states, head weight and bias while the logits are there."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        positions: Positions,
        head: OutputHead,
        terms: tuple[Term, ...],
        sums: dict[str, Tensor],
    ) -> Tensor:
        weight = weight_VD.detach().requires_grad_(weight_VD.requires_grad)
        bias = None if bias_V is None else bias_V.detach().requires_grad_(bias_V.requires_grad)
        local = OutputHead(weight, bias, head.soft_cap)
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        for term in terms:
            sums[term.name] = torch.zeros_like(total)
        hidden_grads = []
        for chunk in _chunks(positions, head):
            with torch.enable_grad():
                hidden = chunk.hidden.detach().requires_grad_()
                logits = apply_head(hidden, local)
                objective = logits.new_zeros(())
                for term, values in _values(logits, chunk, terms):
                    summed = values.sum()
                    objective = objective + term.weight * summed
                    sums[term.name] += summed.detach()
            objective.backward()
            total += objective.detach()
            hidden_grads.append(hidden.grad if hidden.grad is not None else torch.zeros_like(hidden))
        ctx.gradients = (  # type: ignore[attr-defined]
            torch.cat(hidden_grads) if hidden_grads else torch.zeros_like(hidden_ND),
            weight.grad if weight.grad is not None else torch.zeros_like(weight),
            None if bias is None else bias.grad,
        )
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        scaled = tuple(None if part is None else part * scale.to(part.dtype) for part in ctx.gradients)  # type: ignore[attr-defined]
        return (*scaled, None, None, None, None)


def _chunks(positions: Positions, head: OutputHead) -> Iterator[Positions]:
    step = chunk_length(head.weight.shape[0])
    for first in range(0, len(positions.targets), step):
        part = slice(first, first + step)
        teacher = None if positions.teacher is None else at(positions.teacher, part)
        yield Positions(positions.hidden[part], positions.targets[part], teacher)


def _values(logits_NV: Tensor, chunk: Positions, terms: Sequence[Term]) -> Iterator[tuple[Term, Tensor]]:
    """Yield each term with its per-token values; distributions are made once for each temperature."""
    for temperature in sorted({term.temperature for term in terms}):
        student = StudentChunk(torch.log_softmax(logits_NV / temperature, dim=-1))
        teacher = teacher_chunk(chunk.teacher, chunk.targets, temperature)
        for term in terms:
            if term.temperature == temperature:
                yield term, term.factor * term.function(student, teacher)


def teacher_chunk(signal: TeacherSignal | None, targets_N: Tensor, temperature: float) -> TeacherChunk:
    """Return what a signal says at `temperature`.

    Raises:
        UserError: the signal can't be brought to this temperature: `sampled` tokens were drawn at 1, and a `topk`
            signal knows the normaliser only at the temperatures it was captured with.
    """
    match signal:
        case None:
            return TeacherChunk(targets_N)
        case DenseSignal():
            return TeacherChunk(targets_N, dense=torch.log_softmax(signal.logprobs.float() / temperature, dim=-1))
        case HiddenSignal():
            logits = apply_head(signal.hidden.to(signal.head.weight.dtype), signal.head)
            return TeacherChunk(targets_N, dense=torch.log_softmax(logits / temperature, dim=-1))
        case TopkSignal():
            return TeacherChunk(targets_N, sparse=_topk_at(signal, temperature))
        case SampledSignal() if temperature == 1.0:
            tail = torch.full_like(signal.weights[..., 0], float("-inf"))
            return TeacherChunk(targets_N, sparse=SparseChunk(signal.ids.long(), signal.logprobs, signal.weights, tail))
        case _:
            raise UserError(f"a {kind_of(signal)!r} signal can't be brought to temperature {temperature:g}.")


def _topk_at(signal: TopkSignal, temperature: float) -> SparseChunk:
    if temperature == 1.0:
        return SparseChunk(signal.ids.long(), signal.logprobs, signal.logprobs.exp(), signal.log_tail_mass)
    for index, known in enumerate(signal.temperatures):
        if abs(known - temperature) < TEMPERATURE_TOLERANCE:
            logprobs = signal.logprobs / temperature - signal.log_normalisers[..., index : index + 1]
            return SparseChunk(signal.ids.long(), logprobs, logprobs.exp(), log_complement(logprobs.logsumexp(-1)))
    raise UserError(
        f"temperature {temperature:g}: this signal was captured with normalisers at "
        f"{', '.join(f'{known:g}' for known in signal.temperatures)} only. Use one of these, or capture again."
    )
