"""Means over steps and ranks; and the watch, which names what is no number."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.distill.meters import Meters, Watch, memory
from limbeck.errors import LimbeckError
from limbeck.signals.loader import SignalBatch, collate
from tests.distill.tiny_run import random_rows


def same(value: Tensor) -> Tensor:
    return value


def batch_of(*samples: int) -> SignalBatch:
    return replace(collate(random_rows(max(samples) + 1)), samples=samples)


def test_losses_are_means_over_steps() -> None:
    meters, batch = Meters(signal_bytes=10.0), batch_of(0, 1)
    for kl in (1.0, 2.0, 3.0, 6.0):  # two micro-batches a step
        meters.add(batch, {"kl": torch.tensor(kl)})
    meters.steps = 2
    logged = meters.read(same)
    assert logged["kl"] == 6.0
    assert logged["signal_bytes_per_second"] == pytest.approx(10 * logged["tokens_per_second"])
    assert logged["tokens_per_second"] > 0 and logged["memory_gb"] > 0.01


def test_reading_starts_anew() -> None:
    meters = Meters()
    meters.add(batch_of(0), {"kl": torch.tensor(5.0)})
    meters.steps = 1
    meters.read(same)
    assert meters.read(same) == pytest.approx(memory(), rel=0.5)
    meters.add(batch_of(0), {"kl": torch.tensor(2.0)})
    meters.steps = 1
    assert meters.read(same)["kl"] == 2.0


def test_sums_are_taken_over_ranks() -> None:
    meters = Meters()
    meters.add(batch_of(0), {"kl": torch.tensor(0.5)})
    meters.steps = 1
    assert meters.read(lambda value: 2 * value)["kl"] == 1.0


def test_what_was_added_is_not_changed() -> None:
    meters, kl = Meters(), torch.tensor(1.0)
    meters.add(batch_of(0), {"kl": kl})
    meters.add(batch_of(0), {"kl": kl})
    assert kl.item() == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_micro_batch_is_named(bad: float) -> None:
    watch = Watch()
    for samples, loss in (((0, 1), 1.0), ((2, 4), bad), ((5,), bad)):
        watch.add(batch_of(*samples), torch.tensor(loss), {"kl": torch.tensor(loss), "tvd": torch.tensor(0.5)})
    with pytest.raises(LimbeckError, match=rf"step 7, micro-batch 1 \(samples 2, 4\): .*kl {bad}, tvd 0\.5.*run"):
        watch.check(7, same, torch.tensor(1.0), "run")
    watch.check(8, same, torch.tensor(1.0), "run")


def test_another_ranks_loss_stops_this_one() -> None:
    watch = Watch()
    watch.add(batch_of(0), torch.tensor(1.0), {})
    with pytest.raises(LimbeckError, match="on another rank"):
        watch.check(1, lambda value: value + 1, None, "run")


def test_a_bad_gradient_of_a_good_loss_stops_too() -> None:
    watch = Watch()
    watch.add(batch_of(3), torch.tensor(1.0), {})
    with pytest.raises(LimbeckError, match=r"samples 3\): the loss is finite and its gradient is not"):
        watch.check(1, same, torch.tensor(math.nan), "run")


def test_what_is_finite_passes_and_is_forgotten() -> None:
    watch = Watch()
    watch.add(batch_of(3), torch.tensor(1.0), {})
    watch.check(1, same, None, "run")
    assert not watch.seen
    watch.check(2, same, torch.tensor(math.nan), "run")  # nothing was run, so nothing is bad
