"""Drawing from a teacher: a head that is kept for certain, and a tail that is sampled, unbiased together.

For any function f of the token, `sum_k weights_k f(ids_k)` has the expectation `E_p[f]`; so the gradient of the forward
KL divergence, whose f is the gradient of the student's `-log q`, is unbiased. (Sparse Logit Sampling, Anshumann et al.,
arXiv:2503.16870, is the case without a head.)

The tail is sampled systematically: with one random number, at even distances along the cumulated expected counts. A
token's count is then its expectation rounded up or down, which varies less than independent draws do, and a token that
is drawn more than once is one entry with a larger weight.
"""

import math

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.signals.codecs.sampled_spec import (
    SampledSpec,
    entry_weights,
    head_weights,
    round_at_random,
    unit_weights,
)
from limbeck.signals.types import SampledSignal

POSITIONS_AT_ONCE = 64
LEAST_TAIL = 1e-12


@torch.no_grad()
def sample_logits(
    logits_NV: Tensor, spec: SampledSpec, generator: torch.Generator, mask_N: Tensor | None = None
) -> SampledSignal:
    """Return tokens drawn from the distributions that these logits stand for.

    Args:
        logits_NV: `[N, V]`, any floating dtype and device; computed in float64 on the CPU.
        spec: what is kept and how often is drawn.
        generator: on the CPU; each position takes its own numbers from it, in order.
        mask_N: True where the signal says something; everywhere by default.

    Returns:
        The signal, on the CPU, with weights that codec `sampled` stores exactly under `spec`. K is the most entries of
        any position; others are filled up with weight 0 and log-probability `-inf`. Entries come by rising id, the head
        before the tail.

    Raises:
        LimbeckError: a position that says something has logits that are not numbers, or no finite one.
    """
    mask_N = torch.ones(len(logits_NV), dtype=torch.bool) if mask_N is None else mask_N.detach().cpu()
    positions: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(logits_NV), POSITIONS_AT_ONCE):
        part = logits_NV[start : start + POSITIONS_AT_ONCE].detach().cpu().double()
        probabilities = torch.softmax(part, dim=-1)
        for index, p_V in enumerate(probabilities):
            if not mask_N[start + index]:
                positions.append((torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0)))
                continue
            if not p_V.isfinite().all():
                raise LimbeckError(f"position {start + index}: its logits make no distribution.")
            positions.append(_draw(p_V, spec, generator))
    width = max((len(ids) for ids, _, _ in positions), default=0)
    shape = (len(positions), max(width, 1))
    signal = SampledSignal(
        torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), torch.full(shape, -math.inf), mask_N
    )
    for index, (ids, weights, logprobs) in enumerate(positions):
        signal.ids[index, : len(ids)] = ids
        signal.weights[index, : len(ids)] = weights
        signal.logprobs[index, : len(ids)] = logprobs
    return signal


def _draw(p_V: Tensor, spec: SampledSpec, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, float32 weights and float32 log-probabilities of one position's entries."""
    head_V = p_V >= spec.threshold if spec.threshold < 1 else torch.zeros_like(p_V, dtype=torch.bool)
    head_ids = head_V.nonzero()[:, 0]
    grid = head_weights(spec)
    head = torch.from_numpy(grid)[round_at_random(p_V[head_ids], grid, generator)] if len(head_ids) else p_V[:0]
    tail_V = p_V.masked_fill(head_V, 0.0)
    tail_ids, tail = _draw_tail(tail_V, spec, generator)
    head_logs = p_V[head_ids].log().float().clamp(min=spec.edge)
    tail_logs = torch.minimum(p_V[tail_ids].log().float(), _below(spec.edge))
    return torch.cat([head_ids, tail_ids]), torch.cat([head, tail]).float(), torch.cat([head_logs, tail_logs])


def _draw_tail(tail_V: Tensor, spec: SampledSpec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    mass = float(tail_V.sum())
    if mass < LEAST_TAIL:
        return torch.zeros(0, dtype=torch.int64), tail_V[:0]
    if spec.draws is None:
        expected_V = tail_V / spec.threshold
    else:
        proposal_V = tail_V ** (1 / spec.proposal_temperature)
        expected_V = spec.draws * proposal_V / proposal_V.sum()
    start = torch.rand((), generator=generator, dtype=torch.float64)
    passed_V = (expected_V.cumsum(0) + start).floor().long()
    if spec.draws is not None:  # the last sum is `draws` but for rounding
        passed_V[int(tail_V.nonzero()[-1, 0]) :] = spec.draws
        passed_V = passed_V.clamp(max=spec.draws)
    counts_V = passed_V.diff(prepend=passed_V.new_zeros(1))
    ids = counts_V.nonzero()[:, 0]
    counts = counts_V[ids].double()
    if spec.draws is None:
        return ids, counts * spec.threshold
    if spec.mode == "counts":
        unit = round_at_random(torch.tensor([mass / spec.draws]), unit_weights(), generator)
        return ids, counts * float(unit_weights()[int(unit)])
    wanted, grid = counts * tail_V[ids] / expected_V[ids], entry_weights()
    if len(wanted) and float(wanted.max()) > grid[0]:
        raise LimbeckError(
            f"codec sampled: a draw has the weight {float(wanted.max()):g}, above {grid[0]:g}. Draw more."
        )
    weights = torch.from_numpy(grid)[round_at_random(wanted, grid, generator)]
    return ids[weights > 0], weights[weights > 0]


def _below(edge: float) -> Tensor:
    return torch.nextafter(torch.tensor(edge), torch.tensor(-math.inf))
