"""Losses on inner layers in two processes, under torch's own wrappers: called by `gloo_run`, read by its tests."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from limbeck.distill.alignment import Alignment
from limbeck.distill.losses import get_loss
from limbeck.distill.running_state import whole
from limbeck.distill.student import DistilledStudent
from limbeck.distill.term import Term
from limbeck.distill.view import Relations, TeacherView
from limbeck.signals.loader import SignalBatch, collate
from tests.distill.tiny_run import random_rows, tiny_student

WEIGHTS = {"hs_mse": 0.5, "hs_cosine": 1.0, "attention_relation": 0.3}
TEACHER_WIDTH = 40


def aligned_student() -> DistilledStudent:
    terms = [Term.of(get_loss(name), weight) for name, weight in WEIGHTS.items()]
    alignment = Alignment(terms, ((0, 1), (1, 3)), (32, TEACHER_WIDTH), relations=((1, 3),), seed=5)
    hard_labels = [Term.of(get_loss("cross_entropy"))]
    return DistilledStudent(
        tiny_student(tied=True).double(), hard_labels, needs_teacher=False, alignment=alignment.double()
    )


def seen_of_a_teacher(rows: int, length: int) -> TeacherView:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)

    relations = Relations(draw(4, length, 10), draw(2, length, 10), draw(2, length, 10))
    return TeacherView({block: draw(length, TEACHER_WIDTH) for block in (1, 3)}, {3: relations})


def part_of(batch: SignalBatch, view: TeacherView, rows: slice) -> tuple[SignalBatch, TeacherView]:
    kept = {name: x[rows] for name, x in vars(batch).items() if isinstance(x, Tensor)}
    relations = {block: Relations(*(x[rows] for x in vars(one).values())) for block, one in view.relations.items()}
    return replace(batch, **kept, signal=None), TeacherView({b: x[rows] for b, x in view.layers.items()}, relations)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: whole(x.grad) for name, x in module.named_parameters() if x.grad is not None}


def wrapped(student: DistilledStudent) -> Iterator[tuple[str, nn.Module]]:
    """The student under each wrapper, one after the other; its gradients are cleared between."""
    yield "ddp", DistributedDataParallel(student)
    student.zero_grad()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in student.student.model.layers:
        fully_shard(block, mesh=mesh)
    yield "fsdp2", fully_shard(student, mesh=mesh)


def alignment_errors() -> dict[str, float]:
    """The largest difference from the gradient of one process that sees all rows, over the largest entry."""
    batch = collate(random_rows(4))
    view = seen_of_a_teacher(*batch.input_ids.shape)
    count = batch.counted.sum()
    errors = {}
    for checkpointing in (False, True):
        alone, together = aligned_student().train(), aligned_student().train()
        alone(batch, count, view)[0].backward()
        expected = gradients(alone)
        assert "alignment.projections.1_to_3.weight" in expected
        if checkpointing:
            together.activation_checkpointing_enable()
        mine = part_of(batch, view, slice(0, 1) if dist.get_rank() == 0 else slice(1, 4))
        for name, module in wrapped(together):
            module(mine[0], count / dist.get_world_size(), mine[1])[0].backward()
            found = gradients(together)
            assert found.keys() == expected.keys()
            errors[f"{name}{'-checkpointed' if checkpointing else ''}"] = max(
                ((found[key] - value).abs().max() / value.abs().max()).item() for key, value in expected.items()
            )
    return errors
