"""The Triton kernels, run by Triton's interpreter on the CPU, against the plain formulas in float64."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed (it comes with torch for GPUs)")

from limbeck.distill.block import Known, block_gradient
from limbeck.distill.executor import Term
from limbeck.distill.losses import get_loss
from limbeck.distill.losses.outcomes import Scratch
from limbeck.distill.teacher import Listing
from limbeck.signals.types import DenseSignal
from tests.distill.plain import plain_values, topk_signal

N, V, K = 5, 300, 9
GENERATOR = torch.Generator().manual_seed(1)
STUDENT, TEACHER = (3 * torch.randn(N, V, generator=GENERATOR) for _ in range(2))
TARGETS = torch.randint(V, (N,), generator=GENERATOR)
WEIGHTS = torch.rand(N, 1, generator=GENERATOR)
DENSE = DenseSignal(torch.log_softmax(TEACHER, -1), torch.ones(N, dtype=torch.bool))


@pytest.fixture(autouse=True)
def narrow_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are longer than a program is wide, and no multiple of it."""
    monkeypatch.setattr("limbeck.distill.fused.WIDTH", 128)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.isfinite().all()
    assert (found.double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "names", [["kl"], ["reverse_kl"], ["jsd"], ["cross_entropy"], ["kl", "cross_entropy", "jsd", "reverse_kl"]]
)
@pytest.mark.parametrize("kind", ["topk", "dense"])
def test_kernels_equal_the_plain_formulas(kind: str, names: list[str], temperature: float) -> None:
    terms = [Term.of(get_loss(name), 0.4 + i, temperature) for i, name in enumerate(names)]
    signal = DENSE if kind == "dense" else topk_signal(TEACHER, K)
    known = (
        Known(TARGETS, scores=TEACHER, weights=WEIGHTS)
        if kind == "dense"
        else Known(TARGETS, listing=Listing.of(topk_signal(TEACHER, K), V), weights=WEIGHTS)
    )
    logits = STUDENT.clone()
    values = block_gradient(logits, known, terms, Scratch(), kernels=True)
    plain = STUDENT.double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for term, found in zip(terms, values, strict=True):
        expected = plain_values(term.name, plain, TARGETS, signal, temperature, None)
        assert_close(found, expected.detach())
        total = total + term.weight * (expected * WEIGHTS[:, 0]).sum()
    total.backward()
    assert plain.grad is not None
    assert_close(logits, plain.grad)


@pytest.mark.parametrize("names", [["tvd"], ["kl", "skew_kl"]])
def test_what_has_no_kernel_is_done_without(names: list[str]) -> None:
    known = Known(TARGETS, scores=TEACHER)
    terms = [Term.of(get_loss(name)) for name in names]
    found, expected = STUDENT.clone(), STUDENT.clone()
    block_gradient(found, known, terms, Scratch(), kernels=True)
    block_gradient(expected, known, terms, Scratch(), kernels=False)
    torch.testing.assert_close(found, expected)


def test_extremes_stay_finite() -> None:
    """A teacher that gives no mass to half of the vocabulary, lists nothing or everything; logits far apart."""
    broken = TEACHER.clone()
    broken[:, : V // 2] = -float("inf")
    sparse, everything = topk_signal(TEACHER, K), topk_signal(TEACHER, V)
    sparse.logprobs[0] = -float("inf")
    teachers = [Known(TARGETS, scores=broken)]
    teachers += [Known(TARGETS, listing=Listing.of(signal, V)) for signal in (sparse, everything)]
    terms = [Term.of(get_loss(name)) for name in ("kl", "reverse_kl", "jsd", "cross_entropy")]
    for known in teachers:
        logits = 300 * STUDENT
        values = block_gradient(logits, known, terms, Scratch(), kernels=True)
        assert logits.isfinite().all() and all(value.isfinite().all() for value in values)
