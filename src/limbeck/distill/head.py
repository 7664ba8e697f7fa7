"""The three products with an output head: logits from hidden states, and gradients back to states and head.

Products are made in the head's dtype (under autocast, in autocast's), sums over chunks in float32 at least.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.distill.mixture import MixedHead
from limbeck.signals.types import OutputHead

TOKENS = 8192  # rows of the head's gradient that are added to at a time: a product in half precision is held no longer


def apply_head(hidden_nD: Tensor, head: OutputHead, out: Tensor | None = None) -> Tensor:
    """Return logits `[n, V]`, float32 (float64 if the head is).

    Args:
        hidden_nD: final hidden states, on the head's device.
        head: the output head.
        out: where to write them, in its first n rows; of the result's dtype.
    """
    if isinstance(head, MixedHead):
        return head.log_mixture(hidden_nD, apply_head, out)
    hidden_nD = hidden_nD.to(head.weight.dtype)
    exact = exact_dtype(head.weight.dtype)
    if out is None:
        out = hidden_nD.new_empty((len(hidden_nD), len(head.weight)), dtype=exact)
    out = out[: len(hidden_nD)]
    if exact == head.weight.dtype:
        torch.mm(hidden_nD, head.weight.T, out=out)
    else:
        out.copy_(hidden_nD @ head.weight.T)
    if head.bias is not None:
        out.add_(head.bias)
    if head.soft_cap is not None:
        out.div_(head.soft_cap).tanh_().mul_(head.soft_cap)
    return out


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which logits and sums are kept: float32, or float64 where the head is."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_head(head: OutputHead) -> OutputHead:
    """Return the head, detached, in the dtype in which products with it are made."""
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    if torch.is_autocast_enabled(weight.device.type) and weight.dtype == torch.float32:
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    return OutputHead(weight, bias, head.soft_cap)


@dataclass
class HeadGradients:
    """Gradients that are summed chunk by chunk; None where none is asked for.

    Attributes:
        hidden: `[N, D]`.
        weight: `[V, D]`, float32 at least.
        bias: `[V]`, float32 at least.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    _begun: bool = False

    @staticmethod
    def begin(hidden_ND: Tensor, head: OutputHead, wanted: tuple[bool, bool, bool]) -> "HeadGradients":
        """Return gradients of nothing yet; `wanted` says whether states, weight and bias need one."""
        exact = exact_dtype(head.weight.dtype)
        return HeadGradients(
            torch.zeros_like(hidden_ND) if wanted[0] else None,
            torch.empty_like(head.weight, dtype=exact) if wanted[1] else None,
            torch.zeros_like(head.bias, dtype=exact) if wanted[2] and head.bias is not None else None,
        )

    def add(self, gradient_nV: Tensor, hidden_nD: Tensor, head: OutputHead, part: slice) -> None:
        """Add what the gradient by the logits of the positions `part` amounts to; `hidden_nD` are their states."""
        cast_nV = gradient_nV.to(head.weight.dtype)
        if self.hidden is not None:
            self.hidden[part] = (cast_nV @ head.weight).to(self.hidden.dtype)
        if self.weight is not None:
            hidden_nD = hidden_nD.to(head.weight.dtype)
            for sums_vD, cast_nv in zip(self.weight.split(TOKENS), cast_nV.split(TOKENS, -1), strict=True):
                self._add_rows(sums_vD, cast_nv, hidden_nD)
        if self.bias is not None:
            self.bias += gradient_nV.sum(0)
        self._begun = True

    def _add_rows(self, sums_vD: Tensor, gradient_nv: Tensor, hidden_nD: Tensor) -> None:
        if sums_vD.dtype != gradient_nv.dtype:
            product_vD = gradient_nv.T @ hidden_nD
            _ = sums_vD.add_(product_vD) if self._begun else sums_vD.copy_(product_vD)
        elif self._begun:
            sums_vD.addmm_(gradient_nv.T, hidden_nD)
        else:
            torch.mm(gradient_nv.T, hidden_nD, out=sums_vD)

    def scaled(self, scale: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return all three times `scale`, in place; zeros if nothing was added."""
        if not self._begun and self.weight is not None:
            self.weight.zero_()
        for part in (self.hidden, self.weight, self.bias):
            if part is not None:
                part.mul_(scale)
        return self.hidden, self.weight, self.bias
