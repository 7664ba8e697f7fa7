"""The health monitor counts what really happened to codes, scales and inputs."""

import torch

from limbeck.models.bitnet.health import HealthMonitor, summary
from limbeck.models.bitnet.linear import ternary_layers
from tests.models.bitnet.shapes import small_student, some_ids


def test_shares_flips_and_updates() -> None:
    student = small_student()
    monitor = HealthMonitor(student)
    name, layer = next(iter(ternary_layers(student).items()))
    codes, _ = layer.codes()
    still = monitor.look()[name]
    assert (still.flips, still.update) == (0.0, 0.0)
    assert abs(still.minus + still.zero + still.plus - 1) < 1e-6
    assert abs(still.zero - (codes == 0).float().mean().item()) < 1e-6
    with torch.no_grad():
        layer.weight.neg_()
    moved = monitor.look()
    assert abs(moved[name].flips - (codes != 0).float().mean().item()) < 1e-6
    assert moved[name].update > 1
    assert all(health.flips == 0 for other, health in moved.items() if other != name)


def test_a_scale_that_falls_tenfold_is_an_alarm() -> None:
    student = small_student()
    monitor = HealthMonitor(student)
    name, layer = next(iter(ternary_layers(student).items()))
    with torch.no_grad():
        layer.weight.mul_(0.12)
    assert monitor.alarms(monitor.look()) == []
    with torch.no_grad():
        layer.weight.mul_(0.5)
    (line,) = monitor.alarms(monitor.look())
    assert line.startswith(name)


def test_largest_inputs_are_watched_and_summed_up() -> None:
    student, ids = small_student(), some_ids()
    monitor = HealthMonitor(student, updates=False)
    seen: list[float] = []
    layer = student.model.layers[0].self_attn.q_proj
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().max().item()))
    with monitor.watching(), torch.no_grad():
        student(ids)
    found = monitor.look()
    assert found["model.layers.0.self_attn.q_proj"].largest == max(seen)
    assert summary(found)["ternary_largest_input"] == max(health.largest for health in found.values())
    assert monitor.look()["model.layers.0.self_attn.q_proj"].largest == 0
