"""Relations in chunks, with gradients in closed form, against whole relations in float64 by autograd."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.distill.losses import attention_relation as relations
from limbeck.distill.losses.attention_relation import Sight, attention_relation, regroup
from limbeck.errors import UserError

B, R, T = 3, 2, 11


def vectors(width: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, R, T, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def packed() -> Sight:
    """A whole row, a row of two documents, and a row padded on both sides; some of each is counted."""
    attended = torch.ones(B, T, dtype=torch.bool)
    attended[2, :2] = attended[2, 8:] = False
    documents = torch.zeros(B, T, dtype=torch.int64)
    documents[1, 5:] = 1
    counted = attended.clone()
    counted[0, :4] = counted[1, 4] = False
    return Sight(counted, attended, documents.masked_fill(~attended, -1))


def plain(student: Tensor, teacher: Tensor, sight: Sight) -> Tensor:
    """The formula, one row of one relation at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(student)):
        for t in range(student.shape[2]):
            if not sight.counted[b, t]:
                continue
            over = [
                u for u in range(t + 1)
                if sight.attended[b, u] and (sight.documents is None or sight.documents[b, u] == sight.documents[b, t])
            ]  # fmt: skip
            for head in range(student.shape[1]):
                rows = [x[b, head].double() for x in (teacher, student)]
                log_p, log_q = (torch.log_softmax(x[over] @ x[t] / math.sqrt(x.shape[-1]), 0) for x in rows)
                total = total + (log_p.exp() * (log_p - log_q)).sum() / student.shape[1]
    return total


def value_and_gradient(student: Tensor, teacher: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = attention_relation(student, teacher, sight)
    (3 * value).backward()
    assert student.grad is not None
    return value.detach(), student.grad


@pytest.mark.parametrize("rows_a_chunk", [1, 3, T, 100])
def test_value_and_gradient_are_those_of_the_formula(rows_a_chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "CHUNK", rows_a_chunk * B * R * T)
    student, teacher, sight = vectors(8, 1), vectors(12, 2), packed()
    value, gradient = value_and_gradient(student, teacher, sight)
    exact = student.double().requires_grad_()
    expected = plain(exact, teacher, sight)
    (3 * expected).backward()
    assert exact.grad is not None
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - exact.grad).norm() <= 1e-5 * exact.grad.norm()
    with torch.no_grad():
        assert attention_relation(student, teacher, sight).item() == value.item()


def test_the_closed_gradient_is_the_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "CHUNK", 4 * B * R * T)
    student = vectors(3, 1, torch.float64).requires_grad_()
    teacher = vectors(2, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x: attention_relation(x, teacher, packed()), (student,))


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_no_relation_is_ever_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "CHUNK", 2 * B * R * T)
    with Largest() as largest:
        value_and_gradient(vectors(4, 1), vectors(4, 2), packed())
    assert largest.numbers == B * R * T * 4  # the vectors themselves; a relation has B * R * T * T


def test_equal_relations_cost_nothing_whatever_their_vectors() -> None:
    teacher = vectors(8, 1)
    turned = teacher @ torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
    value, gradient = value_and_gradient(turned, teacher, packed())
    assert value.item() == pytest.approx(0, abs=1e-4)
    assert gradient.norm() < 1e-3
    assert value_and_gradient(vectors(8, 5), teacher, packed())[0].item() > 1


def test_nothing_flows_between_documents_from_padding_or_from_later_positions() -> None:
    student, teacher, sight = vectors(8, 1), vectors(8, 2), packed()
    value, gradient = value_and_gradient(student, teacher, sight)
    student_nan, teacher_nan = student.clone(), teacher.clone()
    for x in (student_nan, teacher_nan):
        x[2][:, :2] = x[2][:, 8:] = math.nan
    value_nan, gradient_nan = value_and_gradient(student_nan, teacher_nan, sight)
    assert value_nan.item() == value.item()
    torch.testing.assert_close(gradient_nan, gradient, rtol=0, atol=0)

    only_second = replace(sight, counted=torch.zeros_like(sight.counted))
    only_second.counted[1, 7] = True
    _, gradient = value_and_gradient(student, teacher, only_second)
    touched = gradient.abs().sum((1, 3)).nonzero().tolist()
    assert touched == [[1, 5], [1, 6], [1, 7]]


def test_nothing_counted_is_nothing_and_stays_in_the_graph() -> None:
    sight = replace(packed(), counted=torch.zeros(B, T, dtype=torch.bool))
    value, gradient = value_and_gradient(vectors(8, 1), vectors(8, 2), sight)
    assert value.item() == 0
    assert gradient.abs().sum() == 0


def test_half_precision_is_computed_in_single() -> None:
    student, teacher = (30 * vectors(8, 1)).bfloat16(), (30 * vectors(8, 2)).bfloat16()
    expected = plain(student, teacher, packed())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(student, teacher, packed())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()


@given(st.sampled_from([1, 2, 3, 4, 6, 12, 24]), st.integers(0, 100))
def test_regrouping_cuts_heads_that_lie_side_by_side(relation_heads: int, seed: int) -> None:
    heads = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
    side_by_side = torch.cat(list(heads.unbind(1)), -1)
    for index, part in enumerate(side_by_side.chunk(relation_heads, -1)):
        assert torch.equal(regroup(heads, relation_heads)[:, index], part)


def test_regrouping_to_unequal_parts_is_refused() -> None:
    with pytest.raises(UserError, match="4 heads of 6 numbers can't be regrouped to 5 relations"):
        regroup(torch.zeros(1, 4, 2, 6), 5)
