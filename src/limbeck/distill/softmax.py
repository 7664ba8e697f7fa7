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

from limbeck.distill.bounded import Bound, Completion, complete
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
        logits_nV: Tensor, temperature: float, targets_n: Tensor, scratch: Scratch | None, *, in_place: bool
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
        log_q: `[n, K + 1]`, of the listed tokens and of the tail; without a listing the tail is everything. With a
            completion `[n, K + J + 1]`.
        completion: the J tokens of the tail that are outcomes of their own.
    """

    log_q: Tensor
    _tail: "Tail"
    _targets_n1: Tensor
    _target_log_q: Tensor
    _listed_ids: Tensor
    _present: Tensor
    completion: Completion | None = None
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
        bound: Bound | None = None,
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
        completion = None
        if bound is None:
            tail, scaled_nM = tail_of(logits_nV, temperature, in_place), logits_nK / temperature
        else:
            tail, completion, tail_nJ = _completed_tail(logits_nV, temperature, bound, ids_nK[:, :1], in_place)
            scaled_nM = torch.cat([logits_nK / temperature, tail_nJ], -1)
        if not in_place:
            logits_nV.scatter_(-1, ids_nK, logits_nK)
        if completion is not None:
            ids_nK = torch.cat([ids_nK, completion.ids], -1)
            present_nK = torch.cat([present_nK, completion.present], -1)
        scaled_nM = torch.cat([scaled_nM, tail.log_sums], -1)
        there_nM = torch.nn.functional.pad(present_nK, (0, 1), value=True)
        log_sums_n1 = scaled_nM.masked_fill(~there_nM, -math.inf).logsumexp(-1, keepdim=True)
        return SparseSoftmax(
            scaled_nM.sub_(log_sums_n1), tail, targets_n1, target_logits_n1 / temperature - log_sums_n1, ids_nK,
            present_nK, completion,
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
    q_nV, sums_n1, log_sums_n1, nothing_n1 = _tail_softmax(logits_nV, temperature, in_place)
    return Tail(log_sums_n1, lambda factors_n1: q_nV.mul_(factors_n1.masked_fill(nothing_n1, 0.0) / sums_n1))


def _completed_tail(
    logits_nV: Tensor, temperature: float, bound: Bound, listed_n1: Tensor, in_place: bool
) -> tuple[Tail, Completion, Tensor]:
    """Return what is left of the tail, its completion, and the logits over T of the tokens that left it, `[n, J]`."""
    q_nV, sums_n1, log_sums_n1, nothing_n1 = _tail_softmax(logits_nV, temperature, in_place)
    completion = complete(q_nV, sums_n1, bound, listed_n1)
    tiny = torch.finfo(q_nV.dtype).tiny
    nothing_n1 = nothing_n1 | (completion.rest < tiny)
    rest_n1 = (completion.rest * sums_n1).clamp(min=tiny)
    log_rest_n1 = log_sums_n1 + completion.rest.clamp(min=tiny).log()

    def spread(factors_n1: Tensor) -> Tensor:
        return q_nV.mul_(factors_n1.masked_fill(nothing_n1, 0.0) / rest_n1)

    return Tail(log_rest_n1, spread), completion, log_sums_n1 + completion.shares.clamp(min=tiny).log()


def _tail_softmax(logits_nV: Tensor, temperature: float, in_place: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return probabilities within the tail `[n, V]`, their sums, `logsumexp(logits / T)`, and which rows have no tail.

    torch's softmax makes three passes in one, and leaves probabilities whose sum is 1 to five digits at large V. What
    they sum to is divided out of them and added to the normaliser, so neither is off.
    """
    if temperature != 1.0:
        logits_nV = logits_nV.div_(temperature) if in_place else logits_nV / temperature
    largest_n1 = logits_nV.amax(-1, keepdim=True)
    nothing_n1 = largest_n1 == -math.inf
    logits_nV[:, :1].masked_fill_(nothing_n1, LEAST_LOGIT)  # of no logits at all a softmax would be NaN
    # that a softmax may be written over its own input is known of the CPU's
    free = in_place and logits_nV.device.type == "cpu"
    q_nV = torch.softmax(logits_nV, -1, out=logits_nV if free else torch.empty_like(logits_nV))
    sums_n1 = q_nV.sum(-1, keepdim=True)
    log_sums_n1 = largest_n1.clamp(min=LEAST_LOGIT) + (sums_n1 / q_nV.amax(-1, keepdim=True)).log()
    return q_nV, sums_n1, log_sums_n1, nothing_n1


def whole_distribution(
    logits_nV: Tensor, temperature: float, scratch: Scratch | None, *, in_place: bool
) -> Distribution:
    """Return the softmax of logits (or of log-probabilities) over T, in memory of `scratch` or in their own.

    Without `scratch` nothing is written to that was there before, which a compiler can fuse.
    """
    if scratch is None:
        log = torch.log_softmax(logits_nV / temperature, -1)
        return Distribution(log, log.exp())
    target = logits_nV if in_place else scratch.like(logits_nV)
    shifted = torch.sub(logits_nV, logits_nV.amax(-1, keepdim=True), out=target)
    if temperature != 1.0:
        shifted.div_(temperature)
    exps = torch.exp(shifted, out=scratch.like(shifted))
    sums_n1 = exps.sum(-1, keepdim=True)
    return Distribution(shifted.sub_(sums_n1.log()), exps.div_(sums_n1))
