"""The student's softmax over a block of logits, and the way back: from derivatives by log-probabilities to logits.

With `u = dL / d log q` and `z` the logits over the temperature T, `dL / dz = u - q * sum(u)`, whatever the losses are.
So losses at one temperature share one softmax, and their derivatives are added before the way back.

Over the whole vocabulary `u` has V entries. Where a teacher lists K tokens, `u` has K entries and one for the tail
bucket, `log q_tail = log sum of q over the tail`, whose derivative reaches a token v of the tail as
`u_tail * q(v) / q_tail`. The tail's mass is summed over its own tokens, not taken as 1 minus the rest: it keeps its
digits when the listed mass rounds to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.distill.losses.outcomes import Distribution, Scratch
from limbeck.distill.teacher import Listing

LEAST_LOGIT = -1e30  # stands for the largest of no logits at all


@dataclass
class WholeSoftmax:
    """A softmax whose log-probabilities are all looked at.

    Attributes:
        student: of all V tokens; `gradient` overwrites the probabilities.
    """

    student: Distribution
    _targets_n1: Tensor
    _slopes: Tensor | None = None
    _target_slopes: Tensor | None = None

    @staticmethod
    def of(
        logits_nV: Tensor, temperature: float, targets_n: Tensor, scratch: Scratch, *, in_place: bool
    ) -> "WholeSoftmax":
        """Return the softmax of logits; with `in_place` their memory is taken over."""
        return WholeSoftmax(
            whole_distribution(logits_nV, temperature, scratch, in_place=in_place), targets_n.unsqueeze(-1)
        )

    def target_log_q(self) -> Tensor:
        """Return log-probabilities of the targets, `[n, 1]`."""
        return self.student.log.gather(-1, self._targets_n1)

    def add(self, slopes_nV: Tensor) -> None:
        """Add derivatives by the student's log-probabilities; the tensor is taken over."""
        self._slopes = slopes_nV if self._slopes is None else self._slopes.add_(slopes_nV)

    def add_target(self, slopes_n1: Tensor) -> None:
        """Add derivatives by `target_log_q`."""
        self._target_slopes = slopes_n1 if self._target_slopes is None else self._target_slopes + slopes_n1

    def gradient(self) -> Tensor:
        """Return the derivative by the logits over T, `[n, V]`; once."""
        q = self.student.probabilities
        sums_n1 = torch.zeros_like(q[:, :1])
        for part in (self._slopes, self._target_slopes):
            sums_n1 = sums_n1 if part is None else sums_n1 + part.sum(-1, keepdim=True)
        gradient = q.mul_(-sums_n1) if self._slopes is None else self._slopes.addcmul_(q, sums_n1, value=-1)
        if self._target_slopes is not None:
            gradient.scatter_add_(-1, self._targets_n1, self._target_slopes)
        return gradient


