"""Drawing from a teacher: a head that is kept for certain, and a tail that is sampled, unbiased together.

For any function f of the token, `sum_k weights_k f(ids_k)` has the expectation `E_p[f]`; so the gradient of the forward
KL divergence, whose f is the gradient of the student's `-log q`, is unbiased. (Sparse Logit Sampling, Anshumann et al.,
arXiv:2503.16870, is the case without a head.)

The tail is sampled systematically: with one random number, at even distances along the cumulated expected counts. A
token's count is then its expectation rounded up or down, which varies less than independent draws do, and a token that
is drawn more than once is one entry with a larger weight.

Random numbers are a function of each position's key (`sampled_random`), not of the order in which positions come.
"""

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.signals.codecs.columns import offsets_of
from limbeck.signals.codecs.sampled_random import FIRST_TOKEN, START, UNIT, Keys, numbers_at
from limbeck.signals.codecs.sampled_spec import (
    SampledSpec,
    entry_weights,
    head_weights,
    round_at_random,
    unit_weights,
)
from limbeck.signals.codecs.sampled_walk import Chosen, walk_compiled, walk_plainly
from limbeck.signals.types import SampledSignal

Floats = NDArray[np.float64]


@torch.no_grad()
def sample_logits(
    logits_NV: Tensor,
    spec: SampledSpec,
    keys_N: Keys,
    mask_N: Tensor | None = None,
    path: Literal["auto", "compiled", "plain"] = "auto",
) -> SampledSignal:
    """Return tokens drawn from the distributions that these logits stand for.

    Args:
        logits_NV: `[N, V]`, any floating dtype and device.
        spec: what is kept and how often is drawn.
        keys_N: `[N]`, the key of each position; see `sampled_random.position_keys`.
        mask_N: True where the signal says something; everywhere by default.
        path: `compiled` (numba, on the CPU), `plain` (tensor operations in float64, where the logits are), or `auto`:
            compiled where the logits are on the CPU.

    Returns:
        The signal, on the CPU, with weights that codec `sampled` stores exactly under `spec`. K is the most entries of
        any position; others are filled up with weight 0 and log-probability `-inf`. Entries come by rising id, the head
        before the tail.

    Raises:
        LimbeckError: a position that says something has logits that are not numbers, or no finite one; or a single
            draw weighs more than can be stored.
    """
    mask_N = torch.ones(len(logits_NV), dtype=torch.bool) if mask_N is None else mask_N.detach().cpu()
    said_n = mask_N.nonzero()[:, 0]
    said = said_n.numpy()
    logits = logits_NV.detach() if bool(mask_N.all()) else logits_NV.detach()[said_n.to(logits_NV.device)]
    compiled = path == "compiled" or (path == "auto" and logits.device.type == "cpu")
    walk = walk_compiled if compiled else walk_plainly
    chosen = walk(logits, spec, numbers_at(keys_N[said], START))
    chosen = replace(chosen, positions=said[chosen.positions])
    tail_masses = np.zeros(len(mask_N))
    tail_masses[said] = chosen.tail_masses
    return _signal(chosen, _weights(chosen, tail_masses, spec, keys_N), spec, mask_N)


def _weights(chosen: Chosen, tail_masses_N: Floats, spec: SampledSpec, keys_N: Keys) -> Floats:
    """Return the weight of each entry, `[E]`, rounded to the settings' grids."""
    head, tail = chosen.in_head, ~chosen.in_head
    at_token = numbers_at(keys_N[chosen.positions], FIRST_TOKEN + chosen.ids)
    weights = np.empty(len(chosen.ids))
    grid = head_weights(spec)
    if head.any():
        weights[head] = grid[round_at_random(chosen.probabilities[head], grid, at_token[head])]
    if spec.mode == "threshold":
        weights[tail] = chosen.counts[tail] * spec.threshold
    elif spec.mode == "counts":
        mean_N = tail_masses_N / (spec.draws or 1)
        units_N = unit_weights()[round_at_random(mean_N, unit_weights(), numbers_at(keys_N, UNIT))]
        weights[tail] = chosen.counts[tail] * units_N[chosen.positions[tail]]
    else:
        wanted, grid = chosen.counts[tail] * chosen.probabilities[tail] / chosen.expected[tail], entry_weights()
        if wanted.max(initial=0.0) > grid[0]:
            raise LimbeckError(f"codec sampled: a draw has the weight {wanted.max():g}, above {grid[0]:g}. Draw more.")
        weights[tail] = grid[round_at_random(wanted, grid, at_token[tail])]
    return weights


def _signal(chosen: Chosen, weights_E: Floats, spec: SampledSpec, mask_N: Tensor) -> SampledSignal:
    """Return the entries of positive weight as a signal."""
    kept = weights_E > 0
    with np.errstate(divide="ignore"):
        logs = np.log(chosen.probabilities).astype(np.float32)
    edge = np.float32(spec.edge)
    logs = np.where(chosen.in_head, np.clip(logs, edge, 0), np.minimum(logs, np.nextafter(edge, np.float32(-math.inf))))
    rows = chosen.positions[kept]
    counts_N = np.bincount(rows, minlength=len(mask_N))
    columns = np.arange(len(rows)) - np.repeat(offsets_of(counts_N)[:-1], counts_N)
    shape = (len(mask_N), max(int(counts_N.max(initial=0)), 1))
    ids, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    logprobs = np.full(shape, -np.inf, dtype=np.float32)
    ids[rows, columns] = chosen.ids[kept]
    weights[rows, columns] = weights_E[kept]
    logprobs[rows, columns] = logs[kept]
    return SampledSignal(torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(logprobs), mask_N)
