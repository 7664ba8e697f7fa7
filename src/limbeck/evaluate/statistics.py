"""Estimates with their uncertainty: clustered means, paired differences, proportions.

Tokens of one document are not independent, so the unit of every interval over text is the document (the cluster).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        clusters: number of independent units behind it.
    """

    value: float
    low: float
    high: float
    clusters: int

    def excludes(self, value: float) -> bool:
        """Say whether the interval leaves `value` out; an interval that is not a number excludes nothing."""
        return self.low > value or self.high < value


def clustered_ratio(sums: ArrayLike, sizes: ArrayLike, level: float = LEVEL) -> Estimate:
    """Return `sum(sums) / sum(sizes)` with an interval that treats each entry as one cluster.

    The ratio estimator's linearised variance (Cochran, Sampling Techniques, 3rd ed., 6.4): with G clusters and
    residuals `e_g = sum_g - ratio * size_g`, `var = G / (G - 1) * sum(e_g^2) / (sum of sizes)^2`; the quantile is
    Student's t with G - 1 degrees of freedom.

    Args:
        sums: `[G]`, the total of the quantity in each cluster.
        sizes: `[G]`, the number of units (tokens, bytes, items) in each cluster.
        level: of confidence.

    Raises:
        ValueError: no clusters, unequal lengths, or no units at all.
    """
    total_G, size_G = np.asarray(sums, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    if total_G.shape != size_G.shape or total_G.ndim != 1:
        raise ValueError(f"one sum and one size a cluster; got shapes {total_G.shape} and {size_G.shape}")
    if size_G.sum() <= 0:
        raise ValueError("there is nothing to average over")
    clusters = len(total_G)
    ratio = float(total_G.sum() / size_G.sum())
    if clusters < 2:
        return Estimate(ratio, float("-inf"), float("inf"), clusters)
    residual_G = total_G - ratio * size_G
    variance = clusters / (clusters - 1) * float((residual_G**2).sum()) / float(size_G.sum()) ** 2
    margin = float(stats.t.ppf((1 + level) / 2, clusters - 1)) * variance**0.5
    return Estimate(ratio, ratio - margin, ratio + margin, clusters)


def paired_difference(first: ArrayLike, second: ArrayLike, sizes: ArrayLike, level: float = LEVEL) -> Estimate:
    """Return the mean of `first - second` over the same clusters, with its interval; see `clustered_ratio`."""
    difference_G = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return clustered_ratio(difference_G, sizes, level)


def proportion(successes: int, trials: int, level: float = LEVEL) -> Estimate:
    """Return a proportion with Wilson's score interval (Wilson 1927), which stays inside [0, 1].

    Raises:
        ValueError: no trials.
    """
    if trials <= 0:
        raise ValueError("there is nothing to take a proportion of")
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    margin = z / (1 + z * z / trials) * (share * (1 - share) / trials + z * z / (4 * trials**2)) ** 0.5
    return Estimate(share, min(share, max(0.0, centre - margin)), max(share, min(1.0, centre + margin)), trials)


def by_cluster(
    values: Sequence[float] | NDArray[np.float64], clusters: Sequence[str]
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the distinct cluster names in order of appearance, and the sum of `values` in each."""
    names = list(dict.fromkeys(clusters))
    index = {name: position for position, name in enumerate(names)}
    places = [index[name] for name in clusters]
    sums = np.zeros(len(names))
    np.add.at(sums, places, np.asarray(values, dtype=np.float64))
    return names, sums
