"""The executor on a GPU, beside the fused losses of the Liger-Kernel package where it is installed.

    python -m benchmarks.executor_gpu [--positions 8192] [--vocabulary 128256] [--width 4096] [--entries 128]
                                      [--dtype bfloat16] [--device cuda] [--runs 5]

One forward and backward pass from hidden states: seconds (the median of `runs`, in turn with what it is compared to)
and the most memory that was allocated at once beyond the inputs. Goals on an H100 or H200 at the defaults: dense JSD in
at most 8 GB and faster than Liger's chunked JSD; sparse KL in at most 1.15 of the time of fused linear cross-entropy.

On a CPU (`--device cpu`, small sizes) it shows that it runs; memory is not measured there, and Liger's Triton kernels
need a GPU.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor

from limbeck.distill.executor import Positions, Term, total_loss
from limbeck.distill.losses import get_loss
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import HiddenSignal, OutputHead, TeacherSignal, TopkSignal

ROWS = 64  # of the teacher's logits at a time, while its list is made
GIGABYTE = 1e9


@dataclass(frozen=True)
class Options:
    positions: int = 8192
    vocabulary: int = 128_256
    width: int = 4096
    entries: int = 128
    dtype: str = "bfloat16"
    device: str = "cuda"
    runs: int = 5


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    sparse: TopkSignal
    states: HiddenSignal

    def restart(self) -> None:
        self.hidden.grad = self.weight.grad = None


Work = Callable[[Inputs], Tensor]


def parse(arguments: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description="The executor on a GPU, beside Liger-Kernel.")
    for field in fields(Options):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default)  # type: ignore[arg-type]
    return Options(**vars(parser.parse_args(arguments)))


def make_inputs(options: Options) -> Inputs:
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    generator = torch.Generator(device).manual_seed(1)

    def random(rows: int, scale: float) -> Tensor:
        return (scale * torch.randn(rows, options.width, generator=generator, device=device)).to(dtype)

    shrink = 3 / options.width**0.5
    teacher = OutputHead(random(options.vocabulary, shrink))
    mask = torch.ones(options.positions, dtype=torch.bool, device=device)
    states = HiddenSignal(random(options.positions, 1.0), teacher, mask)
    spec = TopkSpec(select="count", cap=options.entries)
    listed = [topk_of_logits((part @ teacher.weight.T).float(), spec) for part in states.hidden.split(ROWS)]
    targets = torch.randint(options.vocabulary, (options.positions,), generator=generator, device=device)
    hidden, weight = random(options.positions, 1.0), random(options.vocabulary, shrink)
    return Inputs(hidden.requires_grad_(), weight.requires_grad_(), targets, concatenate(listed), states)


def ours(*names: str, sparse: bool, compiled: bool = False) -> Work:
    terms = [Term.of(get_loss(name)) for name in names]

    def work(inputs: Inputs) -> Tensor:
        teacher: TeacherSignal = inputs.sparse if sparse else inputs.states
        positions, head = Positions(inputs.hidden, inputs.targets, teacher), OutputHead(inputs.weight)
        return total_loss(positions, head, terms, len(inputs.targets), compiled=compiled)[0]

    return work


def ligers(device: str) -> dict[str, Work]:
    """Return the losses of the Liger-Kernel package; none where it is not installed."""
    if find_spec("liger_kernel") is None:
        print("liger-kernel is not installed (pip install liger-kernel): it was skipped")
        return {}
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # type: ignore[import-not-found]
    from liger_kernel.transformers import (  # type: ignore[import-not-found]
        LigerFusedLinearCrossEntropyLoss,
        LigerFusedLinearJSD,
    )

    print(f"liger-kernel {version('liger-kernel')}")
    chunked = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=device == "cuda")
    works: dict[str, Work] = {
        "Liger's chunked JSD": lambda inputs: chunked(
            inputs.hidden, inputs.weight, inputs.states.hidden, inputs.states.head.weight, inputs.targets
        )
    }
    if device == "cuda":
        fused, cross_entropy = LigerFusedLinearJSD(), LigerFusedLinearCrossEntropyLoss()
        works["Liger's fused JSD"] = lambda inputs: fused(
            inputs.hidden, inputs.weight, inputs.states.hidden, inputs.states.head.weight, inputs.targets
        )
        works["Liger's fused cross-entropy"] = lambda inputs: cross_entropy(
            inputs.weight, inputs.hidden, inputs.targets
        )
    return works


def once(work: Work, inputs: Inputs) -> tuple[float, float, float]:
    """Return seconds, gigabytes beyond the inputs (NaN on a CPU) and the loss of one forward and backward pass."""
    inputs.restart()
    on_gpu = inputs.hidden.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    started = time.perf_counter()
    loss = work(inputs)
    loss.backward()
    value = loss.item()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    held = (torch.cuda.max_memory_allocated() - before) / GIGABYTE if on_gpu else float("nan")
    return seconds, held, value


def compare(works: dict[str, Work], inputs: Inputs, runs: int) -> dict[str, tuple[float, float, float]]:
    """Return each work's median seconds, most gigabytes and loss, all measured in turn after one run of each."""
    for work in works.values():
        once(work, inputs)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            found[name].append(once(work, inputs))
    return {
        name: (median(each[0] for each in passes), max(each[1] for each in passes), passes[-1][2])
        for name, passes in found.items()
    }


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is here; --device cpu with small sizes shows that the script runs")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "a CPU"
    print(f"{name}, torch {torch.__version__}; {options}")
    inputs, others = make_inputs(options), ligers(options.device)
    works = {
        "dense JSD": ours("jsd", sparse=False),
        "dense JSD, compiled": ours("jsd", sparse=False, compiled=True),
        "dense KL": ours("kl", sparse=False),
        "dense KL, JSD and cross-entropy": ours("kl", "jsd", "cross_entropy", sparse=False),
        "sparse KL": ours("kl", sparse=True),
        "sparse KL, JSD, TVD and cross-entropy": ours("kl", "jsd", "tvd", "cross_entropy", sparse=True),
        "cross-entropy": ours("cross_entropy", sparse=True),
        **others,
    }
    if options.device == "cpu":
        del works["dense JSD, compiled"]
    found = compare(works, inputs, options.runs)
    print(f"\n{'forward and backward':<42} {'seconds':>9} {'GB':>7} {'loss':>10}")
    for name, (seconds, held, value) in found.items():
        print(f"{name:<42} {seconds:>9.4f} {held:>7.2f} {value:>10.5f}")
    goals = (
        ("dense JSD", "Liger's chunked JSD", 1.0),
        ("dense JSD", "Liger's fused JSD", 1.0),
        ("sparse KL", "Liger's fused cross-entropy", 1.15),
        ("sparse KL", "cross-entropy", 1.15),
    )
    print()
    for mine, other, most in goals:
        if other in found:
            print(f"{mine} against {other}: {found[mine][0] / found[other][0]:.2f}x (goal: at most {most:g}x)")


if __name__ == "__main__":
    main()
