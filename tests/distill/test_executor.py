"""The executor against one plain float64 graph: value and gradient, for every loss, signal and temperature."""

import shutil

import pytest
import torch
from torch import Tensor
from torch._dynamo import utils as compiled

from limbeck.distill.executor import Positions, Term, token_values, total_loss
from limbeck.distill.losses import all_losses, get_loss
from limbeck.distill.mixture import MixedHead
from limbeck.distill.walk import Chunk, walk
from limbeck.errors import LimbeckError, UserError
from limbeck.signals.types import DenseSignal, HiddenSignal, OutputHead, TeacherSignal, TokenSignal, kind_of
from tests.distill.plain import logits_of, plain_values, sampled_signal, topk_signal

N, V, D, K = 37, 101, 16, 9
TOLERANCE = 1e-5  # relative, in float32


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HIDDEN, WEIGHT, BIAS = random(N, D, seed=1), random(V, D, seed=2), random(V, seed=3)
TARGETS = torch.randint(V, (N,), generator=torch.Generator().manual_seed(4))
TEACHER = HiddenSignal(random(N, D, seed=5), OutputHead(random(V, D, seed=6)), torch.ones(N, dtype=torch.bool))
TEACHER_LOGITS = logits_of(TEACHER.hidden, TEACHER.head)
LOGPROBS = torch.log_softmax(TEACHER_LOGITS, -1)
SIGNALS: dict[str, TeacherSignal] = {
    "dense": DenseSignal(LOGPROBS.float(), TEACHER.mask),
    "hidden": TEACHER,
    "topk": topk_signal(TEACHER_LOGITS, K),
    "sampled": sampled_signal(TEACHER_LOGITS, 25, seed=7),
    "token": TokenSignal(LOGPROBS.gather(-1, TARGETS[:, None])[:, 0].float(), TEACHER.mask),
}


