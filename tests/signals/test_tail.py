"""`log_complement` keeps its digits at both ends and never makes a NaN."""

import decimal
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.signals.tail import log_complement


@given(st.floats(min_value=-700, max_value=-1e-300))
def test_agrees_with_arbitrary_precision(x: float) -> None:
    with decimal.localcontext(prec=700):
        exact = float((1 - decimal.Decimal(x).exp()).ln())
    assert log_complement(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(exact, rel=1e-13, abs=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [0.0, -0.0, 1e-7, 0.5])
def test_a_head_that_rounds_to_one_leaves_the_smallest_normal_number(x: float, dtype: torch.dtype) -> None:
    value = torch.tensor(x, dtype=dtype, requires_grad=True)
    result = log_complement(value)
    result.backward()
    assert result.item() == pytest.approx(math.log(torch.finfo(dtype).tiny))
    assert value.grad is not None and value.grad.item() == 0.0


def test_gradients_are_right_and_finite_everywhere() -> None:
    x = torch.tensor([-50.0, -5.0, -0.7, -0.69, -0.1, -1e-3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_complement, (x,), eps=1e-7, atol=1e-5)
    ends = torch.tensor([float("-inf"), 0.0, -6e-8, -1e-30], requires_grad=True)
    log_complement(ends).sum().backward()
    assert ends.grad is not None and ends.grad.isfinite().all()
    assert log_complement(ends)[0].item() == 0.0


def test_half_precision_is_computed_in_float32() -> None:
    assert log_complement(torch.tensor([-1.0], dtype=torch.bfloat16)).dtype == torch.float32
