"""From a `TopkSignal` to the integers that codec `topk` writes: checked, chosen, rounded."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import LimbeckError, UserError
from limbeck.signals.codecs.columns import offsets_of
from limbeck.signals.codecs.registry import positions_of
from limbeck.signals.codecs.topk_layout import (
    RATIO_TOP,
    TAIL_CENTRE,
    TAIL_CODES,
    TAIL_STEPS,
    Layout,
    ratio_spans,
    tail_table,
)
from limbeck.signals.codecs.topk_reference import Entries
from limbeck.signals.codecs.topk_spec import LEVEL_BITS, TOP_LEVEL, TopkSpec, kept_counts
from limbeck.signals.types import TopkSignal

MASS_TOLERANCE = 1e-2
LOGPROB_TOLERANCE = 1e-3
NOISE = 2.0**-22  # of a normaliser: less than this can't be told from the rounding of a float32

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Fault = tuple[Any, Callable[[int], str]]


def entries_of(signal: TopkSignal, lengths: Sequence[int], spec: TopkSpec, layout: Layout) -> Entries:
    """Return what is written of a signal `[N, K]`.

    Raises:
        LimbeckError: it holds what can't be represented; row and position are named.
        UserError: it has no normaliser at one of the description's temperatures.
    """
    if len(signal.mask) != sum(lengths):
        raise LimbeckError(f"codec topk: {len(signal.mask)} positions, but the rows have {sum(lengths)}.")
    mask_N = signal.mask.detach().cpu()
    logprobs_NK = signal.logprobs.detach().cpu().double().masked_fill(~mask_N[:, None], float("-inf"))
    logprobs, ids, mask = logprobs_NK.numpy(), signal.ids.detach().cpu().long().numpy(), mask_N.numpy()
    probabilities = np.exp(logprobs)
    beyond = np.exp(signal.log_tail_mass.detach().cpu().double().numpy())
    total = probabilities.sum(1) + beyond
    _check(logprobs, ids, total, mask, lengths, layout.vocabulary)

    counts = kept_counts(logprobs_NK, spec).numpy()
    kept_NK = np.arange(logprobs.shape[1]) < counts[:, None]
    head = np.where(kept_NK, probabilities, 0.0).sum(1)
    tails = _tail_codes(head, np.where(kept_NK, 0.0, probabilities).sum(1) + beyond, counts, layout.vocabulary)

    shares = probabilities[kept_NK] / np.repeat(total, counts)  # what a server rounds would contradict the tail's odds
    steps = np.floor((shares**spec.power - spec.origin) / spec.width)
    levels = np.clip(steps, 0, len(layout.low) - 1).astype(np.int64)
    starts = offsets_of(counts)
    bases = np.zeros(len(counts), dtype=np.int64)
    if layout.with_base:
        bases[counts > 0] = levels[starts[1:][counts > 0] - 1]
    above = np.minimum(levels - np.repeat(bases, counts), TOP_LEVEL)
    keys_NK = np.full(kept_NK.shape, np.iinfo(np.int64).max)
    keys_NK[kept_NK] = ids[kept_NK] << LEVEL_BITS | above
    keys_NK.sort(axis=1)  # by id; what is not kept goes behind
    keys = keys_NK[kept_NK]
    return Entries(
        starts=starts,
        ids=keys >> LEVEL_BITS,
        levels=keys & TOP_LEVEL,
        bases=bases,
        tails=tails,
        ratios=_ratio_codes(signal, np.where(kept_NK, logprobs, -np.inf), tails, counts, spec, layout),
    )


def _tail_codes(head: Floats, tail: Floats, counts: NDArray[np.int64], vocabulary: int) -> NDArray[np.int64]:
    """Return the codes of the tail's odds; 0 where nothing is left for a tail."""
    has_tail = (counts > 0) & (counts < vocabulary) & (tail > 0)
    odds = np.log2(np.where(has_tail, tail, 1.0) / np.where(has_tail, head, 1.0))
    codes = np.clip(np.rint(odds * TAIL_STEPS) + TAIL_CENTRE, 1, TAIL_CODES - 1).astype(np.int64)
    return np.where(has_tail, codes, 0)


def _ratio_codes(
    signal: TopkSignal,
    kept_NK: Floats,
    tails: NDArray[np.int64],
    counts: NDArray[np.int64],
    spec: TopkSpec,
    layout: Layout,
) -> NDArray[np.int64]:
    """Return the 10-bit codes `[N, S]` of the tail at the temperatures other than 1."""
    codes = np.zeros((len(tails), len(layout.ratios)), dtype=np.int64)
    spans = ratio_spans(layout.ratios, layout.vocabulary - counts)
    log_tail = np.where(tails > 0, tail_table().log[tails], 0.0)
    for index, temperature in enumerate(layout.ratios):
        if temperature not in signal.temperatures:
            raise UserError(
                f"codec topk: the signal has normalisers at {signal.temperatures}, but {spec.temperatures} are to be "
                "stored. Capture at these temperatures, or list fewer."
            )
        known = signal.log_normalisers[:, signal.temperatures.index(temperature)].detach().cpu().double().numpy()
        span, base = spans[:, index], log_tail / temperature
        tail_at = np.exp(known) - np.exp(kept_NK / temperature).sum(1)
        tail_at = np.where(tail_at <= NOISE * np.exp(known), 0.0, tail_at)
        usable = (tails > 0) & (span != 0) & np.isfinite(tail_at)
        least = np.exp(base + np.minimum(span, 0.0))
        share = (np.log(np.maximum(np.where(usable, tail_at, 1.0), least)) - base) / np.where(usable, span, 1.0)
        codes[:, index] = np.where(usable, np.clip(np.rint(share * RATIO_TOP), 0, RATIO_TOP), 0)
    return codes


def _check(
    logprobs: Floats, ids: NDArray[np.int64], mass: Floats, mask: Flags, lengths: Sequence[int], vocabulary: int
) -> None:
    """Refuse what can't be represented, naming the first place of the first kind of fault."""
    present = logprobs > -np.inf
    outside = present & ((ids < 0) | (ids >= vocabulary))
    faults: list[Fault] = [
        (np.isnan(logprobs).any(1), lambda _: "a log-probability is not a number"),
        ((logprobs > LOGPROB_TOLERANCE).any(1), lambda n: f"a log-probability of {logprobs[n].max():g} is above 0"),
        (~present.any(1), lambda _: "no entry has a finite log-probability"),
        (present.sum(1) > vocabulary, lambda n: f"{present[n].sum()} entries out of a vocabulary of {vocabulary}"),
        (outside.any(1), lambda n: f"token id {ids[n][outside[n]][0]} is outside the vocabulary of {vocabulary}"),
        (
            (logprobs[:, 1:] > logprobs[:, :-1]).any(1),
            lambda _: "the entries are not sorted by falling log-probability",
        ),
        (~(np.abs(mass - 1) < MASS_TOLERANCE), lambda n: f"entries and tail have a mass of {mass[n]:g}, not 1"),
    ]
    for wrong, explain in faults:
        places = np.flatnonzero(wrong & mask)
        if len(places):
            index = int(places[0])
            raise LimbeckError(f"codec topk: {positions_of(lengths, index)}: {explain(index)}.")