@dataclass
class SparseSoftmax:
    """A softmax of which K listed tokens, the rest as one bucket, and the targets are looked at.

    Attributes:
        log_q: `[n, K + 1]`, of the listed tokens and of the tail; without a listing the tail is everything.
    """

    log_q: Tensor
    _tail: "Tail"
    _targets_n1: Tensor
    _target_log_q: Tensor
    _listed_ids: Tensor
    _present: Tensor
    _slopes: Tensor | None = None
    _target_slopes: Tensor | None = None

    @staticmethod
    def of(
        logits_nV: Tensor,
        temperature: float,
        targets_n: Tensor,
        listing: Listing | None,
        tail_of: "TailOf",
        *,
        in_place: bool,
    ) -> "SparseSoftmax":
        """Return the softmax of logits; with `in_place` their memory is taken over."""
        targets_n1 = targets_n.unsqueeze(-1)
        if listing is None:
            ids_nK, present_nK = targets_n1[:, :0], torch.zeros_like(targets_n1[:, :0], dtype=torch.bool)
        else:
            ids_nK, present_nK = listing.ids, listing.present
        logits_nK, target_logits_n1 = logits_nV.gather(-1, ids_nK), logits_nV.gather(-1, targets_n1)
        # a row that lists nothing repeats one token, which stays in the tail
        listing_rows_n1 = present_nK.any(-1, keepdim=True)
        logits_nV.scatter_(-1, ids_nK, logits_nK.masked_fill(listing_rows_n1, -math.inf))
        tail = tail_of(logits_nV, temperature, in_place)
        if not in_place:
            logits_nV.scatter_(-1, ids_nK, logits_nK)
        scaled_nM = torch.cat([logits_nK / temperature, tail.log_sums], -1)
        there_nM = torch.nn.functional.pad(present_nK, (0, 1), value=True)
        log_sums_n1 = scaled_nM.masked_fill(~there_nM, -math.inf).logsumexp(-1, keepdim=True)
        return SparseSoftmax(
            scaled_nM.sub_(log_sums_n1), tail, targets_n1, target_logits_n1 / temperature - log_sums_n1, ids_nK,
            present_nK,
        )  # fmt: skip

    def target_log_q(self) -> Tensor:
        """Return log-probabilities of the targets, `[n, 1]`."""
        return self._target_log_q

    def add(self, slopes_nM: Tensor) -> None:
        """Add derivatives by `log_q`, of all K + 1 outcomes or of the listed tokens only."""
        if self._slopes is None:
            self._slopes = torch.zeros_like(self.log_q)
        self._slopes[:, : slopes_nM.shape[-1]] += slopes_nM

    def add_target(self, slopes_n1: Tensor) -> None:
        """Add derivatives by `target_log_q`."""
        self._target_slopes = slopes_n1 if self._target_slopes is None else self._target_slopes + slopes_n1

    def gradient(self) -> Tensor:
        """Return the derivative by the logits over T, `[n, V]`; once."""
        slopes = torch.zeros_like(self.log_q) if self._slopes is None else self._slopes
        listed_nK, tail_n1 = slopes[:, :-1].masked_fill(~self._present, 0.0), slopes[:, -1:]
        sums_n1 = listed_nK.sum(-1, keepdim=True) + tail_n1
        if self._target_slopes is not None:
            sums_n1 = sums_n1 + self._target_slopes
        q = self.log_q.exp()
        gradient = self._tail.spread(tail_n1 - q[:, -1:] * sums_n1)
        back_nK = (listed_nK - q[:, :-1] * sums_n1).masked_fill_(~self._present, 0.0)
        gradient.scatter_add_(-1, self._listed_ids, back_nK)
        if self._target_slopes is not None:
            gradient.scatter_add_(-1, self._targets_n1, self._target_slopes)
        return gradient


@dataclass(frozen=True)
class Tail:
    """All logits but those that are `-inf`, as one bucket.

    Attributes:
        log_sums: `[n, 1]`, `logsumexp(logits / T)`.
        spread: `factors [n, 1] -> [n, V]`, each factor shared out among the row's tokens as softmax does; once.
    """

    log_sums: Tensor
    spread: Callable[[Tensor], Tensor]


TailOf = Callable[[Tensor, float, bool], Tail]


def tail_in_torch(logits_nV: Tensor, temperature: float, in_place: bool) -> Tail:
    """Return the tail of logits; with `in_place` their memory is taken over."""
    largest_n1 = logits_nV.amax(-1, keepdim=True).clamp_(min=LEAST_LOGIT)
    exps = logits_nV.sub_(largest_n1) if in_place else logits_nV - largest_n1
    if temperature != 1.0:
        exps.div_(temperature)
    exps.exp_()
    sums_n1 = exps.sum(-1, keepdim=True).clamp_(min=torch.finfo(exps.dtype).tiny)
    return Tail(largest_n1 / temperature + sums_n1.log(), lambda factors_n1: exps.mul_(factors_n1 / sums_n1))


def whole_distribution(logits_nV: Tensor, temperature: float, scratch: Scratch, *, in_place: bool) -> Distribution:
    """Return the softmax of logits (or of log-probabilities) over T, in memory of `scratch` or in their own."""
    target = logits_nV if in_place else scratch.like(logits_nV)
    shifted = torch.sub(logits_nV, logits_nV.amax(-1, keepdim=True), out=target)
    if temperature != 1.0:
        shifted.div_(temperature)
    exps = torch.exp(shifted, out=scratch.like(shifted))
    sums_n1 = exps.sum(-1, keepdim=True)
    return Distribution(shifted.sub_(sums_n1.log()), exps.div_(sums_n1))
