"""One block of logits: every configured loss, and the gradient of their weighted sum.

A block is small, so that its few copies are cheap to hold. What its losses share is made once: a softmax of either side
for each temperature, exponentials, mixtures.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from limbeck.distill.bounded import Completion
from limbeck.distill.losses.outcomes import ABSENT, Distribution, Outcomes, Scratch, distribution
from limbeck.distill.losses.registry import Loss, get_loss
from limbeck.distill.softmax import SparseSoftmax, TailOf, WholeSoftmax, tail_in_torch, whole_distribution
from limbeck.distill.teacher import Listing, Missing
from limbeck.distill.term import Term
from limbeck.signals.types import TopkSignal

Softmax = WholeSoftmax | SparseSoftmax
KERNELS = ("kl", "reverse_kl", "jsd", "cross_entropy")  # over the whole vocabulary, written out in `fused`


@dataclass(frozen=True)
class Known:
    """What is known of n positions besides the student's logits; the teacher is there in one way or not at all.

    Attributes:
        targets: `[n]`, ids of the tokens that follow.
        scores: `[n, V]`, the teacher's logits or log-probabilities.
        scores_are_free: whether the memory of `scores` may be taken over.
        listing: the tokens that a sparse teacher lists.
        token_logprobs: `[n]`, the teacher's log-probabilities of the targets.
        weights: `[n, 1]`, how much each position counts in the gradient; None: 1.
    """

    targets: Tensor
    scores: Tensor | None = None
    listing: Listing | None = None
    token_logprobs: Tensor | None = None
    weights: Tensor | None = None
    scores_are_free: bool = False


def block_values(logits_nV: Tensor, known: Known, terms: Sequence[Term], scratch: Scratch) -> list[Tensor]:
    """Return each term's values `[n]`, unweighted; the logits' memory may be taken over."""
    values: dict[int, Tensor] = {}
    for teacher, softmax, group in _by_temperature(
        logits_nV, known, terms, scratch, in_place=_one_softmax(terms, known)
    ):
        for index, term in group:
            values[index] = term.factor * teacher.outcomes(term, softmax).values(term.loss)
    return [values[index] for index in range(len(terms))]


def block_gradient(
    logits_nV: Tensor,
    known: Known,
    terms: Sequence[Term],
    scratch: Scratch,
    soft_cap: float | None = None,
    *,
    kernels: bool | None = None,
    compiled: bool = False,
) -> list[Tensor]:
    """Return each term's values `[n]`, unweighted, and overwrite the logits by the gradient of their weighted sum.

    The gradient is by the head's products: by what a soft-cap, if there is one, was applied to.

    Args:
        logits_nV: the student's.
        known: of the same positions.
        terms: losses on next-token distributions.
        scratch: memory for tensors of the block's size.
        soft_cap: of the head.
        kernels: whether to use Triton kernels where there is one for the case; None: on a GPU, if Triton is installed.
        compiled: whether to use what `torch.compile` makes of the losses where no kernel is for the case.
    """
    kernels = logits_nV.is_cuda and find_spec("triton") is not None if kernels is None else kernels
    # a second temperature, and the derivative of a soft-cap, need the logits as they were
    in_place = _one_softmax(terms, known) and soft_cap is None
    tail_of: TailOf = tail_in_torch
    if kernels and in_place and logits_nV.dtype == torch.float32:
        from limbeck.distill.fused import tail_in_triton

        if known.scores is not None and _has_kernel(terms):
            return _whole_in_triton(logits_nV, known.scores, known, terms)
        tail_of = tail_in_triton
    if compiled:
        from limbeck.distill.compiled import compiled_gradient

        found = compiled_gradient(logits_nV, known, terms, soft_cap)
        if found is not None:
            return found
    values: dict[int, Tensor] = {}
    gradient: Tensor | None = None
    for teacher, softmax, group in _by_temperature(logits_nV, known, terms, scratch, tail_of, in_place=in_place):
        part = group_gradient(teacher, softmax, group, values)
        gradient = part if gradient is None else gradient.add_(part)
    if gradient is None:
        logits_nV.zero_()
    else:
        if soft_cap is not None:
            gradient.mul_(1 - (logits_nV / soft_cap).square_())
        if gradient is not logits_nV:
            logits_nV.copy_(gradient)
    return [values[index] for index in range(len(terms))]


def group_gradient(
    teacher: "BlockTeacher", softmax: Softmax, group: Sequence[tuple[int, Term]], values: dict[int, Tensor]
) -> Tensor:
    """Return the gradient by the logits of losses at one temperature, `[n, V]`; their values go to their places."""
    for index, term in group:
        found, slopes = teacher.outcomes(term, softmax).values_and_slopes(term.loss)
        values[index] = term.factor * found
        if (share := term.weight * term.factor) != 1.0:
            slopes.mul_(share)
        if teacher.known.weights is not None:
            slopes.mul_(teacher.known.weights)
        if term.loss.over == "target":
            softmax.add_target(slopes)
        else:
            softmax.add(slopes)
    part = softmax.gradient()
    return part if teacher.temperature == 1.0 else part.div_(teacher.temperature)


def _one_softmax(terms: Sequence[Term], known: Known) -> bool:
    return len({(term.temperature, _is_bounded(term, known)) for term in terms}) == 1


def _is_bounded(term: Term, known: Known) -> bool:
    """Whether the student's tail has to be completed for this loss."""
    listed = known.listing is not None and isinstance(known.listing.signal, TopkSignal)
    return listed and term.missing == "bounded" and term.loss.over == "teacher" and not term.loss.pairwise


