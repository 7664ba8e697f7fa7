"""Linear layers with ternary weights and 8-bit inputs, trained through the rounding.

After Ma et al., "The Era of 1-bit LLMs" (arXiv:2402.17764), with W `[out, in]`, x of one token:

    gamma = mean |W|                 codes = clip(round(W / gamma), -1, 1)
    s = max |x| / 127                numbers = clip(round(x / s), -128, 127)
    y = gamma * s * (codes @ numbers)

Training keeps W in full. The gradient passes as if nothing had been rounded, and neither scale has one. `strength`
rises from 0 (a dense layer) to 1; between, the layer computes with `W + strength * (gamma * codes - W)`, and inputs
alike.

At full strength the product is one of integers (over 128, so that float16 holds their sums too): in float32 it is
exact, whatever the order of summation, and packed students compute the same. Rounding is done in float32.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError

LEAST_SCALE = 1e-5  # the value that transformers' BitNet layers use, so that exports compute the same
UNIT = 128.0  # a power of two: dividing integers by it is exact


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
        self._rounded: tuple[tuple[Any, ...], tuple[Tensor, Tensor]] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs `[..., out]` of inputs `[..., in]`."""
        if self.strength == 0:
            return F.linear(inputs, self.weight)
        if self.strength == 1 and self.activation_bits == 8:
            codes, gamma = self._rounded_weights()
            return _Product.apply(inputs, self.weight, codes, gamma)
        return F.linear(self._blended_inputs(inputs), self._blended_weights().to(inputs.dtype))

    def train(self, mode: bool = True) -> "TernaryLinear":
        """Turn training on or off, and forget the rounded weights: a sharded layer's change without a trace."""
        self._rounded = None
        return super().train(mode)

    def codes(self) -> tuple[Tensor, Tensor]:
        """Return the layer's codes and scale; see `ternary_codes`."""
        return ternary_codes(self.weight.detach(), self.scale)

    def _blended_inputs(self, inputs: Tensor) -> Tensor:
        if self.activation_bits == 16:
            return inputs
        with torch.no_grad():
            numbers, scale = rounded_inputs(inputs)
            change = (numbers.mul_(scale) - inputs.float()).mul_(self.strength).to(inputs.dtype)
        return inputs + change

    def _blended_weights(self) -> Tensor:
        with torch.no_grad():
            codes, gamma = self._rounded_weights()
            change = (codes * gamma - self.weight.float()).mul_(self.strength).to(self.weight.dtype)
        return self.weight + change

    def _rounded_weights(self) -> tuple[Tensor, Tensor]:
        """Return codes and scale; outside training they are made once for each state of the weights."""
        if self.training or torch.is_inference(self.weight):
            return self.codes()
        state = (self.weight.data_ptr(), self.weight._version, self.weight.dtype, self.weight.device)
        if self._rounded is None or self._rounded[0] != state:
            self._rounded = state, self.codes()
        return self._rounded[1]

    def extra_repr(self) -> str:
        """Return what a printed model shows of the layer."""
        return f"{super().extra_repr()}, scale={self.scale}, activation_bits={self.activation_bits}"

    def __getstate__(self) -> dict[str, object]:
        """Leave the rounded weights behind where the layer is copied or pickled."""
        return {**super().__getstate__(), "_rounded": None}


class _Product(torch.autograd.Function):
    """Rounded inputs by rounded weights; keeps 8 bits a number for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight_oi: Tensor, codes_oi: Tensor, gamma: Tensor) -> Tensor:
        numbers, scale = rounded_inputs(inputs)
        scale = scale * UNIT
        found = F.linear(numbers.div_(UNIT).to(inputs.dtype), codes_oi.to(inputs.dtype))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(numbers.mul_(UNIT).to(torch.int8), scale, codes_oi.to(torch.int8), gamma)
            ctx.dtypes = inputs.dtype, weight_oi.dtype
        return (gamma[:, 0] * (scale * found.float())).to(found.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (outer,) = gradients
        numbers, scale, codes_oi, gamma = ctx.saved_tensors
        to_inputs = to_weight = None
        if ctx.needs_input_grad[0]:
            to_inputs = (outer @ (codes_oi * gamma).to(outer.dtype)).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            inputs = (numbers * (scale / UNIT)).to(outer.dtype)
            to_weight = (outer.flatten(0, -2).T @ inputs.flatten(0, -2)).to(ctx.dtypes[1])
        return to_inputs, to_weight, None, None


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
