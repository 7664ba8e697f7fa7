"""Two processes that train under DDP and FSDP2: `torchrun --nproc_per_node 2 -m tests.distill.gloo_run FOLDER`.

Rank 0 writes what was found to `found.json`; the tests read it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from limbeck.distill.executor import Positions, total_loss
from limbeck.distill.running_state import own_name, whole
from limbeck.distill.student import DistilledStudent
from limbeck.engines.transformers import final_hidden, output_head
from limbeck.errors import LimbeckError
from limbeck.signals.dataset import SignalRow
from limbeck.signals.loader import collate
from limbeck.signals.types import at
from tests.distill.gloo_alignment import alignment_errors
from tests.distill.tiny_run import LOSSES, distilled, random_rows, tiny_student, tiny_trainer

FSDP: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}}
WRAPPERS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp2": FSDP}


class Kept(TrainerCallback):
    """Keeps the whole gradients of the first step."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.sharded = 0

    def on_pre_optimizer_step(self, *given: Any, model: nn.Module, **kwargs: Any) -> None:
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            self.sharded += isinstance(parameter.grad, DTensor)
            self.gradients[own_name(name)] = whole(parameter.grad)


def plain_gradients(student: DistilledStudent, rows: list[SignalRow]) -> dict[str, Tensor]:
    """The gradient of one process that sees all rows in one batch, without the trainer."""
    batch = collate(rows)
    hidden = final_hidden(student.student, batch.input_ids, batch.attention_mask)[batch.counted]
    positions = Positions(hidden, batch.targets[batch.counted], at(batch.signal, batch.counted))
    loss, _ = total_loss(positions, output_head(student.student), student.terms, int(batch.counted.sum()))
    loss.backward()
    return {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}


def trained(folder: Path, wrapper: str, student: DistilledStudent, rows: list[SignalRow], **more: Any) -> Kept:
    """The gradients of one step of two micro-batches a rank."""
    kept = Kept()
    settings = {"max_steps": 1, "gradient_accumulation_steps": 2, "optim": "sgd", "max_grad_norm": 0.0}
    with tiny_trainer(folder, student, rows, **{**settings, **WRAPPERS[wrapper], **more}) as trainer:
        trainer.add_callback(kept)
        trainer.train()
    return kept


def gradient_error(folder: Path, wrapper: str, *, tied: bool, rows: int, dtype: torch.dtype) -> tuple[float, int]:
    """The largest difference from the plain gradient, over the largest entry; and how many gradients were sharded."""
    data = random_rows(rows)
    kept = trained(folder, wrapper, distilled(tiny_student(tied=tied).to(dtype)), data)
    expected = plain_gradients(distilled(tiny_student(tied=tied).to(dtype)), data)
    assert expected.keys() == kept.gradients.keys()
    return max(
        ((kept.gradients[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items()
    ), kept.sharded


def variants(folder: Path, wrapper: str) -> dict[str, float]:
    """The cosine with the plain gradient in mixed precision, with recomputed activations, and with both."""
    data = random_rows(8)
    expected = plain_gradients(distilled(tiny_student()), data)
    recomputed = {"fsdp_config": {"version": 2, "activation_checkpointing": True}}
    if wrapper == "ddp":
        recomputed = {"activation_checkpointing": True}
    cosines = {}
    for name, more in (("bf16", {"bf16": True}), ("recomputed", recomputed), ("both", {"bf16": True, **recomputed})):
        found = trained(folder / name, wrapper, distilled(tiny_student()), data, **more).gradients
        whole = [torch.cat([part[name].flatten().double() for name in expected]) for part in (found, expected)]
        cosines[name] = torch.nn.functional.cosine_similarity(*whole, dim=0).item()
    return cosines


def resumed(folder: Path, wrapper: str) -> dict[str, Any]:
    """Train four steps, and again from the checkpoint behind the second."""
    weights, losses, evaluated = [], [], []
    for place, checkpoint in (("whole", None), ("again", folder / "whole" / "checkpoint-2")):
        student = distilled(tiny_student())
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
        rows = {"eval_dataset": random_rows(5), "signal_bytes": 8.0}
        with tiny_trainer(
            folder / place, student, random_rows(13), muon=True, keep=4, more=rows, **settings, **WRAPPERS[wrapper]
        ) as t:
            t.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            weights.append({name: whole(value) for name, value in t.model.state_dict().items()})
            losses.append([entry["loss"] for entry in t.state.log_history if "loss" in entry])
            evaluated.append(t.evaluate())
            t.save_model(str(folder / place / "final"))
    return {
        "same_weights": all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]),
        "same_losses": losses[0] == losses[1],
        "losses": losses[0],
        "evaluated": evaluated[0],
    }


def stopped(folder: Path, wrapper: str) -> str:
    """The message of this rank when a row of the other rank has a loss that is no number."""
    rows = random_rows(4)
    rows[3].signal.logprobs[:] = float("nan")  # type: ignore[union-attr]
    student = distilled(tiny_student(), {"kl": 1.0})
    with tiny_trainer(folder, student, rows, max_steps=1, **WRAPPERS[wrapper]) as trainer:
        try:
            trainer.train()
        except LimbeckError as error:
            return str(error)
    return "nothing stopped it"


def main() -> None:
    folder = Path(sys.argv[1])
    found: dict[str, Any] = {"losses": LOSSES}
    for wrapper in WRAPPERS:
        for tied in (False, True):
            for name, rows, dtype in (
                ("float64", 8, torch.float64),
                ("float32", 8, torch.float32),
                ("few", 3, torch.float64),
            ):
                key = f"{wrapper}-{'tied' if tied else 'untied'}-{name}"
                found[key] = gradient_error(folder / key, wrapper, tied=tied, rows=rows, dtype=dtype)
        found[f"{wrapper}-variants"] = variants(folder / f"{wrapper}-variants", wrapper)
        found[f"{wrapper}-resumed"] = resumed(folder / wrapper, wrapper)
        messages: list[Any] = [None, None]
        dist.all_gather_object(messages, stopped(folder / f"{wrapper}-nan", wrapper))
        found[f"{wrapper}-stopped"] = messages
    found["alignment"] = alignment_errors()
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
