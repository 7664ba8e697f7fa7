"""From what a model computes to a signal: which kind a codec stores, and how that kind is made of logits or states.

Whatever produces logits (an engine that scores, a conversion) asks here, by the settings of the codec that will store
the signal. A codec that stores `topk` signals under settings of its own says by a method `selection` of these settings
which entries it needs; those that come with Limbeck are known here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec
from limbeck.signals.codecs.registry import make_codec
from limbeck.signals.codecs.sampled_draw import sample_logits
from limbeck.signals.codecs.sampled_random import Keys
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import DenseSignal, OutputHead, TeacherSignal, TokenSignal

MOST_ENTRIES = 65536


@dataclass(frozen=True)
class LogitsChunk:
    """What is computed at N positions.

    Attributes:
        logits: `[N, V]`, on any device.
        targets: `[N]`, ids of the tokens that the text goes on with.
        keys: `[N]`, of the positions' random numbers; see `limbeck.signals.codecs.sampled_random`.
    """

    logits: Tensor
    targets: Tensor
    keys: Keys


Maker = Callable[[LogitsChunk], TeacherSignal]


def kind_stored(spec: Settings, vocabulary: int) -> str:
    """Return the kind of signal that the codec of these settings stores.

    Raises:
        UserError: there is no such codec, or it is not for a vocabulary of this size.
    """
    return make_codec(spec, vocabulary).kind


def maker_of(spec: Settings, vocabulary: int) -> Maker:
    """Return the function that makes the signal that the codec of these settings stores.

    Its result is on the logits' device, but for `sampled`, which is on the CPU.

    Raises:
        UserError: no signal of this kind can be made of logits (`hidden`: it is the states, before the head), or the
            settings are for another vocabulary.
    """
    match kind_stored(spec, vocabulary):
        case "topk":
            chosen = selection_of(spec)
            return lambda chunk: topk_of_logits(chunk.logits, chosen)
        case "dense":
            return lambda chunk: DenseSignal(_logprobs(chunk), _everywhere(chunk))
        case "token":
            return _token
        case "sampled" if isinstance(spec, SampledSpec):
            return lambda chunk: sample_logits(chunk.logits, spec, chunk.keys)
        case kind:
            name = getattr(spec, "codec", "")
            raise UserError(f"codec {name!r}: it stores a {kind!r} signal, which can't be made of logits.")


def selection_of(spec: Settings) -> TopkSpec:
    """Return which entries of a distribution the codec of these settings needs, and at which temperatures.

    Raises:
        UserError: the settings don't say.
    """
    if isinstance(spec, TopkSpec):
        return spec
    if isinstance(spec, DistillkitSpec | DistillkitLegacySpec):
        if spec.k > MOST_ENTRIES:
            raise UserError(f"codec {spec.codec!r}: k = {spec.k} entries; at most {MOST_ENTRIES} can be captured.")
        return TopkSpec(select="count", cap=spec.k, temperatures=(1.0,))
    chosen = getattr(spec, "selection", None)
    if callable(chosen) and isinstance(found := chosen(), TopkSpec):
        return found
    raise UserError(
        f"codec {getattr(spec, 'codec', '')!r}: its settings do not say which entries it needs. "
        "Give them a method `selection` that returns a TopkSpec."
    )


def logits_of(hidden_ND: Tensor, head: OutputHead) -> Tensor:
    """Return the logits `[N, V]` that a head makes of states, float32 (float64 if the head is)."""
    logits = F.linear(hidden_ND.to(head.weight.dtype), head.weight, head.bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


def _logprobs(chunk: LogitsChunk) -> Tensor:
    return torch.log_softmax(chunk.logits, dim=-1)


def _token(chunk: LogitsChunk) -> TokenSignal:
    logprobs_N = _logprobs(chunk).gather(-1, chunk.targets[:, None])[:, 0]
    return TokenSignal(logprobs_N, _everywhere(chunk))


def _everywhere(chunk: LogitsChunk) -> Tensor:
    return torch.ones(len(chunk.logits), dtype=torch.bool, device=chunk.logits.device)
