"""From logits to a `topk` signal: exact log-probabilities, tail mass and normalisers of the whole vocabulary."""

import torch
from torch import Tensor

from limbeck.signals.codecs.topk_spec import TopkSpec, kept_counts
from limbeck.signals.types import TopkSignal


@torch.no_grad()
def topk_of_logits(
    logits_NV: Tensor, spec: TopkSpec, temperatures: tuple[float, ...] | None = None, mask_N: Tensor | None = None
) -> TopkSignal:
    """Return what `spec` keeps of the distributions that these logits stand for.

    Args:
        logits_NV: `[N, V]`, any floating dtype, on any device; computed in float32 at least.
        spec: how many entries are kept.
        temperatures: where to take normalisers, ascending; those of `spec` by default.
        mask_N: True where the signal says something; everywhere by default.

    Returns:
        The signal, on the logits' device; K is the most entries that a position keeps. The tail mass is the sum over
        all tokens that are not kept, not 1 minus the rest, so it keeps its digits however small it is.
    """
    temperatures = spec.temperatures if temperatures is None else temperatures
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    logprobs_NK, ids_NK = logprobs_NV.topk(min(spec.cap, logprobs_NV.shape[-1]), dim=-1)
    counts_N = kept_counts(logprobs_NK, spec)
    width = int(counts_N.max()) if len(counts_N) else 1
    kept_NK = torch.arange(width, device=counts_N.device) < counts_N[:, None]
    ids_NK, logprobs_NK = ids_NK[:, :width], logprobs_NK[:, :width]
    normalisers = [_log_normaliser(logprobs_NV, temperature) for temperature in temperatures]

    # the rest is summed with the kept entries taken out; an entry that is not kept is put back as it was
    removed_NK = torch.where(kept_NK, float("-inf"), logprobs_NK)
    log_tail_N = logprobs_NV.scatter(-1, ids_NK, removed_NK).logsumexp(-1)
    return TopkSignal(
        ids=torch.where(kept_NK, ids_NK, 0),
        logprobs=torch.where(kept_NK, logprobs_NK, float("-inf")),
        log_tail_mass=log_tail_N,
        log_normalisers=torch.stack(normalisers, -1),
        temperatures=temperatures,
        mask=torch.ones_like(log_tail_N, dtype=torch.bool) if mask_N is None else mask_N,
    )


def _log_normaliser(logprobs_NV: Tensor, temperature: float) -> Tensor:
    if temperature == 1.0:
        return torch.zeros_like(logprobs_NV[:, 0])
    return (logprobs_NV / temperature).logsumexp(-1)
