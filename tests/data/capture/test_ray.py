"""A capture on a local Ray cluster of two workers makes the bytes that one process makes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.capture.test_run import captured, world

__all__ = ["world"]

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    root = str(Path(__file__).parents[3])
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}},
    )  # fmt: skip
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    yield
    ray.shutdown()


def test_two_workers_make_the_same_bytes(cluster: None, world: Path, tmp_path: Path) -> None:
    whole = captured(world, tmp_path / "whole")
    assert captured(world, tmp_path / "out", processes=2, cluster="ray") == whole


def test_what_is_there_is_not_made_again(cluster: None, world: Path, tmp_path: Path) -> None:
    captured(world, tmp_path / "out", token_budget=1)
    (there,) = (tmp_path / "out").glob("*.parquet")
    made = there.stat().st_mtime_ns
    whole = captured(world, tmp_path / "whole")
    assert captured(world, tmp_path / "out", processes=2, cluster="ray") == whole
    assert there.stat().st_mtime_ns == made
