"""Codec `sampled` at V = 151,936: bytes against the gradient's error, what pooling does to that error, and speed.

The gradient of the forward KL divergence for the student's logits is q - p. A signal that stands for p_hat in the
teacher's place is therefore wrong by p_hat - p, whatever the student: that is the error measured here, in L2.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Row, in_turn
from benchmarks.workloads import CHUNK, V, logits_of
from limbeck.seeds import derive_seed
from limbeck.signals.codecs.sampled import COLUMN, SampledCodec
from limbeck.signals.codecs.sampled_draw import sample_logits
from limbeck.signals.codecs.sampled_random import position_keys
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.codecs.topk import TopkCodec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import SampledSignal, TopkSignal, at

TITLE = "Codec sampled, speed, V = 151,936, peaked"
POSITIONS = 256
POOLED = 4096
POOLS = (16, 64, 256, 1024, 4096)
TARGET_BYTES, TARGET_ERROR = 48.0, 0.02
PLAIN_DRAWS = 64

THRESHOLDS = (0.02, 0.01, 0.006, 0.0035, 0.002)

Signal = SampledSignal | TopkSignal
Make = Callable[[Tensor, int], Signal]


def peaked_with_likely_ids(positions: int) -> Iterator[Tensor]:
    """Yield logits `[n, V]` in chunks: the law of workload `peaked`, without the permutation of ids.

    The most probable ids are the same ones everywhere, as those of a language are, so that what a signal leaves out for
    good adds up over positions.
    """
    generator = torch.Generator().manual_seed(derive_seed(1, "likely ids") % 2**63)
    prior_V = -1.3 * torch.arange(1, V + 1).log()
    for first in range(0, positions, CHUNK):
        size = min(CHUNK, positions - first)
        noise = torch.randn(size, V, generator=generator)
        yield (prior_V + 0.65 * noise) * (1 + 1.5 * torch.rand(size, 1, generator=generator))


def by_codec(spec: SampledSpec) -> Make:
    return lambda logits, first: sample_logits(
        logits, spec, position_keys(derive_seed(1, "benchmark", first), len(logits))
    )


def plainly(logits: Tensor, first: int) -> SampledSignal:
    """Sparse Logit Sampling as published: independent draws, each worth 1 / n."""
    generator = torch.Generator().manual_seed(derive_seed(2, first) % 2**63)
    p = logits.softmax(-1)
    drawn = torch.stack([
        torch.bincount(torch.multinomial(row, PLAIN_DRAWS, True, generator=generator), minlength=V) for row in p
    ])  # fmt: skip
    counts, ids = drawn.topk(PLAIN_DRAWS)
    width = int((counts > 0).sum(-1).max())
    counts, ids = counts[:, :width], ids[:, :width]
    logprobs = p.gather(1, ids).log().clamp(max=-1e-6).masked_fill(counts == 0, -math.inf)
    return SampledSignal(ids, counts / PLAIN_DRAWS, logprobs, torch.ones(len(ids)) > 0)


def by_topk(spec: TopkSpec) -> Make:
    return lambda logits, first: topk_of_logits(logits, spec)


def dense_of(signal: Signal) -> Tensor:
    """Return what a signal puts in the place of p, `[n, V]`, float64; a tail is spread evenly."""
    if isinstance(signal, SampledSignal):
        return torch.zeros(len(signal.ids), V, dtype=torch.float64).scatter_add(1, signal.ids, signal.weights.double())
    kept = signal.logprobs > -math.inf
    share = signal.log_tail_mass.double().exp() / (V - kept.sum(-1))
    above = torch.where(kept, signal.logprobs.double().exp() - share[:, None], 0.0)
    return share[:, None].expand(-1, V).scatter_add(1, signal.ids, above)


def sampled_bytes(signals: list[Signal], spec: SampledSpec) -> float:
    """Return bytes a token of a row of 2,048 tokens (the chunks, over and over)."""
    row: Any = repeated(concatenate(signals), 2048)
    return len(SampledCodec(spec, V).encode(row, [2048])[COLUMN].data) / 2048


def repeated(signal: Any, length: int) -> Any:
    """Return the positions of a signal over and over, `length` in all."""
    return at(signal, torch.arange(length) % len(signal.mask))


def print_errors() -> None:
    specs = {f"head from {threshold:g}, tail drawn": SampledSpec(threshold=threshold) for threshold in THRESHOLDS}
    plain = SampledSpec(threshold=1.0, draws=PLAIN_DRAWS)
    ways: dict[str, tuple[SampledSpec, Make]] = {name: (spec, by_codec(spec)) for name, spec in specs.items()}
    ways[f"plain sampling, {PLAIN_DRAWS} independent draws"] = (plain, plainly)
    errors: dict[str, list[Tensor]] = {name: [] for name in ways}
    signals: dict[str, list[Signal]] = {name: [] for name in ways}
    for chunk, logits in enumerate(logits_of("peaked", POSITIONS)):
        p = logits.double().softmax(-1)
        for name, (_, make) in ways.items():
            signals[name].append(make(logits, chunk))
            errors[name].append((dense_of(signals[name][-1]) - p).norm(dim=-1))
    print(f"\nCodec sampled, {POSITIONS} positions, V = {V:,}, peaked: error of the gradient, mean L2")
    print(f"{'what':<44} {'bytes/token':>11} {'L2':>8}")
    for name, (spec, _) in ways.items():
        size, error = sampled_bytes(signals[name], spec), float(torch.cat(errors[name]).mean())
        met = f"  at most {TARGET_ERROR} at {TARGET_BYTES:g} B: reached"
        print(f"{name:<44} {size:>11.1f} {error:>8.4f}{met if size <= TARGET_BYTES and error <= TARGET_ERROR else ''}")


def print_pooled() -> None:
    """Print the error of the mean gradient over n positions, and the slope of its fall."""
    ways: dict[str, Make] = {
        "sampled, threshold 0.006": by_codec(SampledSpec(threshold=0.006)),
        f"plain sampling, {PLAIN_DRAWS} draws": plainly,
        "topk, threshold 0.006, not even rounded": by_topk(TopkSpec(threshold=0.006, temperatures=(1.0,))),
    }
    squares = {name: _pooled_squares(make) for name, make in ways.items()}
    print(
        f"\nThe same error of a mean over n positions that share their likely ids, root of the mean square, V = {V:,}"
    )
    print(f"{'what':<44} " + " ".join(f"{f'n = {pool:,}':>10}" for pool in POOLS) + f" {'slope':>7}")
    for name, found in squares.items():
        errors = [math.sqrt(found[pool]) for pool in POOLS]
        slope = np.polyfit(np.log(POOLS), np.log(errors), 1)[0]
        print(f"{name:<44} " + " ".join(f"{error:>10.2e}" for error in errors) + f" {slope:>7.2f}")
    print("A slope of -0.5 is 1 / sqrt(n): no floor.")


def _pooled_squares(make: Make) -> dict[int, float]:
    sums = {pool: torch.zeros(V, dtype=torch.float64) for pool in POOLS}
    squares: dict[int, list[float]] = {pool: [] for pool in POOLS}
    seen = 0
    for chunk, logits in enumerate(peaked_with_likely_ids(POOLED)):
        errors = dense_of(make(logits, chunk)) - logits.double().softmax(-1)
        for part in errors.split(POOLS[0]):
            seen += len(part)
            total = part.sum(0)
            for pool in POOLS:
                sums[pool] += total
                if seen % pool == 0:
                    squares[pool].append(float((sums[pool] / pool).square().sum()))
                    sums[pool].zero_()
    return {pool: float(np.mean(found)) for pool, found in squares.items()}


def run() -> list[Row]:
    print_errors()
    print_pooled()
    spec = SampledSpec()
    logits = next(logits_of("peaked", CHUNK))
    keys = position_keys(1, CHUNK)
    signal = repeated(sample_logits(logits, spec, keys), 8192)
    codec = SampledCodec(spec, V)
    columns = codec.encode(signal, [8192])
    topk = TopkSpec(threshold=spec.threshold)
    other = TopkCodec(topk, V)
    kept = repeated(topk_of_logits(logits, topk), 8192)
    theirs = other.encode(kept, [8192])
    return [
        Row(
            f"draw {CHUNK} positions",
            *in_turn(
                lambda: sample_logits(logits, spec, keys), lambda: sample_logits(logits, spec, keys, path="plain")
            ),
            "plain tensor operations in float64",
        ),
        Row(
            "encode 8,192 positions",
            *in_turn(lambda: codec.encode(signal, [8192]), lambda: other.encode(kept, [8192])),
            "topk at the same threshold",
        ),
        Row(
            "decode 8,192 positions",
            *in_turn(lambda: codec.decode(columns, [8192]), lambda: other.decode(theirs, [8192])),
            "topk at the same threshold",
        ),
    ]


if __name__ == "__main__":
    from benchmarks.timing import print_table

    print_table(TITLE, run())
