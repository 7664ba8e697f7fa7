"""What a teacher says about the next token: the five kinds of signal.

Position `t` of a signal describes the distribution of token `t + 1` given tokens `0..t`. Leading dimensions are any
(`[B, T]` for a batch of rows, `[N]` for positions gathered from one); the last one is the kind's own. `mask` is True
where the signal says something; what the other tensors hold elsewhere means nothing, and may be NaN.

Log-probabilities are natural and float32 unless a codec says otherwise. `-inf` is a legal log-probability and means
"absent": a teacher that returned fewer than K entries fills up with `-inf`.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputHead:
    """The matrix (and bias and soft-cap) that turns final hidden states into logits.

    Attributes:
        weight: `[V, D]`.
        bias: `[V]`, or None.
        soft_cap: logits become `soft_cap * tanh(logits / soft_cap)` where it is set.
    """

    weight: Tensor
    bias: Tensor | None = None
    soft_cap: float | None = None
    _elsewhere: dict[torch.device, "tuple[int, OutputHead]"] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def to(self, device: torch.device | str) -> "OutputHead":
        """Return the head on `device`: itself where it lies there, else one copy a device, made once.

        Copies belong to this object and live as long as it does. A head that is being trained is copied anew each
        time, and so is one whose tensors were written to since: a copy never says what its original no longer says.
        """
        device = torch.empty(0, device=device).device  # "cuda" is the current one of several
        if device == self.weight.device:
            return self
        parts = [self.weight] if self.bias is None else [self.weight, self.bias]
        if any(part.requires_grad or part.is_inference() for part in parts):
            return self._copied(device)
        version = sum(part._version for part in parts)  # counts writes, and only rises
        there = self._elsewhere.get(device)
        if there is None or there[0] != version:
            there = self._elsewhere[device] = (version, self._copied(device))
        return there[1]

    def _copied(self, device: torch.device) -> "OutputHead":
        bias = None if self.bias is None else self.bias.to(device)
        return OutputHead(self.weight.to(device), bias, self.soft_cap)

    def __reduce__(self) -> tuple[type["OutputHead"], tuple[Tensor, Tensor | None, float | None]]:
        """Leave copies on other devices behind where the head is pickled, or copied itself."""
        return OutputHead, (self.weight, self.bias, self.soft_cap)


@dataclass(frozen=True)
class DenseSignal:
    """Log-probabilities of the whole vocabulary, `[..., V]`."""

    logprobs: Tensor
    mask: Tensor


@dataclass(frozen=True)
class HiddenSignal:
    """Final hidden states `[..., D]` (after the last norm) and the head that makes logits of them."""

    hidden: Tensor
    head: OutputHead
    mask: Tensor


@dataclass(frozen=True)
class TopkSignal:
    """The K most probable tokens, and what is known of the rest.

    Attributes:
        ids: `[..., K]`, distinct token ids, sorted by falling probability; where `logprobs` is `-inf` the id is void.
        logprobs: `[..., K]`, at temperature 1, never renormalised.
        log_tail_mass: `[...]`, log of the mass of all tokens that are not among the K, at temperature 1.
        log_normalisers: `[..., S]`, `log sum_v exp(logprob_v / T)` over the whole vocabulary for each of
            `temperatures`; with it the probability of a stored token, and of the tail, is exact at these T.
        temperatures: the S temperatures, ascending.
    """

    ids: Tensor
    logprobs: Tensor
    log_tail_mass: Tensor
    log_normalisers: Tensor
    temperatures: tuple[float, ...]
    mask: Tensor


@dataclass(frozen=True)
class SampledSignal:
    """Tokens drawn from the teacher: `sum_k weights_k f(ids_k)` is an unbiased estimate of `E_p[f]`.

    Attributes:
        ids: `[..., K]`, distinct; where the weight is 0 the id is void.
        weights: `[..., K]`, non-negative importance weights.
        logprobs: `[..., K]`, the teacher's own log-probabilities of these tokens.
    """

    ids: Tensor
    weights: Tensor
    logprobs: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TokenSignal:
    """The teacher's log-probability of the token that the text goes on with, `[...]`."""

    logprobs: Tensor
    mask: Tensor


TeacherSignal: TypeAlias = DenseSignal | HiddenSignal | TopkSignal | SampledSignal | TokenSignal
Signal = TypeVar("Signal", bound=DenseSignal | HiddenSignal | TopkSignal | SampledSignal | TokenSignal)

KINDS: dict[str, type] = {
    "dense": DenseSignal,
    "hidden": HiddenSignal,
    "topk": TopkSignal,
    "sampled": SampledSignal,
    "token": TokenSignal,
}


def kind_of(signal: TeacherSignal) -> str:
    """Return the name of a signal's kind, as recipes and manifests spell it."""
    return next(name for name, kind in KINDS.items() if isinstance(signal, kind))


def tensors_of(signal: TeacherSignal) -> dict[str, Tensor]:
    """Return a signal's own tensors by name: those with the leading dimensions (an output head is not among them)."""
    values = {field.name: getattr(signal, field.name) for field in fields(signal)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def at(signal: Signal, index: Tensor | slice | tuple[Tensor | slice, ...]) -> Signal:
    """Return the signal at the positions that `index` selects from its leading dimensions."""
    selected: dict[str, Any] = {name: value[index] for name, value in tensors_of(signal).items()}
    return replace(signal, **selected)


def to_device(signal: Signal, device: torch.device | str, *, non_blocking: bool = False) -> Signal:
    """Return the signal on `device`, and the output head it refers to, which is moved once and not again."""
    moved: dict[str, Any] = {}
    for name, value in tensors_of(signal).items():
        moved[name] = value.to(device, non_blocking=non_blocking)
    if isinstance(signal, HiddenSignal):
        moved["head"] = signal.head.to(device)
    return replace(signal, **moved)
