"""Several processes that share one capture: each has a teacher of its own and makes whole shards.

One process, which holds the dataset's lock, hands out the shards that are missing and enters those that are made into
the manifest. What a process that dies was making is simply still missing.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.queues import SimpleQueue

import torch

from limbeck.data.capture.recipe import CaptureRecipe
from limbeck.data.capture.shards import CaptureJob, Teacher, make_shard
from limbeck.data.capture.teacher import tokenizer_for
from limbeck.data.capture.text import open_text
from limbeck.engines.scorer import TransformersEngine
from limbeck.errors import LimbeckError
from limbeck.progress import console
from limbeck.signals.manifest import ShardRecord

_at_work: tuple[CaptureJob, Teacher] | None = None  # of a worker process, which makes shards of one capture only


def made_by_processes(job: CaptureJob, missing: list[range]) -> Iterator[ShardRecord]:
    """Yield the records of shards as `job.recipe.processes` local processes make them.

    Raises:
        LimbeckError: a process was killed, or one failed.
    """
    context = multiprocessing.get_context("spawn")
    count = min(job.recipe.processes, len(missing))
    numbers: SimpleQueue[int] = context.SimpleQueue()
    for number in range(count):
        numbers.put(number)
    pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(job, numbers, count))
    try:
        for finished in as_completed([pool.submit(_make, samples) for samples in missing]):
            yield finished.result()
    except BrokenProcessPool as error:
        raise LimbeckError(
            f"{job.recipe.output}: one of the {count} capturing processes died (killed, or out of memory). "
            "What was captured is kept; run the same command to go on, with fewer processes if memory was short."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def teacher_of(job: CaptureJob) -> Teacher:
    """Return a teacher for a job, in a process that knows nothing yet."""
    return open_text(job.recipe, tokenizer_for(job.recipe)).teacher(job)


def on_own_device(recipe: CaptureRecipe, number: int, devices: int) -> CaptureRecipe:
    """Return the recipe for process `number`: `cuda` becomes one of the machine's devices, in turn."""
    engine = recipe.engine
    if not isinstance(engine, TransformersEngine) or engine.device != "cuda" or not devices:
        return recipe
    own = engine.model_copy(update={"device": f"cuda:{number % devices}"})
    return recipe.model_copy(update={"engine": own})


def _start(job: CaptureJob, numbers: "SimpleQueue[int]", count: int) -> None:
    global _at_work  # what a worker keeps between its tasks
    console.quiet = True
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    job = replace(job, recipe=on_own_device(job.recipe, numbers.get(), torch.cuda.device_count()))
    _at_work = job, teacher_of(job)


def _make(samples: range) -> ShardRecord:
    if _at_work is None:
        raise ValueError("a worker has to start before it makes anything")
    return make_shard(*_at_work, samples)
