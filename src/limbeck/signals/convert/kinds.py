"""From the signal that one codec stores to the signal that another one stores, and which of these ways are refused.

Whatever has the whole distribution (`dense`, `hidden`) becomes anything but `hidden`. Entries (`topk`) become fewer
entries. What would have to be invented (a tail token's probability, a state behind a distribution, entries below the
threshold that was captured with) is refused with the reason.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.seeds import derive_seed
from limbeck.settings import Settings
from limbeck.signals.codecs.hidden_head import HiddenSpec
from limbeck.signals.codecs.sampled_random import position_keys
from limbeck.signals.from_logits import LogitsChunk, Maker, kind_stored, logits_of, maker_of, selection_of
from limbeck.signals.stacking import ABSENT, concatenate
from limbeck.signals.types import DenseSignal, HiddenSignal, TeacherSignal, tensors_of

CHUNK_LOGITS = 1 << 23

RowConversion = Callable[[TeacherSignal, Tensor, int], TeacherSignal]
"""Takes a row's signal `[T]`, its `input_ids` `[T]` and its number, and returns the signal to be stored."""


def conversion_between(source: Settings, target: Settings, vocabulary: int) -> RowConversion:
    """Return what turns a signal that codec `source` stored into one that codec `target` stores.

    Raises:
        UserError: the target would say more than the source does; the message says what is missing.
    """
    have, want = kind_stored(source, vocabulary), kind_stored(target, vocabulary)
    names = f"codec {getattr(source, 'codec', '')} to {getattr(target, 'codec', '')}"
    if reason := _what_is_missing(source, target, have, want):
        raise UserError(f"{names}: {reason}. Capture again with the settings that you need.")
    if have == want:
        return lambda signal, _ids, _sample: signal
    make = maker_of(target, vocabulary)
    return lambda signal, input_ids, sample: _remade(signal, input_ids, sample, make, want)


def _what_is_missing(source: Settings, target: Settings, have: str, want: str) -> str:
    """Return what the source lacks for the target; empty: nothing."""
    match have, want:
        case "topk", "topk":
            return _entries_missing(source, target)
        case "hidden", "hidden" if isinstance(source, HiddenSpec) and isinstance(target, HiddenSpec):
            same = (source.width, source.head_sha256) == (target.width, target.head_sha256)
            return "" if same else "states belong to one output head, and the settings name another"
        case "dense", "hidden":
            return "log-probabilities don't tell the states that they were made of"
        case ("dense", _) | ("hidden", _) | ("token", "token"):
            return ""
        case "sampled", "sampled":
            return "" if source == target else "a draw is unbiased only with the settings that it was drawn by"
        case "sampled", _:
            return "a few tokens drawn from a distribution don't tell which are its most probable, nor how probable"
        case "token", _:
            return "the probability of one token doesn't tell those of the others"
        case _:
            return "the probabilities of tokens beyond the stored entries are known only as a sum"


def _entries_missing(source: Settings, target: Settings) -> str:
    have, want = selection_of(source), selection_of(target)
    if absent := [f"{one:g}" for one in want.temperatures if one not in have.temperatures]:
        known = ", ".join(f"{one:g}" for one in have.temperatures)
        return (
            f"the normaliser at temperature {', '.join(absent)} was not stored (those at {known} are: "
            f"set temperatures: [{known}])"
        )
    if want.cap > have.cap:
        return f"at most {have.cap} entries of a position were stored, and the settings ask for {want.cap}"
    if have.select == "count":
        return ""
    if have.select == "threshold" == want.select:
        kept = f"only tokens of probability {have.threshold:g} or more were stored"
        return "" if want.threshold >= have.threshold else f"{kept}, and the settings ask for {want.threshold:g}"
    if have.select == "mass" == want.select:
        kept = f"only the most probable tokens up to a mass of {have.mass:g} were stored"
        return "" if want.mass <= have.mass else f"{kept}, and the settings ask for {want.mass:g}"
    if all_entries_exact(target):
        return ""
    return f"the source has as many entries as its {have.select} took, other settings ({want.select}) would name others"


def all_entries_exact(spec: Settings) -> bool:
    """Return whether a codec of a fixed number of entries can leave any of them out: none is part of a fit."""
    k = getattr(spec, "k", None)
    return k is not None and k == getattr(spec, "exact_k", None)


def _remade(signal: TeacherSignal, input_ids: Tensor, sample: int, make: Maker, want: str) -> TeacherSignal:
    """Return a signal of a row, made of its whole distributions, a chunk of positions at a time."""
    mask_T = signal.mask.clone()
    if want == "token":
        mask_T[-1:] = False  # behind the last token there is none to say something of
    said_n = mask_T.nonzero()[:, 0]
    targets_T = torch.cat([input_ids[1:], input_ids.new_zeros(1)])
    keys = position_keys(derive_seed(0, "convert", sample), len(mask_T))
    if isinstance(signal, HiddenSignal):
        vocabulary = signal.head.weight.shape[0]
    elif isinstance(signal, DenseSignal):
        vocabulary = signal.logprobs.shape[-1]
    else:
        raise TypeError(f"{type(signal).__name__} has no whole distributions")
    parts: list[TeacherSignal] = []
    step = max(16, CHUNK_LOGITS // vocabulary)
    for first in range(0, max(1, len(said_n)), step):
        at_n = said_n[first : first + step]
        if isinstance(signal, HiddenSignal):
            logits_NV = logits_of(signal.hidden[at_n], signal.head)
        else:
            logits_NV = signal.logprobs[at_n]
        parts.append(make(LogitsChunk(logits_NV, targets_T[at_n], keys[at_n.numpy()])))
    return spread(concatenate(parts), mask_T)


def spread(signal: TeacherSignal, mask_T: Tensor) -> TeacherSignal:
    """Return a signal of the positions where `mask_T` is True as one of all T positions, masked elsewhere."""
    whole: dict[str, Any] = {}
    for name, value in tensors_of(signal).items():
        whole[name] = value.new_full((len(mask_T), *value.shape[1:]), ABSENT.get(name, 0))
        whole[name][mask_T] = value
    return replace(signal, **{**whole, "mask": mask_T})
