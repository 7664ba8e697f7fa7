"""From arrays of the most probable tokens, such as a server or another tool gives, to a `topk` signal."""

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.errors import LimbeckError
from limbeck.signals.tail import log_complement
from limbeck.signals.types import TopkSignal

Numbers = NDArray[np.float32] | NDArray[np.float64]


def topk_of_arrays(
    ids_NK: NDArray[np.int64], logprobs_NK: Numbers, vocabulary: int, mask_N: NDArray[np.bool_] | None = None
) -> TopkSignal:
    """Return the entries of N positions as a signal; the tail's mass is 1 less theirs, as exact as they are.

    Args:
        ids_NK: token ids, in any order.
        logprobs_NK: natural; `-inf` where a position has fewer than K entries.
        vocabulary: V; a position with V entries has no tail.
        mask_N: True where the signal says something; by default where there is an entry.

    Raises:
        LimbeckError: the arrays differ in shape. What the numbers say is checked by the codec that stores them.
    """
    if ids_NK.shape != logprobs_NK.shape or ids_NK.ndim != 2:
        raise LimbeckError(f"token ids {list(ids_NK.shape)}, but log-probabilities {list(logprobs_NK.shape)}.")
    ids, logprobs = torch.from_numpy(ids_NK).long(), torch.from_numpy(logprobs_NK)
    rising_N = (logprobs[:, 1:] > logprobs[:, :-1]).any(1)
    if rising_N.any():
        ids, logprobs = ids.clone(), logprobs.clone()
        logprobs[rising_N], order = logprobs[rising_N].sort(dim=1, descending=True, stable=True)
        ids[rising_N] = ids[rising_N].gather(1, order)
    present_NK = logprobs > float("-inf")
    said_N = present_NK.any(1) if mask_N is None else torch.from_numpy(mask_N)
    log_tail_N = log_complement(logprobs.double().logsumexp(1)).float()
    return TopkSignal(
        ids=ids,
        logprobs=logprobs.float(),
        log_tail_mass=log_tail_N.masked_fill(present_NK.sum(1) == vocabulary, float("-inf")),
        log_normalisers=torch.zeros(len(ids), 1),
        temperatures=(1.0,),
        mask=said_N,
    )


def padded(
    ids_E: NDArray[np.int64], logprobs_E: Numbers, starts: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], Numbers]:
    """Return entries that lie end to end as `[N, K]`, filled up with absent ones.

    Args:
        ids_E: token ids of all positions, one position after the other, the most probable first.
        logprobs_E: their log-probabilities.
        starts: `[N + 1]`, where each position's entries begin and end.
        width: K; what a position has beyond it is left out.
    """
    counts = np.minimum(np.diff(starts), width)
    there = np.arange(width) < counts[:, None]
    places = (starts[:-1, None] + np.arange(width))[there]
    ids = np.zeros(there.shape, dtype=np.int64)
    logprobs = np.full(there.shape, -np.inf, dtype=logprobs_E.dtype)
    ids[there], logprobs[there] = ids_E[places], logprobs_E[places]
    return ids, logprobs
