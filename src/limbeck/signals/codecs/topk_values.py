"""From codec `topk`'s integers to log-probabilities, in numpy.

A level is an interval of probability. Its entries are put at the interval's centre, and what the centres' sum lacks of
the known head mass H is shared out in proportion to the squared widths, within each interval's bounds:

    p_i = clip(c_i + w_i^2 * (H - sum c) / sum w^2, low_i, high_i),   then   p_i *= H / sum p

The first step is the conditional mean of independent rounding errors given their sum. Both keep the order of levels,
and head and tail together make exactly 1.
"""

import numpy as np
from numpy.typing import NDArray

from limbeck.signals.codecs.topk_layout import RATIO_TOP, Layout, ratio_spans, tail_logs

Values = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def rebuild(
    counts: NDArray[np.int64],
    levels: NDArray[np.int64],
    bases: NDArray[np.int64],
    tails: NDArray[np.int64],
    ratios: NDArray[np.int64],
    layout: Layout,
) -> Values:
    """Return log-probabilities `[N, K]`, the log tail mass `[N]`, and the log-normalisers `[N, S]` at T other than 1.

    Args:
        counts: `[N]`, entries of each position; 0 where nothing is known (what is returned there means nothing).
        levels: `[N, K]`, above the base.
        bases: `[N]`.
        tails: `[N]`, tail codes.
        ratios: `[N, S]`, tail codes at the other temperatures.
        layout: the shared tables.
    """
    log_tails, log_heads = tail_logs()
    present = np.arange(levels.shape[1]) < counts[:, None]
    index = np.where(present, levels + bases[:, None], 0)
    low, high, centre = (np.where(present, table[index], 0.0) for table in (layout.low, layout.high, layout.centre))
    mass = np.exp(log_heads[tails])[:, None]
    squares = (high - low) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        pull = (mass - centre.sum(1, keepdims=True)) / squares.sum(1, keepdims=True)
        values = np.clip(centre + pull * squares, low, high)
        logprobs = np.where(present, np.log(values * (mass / values.sum(1, keepdims=True))), -np.inf)
        log_tail = log_tails[tails]
        temperatures = np.array(layout.ratios)
        rest = np.exp(
            log_tail[:, None] / temperatures
            + ratios / RATIO_TOP * ratio_spans(layout.ratios, layout.vocabulary - counts)
        )
        heads = np.exp(logprobs[:, :, None] / temperatures).sum(1)
        normalisers = np.where(counts[:, None] > 0, np.log(heads + np.where(tails[:, None] > 0, rest, 0.0)), 0.0)
    return logprobs.astype(np.float32), log_tail.astype(np.float32), normalisers.astype(np.float32)
