"""How numbers are written in reports: few digits, the same decimals down a column, an interval beside its estimate.

Nothing here rounds what is stored or compared; it only decides what a reader sees.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
MAX_DECIMALS = 6


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits, shown as `0.124` and, muted beside it, `0.118 to 0.131`."""

    mid: float
    low: float
    high: float


def decimals_for(values: Iterable[float], significant: int = 4) -> int:
    """Return how many decimals show the largest value with `significant` digits and the smallest with at least two."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    if not sizes:
        return 0
    wanted = significant - 1 - math.floor(math.log10(max(sizes)))
    at_least = 1 - math.floor(math.log10(min(sizes)))
    return max(0, min(max(wanted, at_least), MAX_DECIMALS))


def number(value: float | None, decimals: int | None = None, percent: bool = False) -> str:
    """Write one number: whole numbers with thousands separators, a true minus sign, `–` for a missing value."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if isinstance(value, int) and not percent:
        return f"{value:,}".replace("-", MINUS)
    scaled = value * 100 if percent else value
    if decimals is None:
        decimals = 1 if percent else decimals_for([scaled])
    text = f"{scaled:,.{decimals}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")  # a negative value that rounds to nothing is written as zero
    return text.replace("-", MINUS) + (" %" if percent else "")


def limits(interval: Interval, decimals: int | None = None, percent: bool = False) -> str:
    """Write an interval's limits with three digits, `0.118 to 0.131`; the percent sign stands once, at the end."""
    if decimals is None:
        scale = 100 if percent else 1
        decimals = (
            1 if percent else decimals_for([scale * interval.mid, scale * interval.low, scale * interval.high], 3)
        )
    low, high = (number(value, decimals, percent) for value in (interval.low, interval.high))
    return f"{low.removesuffix(' %')} to {high}"
