"""Codec `topk` beside DistillKit's layouts: bytes, what the bytes say, and speed, all in one run.

Quality is that of the whole distribution over V = 151,936 tokens, the tail spread evenly over the tokens that are not
stored. The gradient of the forward KL divergence for the student's logits is q - p, so its error is that of p, whatever
the student. Bytes are those of the columns of one row of 1,024 positions, headers and all.

DistillKit's layouts are written by our codec `distillkit`, which solves in float64. Where the environment variable
`LIMBECK_DISTILLKIT` names a checkout of DistillKit, its own code is measured as well. Its entries can have a mass
above 1: the tail has 1e-6 at least, and the whole is scaled to 1. The rows "with a floor" give every token of the tail
1e-8 at least, as DistillKit's option `symmetric_uniform` does.
"""

import importlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Row, in_turn
from benchmarks.workloads import CHUNK, NAMES, V, logits_of
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.registry import make_codec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import TopkSignal, at

TITLE = "Codecs of 128 entries, V = 151,936, two threads: seconds"
REFERENCE = "LIMBECK_DISTILLKIT"
POSITIONS, LONG_ROW = 1024, 8192
ENTRIES = 2048  # kept of each distribution, more than any codec here stores

RECOMMENDED = DistillkitSpec(
    d=V, k=128, exact_k=16, exact_dtype="bfloat16", polynomial_terms=(0, 1, 2, 3, 4, "sqrt"), residual_bins=(),
    delta_encoding=False, normalize_t=True,
)  # fmt: skip
BUDGET = DistillkitSpec(
    d=V, k=50, exact_k=1, exact_dtype="bfloat16", polynomial_terms=(0, 1, "sqrt"), residual_bins=(),
    delta_encoding=False,
)  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """Means over positions: bytes, KL of the whole distribution and of the first 128, and the gradient's error."""

    bytes: float
    kl: float
    kl_first: float
    l1: float
    l2: float


@dataclass(frozen=True)
class Case:
    """A codec's settings, the bytes that it may take (None: any), and what else it has to reach."""

    name: str
    spec: TopkSpec
    most_bytes: float | None
    reached: Callable[[Quality, dict[str, Quality]], bool]


def by_threshold(threshold: float, power: float, width: float) -> TopkSpec:
    """Return settings whose lowest level is `width` times as wide as it is probable."""
    step = (threshold * (1 + width)) ** power - threshold**power
    return TopkSpec(threshold=threshold, cap=1024, power=power, step=step, temperatures=(1.0,))


def as_recommended(found: Quality, others: dict[str, Quality]) -> bool:
    other = others["DistillKit, recommended"]
    return found.kl <= other.kl and found.l1 <= other.l1 and found.l2 <= other.l2


def as_budget(found: Quality, others: dict[str, Quality]) -> bool:
    return found.kl <= others["DistillKit, budget"].kl


def as_budget_with_floor(found: Quality, others: dict[str, Quality]) -> bool:
    return found.kl <= others["DistillKit, budget, with a floor"].kl


def all_128(most_kl: float) -> Callable[[Quality, dict[str, Quality]], bool]:
    return lambda found, _: found.kl_first <= most_kl


def of_128(step: float, power: float) -> TopkSpec:
    return TopkSpec(select="count", cap=128, power=power, step=step, temperatures=(1.0,))


CASES = {
    "flat": [
        Case("as the recommended one", by_threshold(6.45e-4, 1.0, 0.8), 255, as_recommended),
        Case("as the budget one", by_threshold(1.73e-3, 0.5, 3.0), 95, as_budget),
        Case("all 128", of_128(0.0029, 0.45), 270, all_128(2.4e-4)),
    ],
    "peaked": [
        Case("as the recommended one", by_threshold(1.46e-4, 0.75, 1.3), 150, as_recommended),
        Case("as the budget one", by_threshold(1.37e-3, 0.5, 3.0), 45, as_budget),
        Case("as the budget one with a floor", by_threshold(1.27e-3, 0.5, 3.0), None, as_budget_with_floor),
        Case("all 128", of_128(0.0032, 0.45), 255, all_128(1.2e-4)),
    ],
}


def run() -> list[Row]:
    torch.set_num_threads(2)
    reference = load_reference()
    for name in NAMES:
        print_quality(name, reference)
    return speed(reference)


