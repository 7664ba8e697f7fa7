"""Linear layers with ternary weights and 8-bit inputs, trained through the rounding.

After Ma et al., "The Era of 1-bit LLMs" (arXiv:2402.17764), with W `[out, in]`, x of one token:

    gamma = mean |W|                 codes = clip(round(W / gamma), -1, 1)
    s = max |x| / 127                numbers = clip(round(x / s), -128, 127)
    y = gamma * s * (codes @ numbers)

Training keeps W in full and computes with `W + strength * (gamma * codes - W)`, the difference detached: the gradient
passes as if nothing had been rounded, and neither scale has one. `strength` rises from 0 (a dense layer) to 1. All
rounding is done in float32, and products are made of values that are scaled back, so that no sum of integers can
overflow a narrow dtype.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError

LEAST_SCALE = 1e-5  # the value that transformers' BitNet layers use, so that exports compute the same


def ternary_codes(weight_oi: Tensor, scale: str = "tensor") -> tuple[Tensor, Tensor]:
    """Return codes `[out, in]` in {-1, 0, 1}, float32, and gamma: `[1, 1]`, or `[out, 1]` with one scale a row.

    Args:
        weight_oi: the weights.
        scale: `tensor` or `row`.
    """
    magnitudes = weight_oi.float().abs()
    gamma = magnitudes.mean(dim=1, keepdim=True) if scale == "row" else magnitudes.mean().reshape(1, 1)
    gamma = gamma.clamp(min=LEAST_SCALE)
    return (weight_oi.float() / gamma).round_().clamp_(-1, 1), gamma


def rounded_inputs(inputs: Tensor, bits: Literal[8, 16] = 8) -> tuple[Tensor, Tensor]:
    """Return integers `[..., in]` of so many bits, float32, and each token's scale `[..., 1]`."""
    top = float(2 ** (bits - 1) - 1)
    scale = inputs.float().abs().amax(dim=-1, keepdim=True).clamp(min=LEAST_SCALE) / top
    return (inputs.float() / scale).round_().clamp_(-top - 1, top), scale


class TernaryLinear(nn.Linear):
    """A linear layer without bias that computes with ternary weights and rounded inputs.

    Args:
        in_features: width of the inputs.
        out_features: width of the outputs.
        scale: of the weights: one a `tensor`, or one a `row`.
        activation_bits: 8 rounds inputs; 16 leaves them.
    """

    def __init__(self, in_features: int, out_features: int, scale: str = "tensor", activation_bits: int = 8) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale
        self.activation_bits = activation_bits
        self.strength = 1.0
        self._rounded: tuple[tuple[int, int, torch.dtype, torch.device], Tensor] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs `[..., out]` of inputs `[..., in]`."""
        return F.linear(self._inputs(inputs), self._weights().to(inputs.dtype))

    def codes(self) -> tuple[Tensor, Tensor]:
        """Return the layer's codes and scale; see `ternary_codes`."""
        return ternary_codes(self.weight.detach(), self.scale)

    def _inputs(self, inputs: Tensor) -> Tensor:
        if self.activation_bits == 16 or self.strength == 0:
            return inputs
        with torch.no_grad():
            numbers, scale = rounded_inputs(inputs)
            change = (numbers.mul_(scale) - inputs.float()).mul_(self.strength).to(inputs.dtype)
        return inputs + change

    def _weights(self) -> Tensor:
        """Return what the layer computes with; outside training it is made once for each state of the weights."""
        if self.strength == 0:
            return self.weight
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self.weight + self._change()
        if torch.is_inference(self.weight):
            return self.weight + self._change()
        key = (self.weight.data_ptr(), self.weight._version, self.weight.dtype, self.weight.device)
        if self.training or self.strength != 1:
            return self.weight + self._change()
        if self._rounded is None or self._rounded[0] != key:
            self._rounded = key, self.weight.detach() + self._change()
        return self._rounded[1]

    @torch.no_grad()
    def _change(self) -> Tensor:
        codes, gamma = ternary_codes(self.weight, self.scale)
        return codes.mul_(gamma).sub_(self.weight.float()).mul_(self.strength).to(self.weight.dtype)

    def extra_repr(self) -> str:
        """Return what a printed model shows of the layer."""
        return f"{super().extra_repr()}, scale={self.scale}, activation_bits={self.activation_bits}"

    def __getstate__(self) -> dict[str, object]:
        """Leave the rounded weights behind where the layer is copied or pickled."""
        return {**super().__getstate__(), "_rounded": None}


def ternary_layers(model: nn.Module) -> dict[str, TernaryLinear]:
    """Return the ternary layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TernaryLinear)}


def set_strength(model: nn.Module, strength: float) -> None:
    """Set how much of the rounding the ternary layers of a model apply: 0 none, 1 all.

    Raises:
        UserError: it is not between 0 and 1.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength of quantisation: {strength:g} is not between 0 and 1.")
    for layer in ternary_layers(model).values():
        layer.strength = strength
