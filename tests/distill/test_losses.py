"""Losses against the plain formula in float64, and at the edges where logarithms go wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.distill.executor import Positions, Term, teacher_chunk, token_values, total_loss
from limbeck.distill.losses import StudentChunk, all_losses, get_loss
from limbeck.errors import UserError
from limbeck.signals.types import DenseSignal, HiddenSignal, OutputHead, TopkSignal

N, V, D, K = 37, 101, 16, 9
TEMPERATURES = (1.0, 2.0)


def logprobs(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(N, V, generator=generator, dtype=torch.float64), -1)


def topk(dense: torch.Tensor, k: int = K) -> TopkSignal:
    """The exact top-k signal of dense log-probabilities."""
    values, ids = dense.topk(k)
    rest = dense.scatter(-1, ids, float("-inf")).logsumexp(-1)
    normalisers = torch.stack([(dense / t).logsumexp(-1) for t in TEMPERATURES], -1)
    return TopkSignal(ids, values, rest, normalisers, TEMPERATURES, torch.ones(len(dense), dtype=torch.bool))


def value(name: str, student: torch.Tensor, signal: object, temperature: float = 1.0) -> torch.Tensor:
    teacher = teacher_chunk(signal, torch.zeros(len(student), dtype=torch.long), temperature)  # type: ignore[arg-type]
    return get_loss(name).function(StudentChunk(torch.log_softmax(student / temperature, -1)), teacher)


def dense_signal(log_p: torch.Tensor) -> DenseSignal:
    return DenseSignal(log_p, torch.ones(len(log_p), dtype=torch.bool))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_plain_formulas(temperature: float) -> None:
    log_p, log_q = logprobs(1), logprobs(2)
    p, q = ((log / temperature).softmax(-1) for log in (log_p, log_q))
    m = (p + q) / 2
    plain = {
        "kl": (p * (p / q).log()).sum(-1),
        "reverse_kl": (q * (q / p).log()).sum(-1),
        "jsd": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
    }
    for name, expected in plain.items():
        found = value(name, log_q, dense_signal(log_p.float()), temperature)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_sparse_signal_is_the_coarsened_dense_one(name: str, temperature: float) -> None:
    """Merging the tail into one bucket on both sides, with nothing renormalised, is exactly what sparse means."""
    log_p, log_q = logprobs(3), logprobs(4)
    ids = log_p.topk(K).indices

    def merged(log: torch.Tensor) -> torch.Tensor:
        probabilities = (log / temperature).softmax(-1)
        head = probabilities.gather(-1, ids)
        return torch.cat([head, 1 - head.sum(-1, keepdim=True)], -1).log()

    plain = get_loss(name).function(
        StudentChunk(merged(log_q)), teacher_chunk(dense_signal(merged(log_p)), torch.zeros(N, dtype=torch.long), 1.0)
    )
    torch.testing.assert_close(
        value(name, log_q, topk(log_p), temperature), plain, rtol=1e-4, atol=1e-6, check_dtype=False
    )


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd"])
def test_merging_outcomes_never_increases_a_divergence(name: str) -> None:
    log_p, log_q = logprobs(5), logprobs(6)
    assert (value(name, log_q, topk(log_p)) <= value(name, log_q, dense_signal(log_p)) + 1e-6).all()


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd"])
def test_a_copy_has_no_divergence(name: str) -> None:
    log_p = logprobs(7)
    for signal in (dense_signal(log_p), topk(log_p)):
        assert value(name, log_p, signal).abs().max() < 1e-5


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 1.0, 30.0, 300.0]))
def test_every_loss_and_gradient_is_finite(seed: int, scale: float) -> None:
    """Also where the student's stored mass rounds to 1, and where the teacher returned fewer tokens than K."""
    student = (scale * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    signal = topk(logprobs(seed % 1000, scale=10.0))
    signal.logprobs[: N // 2, K // 2 :] = float("-inf")
    for loss in all_losses():
        if not loss.signals or "topk" in loss.signals:
            values = value(loss.name, student, signal)
            (gradient,) = torch.autograd.grad(values.sum(), student)
            assert values.isfinite().all() and gradient.isfinite().all(), loss.name


@pytest.mark.parametrize("kind", ["none", "topk", "hidden"])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_the_executor_equals_plain_autograd(kind: str, soft_cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, chunk by chunk, against one plain float64 graph; N is no multiple of the chunk."""
    monkeypatch.setattr("limbeck.distill.executor.CHUNK_LOGITS", 16 * V)
    generator = torch.Generator().manual_seed(8)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(V, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    teacher_hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    teacher_head = OutputHead(torch.randn(V, D, generator=generator, dtype=torch.float64))
    log_p = torch.log_softmax(teacher_hidden @ teacher_head.weight.T, -1)
    signal = {
        "none": None,
        "topk": topk(log_p),
        "hidden": HiddenSignal(teacher_hidden, teacher_head, torch.ones(N, dtype=torch.bool)),
    }[kind]
    names = ["cross_entropy"] if signal is None else ["cross_entropy", "kl", "reverse_kl", "jsd"]
    terms = [Term.of(get_loss(name), weight=0.3 + i, temperature=1.0 + (i % 2)) for i, name in enumerate(names)]

    head = OutputHead(weight, bias, soft_cap)
    loss, parts = total_loss(Positions(hidden, targets, signal), head, terms, denominator=7.0)
    gradients = torch.autograd.grad(loss, (hidden, weight, bias))

    logits = hidden @ weight.T + bias
    logits = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    plain = torch.zeros((), dtype=torch.float64)
    for term in terms:
        chunk = teacher_chunk(signal, targets, term.temperature)
        values = term.factor * term.function(StudentChunk(torch.log_softmax(logits / term.temperature, -1)), chunk)
        plain = plain + term.weight * values.sum() / 7.0
        torch.testing.assert_close(parts[term.name].double(), values.sum() / 7.0, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.double(), plain, rtol=1e-5, atol=1e-6)
    for found, expected in zip(gradients, torch.autograd.grad(plain, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_token_values_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(N, D), torch.randn(V, D)
    positions = Positions(hidden, torch.randint(V, (N,)), dense_signal(logprobs(9).float()))
    terms = [Term.of(get_loss("kl")), Term.of(get_loss("cross_entropy"))]
    whole = token_values(positions, OutputHead(weight), terms)
    monkeypatch.setattr("limbeck.distill.executor.CHUNK_LOGITS", 16 * V)
    for name, values in token_values(positions, OutputHead(weight), terms).items():
        torch.testing.assert_close(values, whole[name])


def test_temperature_scales_the_gradient_back() -> None:
    assert Term.of(get_loss("kl"), temperature=2.0).factor == 4.0
    assert Term.of(get_loss("cross_entropy"), temperature=2.0).factor == 1.0


def test_a_temperature_that_was_not_captured_is_refused() -> None:
    with pytest.raises(UserError, match=r"temperature 3: .* captured with normalisers at 1, 2 only"):
        teacher_chunk(topk(logprobs(1)), torch.zeros(N, dtype=torch.long), 3.0)


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'reverse_kl'"):
        get_loss("revers_kl")


def test_a_jensen_shannon_divergence_is_at_most_log_2() -> None:
    certain = torch.full((1, V), -1e9, dtype=torch.float64)
    first, second = certain.clone(), certain.clone()
    first[0, 0], second[0, 1] = 0.0, 0.0
    assert value("jsd", second, dense_signal(first)).item() == pytest.approx(math.log(2), rel=1e-6)