def print_quality(name: str, reference: Any) -> None:
    """Measure all codecs on one workload and print the table."""
    signal = first_entries(name)
    sizes, decoded = {}, {}
    for title, spec in (("DistillKit, recommended", RECOMMENDED), ("DistillKit, budget", BUDGET)):
        sizes[title], found = stored(spec, signal)
        decoded[title] = with_tail(found, 0.0)
        sizes[f"{title}, with a floor"], decoded[f"{title}, with a floor"] = sizes[title], with_tail(found, 1e-8)
        if reference is not None:
            own = f"{title}, its own code"
            sizes[own], found = stored_by(reference, spec, signal)
            decoded[own] = with_tail(found, 0.0)
    for case in CASES[name]:
        sizes[case.name], decoded[case.name] = stored(case.spec, signal)
    measured = qualities(name, sizes, decoded)
    print(f"\n{name}: one row of {POSITIONS:,} positions")
    print(f"{'':<42} {'bytes':>7} {'goal':>5} {'KL':>8} {'KL of 128':>10} {'L1':>7} {'L2':>8}  goal reached")
    cases = {case.name: case for case in CASES[name]}
    for title, quality in measured.items():
        case = cases.get(title)
        goal, reached = "", ""
        if case is not None:
            goal = f"{case.most_bytes:.0f}" if case.most_bytes else ""
            small = case.most_bytes is None or quality.bytes <= case.most_bytes
            reached = "yes" if small and case.reached(quality, measured) else "NO"
        first = "-" if math.isnan(quality.kl_first) else f"{quality.kl_first:.2e}"
        print(
            f"{title:<42} {quality.bytes:>7.1f} {goal:>5} {quality.kl:>8.4f} {first:>10} "
            f"{quality.l1:>7.4f} {quality.l2:>8.5f}  {reached}"
        )


def first_entries(name: str) -> TopkSignal:
    """Return the first entries of a workload's distributions, float64."""
    spec = TopkSpec(select="count", cap=ENTRIES, temperatures=(1.0,))
    return concatenate([topk_of_logits(logits.double(), spec) for logits in logits_of(name, POSITIONS)])


def stored(spec: TopkSpec | DistillkitSpec, signal: TopkSignal) -> tuple[float, TopkSignal]:
    """Return bytes a position, and what comes back."""
    codec = make_codec(spec, V)
    columns = codec.encode(signal, [POSITIONS])
    decoded = codec.decode(columns, [POSITIONS])
    assert isinstance(decoded, TopkSignal)
    return sum(len(column.data) for column in columns.values()) / POSITIONS, decoded


def stored_by(reference: Any, spec: DistillkitSpec, signal: TopkSignal) -> tuple[float, TopkSignal]:
    """Do the same with DistillKit's own code."""
    compressor = compressor_of(reference, spec)
    row = compressor.compress_from_sparse(signal.ids[:, : spec.k], signal.logprobs[:, : spec.k].float())
    ids, logprobs = compressor.decompress_to_sparse(row)
    zeros = torch.zeros(POSITIONS, 1)
    decoded = TopkSignal(ids, logprobs, zeros[:, 0], zeros, (1.0,), torch.ones(POSITIONS).bool())
    return sum(value.nbytes for value in row.values()) / POSITIONS, decoded


def with_tail(signal: TopkSignal, floor: float) -> TopkSignal:
    """Return DistillKit's entries and what they leave to the tail, at least `floor` a token and 1e-6, scaled to 1."""
    logprobs = signal.logprobs.double()
    left = 1 - logprobs.exp().sum(1)
    tail = left.clamp(min=max(floor * (V - logprobs.shape[1]), 1e-6))
    whole = (logprobs.exp().sum(1) + tail).log()
    return replace(signal, logprobs=logprobs - whole[:, None], log_tail_mass=tail.log() - whole)


def qualities(name: str, sizes: dict[str, float], decoded: dict[str, TopkSignal]) -> dict[str, Quality]:
    """Compare what came back with the distributions, over the whole vocabulary."""
    sums = {title: torch.zeros(4, dtype=torch.float64) for title in decoded}
    for index, logits_NV in enumerate(logits_of(name, POSITIONS)):
        here = slice(index * CHUNK, index * CHUNK + len(logits_NV))
        p_NV = torch.softmax(logits_NV.double(), -1)
        entropy_N = -(p_NV * p_NV.log()).sum(-1)
        squares_N = p_NV.square().sum(-1)
        for title, signal in decoded.items():
            sums[title] += errors(p_NV, entropy_N, squares_N, at(signal, here)).sum(-1)
    return {title: Quality(sizes[title], *(total / POSITIONS).tolist()) for title, total in sums.items()}