def _has_kernel(terms: Sequence[Term]) -> bool:
    names = [term.name for term in terms]
    built_in = all(
        name in KERNELS and term.loss.contributions is get_loss(name).contributions
        for name, term in zip(names, terms, strict=True)
    )
    return built_in and len(set(names)) == len(names)


def _whole_in_triton(logits_nV: Tensor, scores_nV: Tensor, known: Known, terms: Sequence[Term]) -> list[Tensor]:
    from limbeck.distill.fused import whole_gradient

    shares = {term.name: term.weight * term.factor for term in terms}
    betas = [term.loss.parameters["beta"] for term in terms if term.name == "jsd"]
    values = whole_gradient(
        logits_nV, scores_nV.contiguous(), known.targets, terms[0].temperature, shares, betas[0] if betas else 0.5,
        shares.get("cross_entropy", 0.0), None if known.weights is None else known.weights[:, 0],
    )  # fmt: skip
    return [term.factor * values[term.name] for term in terms]


@dataclass(frozen=True)
class _Seen:
    """Outcomes, and for a `sampled` teacher how much more than its probability each counts, `[n, M]`."""

    outcomes: Outcomes
    importance: Tensor | None

    def values(self, loss: Loss) -> Tensor:
        contributions = loss.contributions(self.outcomes, **loss.parameters)
        if self.importance is not None:
            growth = self.outcomes.q - self.outcomes.p
            contributions = self.importance * (contributions - loss.slope(**loss.parameters) * growth)
        return contributions.sum(-1)

    def values_and_slopes(self, loss: Loss) -> tuple[Tensor, Tensor]:
        """Return values `[n]` and their derivatives by `log_q`, `[n, M]`, in a tensor of their own."""
        if loss.derivative is None:
            with torch.enable_grad():
                log_q = self.outcomes.log_q.detach().requires_grad_()
                tracked = replace(self.outcomes, student=distribution(log_q), scratch=None)
                values = replace(self, outcomes=tracked).values(loss)
                (slopes,) = torch.autograd.grad(values.sum(), log_q)
            return values.detach(), slopes
        slopes = loss.derivative(self.outcomes, **loss.parameters)
        if self.importance is not None:
            slopes = self.importance * (slopes - loss.slope(**loss.parameters) * self.outcomes.q)
        return self.values(loss), slopes


def groups(terms: Sequence[Term]) -> list[tuple[float, list[tuple[int, Term]]]]:
    """Return the terms by temperature, each with its place."""
    return [
        (temperature, [(index, term) for index, term in enumerate(terms) if term.temperature == temperature])
        for temperature in sorted({term.temperature for term in terms})
    ]


