"""Paired differences with a Student-t confidence interval.

    mean ± t(n - 1, 0.975) * s / sqrt(n)        s: standard deviation of the n differences, n - 1 in the denominator

Prompts are taken as independent draws; that is true of prompts drawn at random, and not of the tokens within one.
Sums are exact (`math.fsum`), so the order of the differences does not matter.
"""

import math
from collections.abc import Sequence

from scipy.special import stdtrit

from limbeck.arena.decision.verdict import Difference

SIGNIFICANT_DIGITS = 12


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one number."""
    return math.fsum(values) / len(values)


def paired_difference(challenger: Sequence[float], king: Sequence[float]) -> Difference:
    """Return the mean of `challenger[i] - king[i]` with its 95 % interval."""
    differences = [a - b for a, b in zip(challenger, king, strict=True)]
    centre, count = mean(differences), len(differences)
    if count < 2:
        return Difference(mean=rounded(centre), low=None, high=None, prompts=count)
    variance = math.fsum((difference - centre) ** 2 for difference in differences) / (count - 1)
    half_width = float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)
    return Difference(
        mean=rounded(centre), low=rounded(centre - half_width), high=rounded(centre + half_width), prompts=count
    )


def rounded(value: float) -> float:
    """Keep twelve significant digits: what two builds of a mathematics library may differ in is not recorded."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
