"""Run the demo in a small budget and, when asked, die by SIGKILL in the middle of one of its six steps.

python killed.py FOLDER [STEP]
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.arena.local import LocalArena
from limbeck.distill import trainer
from limbeck.pages.report import Report
from limbeck.pocket import demo
from limbeck.pocket.evaluator import PocketMeasurement
from limbeck.signals.writer import DatasetWriter

BUDGET = demo.Budget(texts=60, exercises=260, batch=4, items_a_family=3, rows_a_document=1, arena_prompts=4)


def dying(call: Callable[..., Any], on_call: int, *, after: bool = True) -> Callable[..., Any]:
    """Return `call`, which kills the process on its n-th call, before or after doing its work."""
    calls = 0

    def replacement(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == on_call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if calls == on_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return replacement


def arrange(step: int) -> None:
    """Make the process die in the middle of `step`."""
    match step:
        case 1:
            demo.answer_greedily = dying(demo.answer_greedily, 1)
        case 2:
            DatasetWriter.adopt = dying(DatasetWriter.adopt, 2)  # type: ignore[method-assign]
        case 3:
            trainer._Progress.on_step_end = dying(trainer._Progress.on_step_end, 50)  # type: ignore[method-assign]
        case 4:
            demo.save_measurement = dying(demo.save_measurement, 2, after=False)
        case 5:
            PocketMeasurement.evaluate = dying(PocketMeasurement.evaluate, 1)  # type: ignore[method-assign]
        case 6:
            Report.save = dying(Report.save, 1, after=False)  # type: ignore[method-assign]


if __name__ == "__main__":
    demo.ROWS_A_SHARD = 128
    assert LocalArena
    arrange(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    demo.run_demo(Path(sys.argv[1]), seed=3, budget=BUDGET)