def cases() -> list[tuple[str, str | None, float, str | None]]:
    """Every registered loss on every signal that it is defined on, at all temperatures, with every handling."""
    found: list[tuple[str, str | None, float, str | None]] = []
    for loss in all_losses():
        if loss.over in ("states", "relations"):
            continue
        for kind in loss.signals or (None,):
            handlings = ("tail", "uniform", "zero") if kind == "topk" else (None,)
            temperatures = (1.0,) if kind in ("sampled", "token") else (1.0, 2.0, 4.0)
            found += [(loss.name, kind, t, missing) for t in temperatures for missing in handlings]
    return found


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 positions a chunk and 3 a block: N is no multiple of either."""
    monkeypatch.setattr("limbeck.distill.walk.CHUNK_LOGITS", 16 * V)
    monkeypatch.setattr("limbeck.distill.walk.BLOCK_LOGITS", 3 * V)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """The distance of two tensors is small against the size of the second."""
    assert found.isfinite().all()
    assert (found.double() - expected).norm() <= tolerance * expected.norm()


def leaves(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.to(dtype, copy=True).requires_grad_() for x in (HIDDEN, WEIGHT, BIAS))  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "kind", "temperature", "missing"), cases())
def test_every_loss_equals_its_plain_formula(
    name: str, kind: str | None, temperature: float, missing: str | None
) -> None:
    signal = None if kind is None else SIGNALS[kind]
    term = Term.of(get_loss(name), 0.7, temperature, missing=missing)  # type: ignore[arg-type]
    hidden, weight, bias = leaves(torch.float32)
    loss, parts = total_loss(Positions(hidden, TARGETS, signal), OutputHead(weight, bias), [term], 7.0)
    loss.backward()

    plain_hidden, plain_weight, plain_bias = leaves(torch.float64)
    logits = logits_of(plain_hidden, OutputHead(plain_weight, plain_bias))
    values = plain_values(name, logits, TARGETS, signal, temperature, missing)
    plain = 0.7 * values.sum() / 7.0
    plain.backward()

    assert_close(loss, plain)
    assert_close(parts[name], values.sum() / 7.0)
    assert_close(
        token_values(Positions(HIDDEN, TARGETS, signal), OutputHead(WEIGHT, BIAS), [term])[name], values.detach()
    )
    for found, expected in ((hidden, plain_hidden), (weight, plain_weight), (bias, plain_bias)):
        assert found.grad is not None and expected.grad is not None
        assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("kind", ["topk", "hidden"])
def test_several_losses_at_several_temperatures(kind: str, soft_cap: float | None, dtype: torch.dtype) -> None:
    """One pass for all of them, with bias and soft-cap, each position with a weight of its own."""
    signal = SIGNALS[kind]
    weights = torch.rand(N, generator=torch.Generator().manual_seed(8)).to(dtype)
    names = ["cross_entropy", "kl", "reverse_kl", "jsd", "tvd", "skew_kl"]
    terms = [Term.of(get_loss(name), 0.3 + i, 1.0 + (i % 2)) for i, name in enumerate(names)]
    hidden, weight, bias = leaves(dtype)
    head = OutputHead(weight, bias, soft_cap)
    loss, parts = total_loss(Positions(hidden, TARGETS, signal, weights), head, terms, torch.tensor(7.0))
    gradients = torch.autograd.grad(loss, (hidden, weight, bias))

    inputs = leaves(torch.float64)
    logits = logits_of(inputs[0], OutputHead(inputs[1], inputs[2], soft_cap))
    plain = torch.zeros((), dtype=torch.float64)
    for term in terms:
        values = plain_values(term.name, logits, TARGETS, signal, term.temperature, None) * weights.double()
        plain = plain + term.weight * values.sum() / 7.0
        assert_close(parts[term.name], values.sum() / 7.0)
    assert_close(loss, plain)
    for found, expected in zip(gradients, torch.autograd.grad(plain, inputs), strict=True):
        assert_close(found, expected)


def test_memory_is_one_chunk_of_logits_whatever_n_is(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: set[int] = set()
    sizes: list[int] = []

    def watched(*arguments: object) -> object:
        for chunk in walk(*arguments):  # type: ignore[arg-type]
            assert isinstance(chunk, Chunk)
            buffers.add(chunk.logits.data_ptr())
            sizes.append(len(chunk.logits))
            yield chunk

    monkeypatch.setattr("limbeck.distill.executor.walk", watched)
    terms = [Term.of(get_loss("kl")), Term.of(get_loss("cross_entropy"))]
    total_loss(Positions(HIDDEN.repeat(5, 1), TARGETS.repeat(5)), OutputHead(WEIGHT), terms[1:], N)
    assert len(buffers) == 1
    assert sum(sizes) == 5 * N and max(sizes) <= 16 and max(sizes) - min(sizes) <= 1


def test_what_needs_no_gradient_gets_none() -> None:
    hidden, weight, _ = leaves(torch.float32)
    kl = [Term.of(get_loss("kl"))]
    total_loss(Positions(hidden, TARGETS, SIGNALS["topk"]), OutputHead(WEIGHT), kl, N)[0].backward()
    alone = hidden.grad
    total_loss(Positions(HIDDEN, TARGETS, SIGNALS["topk"]), OutputHead(weight), kl, N)[0].backward()
    assert alone is not None and weight.grad is not None and WEIGHT.grad is None and HIDDEN.grad is None
    frozen = total_loss(Positions(HIDDEN, TARGETS, SIGNALS["topk"]), OutputHead(WEIGHT), kl, N)[0]
    assert not frozen.requires_grad


def test_without_gradients_the_loss_is_the_same() -> None:
    terms = [Term.of(get_loss("kl"), 0.5), Term.of(get_loss("hs_mse"), 2.0), Term.of(get_loss("cross_entropy"), 0.1)]
    positions = Positions(HIDDEN, TARGETS, TEACHER, torch.rand(N, generator=torch.Generator().manual_seed(9)))
    with torch.no_grad():
        loss, parts = total_loss(positions, OutputHead(WEIGHT), terms, N)
    tracked, tracked_parts = total_loss(positions, OutputHead(WEIGHT.clone().requires_grad_()), terms, N)
    assert tracked.requires_grad and not loss.requires_grad
    torch.testing.assert_close(loss, tracked.detach())
    torch.testing.assert_close(parts, tracked_parts)


def test_no_positions_are_a_loss_of_0_with_gradients_of_0() -> None:
    hidden, weight, bias = leaves(torch.float32)
    nothing = Positions(hidden[:0], TARGETS[:0], topk_signal(TEACHER_LOGITS[:0], K))
    loss, parts = total_loss(nothing, OutputHead(weight, bias), [Term.of(get_loss("kl"))], 1.0)
    loss.backward()
    assert loss.item() == 0.0 == parts["kl"].item()
    assert weight.grad is not None and not weight.grad.any() and bias.grad is not None and not bias.grad.any()


def test_what_does_not_count_may_be_nan() -> None:
    """A position of weight 0 adds nothing and breaks nothing, whatever stands there."""
    weights = torch.ones(N)
    weights[3] = 0
    broken = topk_signal(TEACHER_LOGITS, K)
    broken.logprobs[3], broken.log_tail_mass[3] = float("nan"), float("nan")
    torn = HIDDEN.clone()
    torn[3] = float("nan")
    kept = weights != 0
    kl = [Term.of(get_loss("kl"))]
    hidden, weight, _ = leaves(torch.float32)
    with torch.no_grad():
        hidden[3] = float("nan")
    loss, _ = total_loss(Positions(hidden, TARGETS, broken, weights), OutputHead(weight), kl, N)
    loss.backward()
    only = total_loss(
        Positions(HIDDEN[kept], TARGETS[kept], topk_signal(TEACHER_LOGITS[kept], K)), OutputHead(WEIGHT), kl, N
    )
    assert loss.item() == pytest.approx(only[0].item(), rel=1e-6)
    assert hidden.grad is not None and not hidden.grad[3].any() and hidden.grad.isfinite().all()
    assert weight.grad is not None and weight.grad.isfinite().all()


def test_cutting_a_batch_differently_gives_the_same_gradient() -> None:
    terms = [Term.of(get_loss("kl"), 0.5), Term.of(get_loss("cross_entropy"), 0.5)]

    def gradient(*cuts: int) -> Tensor:
        weight = WEIGHT.clone().requires_grad_()
        for first, last in zip((0, *cuts), (*cuts, N), strict=True):
            signal = topk_signal(TEACHER_LOGITS[first:last], K)
            part = Positions(HIDDEN[first:last], TARGETS[first:last], signal)
            total_loss(part, OutputHead(weight), terms, N)[0].backward()
        assert weight.grad is not None
        return weight.grad

    whole = gradient()
    for cuts in ((1,), (10, 11, 30)):
        assert_close(gradient(*cuts), whole.double(), 1e-6)


def test_gradients_can_be_taken_once() -> None:
    hidden, weight, _ = leaves(torch.float32)
    loss, _ = total_loss(Positions(hidden, TARGETS), OutputHead(weight), [Term.of(get_loss("cross_entropy"))], N)
    loss.backward(retain_graph=True)
    with pytest.raises(LimbeckError, match="can run once"):
        loss.backward()


def test_a_tied_head_gets_both_gradients() -> None:
    """The embedding that a model shares with its head: one parameter, two ways into the loss."""
    ids = torch.arange(N) % V
    found, expected = WEIGHT.clone().requires_grad_(), WEIGHT.double().requires_grad_()
    term = Term.of(get_loss("cross_entropy"))
    total_loss(Positions(torch.tanh(found[ids]), TARGETS), OutputHead(found), [term], N)[0].backward()
    logits = torch.tanh(expected[ids]) @ expected.T
    plain_values("cross_entropy", logits, TARGETS, None, 1.0, None).sum().div(N).backward()
    assert found.grad is not None and expected.grad is not None
    assert_close(found.grad, expected.grad)


def test_half_precision_products_and_single_precision_sums() -> None:
    """In bfloat16 the products round, and nothing else does: the gradient is as good as its inputs."""
    hidden, weight = HIDDEN.bfloat16().requires_grad_(), WEIGHT.bfloat16().requires_grad_()
    signal = SIGNALS["topk"]
    loss, _ = total_loss(Positions(hidden, TARGETS, signal), OutputHead(weight), [Term.of(get_loss("kl"))], N)
    loss.backward()
    plain_hidden, plain_weight = (
        HIDDEN.bfloat16().double().requires_grad_(),
        WEIGHT.bfloat16().double().requires_grad_(),
    )
    logits = logits_of(plain_hidden, OutputHead(plain_weight))
    plain = plain_values("kl", logits, TARGETS, signal, 1.0, None).sum() / N
    plain.backward()
    assert loss.dtype == torch.float32
    assert_close(loss, plain, 1e-2)
    for found, expected in ((hidden, plain_hidden), (weight, plain_weight)):
        assert found.grad is not None and expected.grad is not None and found.grad.dtype == torch.bfloat16
        assert_close(found.grad, expected.grad, 3e-2)


def test_autocast_makes_products_in_its_own_dtype() -> None:
    hidden, weight, _ = leaves(torch.float32)
    terms = [Term.of(get_loss("kl"))]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = total_loss(Positions(hidden, TARGETS, SIGNALS["topk"]), OutputHead(weight), terms, N)
    loss.backward()
    exact = total_loss(Positions(HIDDEN, TARGETS, SIGNALS["topk"]), OutputHead(WEIGHT), terms, N)[0]
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2) and loss.item() != exact.item()


@pytest.mark.parametrize("name", ["hs_mse", "hs_cosine"])
def test_hidden_states_are_compared_beside_the_walk(name: str) -> None:
    hidden, weight, _ = leaves(torch.float32)
    terms = [Term.of(get_loss(name), 2.0), Term.of(get_loss("kl"))]
    loss, parts = total_loss(Positions(hidden, TARGETS, TEACHER), OutputHead(weight), terms, N)
    loss.backward()
    plain = HIDDEN.double().requires_grad_()
    student, teacher = plain, TEACHER.hidden.double()
    values = (
        (student - teacher).square().mean(-1)
        if name == "hs_mse"
        else 1 - (student * teacher).sum(-1) / student.norm(dim=-1) / teacher.norm(dim=-1)
    )
    kl = plain_values("kl", logits_of(plain, OutputHead(WEIGHT)), TARGETS, TEACHER, 1.0, None)
    (2.0 * values.sum() / N + kl.sum() / N).backward()
    assert list(parts) == [name, "kl"]
    assert_close(parts[name], values.sum() / N)
    assert hidden.grad is not None and plain.grad is not None
    assert_close(hidden.grad, plain.grad)


def test_states_of_other_widths_are_refused() -> None:
    with pytest.raises(UserError, match=r"'hs_mse': the student's states are 8 wide and the teacher's 16"):
        total_loss(
            Positions(HIDDEN[:, :8], TARGETS, TEACHER), OutputHead(WEIGHT[:, :8]), [Term.of(get_loss("hs_mse"))], N
        )


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_loss_that_a_signal_cannot_feed_is_refused(kind: str) -> None:
    assert kind_of(SIGNALS[kind]) == kind
    for loss in all_losses():
        if loss.over != "relations" and loss.signals and kind not in loss.signals:
            with pytest.raises(UserError, match=f"{loss.name!r} is not defined on a {kind!r} signal"):
                total_loss(Positions(HIDDEN, TARGETS, SIGNALS[kind]), OutputHead(WEIGHT), [Term.of(loss)], N)


def test_a_loss_without_its_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="'kl' compares with a teacher"):
        token_values(Positions(HIDDEN, TARGETS), OutputHead(WEIGHT), [Term.of(get_loss("kl"))])


@pytest.mark.slow
def test_a_compiled_body_gives_the_same_gradient() -> None:
    """Compiled once for blocks of any length; bias, soft-cap, weights and two temperatures at once."""
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("no C++ compiler is installed")
    torch.compiler.reset()
    compiled.counters.clear()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(8))
    terms = [Term.of(get_loss("jsd"), 0.4), Term.of(get_loss("kl"), 0.3, 2.0), Term.of(get_loss("cross_entropy"), 0.3)]
    found = []
    for switch in (True, False):
        hidden, weight, bias = leaves(torch.float32)
        positions = Positions(hidden, TARGETS, TEACHER, weights)
        loss, parts = total_loss(positions, OutputHead(weight, bias, 5.0), terms, N, compiled=switch)
        loss.backward()
        found.append([loss.detach(), *parts.values(), hidden.grad, weight.grad, bias.grad])
    assert compiled.counters["stats"]["unique_graphs"] == 1
    for with_it, without in zip(*found, strict=True):
        assert with_it is not None and without is not None
        assert_close(with_it, without.double())


def test_without_a_compiler_losses_run_as_they_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("limbeck.distill.compiled.shutil.which", lambda name: None)
    monkeypatch.setattr("limbeck.distill.compiled._told", set())
    terms = [Term.of(get_loss("kl"))]
    positions = Positions(leaves(torch.float32)[0], TARGETS, TEACHER)
    losses = [total_loss(positions, OutputHead(WEIGHT), terms, N, compiled=switch)[0] for switch in (True, True, False)]
    assert losses[0] == losses[1] == losses[2]
    assert capsys.readouterr().err.count("compile: no C++ compiler") == 1


def test_teachers_in_process_are_mixed_exactly() -> None:
    """Two teachers of different widths, in shares that change from position to position; the temperature comes last."""
    other = OutputHead(random(V, 8, seed=11), random(V, seed=12), 4.0)
    states = random(N, 8, seed=13)
    ways = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    numbers = torch.arange(N) % 2
    head = MixedHead.of((TEACHER.head, other), ways)
    signal = HiddenSignal(torch.cat([TEACHER.hidden, states, numbers[:, None].float()], -1), head, TEACHER.mask)
    shares = ways[numbers].double()[:, :, None]
    both = torch.stack([torch.softmax(TEACHER_LOGITS, -1), torch.softmax(logits_of(states, other), -1)], 1)
    mixed = DenseSignal((shares * both).sum(1).log(), TEACHER.mask)
    for name, temperature in (("kl", 1.0), ("jsd", 2.0), ("reverse_kl", 4.0)):
        hidden, weight, _ = leaves(torch.float32)
        term = [Term.of(get_loss(name), temperature=temperature)]
        total_loss(Positions(hidden, TARGETS, signal), OutputHead(weight), term, N)[0].backward()
        plain_hidden, plain_weight, _ = leaves(torch.float64)
        logits = logits_of(plain_hidden, OutputHead(plain_weight))
        (plain_values(name, logits, TARGETS, mixed, temperature, None).sum() / N).backward()
        for found, expected in ((hidden, plain_hidden), (weight, plain_weight)):
            assert found.grad is not None and expected.grad is not None
            assert_close(found.grad, expected.grad)
