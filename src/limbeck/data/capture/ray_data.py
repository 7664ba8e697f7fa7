"""A capture on a Ray cluster: the missing shards as a Ray dataset, mapped by a pool of actors with a teacher each.

Ray places the actors, and has the shards of a lost machine made again elsewhere. Text, output and local teachers must
lie where every machine of the cluster reads them; the process that started the capture enters finished shards into the
manifest.
"""

import logging
from collections.abc import Iterator
from typing import Any

from limbeck.data.capture.recipe import CaptureRecipe
from limbeck.data.capture.shards import CaptureJob, make_shard
from limbeck.data.capture.workers import teacher_of
from limbeck.engines.scorer import TransformersEngine, VllmEngine
from limbeck.errors import LimbeckError, UserError
from limbeck.progress import console
from limbeck.signals.manifest import ShardRecord


class ShardActor:
    """What Ray runs at each of the cluster's places: one teacher."""

    def __init__(self, job: CaptureJob) -> None:
        console.quiet = True
        self.job = job
        self.teacher = teacher_of(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Make the shards of a batch of sample ranges."""
        ranges = [range(int(start), int(stop)) for start, stop in zip(batch["start"], batch["stop"], strict=True)]
        return {"record": [make_shard(self.job, self.teacher, samples).model_dump_json() for samples in ranges]}


def made_on_ray(job: CaptureJob, missing: list[range]) -> Iterator[ShardRecord]:
    """Yield the records of shards as `job.recipe.processes` actors make them, on the cluster that Ray finds.

    Raises:
        UserError: Ray is not installed.
        LimbeckError: the cluster or a teacher failed.
    """
    try:
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise UserError("cluster: Ray is not installed. Install it: pip install 'limbeck[ray]'.") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ranges = ray.data.from_items([{"start": samples.start, "stop": samples.stop} for samples in missing])
    ranges = ranges.repartition(len(missing)).materialize()  # before the actors take all processors
    made = ranges.map_batches(
        ShardActor,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=min(job.recipe.processes, len(missing))),
        batch_size=1,
        num_gpus=gpus_of(job.recipe) or None,
    )
    try:
        for row in made.iter_rows():
            yield ShardRecord.model_validate_json(row["record"])
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise LimbeckError(
            f"{job.recipe.output}: Ray stopped the capture ({last}). What was captured is kept."
        ) from error


def gpus_of(recipe: CaptureRecipe) -> int:
    """Return how many GPUs one teacher takes."""
    engine = recipe.engine
    if isinstance(engine, VllmEngine):
        return engine.tensor_parallel_size * engine.pipeline_parallel_size
    return int(isinstance(engine, TransformersEngine) and engine.device.startswith("cuda"))
