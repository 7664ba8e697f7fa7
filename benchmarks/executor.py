"""The chunked executor: time against its matrix products and against whole logits, and memory beyond its inputs.

The products alone are those that any way of doing this has to make, and no others: the student's logits, the gradient
of its states, and the gradient of its head; with a teacher by hidden states, the teacher's logits too. "Whole logits"
is what a trainer does that keeps `[N, V]` logits: log-softmax in float32, the loss, and autograd.

Memory is the high-water mark of resident memory of a child process that does one forward and backward pass, less what
it held before. The gradient of the head alone is V x H floats of it.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import Row, in_turn
from limbeck.distill.executor import Positions, Term, total_loss
from limbeck.distill.losses import get_loss
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import HiddenSignal, OutputHead, TeacherSignal, TopkSignal

N, V, H, K = 1024, 151_936, 256, 128
TITLE = f"Losses from hidden states, forward and backward: N = {N:,}, V = {V:,}, H = {H}, k = {K}, float32"
RUNS = 3
KIBIBYTES_A_MEBIBYTE = 1024


@dataclass(frozen=True)
class Inputs:
    """A student's states and head, and a teacher that is known sparsely and by its hidden states."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    sparse: TopkSignal
    states: HiddenSignal


def make_inputs() -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def states() -> Tensor:
        return torch.randn(N, H, generator=generator)

    def head() -> Tensor:
        return 3 * torch.randn(V, H, generator=generator) / H**0.5

    teacher = HiddenSignal(states(), OutputHead(head()), torch.ones(N, dtype=torch.bool))
    spec = TopkSpec(select="count", cap=K)
    listed = [topk_of_logits(rows @ teacher.head.weight.T, spec) for rows in teacher.hidden.split(64)]
    targets = torch.randint(V, (N,), generator=generator)
    return Inputs(states().requires_grad_(), head().requires_grad_(), targets, concatenate(listed), teacher)


def fused(inputs: Inputs, teacher: TeacherSignal, *names: str) -> None:
    """Ours: forward and backward, gradients left in the leaves."""
    inputs.hidden.grad = inputs.weight.grad = None
    terms = [Term.of(get_loss(name)) for name in names]
    total_loss(Positions(inputs.hidden, inputs.targets, teacher), OutputHead(inputs.weight), terms, N)[0].backward()


def whole_sparse_kl(inputs: Inputs) -> None:
    """Whole logits: the listed tokens renormalised, the student's log-softmax over everything, autograd."""
    inputs.hidden.grad = inputs.weight.grad = None
    target_NK = torch.log_softmax(inputs.sparse.logprobs, -1)
    logits_NV = inputs.hidden @ inputs.weight.T
    log_q_NK = logits_NV.gather(-1, inputs.sparse.ids.long()) - logits_NV.logsumexp(-1, keepdim=True)
    (target_NK.exp() * (target_NK - log_q_NK)).sum().div(N).backward()


def whole_log_softmax_kl(inputs: Inputs) -> None:
    """The same through a log-softmax of everything, as a plain script would write it."""
    inputs.hidden.grad = inputs.weight.grad = None
    target_NK = torch.log_softmax(inputs.sparse.logprobs, -1)
    log_q_NV = torch.log_softmax((inputs.hidden @ inputs.weight.T).float(), -1)
    log_q_NK = log_q_NV.gather(-1, inputs.sparse.ids.long())
    (target_NK.exp() * (target_NK - log_q_NK)).sum().div(N).backward()


@torch.no_grad()
def products(inputs: Inputs, *, teacher: bool) -> None:
    """The matrix products alone, on whole logits."""
    scores_NV = inputs.hidden @ inputs.weight.T
    _ = scores_NV @ inputs.weight
    _ = scores_NV.T @ inputs.hidden
    if teacher:
        del scores_NV
        _ = inputs.states.hidden @ inputs.states.head.weight.T


WORK: dict[str, Callable[[Inputs], None]] = {
    "sparse KL": lambda inputs: fused(inputs, inputs.sparse, "kl"),
    "dense KL": lambda inputs: fused(inputs, inputs.states, "kl"),
    "dense JSD": lambda inputs: fused(inputs, inputs.states, "jsd"),
    "sparse KL, JSD, TVD and cross-entropy": lambda inputs: fused(
        inputs, inputs.sparse, "kl", "jsd", "tvd", "cross_entropy"
    ),
    "dense KL, JSD and cross-entropy": lambda inputs: fused(inputs, inputs.states, "kl", "jsd", "cross_entropy"),
    "whole logits, log-sum-exp": whole_sparse_kl,
    "whole logits, log-softmax": whole_log_softmax_kl,
    "three products": lambda inputs: products(inputs, teacher=False),
    "four products": lambda inputs: products(inputs, teacher=True),
}
COMPARED = [
    ("sparse KL", "three products"),
    ("sparse KL", "whole logits, log-sum-exp"),
    ("sparse KL", "whole logits, log-softmax"),
    ("dense KL", "four products"),
    ("dense JSD", "four products"),
    ("sparse KL, JSD, TVD and cross-entropy", "sparse KL"),
    ("dense KL, JSD and cross-entropy", "dense JSD"),
]
WEIGHED = ("sparse KL", "dense KL", "dense JSD", "whole logits, log-sum-exp", "whole logits, log-softmax")


def additional_memory(name: str) -> float:
    """Return MiB that a child process holds at its highest while it does this once, beyond what it held before."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.executor", name], capture_output=True, text=True, check=True
    )
    return float(child.stdout)


def _resident(field: str) -> float:
    """Return MiB of `VmRSS` (now) or `VmHWM` (the most there has been)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / KIBIBYTES_A_MEBIBYTE


def _weigh(name: str) -> None:
    inputs = make_inputs()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is held now
    before = _resident("VmRSS")
    WORK[name](inputs)
    print(_resident("VmHWM") - before)


def run() -> list[Row]:
    inputs = make_inputs()
    rows = []
    for ours, other in COMPARED:
        mine, others = WORK[ours], WORK[other]
        rows.append(
            Row(ours, *in_turn(lambda mine=mine: mine(inputs), lambda others=others: others(inputs), RUNS), other)
        )
    print(f"\nMemory at its highest beyond the inputs, MiB; {torch.get_num_threads()} threads")
    for name in WEIGHED:
        print(f"{name:<58} {additional_memory(name):>9,.0f}")
    return rows


if __name__ == "__main__":
    _weigh(sys.argv[1])
