"""Universal Logit Distillation: across vocabularies of different sizes, at positions that two tokenizations share."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.distill.executor import Positions, Term, token_values, total_loss
from limbeck.distill.losses import get_loss
from limbeck.distill.losses.uld import partners
from limbeck.distill.ranks import ALIGNED, total_loss_of_two_tokenizers
from limbeck.distill.view import OtherTokens
from limbeck.distill.walk import walk
from limbeck.signals.loader import SignalBatch
from limbeck.signals.types import DenseSignal, HiddenSignal, OutputHead, at
from tests.distill.plain import logits_of

N, D, E = 29, 12, 7
EVERYWHERE = torch.ones(N, dtype=torch.bool)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def term(name: str, weight: float = 1.0, temperature: float = 1.0) -> Term:
    return Term.of(get_loss(name), weight, temperature)


def plain_uld(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The formula of arXiv:2402.12030 in float64: sort, fill up with zeros, sum the differences."""
    q = torch.softmax(student.double() / temperature, -1).sort(-1, descending=True).values
    p = torch.softmax(teacher.double() / temperature, -1).sort(-1, descending=True).values
    most = max(q.shape[-1], p.shape[-1])
    q, p = (torch.nn.functional.pad(x, (0, most - x.shape[-1])) for x in (q, p))
    return (q - p).abs().sum(-1)


@pytest.mark.parametrize(("own", "other"), [(101, 53), (53, 101), (64, 64)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("soft_cap", [None, 4.0])
def test_value_and_gradient_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, own: int, other: int, temperature: float, soft_cap: float | None
) -> None:
    monkeypatch.setattr("limbeck.distill.walk.CHUNK_LOGITS", 16 * own)
    monkeypatch.setattr("limbeck.distill.walk.BLOCK_LOGITS", 3 * own)
    teacher = HiddenSignal(random(N, E, seed=1), OutputHead(random(other, E, seed=2)), EVERYWHERE)
    inputs = [random(N, D, seed=3), random(own, D, seed=4), random(own, seed=5)]
    hidden, weight, bias = (x.clone().requires_grad_() for x in inputs)
    targets = torch.zeros(N, dtype=torch.long)
    loss, parts = total_loss(
        Positions(hidden, targets, teacher),
        OutputHead(weight, bias, soft_cap),
        [term("uld", 0.3, temperature), term("cross_entropy", 0.5)],
        11.0,
    )
    loss.backward()

    exact = [x.double().requires_grad_() for x in inputs]
    logits = logits_of(exact[0], OutputHead(exact[1], exact[2], soft_cap))
    values = plain_uld(logits, logits_of(teacher.hidden, teacher.head), temperature)
    expected = (0.3 * values.sum() - 0.5 * torch.log_softmax(logits, -1)[:, 0].sum()) / 11.0
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts["uld"].double(), values.sum().detach() / 11.0, rtol=1e-5, atol=0)
    for found, plain in zip((hidden, weight, bias), exact, strict=True):
        assert found.grad is not None and plain.grad is not None
        assert (found.grad.double() - plain.grad).norm() <= 1e-5 * plain.grad.norm()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32), own=st.integers(1, 40), other=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1.0, 10.0, 1000.0]),
)  # fmt: skip
def test_it_is_a_distance_between_0_and_2(seed: int, own: int, other: int, scale: float) -> None:
    student, teacher = scale * random(5, own, seed=seed), scale * random(5, other, seed=seed + 1)
    signal = DenseSignal(teacher.log_softmax(-1), EVERYWHERE[:5])
    head = OutputHead(torch.eye(own))
    found = token_values(Positions(student, torch.zeros(5, dtype=torch.long), signal), head, [term("uld")])["uld"]
    torch.testing.assert_close(found.double(), plain_uld(student, teacher), rtol=1e-5, atol=1e-6)
    assert ((found > -1e-6) & (found < 2 + 1e-5)).all()


@given(seed=st.integers(0, 2**32))
def test_what_tokens_are_called_does_not_matter(seed: int) -> None:
    """A teacher whose vocabulary is the student's in another order, and padded, is no teacher at all."""
    student = random(4, 20, seed=seed)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    teacher = torch.cat([student[:, order], torch.full((4, 5), -200.0)], -1)
    leaf = student.clone().requires_grad_()
    signal = DenseSignal(teacher.log_softmax(-1), EVERYWHERE[:4])
    loss, _ = total_loss(
        Positions(leaf, torch.zeros(4, dtype=torch.long), signal), OutputHead(torch.eye(20)), [term("uld")], 1.0
    )
    assert loss.abs() < 1e-5


def test_partners_are_of_equal_rank() -> None:
    q = torch.tensor([[0.1, 0.7, 0.2]])
    short, beyond = partners(q, torch.tensor([[0.4, 0.6]]))
    assert torch.equal(short, torch.tensor([[0.0, 0.6, 0.4]])) and beyond.item() == 0.0
    long, beyond = partners(q, torch.tensor([[0.125, 0.25, 0.5, 0.125]]))
    assert torch.equal(long, torch.tensor([[0.125, 0.5, 0.25]])) and beyond.item() == 0.125


def batch_of(rows: int, length: int, vocabulary: int, seed: int) -> SignalBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (rows, length), generator=generator)
    counted = torch.rand(rows, length, generator=generator) < 0.7
    counted[:, -1] = False
    full = torch.ones_like(counted)
    return SignalBatch(ids, full, full, ids.roll(-1, 1), counted, None)


