"""What losses promise: finite everywhere, true to the dense ones, unbiased from samples, clear where not defined."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.distill.block import Known, block_gradient
from limbeck.distill.executor import Positions, Term, token_values, total_loss
from limbeck.distill.losses import Loss, Outcomes, all_losses, get_loss, loss
from limbeck.distill.losses.outcomes import Scratch
from limbeck.distill.teacher import Listing
from limbeck.errors import UserError
from limbeck.signals.types import DenseSignal, OutputHead, SampledSignal, TeacherSignal, TokenSignal, TopkSignal
from tests.distill.plain import DIVERGENCES, TEMPERATURES, formula, plain_values, sampled_signal, topk_signal

N, V, K = 23, 101, 9
EVERYWHERE = torch.ones(N, dtype=torch.bool)
TARGETS = torch.arange(N)


def logits(seed: int, scale: float = 3.0, v: int = V) -> Tensor:
    return scale * torch.randn(N, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(teacher: Tensor) -> DenseSignal:
    return DenseSignal(torch.log_softmax(teacher, -1).float(), EVERYWHERE)


def value(term: Term, student: Tensor, signal: TeacherSignal | None) -> Tensor:
    """Values of a student that is given by its logits: its head is the identity."""
    identity = OutputHead(torch.eye(student.shape[-1], dtype=student.dtype))
    return token_values(Positions(student, TARGETS, signal), identity, [term])[term.name]


def gradient(term: Term, student: Tensor, signal: TeacherSignal | None) -> Tensor:
    student = student.clone().requires_grad_()
    identity = OutputHead(torch.eye(student.shape[-1], dtype=student.dtype))
    total_loss(Positions(student, TARGETS, signal), identity, [term], 1.0)[0].backward()
    assert student.grad is not None
    return student.grad


def of(name: str, temperature: float = 1.0, missing: str | None = None, **parameters: float) -> Term:
    return Term.of(get_loss(name), temperature=temperature, missing=missing, parameters=parameters)


BUCKETED = [name for name in DIVERGENCES if name != "entropy_aware_kl"]  # its gate sees the coarsened entropy


@pytest.mark.parametrize("name", BUCKETED)
def test_merging_outcomes_never_increases_a_divergence(name: str) -> None:
    teacher, student = logits(5), logits(6)
    merged, whole = value(of(name), student, topk_signal(teacher, K)), value(of(name), student, dense(teacher))
    assert (merged <= whole + 1e-6).all()
    assert (merged < whole - 1e-4).any()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_listing_the_whole_vocabulary_is_the_dense_loss(name: str) -> None:
    teacher, student = logits(1), logits(2)
    for temperature in TEMPERATURES:
        for missing in ("tail", "uniform", "zero"):
            term = of(name, temperature, missing)
            for measure in (value, gradient):
                found, expected = (
                    measure(term, student, topk_signal(teacher, V)),
                    measure(term, student, dense(teacher)),
                )
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_copy_has_no_divergence_and_no_gradient(name: str) -> None:
    teacher = logits(7)
    for signal in (dense(teacher), topk_signal(teacher, K)):
        assert value(of(name), teacher, signal).abs().max() < 1e-5
        if name != "tvd":  # whose slope jumps at 0
            assert gradient(of(name), teacher, signal).abs().max() < 1e-5


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.0, 1.0, 30.0, 300.0, 3000.0]),
    temperature=st.sampled_from(TEMPERATURES),
    missing=st.sampled_from(["tail", "bounded", "uniform", "zero"]),
)
def test_every_value_and_gradient_is_finite(seed: int, scale: float, temperature: float, missing: str) -> None:
    """Where listed mass rounds to 1, a teacher returned fewer tokens than K or none, or gives tokens no mass at all."""
    student = logits(seed, scale).float()
    teacher = logits(seed + 1, 10.0)
    teacher[: N // 2, : V // 2] = -math.inf
    sparse = topk_signal(teacher, K)
    sparse.logprobs[: N // 2, K // 2 :] = -math.inf
    sparse.ids[: N // 2, K // 2 :] = 0
    sparse.logprobs[0], sparse.log_tail_mass[0] = -math.inf, 0.0
    sparse.log_tail_mass[1] = -math.inf
    signals = (dense(teacher), sparse, sampled_signal(teacher, 5, seed=1), TokenSignal(student[:, 0] - 1e4, EVERYWHERE))
    for kind, signal in zip(("dense", "topk", "sampled", "token"), signals, strict=True):
        for each in all_losses():
            if each.over != "relations" and (not each.signals or kind in each.signals):
                term = Term.of(each, temperature=1.0 if kind in ("sampled", "token") else temperature, missing=missing)
                assert value(term, student, signal).isfinite().all(), (each.name, kind)
                assert gradient(term, student, signal).isfinite().all(), (each.name, kind)


def test_a_tail_keeps_its_digits_where_listed_mass_rounds_to_1() -> None:
    """The student's tail holds e^-40 of its mass: 1 minus the rest would be 0, and the loss without a bound."""
    student, teacher = torch.zeros(N, V), logits(8)
    signal = topk_signal(teacher, K)
    student.scatter_(-1, signal.ids, 44.0)
    plain = student.double().requires_grad_()
    expected = plain_values("kl", plain, TARGETS, signal, 1.0, "tail")
    expected.sum().backward()
    assert plain.grad is not None
    torch.testing.assert_close(value(of("kl"), student, signal).double(), expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient(of("kl"), student, signal).double(), plain.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"])
@pytest.mark.parametrize(("temperature", "least"), [(1.0, 0.999), (2.0, 0.99), (4.0, 0.98)])
def test_sparse_gradients_follow_the_dense_ones_at_every_temperature(
    name: str, temperature: float, least: float
) -> None:
    """Peaked data (0.92 on the likeliest token, K = 128 of 20,000), a student that is off by 1 nat everywhere.

    The bucket's mass is exact at every temperature. What it can't tell is who is wrong within the tail, which is most
    of the gradient once the temperature has made the tail the bulk of the distribution.
    """
    v = 20_000
    teacher = (-4.0 * torch.arange(1, v + 1, dtype=torch.float64).log()).expand(N, v)
    student = teacher + logits(2, 1.0, v)
    term, targets = of(name, temperature), TARGETS
    exact, found = student.clone(), student.clone()
    block_gradient(exact, Known(targets, scores=teacher), [term], Scratch())
    block_gradient(found, Known(targets, listing=Listing.of(topk_signal(teacher, 128), v)), [term], Scratch())
    assert torch.nn.functional.cosine_similarity(exact.flatten(), found.flatten(), dim=0) >= least


def completed(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Of all distributions with the list's probabilities, the tail's mass, and no more in a tail token than the least
    listed one has, the nearest to the student: by bisection, over the whole vocabulary."""
    p, q = torch.softmax(teacher / temperature, -1), torch.softmax(student.double() / temperature, -1)
    ids = teacher.topk(K).indices
    rest = torch.ones_like(p, dtype=torch.bool).scatter(-1, ids, False)
    mass, most = (p * rest).sum(-1, keepdim=True), p.gather(-1, ids[:, -1:])
    low, high = torch.zeros_like(mass), torch.full_like(mass, 1e30)
    for _ in range(400):
        middle = (low * high).sqrt() if bool(low.all()) else (low + high) / 2
        above = (torch.minimum(middle * q, most) * rest).sum(-1, keepdim=True) > mass
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(rest, torch.minimum(low * q, most), p)


@pytest.mark.parametrize("name", BUCKETED)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_bounded_tail_is_the_nearest_that_the_list_allows(name: str, temperature: float, scale: float) -> None:
    """Value and gradient, held to the plain formula over the nearest completion; and the order of the three bounds."""
    teacher, student = logits(5), logits(6, scale)
    signal, term = topk_signal(teacher, K, torch.float64), of(name, temperature, "bounded")
    plain = student.clone().requires_grad_()
    log_p = completed(teacher, student, temperature).clamp(min=1e-300).log()
    contributions = formula(name, log_p, torch.log_softmax(plain / temperature, -1))
    expected = term.factor * contributions.sum(-1)
    expected.sum().backward()
    assert plain.grad is not None
    found = value(term, student, signal)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient(term, student, signal), plain.grad, rtol=1e-6, atol=1e-9)
    bucket, whole = value(of(name, temperature, "tail"), student, signal), value(
        of(name, temperature), student, DenseSignal(torch.log_softmax(teacher, -1), EVERYWHERE)
    )  # fmt: skip
    assert (bucket <= found + 1e-9).all() and (found <= whole + 1e-9).all()
    assert scale == 1.0 or (found > bucket + 1e-3).any()


def test_a_bounded_tail_sees_what_a_bucket_does_not() -> None:
    """A student that knows nothing of its teacher: its mass is on tokens that the list excludes."""
    v = 5_000
    ranks = torch.arange(1, v + 1, dtype=torch.float64).log()
    orders = [torch.stack([torch.randperm(v) for _ in range(N)]) for _ in range(2)]
    teacher, student = ((-2.0 * ranks)[order] for order in orders)
    exact, bucket, bounded = (
        gradient(of("kl", 2.0, missing), student, topk_signal(teacher, k, torch.float64))
        for k, missing in ((v, "tail"), (64, "tail"), (64, "bounded"))
    )
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(exact.flatten(), bounded.flatten(), dim=0) > 0.99 > cosine(exact.flatten(), bucket.flatten(), dim=0)


@pytest.mark.parametrize("soft_cap", [None, 4.0])
def test_both_ways_to_see_a_tail_in_one_pass(soft_cap: float | None) -> None:
    teacher, student = logits(5), logits(6).float()
    signal, head = topk_signal(teacher, K), OutputHead(torch.eye(V), None, soft_cap)
    terms = [of("kl", 2.0, "tail"), of("jsd", 2.0, "bounded"), of("cross_entropy"), of("hinge", 2.0, "bounded")]
    gradients = []
    for group in (terms, *([term] for term in terms)):
        leaf = student.clone().requires_grad_()
        total_loss(Positions(leaf, TARGETS, signal), head, group, 1.0)[0].backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], torch.stack(gradients[1:]).sum(0), rtol=1e-4, atol=1e-6)


def test_a_uniform_tail_is_completed_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every token of the tail is at the bound, only the most overrated become outcomes of their own."""
    monkeypatch.setattr("limbeck.distill.bounded.MOST", 20)
    teacher, student = torch.zeros(N, V), logits(6).float()
    signal = topk_signal(teacher, K)
    for measure in (value, gradient):
        assert measure(of("kl", 1.0, "bounded"), student, signal).isfinite().all()
    found, whole = (value(of("kl", 1.0, way), student, s) for way, s in (("bounded", signal), (None, dense(teacher))))
    bucket = value(of("kl", 1.0, "tail"), student, signal)
    assert (bucket < found).all() and (found <= whole + 1e-5).all()


def test_the_default_is_the_tail_where_the_signal_has_it() -> None:
    teacher, student = logits(3), logits(4)
    signal = topk_signal(teacher, K)
    captured_at_1 = replace(signal, log_normalisers=signal.log_normalisers[:, :1], temperatures=(1.0,))
    by_default = value(of("kl", 2.0), student, signal)
    torch.testing.assert_close(by_default, value(of("kl", 2.0, "tail"), student, signal))
    without = value(of("kl", 2.0), student, captured_at_1)
    torch.testing.assert_close(without, value(of("kl", 2.0, "uniform"), student, captured_at_1))
    assert (without - by_default).abs().max() > 1e-3
    torch.testing.assert_close(
        value(of("kl", 2.0, "symmetric_uniform"), student, signal), value(of("kl", 2.0, "uniform"), student, signal)
    )


def test_a_temperature_that_was_not_captured_is_refused() -> None:
    with pytest.raises(UserError, match=r"temperature 3: .* captured with normalisers at 1, 2, 4 only"):
        value(of("kl", 3.0, "tail"), logits(2), topk_signal(logits(1), K))
    with pytest.raises(UserError, match=r"temperature 2: the tokens of a 'sampled' signal were drawn at 1"):
        value(of("kl", 2.0), logits(2), sampled_signal(logits(1), 5, seed=1))


def exhaustive(teacher: Tensor) -> tuple[SampledSignal, Tensor]:
    """One draw for every token of the vocabulary, and how likely each draw is: a sum over all that can happen."""
    log_p = torch.log_softmax(teacher, -1)
    v = log_p.shape[-1]
    ids = torch.arange(v).repeat(len(log_p))[:, None]
    ones = torch.ones(len(ids), 1)
    signal = SampledSignal(ids, ones, log_p.flatten()[:, None].float(), torch.ones(len(ids), dtype=torch.bool))
    return signal, log_p.exp().flatten()


@pytest.mark.parametrize("name", ["kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"])
def test_sampled_estimates_are_unbiased_in_value_and_gradient(name: str) -> None:
    """The expectation over every possible draw, exactly, is the dense loss."""
    v = 17
    teacher, student = logits(1, 1.5, v), logits(2, 1.5, v).float()
    signal, chances = exhaustive(teacher)
    repeated = student.repeat_interleave(v, 0).requires_grad_()
    identity = OutputHead(torch.eye(v))
    targets = torch.zeros(len(repeated), dtype=torch.long)
    values = token_values(Positions(repeated.detach(), targets, signal), identity, [of(name)])[name]
    expected = value(of(name), student, dense(teacher))
    mean = (values * chances).reshape(N, v).sum(-1)
    torch.testing.assert_close(mean.float(), expected, rtol=1e-4, atol=1e-6)
    positions = Positions(repeated, targets, signal, chances.float())
    total_loss(positions, identity, [of(name)], 1.0)[0].backward()
    assert repeated.grad is not None
    torch.testing.assert_close(
        repeated.grad.reshape(N, v, v).sum(1), gradient(of(name), student, dense(teacher)), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("name", ["jsd", "skew_reverse_kl", "tvd"])
def test_leaving_out_linear_growth_shrinks_the_variance(name: str) -> None:
    """Where the student has far more mass than the teacher, draws of its tokens would swamp the estimate."""
    v = 17
    teacher, student = logits(1, 3.0, v), logits(2, 3.0, v).float()
    signal, chances = exhaustive(teacher)
    positions = Positions(student.repeat_interleave(v, 0), torch.zeros(N * v, dtype=torch.long), signal)

    def spread(each: Loss) -> float:
        values = token_values(positions, OutputHead(torch.eye(v)), [Term.of(each)])[name].double()
        mean = (values * chances).reshape(N, v).sum(-1)
        return float((values.square() * chances).sum() - mean.square().sum())

    assert spread(get_loss(name)) < 0.5 * spread(replace(get_loss(name), slope=lambda **_: 0.0))


def test_estimators_from_the_students_own_tokens() -> None:
    """Over all tokens that the student may draw: values of k1 and k3 are the reverse KL, and so is k1's gradient."""
    v = 17
    teacher, student = logits(1, 1.5, v), logits(2, 1.5, v)
    log_p, log_q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    drawn = torch.arange(v).repeat(N)
    signal = TokenSignal(log_p.flatten(), torch.ones(N * v, dtype=torch.bool))
    repeated = student.repeat_interleave(v, 0).requires_grad_()
    chances = log_q.exp().flatten()
    positions = Positions(repeated, drawn, signal, chances)
    expected = value(of("reverse_kl"), student, DenseSignal(log_p, EVERYWHERE)).sum()
    for name in ("k1", "k3"):
        _, parts = total_loss(positions, OutputHead(torch.eye(v, dtype=torch.float64)), [of(name)], 1.0)
        torch.testing.assert_close(parts[name], expected)
    for name, direction in (("k1", "reverse_kl"), ("k2", "reverse_kl"), ("k3", "kl")):
        repeated.grad = None
        total_loss(positions, OutputHead(torch.eye(v, dtype=torch.float64)), [of(name)], 1.0)[0].backward()
        assert repeated.grad is not None
        torch.testing.assert_close(
            repeated.grad.reshape(N, v, v).sum(1), gradient(of(direction), student, DenseSignal(log_p, EVERYWHERE))
        )


def test_parameters_reach_their_formula() -> None:
    """Losses with parameters tend to those without as the parameters tend to their limits."""
    teacher, student = logits(1, 1.0), logits(2, 1.0)
    forward, reverse = (value(of(name), student, dense(teacher)) for name in ("kl", "reverse_kl"))
    limits = {
        "jsd": [(1e-6, 1e-6, forward), (1 - 1e-6, 1e-6, reverse)],
        "skew_kl": [(1e-7, 1.0, forward)],
        "skew_reverse_kl": [(1e-7, 1.0, reverse)],
    }
    for name, found in limits.items():
        (parameter,) = get_loss(name).parameters
        for setting, scale, limit in found:
            values = value(of(name, **{parameter: setting}), student, dense(teacher)) / scale
            torch.testing.assert_close(values, limit, rtol=1e-3, atol=0)
    unsure = value(of("entropy_aware_kl", threshold=1e-3, width=1e-3), student, dense(teacher))
    torch.testing.assert_close(unsure, forward)
    sure = value(of("entropy_aware_kl", threshold=100.0), student, dense(teacher))
    torch.testing.assert_close(sure, reverse)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("jsd", {"beta": 1.0}, r"jsd: beta is 1, but has to lie between 0 and 1"),
        ("jsd", {"bta": 0.5}, r"jsd: no parameter is called 'bta'. Did you mean 'beta'"),
        ("kl", {"alpha": 0.5}, r"kl: no parameter is called 'alpha'"),
        ("hinge", {"margin": -1.0}, r"hinge: margin is -1"),
    ],
)
def test_parameters_that_cannot_be_are_refused(name: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Term.of(get_loss(name), parameters=parameters)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=r"kl: temperature is .*, but has to be positive"):
        Term.of(get_loss("kl"), temperature=temperature)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'reverse_kl'"):
        get_loss("revers_kl")
    with pytest.raises(UserError, match="missing_probability_handling: 'none' is none of tail, bounded, uniform, zero"):
        Term.of(get_loss("kl"), missing="none")


def test_temperature_scales_the_gradient_back() -> None:
    assert of("kl", 2.0).factor == 4.0
    assert of("cross_entropy", 2.0).factor == of("tvd", 2.0).factor == 1.0


def test_a_jensen_shannon_divergence_is_at_most_log_2_and_a_distance_at_most_1() -> None:
    teacher, student = torch.full((N, V), -1e9), torch.full((N, V), -1e9)
    teacher[:, 0], student[:, 1] = 0.0, 0.0
    for signal in (dense(teacher), topk_signal(teacher, 1)):
        assert value(of("jsd"), student, signal).tolist() == pytest.approx([math.log(2)] * N)
        assert value(of("tvd"), student, signal).tolist() == pytest.approx([1.0] * N)


def test_the_order_of_tokens_is_all_that_ranking_asks_for() -> None:
    teacher = logits(1)
    signal = topk_signal(teacher, K)
    spread_out = 100 * teacher  # the same order, far apart
    assert value(of("logistic_ranking"), spread_out, signal).mean() < 0.05
    assert value(of("logistic_ranking"), -spread_out, signal).mean() > 5.0
    assert value(of("adaptive_hinge"), teacher, signal).abs().max() < 1e-6
    tied = TopkSignal(
        signal.ids, torch.full_like(signal.logprobs, math.log(1 / K)), torch.full_like(signal.log_tail_mass, -math.inf),
        torch.zeros_like(signal.log_normalisers), TEMPERATURES, EVERYWHERE,
    )  # fmt: skip
    assert not value(of("hinge"), teacher, tied).any()


def squared_difference(outcomes: Outcomes, *, power: float) -> Tensor:
    """A loss from elsewhere: its contributions are all that it says."""
    return (outcomes.p - outcomes.q).abs() ** power


@pytest.mark.parametrize("kind", ["dense", "topk"])
def test_a_loss_without_a_derivative_is_differentiated(kind: str) -> None:
    teacher, student = logits(1), logits(2)
    listed = topk_signal(teacher, K)
    plain = student.clone().requires_grad_()
    q, p = torch.softmax(plain, -1), torch.softmax(teacher, -1)
    if kind == "topk":
        q, p = (x.gather(-1, listed.ids) for x in (q, p))
        q, p = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (q, p))
    (p - q).square().sum().backward()
    assert plain.grad is not None
    elsewhere = Loss("squared_difference", squared_difference, ("dense", "topk"), parameters={"power": 2.0})
    found = gradient(Term.of(elsewhere), student, dense(teacher) if kind == "dense" else listed)
    torch.testing.assert_close(found, plain.grad, rtol=1e-4, atol=1e-7)


def test_no_two_losses_share_a_name() -> None:
    with pytest.raises(ValueError, match="loss kl is registered twice"):
        loss("kl")(lambda outcomes: outcomes.p)
