"""The fit of falling log-probabilities by functions of their rank, solved in float64 and rounded afterwards.

The basis is ill-conditioned (1e9 for powers of 0..111 up to the fourth), so that a least-squares solution in float32
may be off by whole nats. Here the pseudo-inverse of a basis is found once, in float64, with its columns scaled to
length 1; after that a fit is one matrix product. Evaluation is in the coefficients' dtype, term by term, because
residuals are stored relative to exactly that.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import UserError
from limbeck.signals.codecs.distillkit_spec import Term

DTYPES = {
    "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """A basis of n ranks and m terms.

    Attributes:
        basis: `[m, n]`, in the coefficients' dtype, as evaluation sees it.
        solver: float64 `[n, m]`, the transposed pseudo-inverse of the basis.
    """

    basis: Tensor
    solver: Tensor

    def solve(self, values_NJ: Tensor) -> Tensor:
        """Return `[N, m]` coefficients of the least squared error over the n values, in their own dtype.

        A position whose values are not all finite has NaN for its coefficients. A coefficient that the dtype can't
        hold is infinite.
        """
        finite_N = values_NJ.isfinite().all(-1)
        solved = torch.where(finite_N[:, None], values_NJ.double(), 0.0) @ self.solver
        return solved.masked_fill(~finite_N[:, None], float("nan")).to(self.basis.dtype)

    def evaluate(self, coefficients_NM: Tensor) -> Tensor:
        """Return the `[N, n]` values that coefficients stand for."""
        total = coefficients_NM.new_zeros(len(coefficients_NM), self.basis.shape[1])
        for column, term_J in zip(coefficients_NM.unbind(1), self.basis, strict=True):
            total += column[:, None] * term_J
        return total


@lru_cache(maxsize=64)
def fit_of(count: int, terms: tuple[Term, ...], dtype: str, first: int = 0, unit: bool = False) -> Fit:
    """Return the fit of `count` values.

    Args:
        count: n.
        terms: i for `t ** i`, "sqrt" or "exp".
        dtype: of the coefficients.
        first: t is `first`, `first + 1`, ...
        unit: t runs evenly from 0 to 1 instead.

    Raises:
        UserError: a term is not finite somewhere in this dtype.
    """
    t = torch.linspace(0, 1, count, dtype=torch.float64) if unit else torch.arange(first, first + count).double()
    t = t.to(DTYPES[dtype]).double()
    rows = []
    for term in terms:
        row = t.sqrt() if term == "sqrt" else t.exp() if term == "exp" else t.pow(int(term))
        row = row.to(DTYPES[dtype])
        if not row.isfinite().all():
            raise UserError(
                f"polynomial term {term!r} is not finite in {dtype} for t up to {t.max():g}. "
                "Set normalize_t, choose another term_dtype, or leave the term out."
            )
        rows.append(row)
    basis = torch.stack(rows) if rows else torch.zeros(0, count, dtype=DTYPES[dtype])
    return Fit(basis, torch.from_numpy(_pseudo_inverse(basis.double().numpy()).T.copy()).reshape(count, len(rows)))


def _pseudo_inverse(basis_MJ: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `[m, n]`, what values are multiplied with for their coefficients."""
    lengths = np.linalg.norm(basis_MJ, axis=1, keepdims=True)
    lengths[lengths == 0] = 1.0
    if 0 in basis_MJ.shape:
        return np.zeros(basis_MJ.shape)
    scaled: NDArray[np.float64] = np.linalg.pinv((basis_MJ / lengths).T, rcond=1e-13) / lengths
    return scaled