def places(batch: SignalBatch, other: OtherTokens) -> list[tuple[int, int]]:
    counted = batch.counted[other.rows, other.positions]
    return [(int(r), int(t)) for r, t, kept in zip(other.rows, other.positions, counted, strict=True) if kept]


def case(signal: bool = False) -> tuple[SignalBatch, Tensor, OutputHead, OtherTokens]:
    batch, hidden, head = batch_of(3, 10, 31, seed=1), random(3, 10, D, seed=2), OutputHead(random(31, D, seed=3))
    shared = torch.rand(3, 10, generator=torch.Generator().manual_seed(4)) < 0.5  # some of them don't count
    rows, positions = shared.nonzero().T
    mask = torch.ones(len(rows), dtype=torch.bool)
    other = OtherTokens(
        HiddenSignal(random(len(rows), E, seed=5), OutputHead(random(47, E, seed=6)), mask), rows, positions
    )
    if signal:
        own = HiddenSignal(random(3, 10, D, seed=7), OutputHead(random(31, D, seed=8)), batch.counted)
        batch = replace(batch, signal=own)
    return batch, hidden, head, other


@pytest.mark.parametrize("with_signal", [False, True])
def test_losses_of_two_tokenizers(with_signal: bool) -> None:
    """uld where both have said the same; cross entropy (and KL from a teacher of the same tokens) everywhere."""
    batch, hidden, head, other = case(with_signal)
    names = ["uld", "cross_entropy", "kl"] if with_signal else ["uld", "cross_entropy"]
    terms = [term(name, 0.5 + index) for index, name in enumerate(names)]
    leaf = hidden.clone().requires_grad_()
    loss, parts = total_loss_of_two_tokenizers(leaf, batch, other, head, terms, 50.0)
    loss.backward()

    exact = hidden.double().requires_grad_()
    logits = logits_of(exact, OutputHead(head.weight.double()))
    teacher = logits_of(other.signal.hidden, other.signal.head)
    kept = batch.counted[other.rows, other.positions]
    shared = places(batch, other)
    assert 0 < len(shared) < len(other.rows)
    uld = plain_uld(torch.stack([logits[row, t] for row, t in shared]), teacher[kept]).sum()
    log_q = logits.log_softmax(-1)[batch.counted]
    entropy = -log_q.gather(-1, batch.targets[batch.counted][:, None]).sum()
    expected = 0.5 * uld + 1.5 * entropy
    if isinstance(batch.signal, HiddenSignal):
        known = at(batch.signal, batch.counted)
        log_p = logits_of(known.hidden, known.head).log_softmax(-1)
        expected = expected + 2.5 * (log_p.exp() * (log_p - log_q)).sum()
    (expected / 50.0).backward()
    torch.testing.assert_close(loss.double(), expected / 50.0, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts["uld"].double(), uld.detach() / 50.0, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts["cross_entropy"].double(), entropy.detach() / 50.0, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts[ALIGNED].item() * 50.0, float(len(shared)))
    assert leaf.grad is not None and exact.grad is not None
    assert (leaf.grad.double() - exact.grad).norm() <= 1e-5 * exact.grad.norm()


def test_a_batch_cut_in_two_has_the_same_gradient() -> None:
    batch, hidden, head, other = case()
    terms = [term("uld"), term("cross_entropy")]

    def gradient(rows: slice) -> Tensor:
        leaf = hidden.clone().requires_grad_()
        cut = replace(batch, counted=torch.zeros_like(batch.counted))
        cut.counted[rows] = batch.counted[rows]
        total_loss_of_two_tokenizers(leaf, cut, other, head, terms, 20.0)[0].backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(
        gradient(slice(0, 1)) + gradient(slice(1, 3)), gradient(slice(0, 3)), rtol=1e-5, atol=1e-7
    )


def test_a_batch_that_shares_nothing_still_learns_its_text() -> None:
    batch, hidden, head, other = case()
    nothing = OtherTokens(at(other.signal, slice(0, 0)), other.rows[:0], other.positions[:0])
    leaf = hidden.clone().requires_grad_()
    loss, parts = total_loss_of_two_tokenizers(leaf, batch, nothing, head, [term("uld"), term("cross_entropy")], 9.0)
    loss.backward()
    assert parts["uld"] == 0 and parts[ALIGNED] == 0
    assert loss > 0 and leaf.grad is not None and leaf.grad.abs().sum() > 0


def test_losses_of_an_evaluation_may_all_be_on_the_students_tokens() -> None:
    batch, hidden, head, other = case()
    _, parts = total_loss_of_two_tokenizers(hidden, batch, other, head, [term("cross_entropy")], 9.0)
    assert set(parts) == {"cross_entropy"} and parts["cross_entropy"] > 0


def test_a_teacher_of_a_larger_vocabulary_has_no_larger_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.distill.walk.CHUNK_LOGITS", 20 * 400)
    monkeypatch.setattr("limbeck.distill.walk.BLOCK_LOGITS", 4 * 400)
    teacher = HiddenSignal(random(N, E, seed=1), OutputHead(random(400, E, seed=2)), EVERYWHERE)
    positions = Positions(random(N, D, seed=3), torch.zeros(N, dtype=torch.long), teacher)
    for chunk in walk(positions, OutputHead(random(10, D, seed=4)), [term("uld")]):
        assert chunk.logits.shape[0] <= 20
        for rows, known in chunk.blocks:
            assert known.scores is not None and known.scores.shape[1] == 400
            assert rows.stop - rows.start <= 4