def errors(p_NV: Tensor, entropy_N: Tensor, squares_N: Tensor, signal: TopkSignal) -> Tensor:
    """Return `[4, N]`: KL, KL of the first 128 (NaN where fewer are kept), L1, L2."""
    kept_NK = signal.logprobs > float("-inf")
    logq_NK, count_N = signal.logprobs.double(), kept_NK.sum(-1)
    p_NK = torch.where(kept_NK, p_NV.gather(-1, signal.ids), 0.0)
    q_NK = logq_NK.exp()
    even_N = signal.log_tail_mass.double().exp() / (V - count_N)
    tail_N = 1 - p_NK.sum(-1)
    kl_N = -entropy_N - torch.where(kept_NK, p_NK * logq_NK, 0.0).sum(-1) - tail_N * even_N.log()

    # the even share is subtracted everywhere; where an entry is kept, that is taken back
    l1_N = (p_NV - even_N[:, None]).abs().sum(-1)
    l1_N += torch.where(kept_NK, (p_NK - q_NK).abs() - (p_NK - even_N[:, None]).abs(), 0.0).sum(-1)
    rest_N = squares_N - p_NK.square().sum(-1) - 2 * even_N * tail_N + (V - count_N) * even_N.square()
    l2_N = (torch.where(kept_NK, (p_NK - q_NK).square(), 0.0).sum(-1) + rest_N.clamp(min=0)).sqrt()

    first_NK = p_NV.topk(128, -1).indices
    q_NV = torch.full_like(p_NV, float("nan")).scatter(-1, torch.where(kept_NK, signal.ids, V - 1), q_NK)
    q_NF, p_NF = q_NV.gather(-1, first_NK), p_NV.gather(-1, first_NK)
    q_NF, p_NF = q_NF / q_NF.sum(-1, keepdim=True), p_NF / p_NF.sum(-1, keepdim=True)
    return torch.stack([kl_N, (p_NF * (p_NF / q_NF).log()).sum(-1), l1_N, l2_N])


def speed(reference: Any) -> list[Row]:
    """Time one codec after the other on 128 entries a position."""
    signal = first_entries("peaked")
    ids, logprobs = signal.ids[:, :128].contiguous(), signal.logprobs[:, :128]
    tail = torch.log1p(-logprobs.exp().sum(1)).float()
    short = TopkSignal(ids, logprobs.float(), tail, signal.log_normalisers.float(), (1.0,), signal.mask)
    long = concatenate([short] * (LONG_ROW // POSITIONS))
    ours, plain = make_codec(of_128(0.0032, 0.45), V), make_codec(RECOMMENDED, V)
    columns, plain_columns = ours.encode(long, [LONG_ROW]), plain.encode(long, [LONG_ROW])
    rows = [
        Row(
            f"encode {LONG_ROW:,} positions from sparse",
            *in_turn(lambda: ours.encode(long, [LONG_ROW]), lambda: plain.encode(long, [LONG_ROW]), runs=3),
            "our codec distillkit",
        ),
        Row(
            f"decode a row of {LONG_ROW:,} positions",
            *in_turn(lambda: ours.decode(columns, [LONG_ROW]), lambda: plain.decode(plain_columns, [LONG_ROW]), runs=3),
            "our codec distillkit",
        ),
    ]
    if reference is not None:
        compressor = compressor_of(reference, RECOMMENDED)
        row = compressor.compress_from_sparse(long.ids, long.logprobs)
        rows += [
            Row(
                rows[0].what,
                *in_turn(
                    lambda: ours.encode(long, [LONG_ROW]),
                    lambda: compressor.compress_from_sparse(long.ids, long.logprobs),
                    runs=3,
                ),
                "DistillKit",
            ),
            Row(
                rows[1].what,
                *in_turn(
                    lambda: ours.decode(columns, [LONG_ROW]), lambda: compressor.decompress_to_sparse(row), runs=3
                ),
                "DistillKit",
            ),
        ]
    print("\nTokens a second: " + "; ".join(f"{row.what}: {LONG_ROW / row.ours:,.0f}" for row in rows[:2]))
    return rows


def load_reference() -> Any:
    """Return DistillKit's package of codecs, or None, with a message."""
    folder = os.environ.get(REFERENCE)
    if not folder:
        print(f"\nDistillKit's own code is not measured: {REFERENCE} names no checkout of it.")
        return None
    if not (Path(folder) / "distillkit" / "compression").is_dir():
        sys.exit(f"{REFERENCE}: {folder} holds no distillkit/compression. Name a checkout of DistillKit.")
    sys.path.insert(0, folder)
    return importlib.import_module("distillkit.compression")


def compressor_of(reference: Any, spec: DistillkitSpec) -> Any:
    settings = spec.model_dump(mode="json", exclude={"codec", "version"})
    return reference.LogprobCompressor(config=reference.DistributionQuantizationConfig(**settings))
