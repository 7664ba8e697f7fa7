"""A capture on a local Ray cluster of two workers makes the bytes that one process makes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from tests.data.capture.test_run import captured, world

__all__ = ["world"]

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


START_S, CAPTURE_S = 180, 420  # longest waits; a cluster that stands still fails the test rather than stop the run


@contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    """Raise TimeoutError where the block takes longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{what} took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    root = str(Path(__file__).parents[3])
    try:
        with at_most(START_S, "starting Ray"):
            ray.init(
                num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}},
            )  # fmt: skip
    except (TimeoutError, ConnectionError, RuntimeError) as error:
        pytest.skip(f"Ray does not start on this machine ({error})")
    yield
    ray.shutdown()


def test_two_workers_make_the_same_bytes(cluster: None, world: Path, tmp_path: Path) -> None:
    whole = captured(world, tmp_path / "whole")
    with at_most(CAPTURE_S, "a capture on Ray"):
        assert captured(world, tmp_path / "out", processes=2, cluster="ray") == whole


def test_what_is_there_is_not_made_again(cluster: None, world: Path, tmp_path: Path) -> None:
    captured(world, tmp_path / "out", token_budget=1)
    (there,) = (tmp_path / "out").glob("*.parquet")
    made = there.stat().st_mtime_ns
    whole = captured(world, tmp_path / "whole")
    with at_most(CAPTURE_S, "a capture on Ray"):
        assert captured(world, tmp_path / "out", processes=2, cluster="ray") == whole
    assert there.stat().st_mtime_ns == made
