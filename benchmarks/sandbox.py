"""A program in the sandbox: a process forked by the warm server, against starting `bwrap` and an interpreter for it."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median, quantiles

from benchmarks.timing import Row
from limbeck.sandbox.bubblewrap import BubblewrapSandbox, walls
from limbeck.sandbox.contract import Call, Limits
from limbeck.sandbox.interpreter import start
from limbeck.sandbox.process import resource_limits, run_candidate

TITLE = "A program of one function and five calls: warm server (ours) and a cold start behind the same walls"
PROGRAM = "def f(numbers):\n    return sorted(number * number for number in numbers)\n"
CALLS = [Call("f", [list(range(-n, n))]) for n in range(5)]
PROGRAMS, COLD_PROGRAMS = 300, 40


def run() -> list[Row]:
    processors = len(os.sched_getaffinity(0))
    warm = BubblewrapSandbox(workers=processors)
    one_by_one = _each(warm.run, PROGRAMS)
    cold_one_by_one = _each(_cold, COLD_PROGRAMS)
    percentile = quantiles(one_by_one, n=100)[94]
    rows = [
        Row("one program, median", median(one_by_one), median(cold_one_by_one), "a cold start"),
        Row("one program, 95th percentile", percentile, quantiles(cold_one_by_one, n=100)[94], "a cold start"),
    ]
    for workers in dict.fromkeys((1, processors)):
        warm_seconds = _together(warm.run, workers, PROGRAMS) / PROGRAMS
        cold_seconds = _together(_cold, workers, COLD_PROGRAMS) / COLD_PROGRAMS
        what = f"a program's share, {workers} at once ({1 / warm_seconds:.0f} a second)"
        rows.append(Row(what, warm_seconds, cold_seconds, f"cold starts ({1 / cold_seconds:.0f} a second)"))
    warm.close()
    return rows


def _cold(program: str, calls: list[Call], limits: Limits) -> object:
    """Start `bwrap` and an interpreter, run the program under the same limits and filter, and end them."""

    def command(answers: int) -> list[str]:
        return [*walls(), *start("cold"), str(answers)]

    return run_candidate(command, program, calls, limits, resource_limits(limits, processes=False), folder="/")


def _each(run_one: Callable[[str, list[Call], Limits], object], count: int) -> list[float]:
    run_one(PROGRAM, CALLS, Limits())
    times = []
    for _ in range(count):
        started = time.perf_counter()
        run_one(PROGRAM, CALLS, Limits())
        times.append(time.perf_counter() - started)
    return times


def _together(run_one: Callable[[str, list[Call], Limits], object], workers: int, count: int) -> float:
    """Return the seconds that `count` programs take when `workers` threads ask for them."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: run_one(PROGRAM, CALLS, Limits()), range(workers)))
        started = time.perf_counter()
        list(pool.map(lambda _: run_one(PROGRAM, CALLS, Limits()), range(count)))
        return time.perf_counter() - started
