"""What a teacher's signal says at a temperature, in the shape that losses see: finite log-probabilities of outcomes.

`dense` and `hidden` signals tell of the whole vocabulary, at any temperature. A `topk` signal lists K tokens, and what
it doesn't list has to be accounted for:

    tail      one more outcome for all other tokens, with the mass that was stored: exact, at the temperatures whose
              normaliser was stored
    bounded   the same, and no unlisted token has more than the least that a listed one has: tokens to which the
              student gives more become outcomes of their own (see `limbeck.distill.bounded`)
    uniform   one more outcome, made as if the mass that is missing at temperature 1 were spread evenly over the
              tokens that are not listed: exact at 1, at any other temperature as good as that assumption
    zero      no other outcome: the listed tokens are renormalised to 1, as if the teacher gave no mass to the rest

The default is `tail` where the signal has what it takes, else `uniform`. `symmetric_uniform` is another name of
`uniform`. A `sampled` signal stands for the whole vocabulary at temperature 1 and needs no such thing.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.distill.bounded import Bound
from limbeck.distill.losses.outcomes import ABSENT
from limbeck.errors import UserError
from limbeck.signals.tail import log_complement
from limbeck.signals.types import SampledSignal, TopkSignal

Missing = Literal["tail", "bounded", "uniform", "zero", "symmetric_uniform"]
TEMPERATURE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Listing:
    """The tokens that a sparse teacher lists at n positions.

    Attributes:
        signal: what it says of them.
        ids: `[n, K]`, int64; those that are absent are replaced by a token that is there, or all by the first.
        present: `[n, K]`, bool.
        vocabulary: V.
    """

    signal: TopkSignal | SampledSignal
    ids: Tensor
    present: Tensor
    vocabulary: int

    @staticmethod
    def of(signal: TopkSignal | SampledSignal, vocabulary: int) -> "Listing":
        """Return the listing of a signal with one leading dimension."""
        listed = signal.logprobs > -math.inf
        present = listed & (signal.weights > 0) if isinstance(signal, SampledSignal) else listed
        first_n1 = present.to(torch.uint8).argmax(-1, keepdim=True)
        ids = signal.ids.long()
        return Listing(signal, torch.where(present, ids, ids.gather(-1, first_n1)), present, vocabulary)

    def missing_at(self, temperature: float, asked: Missing | None) -> Missing | None:
        """Return how unlisted mass is accounted for at a temperature; None for a signal that has none.

        Raises:
            UserError: the signal can't be brought to this temperature as asked.
        """
        if isinstance(self.signal, SampledSignal):
            check_temperature("sampled", (1.0,), temperature, asked)
            return None
        known = _index(self.signal.temperatures, temperature) is not None or temperature == 1.0
        if asked in ("tail", "bounded"):
            check_temperature("topk", self.signal.temperatures, temperature, asked)
        chosen = asked or ("tail" if known else "uniform")
        return "uniform" if chosen == "symmetric_uniform" else chosen

    def log_p(self, temperature: float, missing: Missing | None) -> Tensor:
        """Return `[n, K]`, or `[n, K + 1]` with the rest as the last outcome (`tail` and `uniform`), all finite.

        Computed in float64: what is not listed is 1 minus what is, and that may be close to 1.
        """
        scaled_nK = torch.where(self.present, _wide(self.signal.logprobs) / temperature, -math.inf)
        if isinstance(self.signal, SampledSignal):
            return scaled_nK.clamp(min=ABSENT)
        match missing:
            case "zero":
                return scaled_nK.clamp(min=ABSENT).log_softmax(-1).masked_fill(~self.present, ABSENT)
            case "uniform":
                log_rest_n1 = self._spread_evenly(temperature).unsqueeze(-1)
                return torch.cat([scaled_nK, log_rest_n1], -1).log_softmax(-1).clamp(min=ABSENT)
            case _:
                log_rest_n = _wide(self.signal.log_tail_mass)
                if temperature != 1.0:
                    index = _index(self.signal.temperatures, temperature)
                    scaled_nK = scaled_nK - _wide(self.signal.log_normalisers[..., index]).unsqueeze(-1)
                    log_rest_n = log_complement(scaled_nK.logsumexp(-1)).where(self._unlisted() > 0, -math.inf)
                return torch.cat([scaled_nK, log_rest_n.unsqueeze(-1)], -1).clamp(min=ABSENT)

    def bound(self, temperature: float) -> Bound:
        """Return what is known of the tail's tokens, at a temperature at which it is known."""
        log_p_nM = self.log_p(temperature, "tail")
        least_n1 = log_p_nM[:, :-1].masked_fill(~self.present, math.inf).amin(-1, keepdim=True)
        return Bound(log_p_nM[:, -1:], least_n1)

    def _spread_evenly(self, temperature: float) -> Tensor:
        """Return the logarithm of `sum_v p(v)^(1/T)` over unlisted tokens that share the missing mass, `[n]`."""
        listed_nK = torch.where(self.present, _wide(self.signal.logprobs), -math.inf)
        log_missing_n = log_complement(listed_nK.logsumexp(-1))
        log_unlisted_n = self._unlisted().to(log_missing_n.dtype).log()
        shared_n = log_unlisted_n + (log_missing_n - log_unlisted_n) / temperature
        return shared_n.where(self._unlisted() > 0, -math.inf)

    def _unlisted(self) -> Tensor:
        """Return how many tokens are not listed, `[n]`."""
        return self.vocabulary - self.present.sum(-1)

    def importance(self) -> Tensor | None:
        """Return `[n, K]`: by how much a listed token counts more than its probability; None where it doesn't."""
        if not isinstance(self.signal, SampledSignal):
            return None
        return torch.where(self.present, self.signal.weights / self.signal.logprobs.exp(), 0.0)


def check_temperature(
    kind: str, captured: tuple[float, ...], temperature: float, missing: Missing | None = None
) -> None:
    """Refuse a temperature that a signal of this kind can't be brought to.

    Raises:
        UserError: `sampled` tokens were drawn at 1; a `topk` tail is known only at the temperatures that were captured.
    """
    if kind == "sampled" and temperature != 1.0:
        raise UserError(
            f"temperature {temperature:g}: the tokens of a 'sampled' signal were drawn at 1. Use 1, or another signal."
        )
    if (
        kind == "topk"
        and missing in ("tail", "bounded")
        and temperature != 1.0
        and _index(captured, temperature) is None
    ):
        raise UserError(
            f"temperature {temperature:g}: this signal was captured with normalisers at "
            f"{', '.join(f'{known:g}' for known in captured)} only. Use one of these, or capture again, or set "
            "missing_probability_handling to 'uniform'."
        )


def check_missing(name: str) -> Missing:
    """Return a valid way to account for unlisted mass.

    Raises:
        UserError: there is none of that name.
    """
    for known in get_args(Missing):
        if name == known:
            return known
    raise UserError(f"missing_probability_handling: {name!r} is none of {', '.join(get_args(Missing))}.")


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.double()  # the one kind of device that has no float64


def _index(captured: tuple[float, ...], temperature: float) -> int | None:
    near = (index for index, known in enumerate(captured) if abs(known - temperature) < TEMPERATURE_TOLERANCE)
    return next(near, None)
