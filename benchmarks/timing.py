"""Timing two ways of doing one thing, in turn, so that a drift of the machine's speed falls on both."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One comparison: what was measured, ours and the other's seconds, and what the other is."""

    what: str
    ours: float
    other: float
    against: str

    @property
    def ratio(self) -> float:
        return self.ours / self.other


def in_turn(ours: Callable[[], object], other: Callable[[], object], runs: int = 5) -> tuple[float, float]:
    """Return the median seconds of both, after one run of each that is not counted."""
    ours(), other()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for call, found in zip((ours, other), times, strict=True):
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
    return median(times[0]), median(times[1])


def print_table(title: str, rows: list[Row]) -> None:
    print(f"\n{title}")
    print(f"{'what':<58} {'ours, s':>9} {'other, s':>9} {'ratio':>7}  against")
    for row in rows:
        print(f"{row.what:<58} {row.ours:>9.4f} {row.other:>9.4f} {row.ratio:>7.2f}  {row.against}")
