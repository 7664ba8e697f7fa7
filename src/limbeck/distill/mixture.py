"""Several teachers in process, read as one: the mixture of their next-token distributions.

    p(v) = sum over i of w_i * p_i(v)              w_i: shares that sum to 1, p_i = softmax of teacher i's logits

A `hidden` signal whose head is a `MixedHead` holds the states of all teachers side by side and, in one more column, the
number of the way in which a position weighs them. The executor makes one teacher's logits after the other, for a chunk
of positions at a time, and adds probabilities up by their logarithms, in float32 at least. What a loss sees is the
mixture at temperature 1; its temperature is applied to that, as it would be to any one teacher.

It feeds every loss over the vocabulary, exactly. Its states are those of no single model: losses on states must not be
asked to compare them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.signals.types import OutputHead

MOST_WEIGHTS = 256  # ways are numbered in the states' dtype, and bfloat16 counts up to here
ROWS = 16  # whose exponentials are held at a time

ApplyHead = Callable[[Tensor, OutputHead, Tensor | None], Tensor]


@dataclass(frozen=True)
class MixedHead(OutputHead):
    """Output heads of M teachers over one vocabulary; `weight` is the first one's.

    Attributes:
        heads: of the teachers, `[V, D_i]` each; widths may differ.
        ways: `[W, M]`, float32, non-negative shares of the teachers; each row sums to 1.
    """

    heads: tuple[OutputHead, ...] = ()
    ways: Tensor | None = None

    @staticmethod
    def of(heads: tuple[OutputHead, ...], ways_WM: Tensor) -> "MixedHead":
        """Return the head that mixes these, in any of these ways."""
        if len({len(head.weight) for head in heads}) != 1 or ways_WM.shape[-1] != len(heads):
            raise ValueError(
                f"{len(heads)} heads over {[len(head.weight) for head in heads]} tokens can't be mixed by "
                f"{ways_WM.shape[-1]} shares"
            )
        return MixedHead(heads[0].weight, heads[0].bias, heads[0].soft_cap, heads, ways_WM)

    def to(self, device: torch.device | str) -> "MixedHead":
        """Return the head with all its parts on `device`; see `OutputHead.to`."""
        ways = self._ways()
        return MixedHead.of(tuple(head.to(device) for head in self.heads), ways.to(device))

    def log_mixture(self, states_nD: Tensor, apply: ApplyHead, out: Tensor | None = None) -> Tensor:
        """Return the mixture's log-probabilities `[n, V]`, float32 at least.

        Args:
            states_nD: the teachers' states side by side, and the number of a way in the last column.
            apply: makes one head's logits: `(states, head, out) -> [n, V]`.
            out: where to write them, in its first n rows; of the result's dtype.
        """
        log_shares_nM = self._ways().to(states_nD.device)[states_nD[:, -1].long()].log()
        widths = [head.weight.shape[1] for head in self.heads]
        parts = states_nD[:, :-1].split(widths, -1)
        mixed_nV: Tensor | None = None
        for index, (head, part_nD) in enumerate(zip(self.heads, parts, strict=True)):
            scores_nV = apply(part_nD, head, out if mixed_nV is None else None)
            for rows_rV, log_shares_r in zip(scores_nV.split(ROWS), log_shares_nM[:, index].split(ROWS), strict=True):
                rows_rV.add_((log_shares_r - rows_rV.logsumexp(-1)).unsqueeze(-1))
            mixed_nV = scores_nV if mixed_nV is None else torch.logaddexp(mixed_nV, scores_nV, out=mixed_nV)
        if mixed_nV is None:
            raise ValueError("a mixture of no teachers")
        return mixed_nV

    def _ways(self) -> Tensor:
        if self.ways is None:
            raise ValueError("a mixed head is made by MixedHead.of")
        return self.ways

    def __reduce__(self) -> tuple[type["MixedHead"], tuple[object, ...]]:  # type: ignore[override]
        """Leave copies on other devices behind where the head is pickled, or copied itself."""
        return MixedHead, (self.weight, self.bias, self.soft_cap, self.heads, self.ways)
