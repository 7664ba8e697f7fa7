"""Which tokens a drawing takes: the head, and where one walk along the tail's expected counts passes a whole number.

Two ways that choose alike: `walk_compiled` for logits on the CPU, and `walk_plainly`, tensor operations in float64 on
any device, which the first is held to.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.signals.codecs.columns import Integers
from limbeck.signals.codecs.sampled_spec import SampledSpec

Floats = NDArray[np.float64]

LEAST_TAIL = 1e-12
PLAIN_CHUNK = 1 << 24  # probabilities at a time: 128 MiB of float64
POSITIONS_A_THREAD = 8


@dataclass(frozen=True)
class Chosen:
    """What was taken of some positions, end to end: each position's head, then its tail, by rising id.

    Attributes:
        positions: `[E]`, of each entry, rising.
        ids: `[E]`.
        in_head: `[E]`, bool.
        probabilities: `[E]`.
        expected: `[E]`, how often an entry of the tail was expected to be drawn; 1 in the head.
        counts: `[E]`, how often it was; 1 in the head.
        tail_masses: `[N]`, of each position; 0 where nothing was drawn.
    """

    positions: Integers
    ids: Integers
    in_head: NDArray[np.bool_]
    probabilities: Floats
    expected: Floats
    counts: Integers
    tail_masses: Floats


def walk_compiled(logits_NV: Tensor, spec: SampledSpec, starts_N: Floats) -> Chosen:
    """Return what is taken of positions whose logits lie on the CPU; positions are shared among torch's threads.

    Args:
        logits_NV: float64 is computed in float64, everything else in float32 with sums in float64.
        spec: what is kept and how often is drawn.
        starts_N: where each walk starts, in [0, 1).

    Raises:
        LimbeckError: the logits of a position make no distribution.
    """
    logits = (logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()).numpy()
    kernels = _load_kernels()

    def work(first: int, last: int) -> Chosen:
        return _walk_some(kernels, logits[first:last], spec, starts_N[first:last], first)

    return joined(in_threads(work, len(logits)), len(logits))


def _walk_some(
    kernels: ModuleType, logits_NV: NDArray[np.floating], spec: SampledSpec, starts_N: Floats, first: int
) -> Chosen:
    size, separate = logits_NV.shape[1], spec.mode == "weights"
    blocks = -(-size // kernels.BLOCK)
    masses = np.zeros((blocks, kernels.BLOCK), dtype=logits_NV.dtype)
    shares = np.zeros_like(masses) if separate else masses
    mass_V, share_V = masses.reshape(-1)[:size], shares.reshape(-1)[:size]
    sums = np.empty(blocks)
    ids, counts = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    found, expected = np.empty(size), np.empty(size)
    parts = []
    for place, logits_V in enumerate(logits_NV):
        top = logits_V.max(initial=-np.inf)
        if not np.isfinite(top):
            raise _no_distribution(first + place)
        np.subtract(logits_V, top, out=mass_V)
        if separate:
            np.divide(mass_V, spec.proposal_temperature, out=share_V)
            np.exp(share_V, out=share_V)
        np.exp(mass_V, out=mass_V)
        whole, tail, heads, tails = kernels.walk(
            masses, shares, separate, spec.threshold, spec.draws or 0, LEAST_TAIL, starts_N[place],
            sums, ids, found, expected, counts,
        )  # fmt: skip
        expected[:heads], counts[:heads] = 1.0, 1
        taken = heads + tails
        parts.append(
            Chosen(
                np.full(taken, first + place, dtype=np.int64), ids[:taken].copy(), np.arange(taken) < heads,
                found[:taken] / whole, expected[:taken].copy(), counts[:taken].copy(),
                np.array([tail / whole if tails else 0.0]),
            )
        )  # fmt: skip
    return joined(parts, len(parts))


def walk_plainly(logits_NV: Tensor, spec: SampledSpec, starts_N: Floats) -> Chosen:
    """Return what is taken, computed in float64 on the logits' device; arguments and errors as above."""
    step = max(1, PLAIN_CHUNK // max(1, logits_NV.shape[1]))
    parts = []
    for first in range(0, len(logits_NV), step):
        parts.append(_plain_chunk(logits_NV[first : first + step], spec, starts_N[first : first + step], first))
    return joined(parts, len(logits_NV))


def _plain_chunk(logits_NV: Tensor, spec: SampledSpec, starts_N: Floats, first: int) -> Chosen:
    p_NV = torch.softmax(logits_NV.double(), dim=-1)
    if bad := (~p_NV.isfinite().all(-1)).nonzero()[:, 0].tolist():
        raise _no_distribution(first + bad[0])
    head_NV = p_NV >= spec.threshold if spec.threshold < 1 else torch.zeros_like(p_NV, dtype=torch.bool)
    tail_NV = p_NV.masked_fill(head_NV, 0.0)
    mass_N = tail_NV.sum(-1)
    drawn_N = mass_N >= LEAST_TAIL
    if spec.draws is None:
        expected_NV = tail_NV / spec.threshold
    else:
        share_NV = tail_NV ** (1 / spec.proposal_temperature)
        expected_NV = spec.draws * share_NV / share_NV.sum(-1, keepdim=True).masked_fill(~drawn_N[:, None], 1.0)
    starts = torch.from_numpy(starts_N).to(p_NV.device)
    passed_NV = (expected_NV.cumsum(-1) + starts[:, None]).floor().long()
    if spec.draws is not None:  # the last sum is `draws` but for rounding
        places_V = torch.arange(p_NV.shape[1], device=p_NV.device)
        last_N = torch.where(tail_NV > 0, places_V, -1).amax(-1)
        passed_NV = torch.where(places_V >= last_N[:, None], spec.draws, passed_NV.clamp(max=spec.draws))
    counts_NV = passed_NV.diff(dim=-1, prepend=passed_NV.new_zeros(len(p_NV), 1)) * drawn_N[:, None]
    kept_NV = head_NV | (counts_NV > 0)
    positions, ids = kept_NV.nonzero(as_tuple=True)
    in_head = head_NV[positions, ids]
    order = np.lexsort((ids.cpu().numpy(), ~in_head.cpu().numpy(), positions.cpu().numpy()))
    chosen = Chosen(
        positions=(positions + first).cpu().numpy(),
        ids=ids.cpu().numpy(),
        in_head=in_head.cpu().numpy(),
        probabilities=p_NV[positions, ids].cpu().numpy(),
        expected=torch.where(in_head, 1.0, expected_NV[positions, ids]).cpu().numpy(),
        counts=torch.where(in_head, 1, counts_NV[positions, ids]).cpu().numpy(),
        tail_masses=(mass_N * drawn_N).cpu().numpy(),
    )
    ordered = {field.name: getattr(chosen, field.name)[order] for field in fields(Chosen)[:-1]}
    return Chosen(**ordered, tail_masses=chosen.tail_masses)


def joined(parts: list[Chosen], size: int) -> Chosen:
    """Return what was taken of `size` positions, in parts."""
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Chosen(none, none, none.astype(bool), none.astype(float), none.astype(float), none, np.zeros(size))
    return Chosen(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Chosen)))


def in_threads(work: Callable[[int, int], Chosen], size: int) -> list[Chosen]:
    """Call `work(first, last)` on ranges that make up `size` positions, in torch's number of threads."""
    threads = max(1, min(torch.get_num_threads(), size // POSITIONS_A_THREAD))
    edges = [size * part // threads for part in range(threads + 1)]
    if threads == 1:
        return [work(0, size)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, edges[:-1], edges[1:]))


def _no_distribution(position: int) -> LimbeckError:
    return LimbeckError(f"position {position}: its logits make no distribution.")


def _load_kernels() -> ModuleType:
    from limbeck.signals.codecs import sampled_kernels  # numba takes half a second to import

    return sampled_kernels
