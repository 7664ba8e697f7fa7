"""What a loss sees: M outcomes of the next token at each of n positions, as teacher and student weigh them.

The outcomes are all V tokens (`dense` and `hidden` teachers), the K tokens that a sparse teacher lists with or without
one more outcome for all the rest, or the one token that the text goes on with. A loss is written once, for any of them.

All log-probabilities are finite: `-inf` is replaced by `ABSENT`, whose exponential is 0 in float32, so that no loss
has to guard a product of 0 and infinity.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

ABSENT = -110.0  # below the logarithm of float32's smallest positive number, -103.3


class Scratch:
    """Memory for the large tensors of one block, which the next block uses again.

    A fresh allocation of some megabytes costs a page fault for every 4 KiB of it, more than the arithmetic does.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._taken = 0

    def restart(self) -> None:
        """Declare all that was taken free."""
        self._taken = 0

    def like(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape and dtype of `x`, filled with anything."""
        if self._taken == len(self._buffers):
            self._buffers.append(torch.empty_like(x, memory_format=torch.contiguous_format).flatten())
        buffer = self._buffers[self._taken]
        if buffer.numel() < x.numel() or buffer.dtype != x.dtype:
            buffer = self._buffers[self._taken] = torch.empty_like(x, memory_format=torch.contiguous_format).flatten()
        self._taken += 1
        return buffer[: x.numel()].view(x.shape)


@dataclass(frozen=True)
class Distribution:
    """Probabilities of M outcomes at n positions, and their logarithms, both `[n, M]`."""

    log: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class Outcomes:
    """Two distributions over the same M outcomes, at the loss's temperature.

    Attributes:
        student: of the student.
        teacher: of the teacher; None where a loss needs none.
        tail: whether the last outcome stands for all tokens that are not listed.
        scratch: where losses find memory for tensors of their own; None: anywhere.
    """

    student: Distribution
    teacher: Distribution | None = None
    tail: bool = False
    scratch: Scratch | None = None
    _log_mixtures: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def log_q(self) -> Tensor:
        """The student's log-probabilities `[n, M]`."""
        return self.student.log

    @property
    def q(self) -> Tensor:
        """The student's probabilities `[n, M]`."""
        return self.student.probabilities

    @property
    def log_p(self) -> Tensor:
        """The teacher's log-probabilities `[n, M]`."""
        return self._known_teacher().log

    @property
    def p(self) -> Tensor:
        """The teacher's probabilities `[n, M]`."""
        return self._known_teacher().probabilities

    def log_mixture(self, share: float) -> Tensor:
        """Return `log(share * p + (1 - share) * q)`, `[n, M]`, finite also where both are 0; not to be written to."""
        if share not in self._log_mixtures:
            if self.scratch is None:
                mixture = torch.lerp(self.q, self.p, share)
            else:
                mixture = torch.lerp(self.q, self.p, share, out=self.scratch.like(self.q))
            self._log_mixtures[share] = mixture.clamp_(min=torch.finfo(mixture.dtype).tiny).log_()
        return self._log_mixtures[share]

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """Return `x - y` in memory of its own, to be worked on in place."""
        return x - y if self.scratch is None else torch.sub(x, y, out=self.scratch.like(x))

    def copy(self, x: Tensor) -> Tensor:
        """Return a copy of `x`, to be worked on in place."""
        return x.clone() if self.scratch is None else self.scratch.like(x).copy_(x)

    def listed(self) -> "Outcomes":
        """Return the outcomes that are single tokens: all but the tail."""
        if not self.tail:
            return self
        return Outcomes(_but_last(self.student), None if self.teacher is None else _but_last(self.teacher))

    def _known_teacher(self) -> Distribution:
        if self.teacher is None:
            raise ValueError("a loss that reads the teacher was run without one")
        return self.teacher


def distribution(log: Tensor) -> Distribution:
    """Return the distribution of log-probabilities `[n, M]`."""
    return Distribution(log, log.exp())


def _but_last(whole: Distribution) -> Distribution:
    return Distribution(whole.log[:, :-1], whole.probabilities[:, :-1])
