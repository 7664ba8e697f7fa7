"""What codecs with a fixed number of entries share: checking a `TopkSignal` to write, making one of what is read."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import IntegrityError, LimbeckError
from limbeck.signals.codecs.registry import positions_of
from limbeck.signals.tail import log_complement
from limbeck.signals.types import TopkSignal

MASS_TOLERANCE = 1e-2
LOGPROB_TOLERANCE = 1e-3
ABSENT = float("-inf")


def refuse(codec: str, lengths: Sequence[int], wrong: Any, explain: Callable[[int], str]) -> None:
    """Refuse a signal if any of its positions is wrong.

    Args:
        codec: its name, for the message.
        lengths: positions of each row.
        wrong: `[N]`, boolean, tensor or array.
        explain: says of a position what is wrong.

    Raises:
        LimbeckError: with row and position of the first one.
    """
    if places := np.flatnonzero(np.asarray(wrong)).tolist():
        raise LimbeckError(f"codec {codec}: {positions_of(lengths, places[0])}: {explain(places[0])}.")


def fixed_entries(
    signal: TopkSignal, lengths: Sequence[int], count: int, vocabulary: int, codec: str
) -> tuple[NDArray[np.int64], Tensor]:
    """Return the first `count` entries of a signal `[N, K]`, filled up with absent ones.

    Returns:
        ids `[N, count]`, 0 where absent; log-probabilities `[N, count]`, float64, `-inf` where absent or masked.

    Raises:
        LimbeckError: the signal holds what can't be represented; row and position are named.
    """
    if signal.ids.shape != signal.logprobs.shape or signal.ids.shape[:1] != (sum(lengths),):
        raise LimbeckError(
            f"codec {codec}: ids {list(signal.ids.shape)} and log-probabilities {list(signal.logprobs.shape)}, "
            f"but the rows have {sum(lengths)} positions."
        )
    mask_N = signal.mask.detach().cpu()
    values_NK = signal.logprobs.detach().cpu().double().masked_fill(~mask_N[:, None], ABSENT)
    logprobs_NK = values_NK.new_full((len(mask_N), count), ABSENT)
    logprobs_NK[:, : values_NK.shape[1]] = values_NK[:, :count]
    ids_NK = torch.zeros(logprobs_NK.shape, dtype=torch.int64)
    ids_NK[:, : values_NK.shape[1]] = signal.ids.detach().cpu().long()[:, :count]

    logprobs, ids = logprobs_NK.numpy(), ids_NK.numpy()
    present = logprobs > ABSENT
    outside = present & ((ids < 0) | (ids >= vocabulary))

    def at(wrong: NDArray[np.bool_], index: int) -> int:
        return int(np.flatnonzero(wrong[index])[0])

    unknown, above = np.isnan(logprobs), logprobs > LOGPROB_TOLERANCE
    rising = logprobs[:, 1:] > logprobs[:, :-1]
    mass = np.exp(np.minimum(logprobs, LOGPROB_TOLERANCE)).sum(1)
    faults: list[tuple[Any, Callable[[int], str]]] = [
        (unknown.any(1), lambda n: f"the log-probability of entry {at(unknown, n)} is not a number"),
        (
            above.any(1),
            lambda n: f"the log-probability of entry {at(above, n)} is {logprobs[n][above[n]][0]:g}, above 0",
        ),
        (~present.any(1) & mask_N.numpy(), lambda _: "no entry has a finite log-probability"),
        (
            outside.any(1),
            lambda n: (
                f"token id {ids[n][outside[n]][0]} of entry {at(outside, n)} is outside the vocabulary of {vocabulary}"
            ),
        ),
        (
            rising.any(1),
            lambda n: (
                f"entry {at(rising, n) + 1} is more probable than the one before: "
                "the entries are not sorted by falling log-probability"
            ),
        ),
        (mass > 1 + MASS_TOLERANCE, lambda n: f"the entries have a mass of {mass[n]:g}, more than 1"),
        (repeated_ids(ids, present), lambda n: f"token id {_twin(ids[n][present[n]])} is given twice"),
    ]
    for wrong, explain in faults:
        refuse(codec, lengths, wrong, explain)
    return np.where(present, ids, 0), logprobs_NK


def signal_of_entries(
    ids_NK: NDArray[np.int64], values_NK: Tensor, lengths: Sequence[int], vocabulary: int, codec: str
) -> TopkSignal:
    """Return the signal that decoded entries are.

    A value that is NaN or `-inf` is an absent entry; a position with no other is masked. Values above 0 become 0. Each
    id keeps its value; where an approximation has made values rise along the entries, they are put in falling order.
    The tail's mass is 1 less that of the entries, at least the smallest positive number of a float64.

    Args:
        ids_NK: as stored.
        values_NK: log-probabilities.
        lengths: positions of each row.
        vocabulary: V.
        codec: its name, for messages.

    Raises:
        IntegrityError: an id lies outside the vocabulary or is there twice, or a value is `+inf`.
    """
    values_NK = torch.nan_to_num(values_NK.double(), nan=ABSENT, posinf=float("inf"), neginf=ABSENT)
    present_NK = values_NK > ABSENT
    ids_NK = np.where(present_NK.numpy(), ids_NK, 0)
    faults: list[tuple[Any, str]] = [
        (values_NK.isposinf().any(1).numpy(), "a stored log-probability is +inf"),
        ((ids_NK >= vocabulary).any(1), f"a token id is outside the vocabulary of {vocabulary}"),
        (repeated_ids(ids_NK, present_NK.numpy()), "a token id is there twice"),
    ]
    for wrong, complaint in faults:
        if places := np.flatnonzero(wrong).tolist():
            raise IntegrityError(
                f"codec {codec}: {positions_of(lengths, places[0])}: {complaint}. "
                "The data were written with other settings, or are damaged."
            )
    ids = torch.from_numpy(ids_NK)
    logprobs_NK = values_NK.clamp(max=0.0).float()
    rising_N = (logprobs_NK[:, 1:] > logprobs_NK[:, :-1]).any(1)
    if rising_N.any():
        logprobs_NK[rising_N], order = logprobs_NK[rising_N].sort(dim=1, descending=True, stable=True)
        ids[rising_N] = ids[rising_N].gather(1, order)
    log_tail_N = log_complement(logprobs_NK.double().logsumexp(1)).float()
    return TopkSignal(
        ids=ids,
        logprobs=logprobs_NK,
        log_tail_mass=log_tail_N.masked_fill(present_NK.sum(1) == vocabulary, ABSENT),
        log_normalisers=torch.zeros(len(ids), 1),
        temperatures=(1.0,),
        mask=present_NK.any(1),
    )


def repeated_ids(ids_NK: NDArray[np.int64], present_NK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return `[N]`, whether an id stands twice among the entries that are present."""
    distinct = -1 - np.arange(ids_NK.shape[1])
    ordered = np.sort(np.where(present_NK, ids_NK, distinct), axis=1)
    return np.asarray((ordered[:, 1:] == ordered[:, :-1]).any(1))


def _twin(ids_K: NDArray[np.int64]) -> int:
    values, counts = np.unique(ids_K, return_counts=True)
    return int(values[counts > 1][0])
