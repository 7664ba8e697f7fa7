"""Do sparse losses follow the dense ones at T = 1, 2 and 4? The cosine of their gradients by the logits.

The teacher is a workload of `benchmarks.workloads` whose 128 most probable tokens are listed, with what is stored of
the rest. The student is the teacher with standard normal noise on every logit (`noise`), or another draw of the same
workload, which knows nothing of it (`other`).

    tail, uniform    ours: KL with the rest as one bucket
    tail, 1024       the same from a list of 1,024 tokens
    bounded          ours: the bucket, and tokens of the rest to which the student gives more than the list allows
    best             no loss: the most that any function of list and student could reach. It is told the mean teacher
                     probability of unlisted tokens to which the student gives about as much, of each position
    reference        its formula: the listed tokens renormalised at T, the student's softmax over everything
    reference, +1    its formula with the missing mass as one token more, whatever T

A cosine is that of the gradients of all positions as one vector; in brackets the mean of positions.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.timing import Row
from benchmarks.workloads import NAMES, logits_of
from limbeck.distill.block import Known, block_gradient
from limbeck.distill.executor import Term
from limbeck.distill.losses import get_loss
from limbeck.distill.losses.outcomes import Scratch
from limbeck.distill.teacher import Listing
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import TopkSignal

TITLE = "Gradients of sparse KL against dense KL"
K, POSITIONS, BINS = 128, 32, 2000
TEMPERATURES = (1.0, 2.0, 4.0)
STUDENTS = ("noise", "other")
COLUMNS = ("tail", "tail, 1024", "bounded", "best", "uniform", "reference", "reference, +1")


def ours(student_nV: Tensor, teacher: Tensor | TopkSignal, temperature: float, missing: str | None = None) -> Tensor:
    """Return the gradient of our KL by the student's logits, `[n, V]`."""
    found_nV, targets_n = student_nV.clone(), torch.zeros(len(student_nV), dtype=torch.long)
    known = (
        Known(targets_n, scores=teacher)
        if isinstance(teacher, Tensor)
        else Known(targets_n, listing=Listing.of(teacher, student_nV.shape[-1]))
    )
    block_gradient(found_nV, known, [Term.of(get_loss("kl"), 1.0, temperature, missing=missing)], Scratch())
    return found_nV


def reference(student_nV: Tensor, teacher: TopkSignal, temperature: float, *, one_more: bool) -> Tensor:
    """Return the gradient of the reference's formula, up to a factor."""
    student = student_nV.double().requires_grad_()
    log_q_nK = torch.log_softmax(student / temperature, -1).gather(-1, teacher.ids)
    log_p_nK = teacher.logprobs.double() / temperature
    if not one_more:
        log_p_nK = log_p_nK.log_softmax(-1)
        (log_p_nK.exp() * (log_p_nK - log_q_nK)).sum().backward()
    else:
        missing_n1 = 1 - teacher.logprobs.double().exp().sum(-1, keepdim=True)
        log_missing_n1 = missing_n1.clamp(1e-12, 1).log() / temperature
        both = torch.cat([log_p_nK, log_missing_n1], -1).log_softmax(-1)
        log_rest_n1 = (1 - log_q_nK.exp().sum(-1, keepdim=True)).clamp(1e-12).log()
        (both.exp() * (both - torch.cat([log_q_nK, log_rest_n1], -1))).sum().backward()
    assert student.grad is not None
    return student.grad.float()


def best(student_nV: Tensor, teacher_nV: Tensor, listed: TopkSignal, temperature: float) -> Tensor:
    """Return the dense gradient with unlisted teacher probabilities replaced by their mean given the student's.

    The conditional mean has the highest cosine with the dense gradient of all functions of what is given, up to the
    width of the bins over which it is taken.
    """
    p_nV, q_nV = (torch.softmax(scores.double() / temperature, -1) for scores in (teacher_nV, student_nV))
    for p_V, q_V, ids_K in zip(p_nV, q_nV, listed.ids, strict=True):
        rest_V = torch.ones_like(p_V, dtype=torch.bool)
        rest_V[ids_K] = False
        order = q_V[rest_V].argsort()
        known = torch.empty_like(order, dtype=p_V.dtype)
        known[order] = torch.cat([part.mean().expand(len(part)) for part in p_V[rest_V][order].tensor_split(BINS)])
        p_V[rest_V] = known
    return (q_nV - p_nV).float()


def pairs(data: str, student: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits of teacher and student."""
    generator = torch.Generator().manual_seed(7)
    for teacher_nV, other_nV in zip(logits_of(data, POSITIONS), logits_of(data, POSITIONS, seed=2), strict=True):
        noise_nV = torch.randn(teacher_nV.shape, generator=generator)
        yield teacher_nV, teacher_nV + noise_nV if student == "noise" else other_nV


def cosines(data: str, student: str, temperature: float) -> dict[str, tuple[float, float]]:
    """Return each column's cosine with the dense gradient, over all positions at once and their mean."""
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in COLUMNS}
    means: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    for teacher_nV, student_nV in pairs(data, student):
        listed = topk_of_logits(teacher_nV, TopkSpec(select="count", cap=K, temperatures=TEMPERATURES))
        more = topk_of_logits(teacher_nV, TopkSpec(select="count", cap=8 * K, temperatures=TEMPERATURES))
        dense_nV = ours(student_nV, teacher_nV, temperature)
        found = {
            "tail": ours(student_nV, listed, temperature, "tail"),
            "tail, 1024": ours(student_nV, more, temperature, "tail"),
            "bounded": ours(student_nV, listed, temperature, "bounded"),
            "best": best(student_nV, teacher_nV, listed, temperature),
            "uniform": ours(student_nV, listed, temperature, "uniform"),
            "reference": reference(student_nV, listed, temperature, one_more=False),
            "reference, +1": reference(student_nV, listed, temperature, one_more=True),
        }
        for name, gradient_nV in found.items():
            products = [(x.double() * y.double()).sum(-1) for x, y in (
                (gradient_nV, dense_nV), (gradient_nV, gradient_nV), (dense_nV, dense_nV))]  # fmt: skip
            sums[name] += torch.stack([product.sum() for product in products])
            means[name].append(products[0] / (products[1] * products[2]).sqrt())
    return {
        name: (float(sums[name][0] / (sums[name][1] * sums[name][2]).sqrt()), float(torch.cat(means[name]).mean()))
        for name in COLUMNS
    }


def run() -> list[Row]:
    print(f"\n{TITLE}: {POSITIONS} positions, k = {K}")
    print(f"{'data':<8} {'student':<8} {'T':>2} " + " ".join(f"{name:>15}" for name in COLUMNS))
    for data in reversed(NAMES):
        for student in STUDENTS:
            for temperature in TEMPERATURES:
                found = cosines(data, student, temperature)
                shown = " ".join(f"{found[name][0]:>8.4f} ({found[name][1]:.2f})".rjust(15) for name in COLUMNS)
                print(f"{data:<8} {student:<8} {temperature:>2g} {shown}", flush=True)
    return []
