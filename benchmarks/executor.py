"""The chunked executor: time against its matrix products and against whole logits, and memory beyond its inputs.

The products alone are those that any way of doing this has to make, and no others: the student's logits, the gradient
of its states, and the gradient of its head; with a teacher by hidden states, the teacher's logits too. "Whole logits"
is what a trainer does that keeps `[N, V]` logits: log-softmax in float32, the loss, and autograd.

Where the environment variable `LIMBECK_DISTILLKIT` names a checkout of DistillKit, its own sparse KL is one more side.

Each side runs in a process of its own; two that are compared take turns. Memory is the high-water mark of resident
memory of such a process in its first forward and backward pass, less what it held before. The gradient of the head
alone is V x H floats of it. Processor seconds are those of all threads, and move less than the clock's with what else
the machine does.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.timing import Row, print_table
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
CHECKOUT = "LIMBECK_DISTILLKIT"


@dataclass(frozen=True)
class Inputs:
    """A student's states and head, and a teacher that is known sparsely and by its hidden states."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    sparse: TopkSignal
    states: HiddenSignal


Work = Callable[[Inputs], None]


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


def distillkit_sparse_kl() -> Work:
    """DistillKit's own sparse KL as its trainer calls it: whole logits, its defaults, autograd."""
    sys.path.insert(0, os.environ[CHECKOUT])
    from distillkit.lossfuncs.kl import KLDLoss  # type: ignore[import-not-found]
    from distillkit.signals import SparseSignal  # type: ignore[import-not-found]

    loss = KLDLoss(temperature=1.0)

    def work(inputs: Inputs) -> None:
        inputs.hidden.grad = inputs.weight.grad = None
        signal = SparseSignal(
            generation_temperature=1.0, hidden_states=None, vocab_size=V, log_values=True,
            sparse_ids=inputs.sparse.ids.long()[None], sparse_values=inputs.sparse.logprobs[None],
        )  # fmt: skip
        outputs = SimpleNamespace(logits=(inputs.hidden @ inputs.weight.T)[None])
        loss(outputs, signal, torch.ones(1, N, dtype=torch.bool)).backward()

    return work


WORK: dict[str, Callable[[], Work]] = {
    "sparse KL": lambda: lambda inputs: fused(inputs, inputs.sparse, "kl"),
    "dense KL": lambda: lambda inputs: fused(inputs, inputs.states, "kl"),
    "dense JSD": lambda: lambda inputs: fused(inputs, inputs.states, "jsd"),
    "sparse KL, JSD, TVD and cross-entropy": lambda: (
        lambda inputs: fused(inputs, inputs.sparse, "kl", "jsd", "tvd", "cross_entropy")
    ),
    "dense KL, JSD and cross-entropy": lambda: (
        lambda inputs: fused(inputs, inputs.states, "kl", "jsd", "cross_entropy")
    ),
    "DistillKit's sparse KL": distillkit_sparse_kl,
    "whole logits, log-sum-exp": lambda: whole_sparse_kl,
    "whole logits, log-softmax": lambda: whole_log_softmax_kl,
    "three products": lambda: lambda inputs: products(inputs, teacher=False),
    "four products": lambda: lambda inputs: products(inputs, teacher=True),
}
COMPARED = [
    ("sparse KL", "DistillKit's sparse KL"),
    ("sparse KL", "three products"),
    ("sparse KL", "whole logits, log-sum-exp"),
    ("sparse KL", "whole logits, log-softmax"),
    ("dense KL", "four products"),
    ("dense JSD", "four products"),
    ("sparse KL, JSD, TVD and cross-entropy", "sparse KL"),
    ("dense KL, JSD and cross-entropy", "dense JSD"),
]


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass: seconds by the clock, seconds of all processors, and MiB beyond the inputs."""

    seconds: float
    processor: float
    memory: float


class Child:
    """A process that does one thing once for each line that it is sent."""

    def __init__(self, name: str, inputs: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.executor", name, str(inputs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self) -> Pass:
        assert self.process.stdin is not None and self.process.stdout is not None
        print("once", file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a child process of the benchmark ended early; what it said is above")
        return Pass(*(float(part) for part in line.split()))

    def end(self) -> None:
        self.process.communicate()


def _serve(name: str, place: Path) -> None:
    inputs: Inputs = torch.load(place, weights_only=False)
    work = WORK[name]()
    for _ in sys.stdin:
        inputs.hidden.grad = inputs.weight.grad = None
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is held now
        before = _resident("VmRSS")
        clock, processor = time.perf_counter(), time.process_time()
        work(inputs)
        print(time.perf_counter() - clock, time.process_time() - processor, _resident("VmHWM") - before, flush=True)


def _resident(field: str) -> float:
    """Return MiB of `VmRSS` (now) or `VmHWM` (the most there has been)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / KIBIBYTES_A_MEBIBYTE


def _in_turn(names: tuple[str, str], inputs: Path) -> tuple[list[Pass], list[Pass]]:
    """Return the passes of two processes in turn, the first of which is fresh: its memory is what a pass takes."""
    both = [Child(name, inputs) for name in names]
    passes: tuple[list[Pass], list[Pass]] = ([], [])
    for _ in range(1 + RUNS):
        for child, found in zip(both, passes, strict=True):
            found.append(child.run())
    for child in both:
        child.end()
    return passes


def run() -> list[Row]:
    os.environ["OMP_NUM_THREADS"] = os.environ.get("LIMBECK_BENCH_THREADS", "2")
    rows, memory = [], {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.pt"
        torch.save(make_inputs(), inputs)
        for names in COMPARED:
            if "DistillKit" in names[1] and not os.environ.get(CHECKOUT):
                print(f"{CHECKOUT} is not set: DistillKit's sparse KL was skipped")
                continue
            passes = _in_turn(names, inputs)
            seconds = [median(each.seconds for each in found[1:]) for found in passes]
            processor = [median(each.processor for each in found[1:]) for found in passes]
            memory.update({name: found[0].memory for name, found in zip(names, passes, strict=True)})
            shown = f"{names[0]}; processor {processor[0]:.2f} s, {processor[0] / processor[1]:.2f}x"
            rows.append(Row(shown, *seconds, names[1]))
            print_table(TITLE, rows[-1:])
    print(f"\nMemory at its highest beyond the inputs; {os.environ['OMP_NUM_THREADS']} threads")
    for name, mebibytes in memory.items():
        print(f"{name:<58} {mebibytes:>9,.0f} MiB {mebibytes * 1.048576:>9,.0f} MB")
    return rows


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
