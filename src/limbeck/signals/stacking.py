"""Signals of several rows as one signal: end to end (`[N, ...]`), or padded on the right (`[B, T, ...]`).

Rows of a `topk` or `sampled` signal may differ in K: the result has the largest, filled up with absent entries. What
padding holds means nothing except that its mask is False; it is finite or `-inf`, never NaN.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.signals.types import Signal, SampledSignal, TeacherSignal, TopkSignal, at

ABSENT = {"logprobs": float("-inf"), "log_tail_mass": float("-inf")}


def concatenate(signals: Sequence[Signal]) -> Signal:
    """Return the positions of all `signals`, each `[n, ...]`, one after the other.

    Raises:
        LimbeckError: they are of different kinds, or were normalised at different temperatures.
    """
    first = signals[0]
    if len(signals) == 1:
        return first
    _check_alike(signals)
    signals = _with_equal_entries(signals)
    joined = {
        field.name: torch.cat([getattr(signal, field.name) for signal in signals])
        for field in fields(first)
        if isinstance(getattr(first, field.name), Tensor)
    }
    return replace(first, **joined)


def split(signal: Signal, lengths: Sequence[int]) -> list[Signal]:
    """Return the parts of `signal` `[N, ...]` that are `lengths` positions long, as views."""
    parts, start = [], 0
    for length in lengths:
        parts.append(at(signal, slice(start, start + length)))
        start += length
    return parts


def pad_rows(signal: Signal, lengths: Sequence[int]) -> Signal:
    """Return a signal `[N, ...]` of rows laid end to end as `[B, T, ...]`, padded on the right with mask False.

    Args:
        signal: `sum(lengths)` positions.
        lengths: how many positions each row has; T is the longest.
    """
    width = max(lengths, default=0)
    lengths_B = torch.tensor(list(lengths), dtype=torch.int64, device=signal.mask.device)
    inside_BT = torch.arange(width, device=signal.mask.device) < lengths_B[:, None]
    padded = {}
    for field in fields(signal):
        value = getattr(signal, field.name)
        if isinstance(value, Tensor):
            shape = (len(lengths), width, *value.shape[1:])
            padded[field.name] = value.new_full(shape, ABSENT.get(field.name, 0))
            padded[field.name][inside_BT] = value
    return replace(signal, **padded)


def _check_alike(signals: Sequence[TeacherSignal]) -> None:
    first = signals[0]
    for signal in signals[1:]:
        if type(signal) is not type(first):
            raise LimbeckError(f"signals of different kinds in one: {type(first).__name__}, {type(signal).__name__}.")
        if isinstance(first, TopkSignal) and isinstance(signal, TopkSignal) and signal.temperatures != first.temperatures:
            raise LimbeckError(f"signals with normalisers at different temperatures in one: {first.temperatures}, {signal.temperatures}.")


def _with_equal_entries(signals: Sequence[Signal]) -> list[Signal]:
    """Widen the last dimension of sparse signals to the largest K."""
    if not isinstance(signals[0], TopkSignal | SampledSignal):
        return list(signals)
    width = max(signal.ids.shape[-1] for signal in signals)
    return [_widened(signal, width) for signal in signals]


def _widened(signal: Signal, width: int) -> Signal:
    missing = width - signal.ids.shape[-1]
    if missing == 0:
        return signal
    wider = {
        name: torch.nn.functional.pad(getattr(signal, name), (0, missing), value=ABSENT.get(name, 0))
        for name in ("ids", "logprobs", "weights")
        if hasattr(signal, name)
    }
    return replace(signal, **wider)
