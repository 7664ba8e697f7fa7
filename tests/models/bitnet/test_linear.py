"""Ternary layers: what is rounded, what the gradient is, and that nothing is remembered wrongly."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.integrations.bitnet import ActQuant, WeightQuant

from limbeck.errors import UserError
from limbeck.models.bitnet.linear import TernaryLinear, rounded_inputs, set_strength, ternary_codes

drawn_floats = st.floats(-8, 8, width=32)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.lists(drawn_floats, min_size=12, max_size=12))
def test_codes_are_the_nearest_of_three(values: list[float]) -> None:
    weight = torch.tensor(values).reshape(3, 4)
    for scale in ("tensor", "row"):
        codes, gamma = ternary_codes(weight, scale)
        assert set(codes.unique().tolist()) <= {-1.0, 0.0, 1.0}
        distances = torch.stack([(weight - gamma * code).abs() for code in (-1, 0, 1)])
        chosen = (weight - gamma * codes).abs()
        assert (chosen <= distances.amin(0) + 1e-6).all()


def test_scales_are_mean_magnitudes() -> None:
    weight = drawn(5, 7).double()
    assert torch.allclose(ternary_codes(weight)[1].double(), weight.abs().mean().reshape(1, 1))
    assert torch.allclose(ternary_codes(weight, "row")[1].double(), weight.abs().mean(1, keepdim=True))


@given(st.lists(drawn_floats, min_size=8, max_size=8))
def test_inputs_are_off_by_half_a_step_at_most(values: list[float]) -> None:
    inputs = torch.tensor(values).reshape(2, 4)
    numbers, scale = rounded_inputs(inputs)
    assert numbers.abs().max() <= 127
    assert ((numbers * scale - inputs).abs() <= scale / 2 * (1 + 1e-5) + 1e-7).all()


def test_a_layer_computes_as_the_layers_of_transformers() -> None:
    layer, inputs = TernaryLinear(32, 24).eval(), drawn(5, 32)
    with torch.no_grad():
        theirs = F.linear(ActQuant.apply(inputs), WeightQuant.apply(layer.weight))
        assert torch.allclose(layer(inputs), theirs, atol=1e-6)


def test_the_gradient_passes_as_if_nothing_were_rounded() -> None:
    layer, inputs, outer = TernaryLinear(16, 8), drawn(3, 16).requires_grad_(), drawn(3, 8, seed=1)
    (layer(inputs) * outer).sum().backward()
    numbers, scale = rounded_inputs(inputs.detach())
    codes, gamma = layer.codes()
    assert layer.weight.grad is not None and inputs.grad is not None
    assert torch.allclose(layer.weight.grad, outer.T @ (numbers * scale), atol=1e-5)
    assert torch.allclose(inputs.grad, outer @ (codes * gamma), atol=1e-5)


def test_without_strength_a_layer_is_dense_and_between_it_is_between() -> None:
    layer, inputs = TernaryLinear(16, 8, activation_bits=16).eval(), drawn(3, 16)
    with torch.no_grad():
        whole = layer(inputs)
        set_strength(layer, 0.0)
        dense = layer(inputs)
        set_strength(layer, 0.5)
        between = layer(inputs)
    assert torch.equal(dense, F.linear(inputs, layer.weight))
    assert torch.allclose(between, (whole + dense) / 2, atol=1e-6)
    with pytest.raises(UserError, match="between 0 and 1"):
        set_strength(layer, 1.5)


@pytest.mark.parametrize("write", ["in place", "anew", "by load_state_dict"])
def test_a_layer_never_computes_with_weights_that_it_had_before(write: str) -> None:
    layer, inputs, other = TernaryLinear(16, 8).eval(), drawn(3, 16), drawn(8, 16, seed=2)
    with torch.no_grad():
        layer(inputs)
        if write == "in place":
            layer.weight.copy_(other)
        elif write == "anew":
            layer.weight = nn.Parameter(other.clone())
        else:
            layer.load_state_dict({"weight": other})
        fresh = TernaryLinear(16, 8).eval()
        fresh.weight.copy_(other)
        assert torch.equal(layer(inputs), fresh(inputs))
        assert torch.equal(copy.deepcopy(layer)(inputs), fresh(inputs))


def test_bfloat16_neither_overflows_nor_strays() -> None:
    layer = TernaryLinear(4096, 8).to(torch.bfloat16).eval()
    inputs = (300 * drawn(2, 4096)).to(torch.bfloat16)
    with torch.no_grad():
        found = layer(inputs).float()
        codes, gamma = layer.codes()
        numbers, scale = rounded_inputs(inputs)
        exact = (numbers.double() @ codes.double().T) * scale.double() * gamma.double()
    assert torch.isfinite(found).all()
    assert (found - exact).norm() < 0.02 * exact.norm()


def test_inputs_of_zero_stay_zero() -> None:
    assert torch.equal(TernaryLinear(8, 4).eval()(torch.zeros(2, 8)), torch.zeros(2, 4))


def test_weights_are_rounded_anew_behind_a_step_that_leaves_no_trace() -> None:
    """FSDP2 gathers weights into the same storage, with the version of the tensor as it was."""
    layer = TernaryLinear(8, 4).eval()
    inputs = torch.randn(3, 8)
    with torch.no_grad():
        before = layer(inputs)
        layer.train()
        layer.weight.data.neg_()
        layer.eval()
        assert torch.equal(layer(inputs), -before)
