"""The chunked executor: from hidden states to losses and gradients without ever holding `[N, V]` logits.

It walks N positions in chunks. For each chunk it makes the student's logits once, in one buffer that all chunks share;
computes every configured loss on them, block by block, in closed form; and, when training, overwrites the logits by the
gradient of the weighted sum, from which the gradients of hidden states and head are made and added up. Besides the
gradients themselves, memory is one chunk of logits (two with a teacher over the whole vocabulary) and a few blocks,
whatever N is.

The gradients are computed in the forward pass, because that is where the logits are; the backward pass only scales
them, in place, and can run once. The same walk without gradients gives the per-token divergences that `evaluate`
reports.

Not here: masks (callers hand over only the positions that count) and the sum over ranks (`denominator` is given).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.distill.block import block_gradient, block_values
from limbeck.distill.head import HeadGradients, exact_dtype, product_head
from limbeck.distill.losses.outcomes import Scratch
from limbeck.distill.losses.registry import Loss
from limbeck.distill.term import Term
from limbeck.distill.walk import Positions, walk
from limbeck.errors import LimbeckError, UserError
from limbeck.signals.types import HiddenSignal, OutputHead, TopkSignal, kind_of

__all__ = ["Positions", "Term", "token_values", "total_loss"]


def total_loss(
    positions: Positions,
    head: OutputHead,
    terms: Sequence[Term],
    denominator: Tensor | float,
    *,
    compiled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of all terms over all positions, divided by `denominator`, with its gradient.

    Args:
        positions: the positions that count.
        head: the student's output head.
        terms: the configured losses.
        denominator: number of tokens that count in the whole optimisation step, over ranks and micro-batches.
        compiled: whether losses over the whole vocabulary go through `torch.compile` (see `compiled`).

    Returns:
        the loss (a scalar; gradients flow to `positions.hidden` and the head), and each term's unweighted mean over
        `denominator`, detached, by name.

    Raises:
        UserError: the teacher's signal can't feed one of the losses.
    """
    _check(positions, terms)
    positions = positions.counted()
    walked, on_states = _split(terms)
    sums: dict[str, Tensor] = {}
    if torch.is_grad_enabled():
        total = _run_walk(positions.hidden, head.weight, head.bias, positions, head, walked, sums, compiled)
    else:
        total = positions.hidden.new_zeros((), dtype=exact_dtype(head.weight.dtype))
        for name, values in token_values(positions, head, walked).items():
            sums[name] = _weighted_sum(values, positions)
        for term in walked:
            total += term.weight * sums[term.name]
    for term in on_states:
        summed = _weighted_sum(_state_values(positions, term.loss), positions)
        total = total + term.weight * summed
        sums[term.name] = summed.detach()
    return total / denominator, {term.name: sums[term.name] / denominator for term in terms}


@torch.no_grad()
def token_values(positions: Positions, head: OutputHead, terms: Sequence[Term]) -> dict[str, Tensor]:
    """Return each term's per-token values `[N]`, unweighted, float32 at least, without gradients.

    Raises:
        UserError: the teacher's signal can't feed one of the losses.
    """
    _check(positions, terms)
    walked, on_states = _split(terms)
    parts: dict[str, list[Tensor]] = {term.name: [] for term in walked}
    scratch = Scratch()
    for chunk in walk(positions, product_head(head), walked) if walked else ():
        for rows, known in chunk.blocks:
            for term, values in zip(walked, block_values(chunk.logits[rows], known, walked, scratch), strict=True):
                parts[term.name].append(values)
    found = {name: torch.cat(values) if values else positions.hidden.new_zeros(0) for name, values in parts.items()}
    found.update((term.name, _state_values(positions, term.loss)) for term in on_states)
    return {term.name: found[term.name] for term in terms}


class _Walk(torch.autograd.Function):
    """Computes gradients for hidden states, head weight and bias while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        positions: Positions,
        head: OutputHead,
        terms: tuple[Term, ...],
        sums: dict[str, Tensor],
        compiled: bool,
    ) -> Tensor:
        head = product_head(head)
        gradients = HeadGradients.begin(hidden_ND, head, ctx.needs_input_grad[:3])
        total = hidden_ND.new_zeros((), dtype=exact_dtype(head.weight.dtype))
        scratch = Scratch()
        sums.update((term.name, torch.zeros_like(total)) for term in terms)
        for chunk in walk(positions, head, terms) if terms else ():
            for rows, known in chunk.blocks:
                found = block_gradient(chunk.logits[rows], known, terms, scratch, head.soft_cap, compiled=compiled)
                for term, values in zip(terms, found, strict=True):
                    sums[term.name] += values.sum() if known.weights is None else (values * known.weights[:, 0]).sum()
            gradients.add(chunk.logits, hidden_ND[chunk.part], head, chunk.part)
        for term in terms:
            total += term.weight * sums[term.name]
        ctx.gradients = gradients
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise LimbeckError("the backward pass through a loss can run once: its gradients are scaled in place.")
        scaled = ctx.gradients.scaled(grads[0])
        ctx.gradients = None
        cast = (None if part is None else part.to(dtype) for part, dtype in zip(scaled, ctx.dtypes, strict=True))
        return (*cast, None, None, None, None, None)


# its chunks fill buffers and add up in place, which a compiler of graphs can't follow; it runs between two graphs
_run_walk = torch.compiler.disable(_Walk.apply)


def _weighted_sum(values_N: Tensor, positions: Positions) -> Tensor:
    return values_N.sum() if positions.weights is None else (values_N * positions.weights).sum()


def _split(terms: Sequence[Term]) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Return the terms on next-token distributions, and those on hidden states."""
    walked = tuple(term for term in terms if term.loss.over != "states")
    return walked, tuple(term for term in terms if term.loss.over == "states")


def _state_values(positions: Positions, loss: Loss) -> Tensor:
    signal = positions.teacher
    if not isinstance(signal, HiddenSignal):
        raise UserError(f"{loss.name!r} compares hidden states, and the signal here has none.")
    widths = positions.hidden.shape[-1], signal.hidden.shape[-1]
    if widths[0] != widths[1]:
        raise UserError(
            f"{loss.name!r}: the student's states are {widths[0]} wide and the teacher's {widths[1]}. States of "
            "different widths need a learned projection between them (layer_mapping)."
        )
    return loss.contributions(positions.hidden, signal.hidden, **loss.parameters).sum(-1)


def _check(positions: Positions, terms: Sequence[Term]) -> None:
    signal = positions.teacher
    for term in terms:
        if term.loss.over == "relations":
            raise UserError(
                f"{term.name!r} looks inside the models' blocks, which are not here: it needs a layer_mapping."
            )
        if not term.loss.signals:
            continue
        if signal is None:
            raise UserError(f"{term.name!r} compares with a teacher, and there is no signal of one here.")
        term.check(kind_of(signal), signal.temperatures if isinstance(signal, TopkSignal) else ())