def _by_temperature(
    logits_nV: Tensor,
    known: Known,
    terms: Sequence[Term],
    scratch: Scratch,
    tail_of: TailOf = tail_in_torch,
    *,
    in_place: bool,
) -> Iterator[tuple["BlockTeacher", Softmax, list[tuple[int, Term]]]]:
    """Yield, for each temperature, the teacher, the student's softmax, and the losses with their places."""
    scratch.restart()
    for temperature, group in groups(terms):
        teacher = BlockTeacher(known, temperature, scratch, in_place=in_place)
        if known.scores is not None and any(term.loss.signals for _, term in group):
            yield teacher, WholeSoftmax.of(logits_nV, temperature, known.targets, scratch, in_place=in_place), group
            continue
        for bounded in (False, True):
            part = [(index, term) for index, term in group if _is_bounded(term, known) == bounded]
            if not part:
                continue
            bound = known.listing.bound(temperature) if bounded and known.listing is not None else None
            softmax = SparseSoftmax.of(
                logits_nV, temperature, known.targets, known.listing, tail_of, bound=bound, in_place=in_place
            )
            yield teacher, softmax, part


class BlockTeacher:
    """A block's teacher at one temperature; what losses have in common is made once."""

    def __init__(self, known: Known, temperature: float, scratch: Scratch | None, *, in_place: bool) -> None:
        self.known = known
        self.in_place = in_place and known.scores_are_free
        self.scratch = scratch
        self.temperature = temperature
        self._whole: Distribution | None = None
        self._seen: dict[Missing | None, _Seen] = {}

    def outcomes(self, term: Term, softmax: Softmax) -> _Seen:
        """Return what the loss of `term` sees."""
        if term.loss.over == "target":
            teacher = self._of_targets() if term.loss.signals else None
            return _Seen(Outcomes(distribution(softmax.target_log_q()), teacher), None)
        listing = self.known.listing
        missing = None if listing is None else listing.missing_at(self.temperature, term.missing)
        if missing == "bounded" and not _is_bounded(term, self.known):
            missing = "tail"
        if missing not in self._seen:
            if isinstance(softmax, WholeSoftmax):
                self._seen[missing] = _Seen(
                    Outcomes(softmax.student, self._of_vocabulary(), scratch=self.scratch), None
                )
            elif listing is not None:
                self._seen[missing] = self._listed(listing, missing, softmax)
        seen = self._seen[missing]
        return replace(seen, importance=None) if term.loss.pairwise else seen

    def _listed(self, listing: Listing, missing: Missing | None, softmax: SparseSoftmax) -> _Seen:
        if softmax.completion is not None:
            return self._completed(listing, softmax, softmax.completion)
        tail = missing in ("tail", "uniform")
        log_q = softmax.log_q[:, :-1].masked_fill(~listing.present, ABSENT)
        if tail:
            log_q = torch.cat([log_q, softmax.log_q[:, -1:]], -1)
        log_p = listing.log_p(self.temperature, missing).to(log_q.dtype)
        return _Seen(Outcomes(distribution(log_q), distribution(log_p), tail), listing.importance())

    def _completed(self, listing: Listing, softmax: SparseSoftmax, completion: Completion) -> _Seen:
        present_nM = torch.cat([listing.present, completion.present], -1)
        log_q = softmax.log_q[:, :-1].masked_fill(~present_nM, ABSENT)
        log_q = torch.cat([log_q, softmax.log_q[:, -1:]], -1).clamp(min=ABSENT)
        listed_nM = listing.log_p(self.temperature, "tail")
        tail_nM = (listed_nM[:, -1:] + completion.teacher.to(listed_nM.dtype).log()).clamp(min=ABSENT)
        log_p = torch.cat([listed_nM[:, :-1], tail_nM], -1).to(log_q.dtype)
        return _Seen(Outcomes(distribution(log_q), distribution(log_p), tail=True), None)

    def _of_vocabulary(self) -> Distribution:
        if self.known.scores is None:
            raise ValueError("a loss over the whole vocabulary was run without a teacher that knows it")
        if self._whole is None:
            self._whole = whole_distribution(self.known.scores, self.temperature, self.scratch, in_place=self.in_place)
            self._whole.log.nan_to_num_(nan=math.nan, posinf=math.inf, neginf=ABSENT)
        return self._whole

    def _of_targets(self) -> Distribution:
        if self.known.token_logprobs is not None:
            log_p = self.known.token_logprobs.unsqueeze(-1)
        else:
            log_p = self._of_vocabulary().log.gather(-1, self.known.targets.unsqueeze(-1))
        return distribution(log_p.clamp(min=ABSENT))
