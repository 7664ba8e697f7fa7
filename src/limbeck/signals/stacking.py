"""Signals of several rows as one signal: end to end (`[N, ...]`), or padded on the right (`[B, T, ...]`).

Rows of a `topk` or `sampled` signal may differ in K: the result has the largest, filled up with absent entries. What
padding holds means nothing except that its mask is False; it is finite or `-inf`, never NaN.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import pad

from limbeck.errors import LimbeckError
from limbeck.signals.types import SampledSignal, Signal, TeacherSignal, TopkSignal, at, tensors_of

ENTRIES = ("ids", "logprobs", "weights")
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
    parts = [tensors_of(signal) for signal in _with_equal_entries(signals)]
    joined: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
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
    if min(lengths, default=0) == width:
        whole: dict[str, Any] = {
            name: value.reshape(len(lengths), width, *value.shape[1:]) for name, value in tensors_of(signal).items()
        }
        return replace(signal, **whole)
    lengths_B = torch.tensor(list(lengths), dtype=torch.int64, device=signal.mask.device)
    inside_BT = torch.arange(width, device=signal.mask.device) < lengths_B[:, None]
    padded: dict[str, Any] = {}
    for name, value in tensors_of(signal).items():
        padded[name] = value.new_full((len(lengths), width, *value.shape[1:]), ABSENT.get(name, 0))
        padded[name][inside_BT] = value
    return replace(signal, **padded)


def _check_alike(signals: Sequence[TeacherSignal]) -> None:
    kinds = {type(signal).__name__ for signal in signals}
    if len(kinds) > 1:
        raise LimbeckError(f"signals of different kinds in one: {', '.join(sorted(kinds))}.")
    temperatures = {signal.temperatures for signal in signals if isinstance(signal, TopkSignal)}
    if len(temperatures) > 1:
        raise LimbeckError(f"signals with normalisers at different temperatures in one: {sorted(temperatures)}.")


def _with_equal_entries(signals: Sequence[Signal]) -> list[Signal]:
    """Widen the last dimension of sparse signals to the largest K."""
    sparse = [signal for signal in signals if isinstance(signal, TopkSignal | SampledSignal)]
    width = max((signal.ids.shape[-1] for signal in sparse), default=0)
    return [_widened(signal, width) for signal in signals]


def _widened(signal: Signal, width: int) -> Signal:
    if not isinstance(signal, TopkSignal | SampledSignal) or signal.ids.shape[-1] == width:
        return signal
    missing = width - signal.ids.shape[-1]
    wider: dict[str, Any] = {
        name: pad(value, (0, missing), value=ABSENT.get(name, 0))
        for name, value in tensors_of(signal).items()
        if name in ENTRIES
    }
    return replace(signal, **wider)
