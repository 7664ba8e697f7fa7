"""What is in a checkpoint of a training run, and how a run goes on from one.

    model.safetensors        the student, with its configuration and tokenizer: a folder that can be loaded as a model
    alignment.safetensors    projections that only training uses
    optimizer.safetensors    tensors of the optimizer's state by the names of parameters; optimizer.json: the rest of it
    scheduler.json           of the learning rate; scaler.json: of half-precision gradients
    rank-<r>.safetensors     of each process: generators of random numbers, and sums that were not logged yet
    trainer_state.json       steps, and everything that was logged

The position in the data follows from the step. DeepSpeed keeps model and optimizer in its own files beside these.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_callback import ExportableState

from limbeck.distill.running_state import (
    load_optimizer,
    load_process,
    load_weights,
    own_name,
    save_optimizer,
    save_process,
    whole_weights,
)
from limbeck.distill.student import DistilledStudent
from limbeck.engines.transformers import quiet
from limbeck.files import read_json, write_json
from limbeck.progress import say

if TYPE_CHECKING:
    from limbeck.distill.trainer import DistillationTrainer

STUDENT = "model*.safetensors"
ADAPTERS = "model-adapters.safetensors"
ALIGNMENT = "alignment.safetensors"
SCHEDULER = "scheduler.json"
SCALER = "scaler.json"
STATE = "trainer_state.json"


def save_student(
    trainer: "DistillationTrainer", student: PreTrainedModel, folder: Path, *, as_named: bool = False
) -> None:
    """Write a model's folder: weights, configuration, tokenizer. Every rank takes part, one writes.

    Args:
        trainer: knows the ranks and the tokenizer.
        student: may be sharded.
        folder: is made.
        as_named: keep the names of parameters; some architectures are otherwise stored under older ones.
    """
    if trainer.is_deepspeed_enabled:
        found = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
        weights = {name.removeprefix("student."): value for name, value in found.items() if name.startswith("student.")}
    else:
        weights = whole_weights(student, keep=trainer.args.should_save)
    if not trainer.args.should_save:
        return
    with quiet():
        if as_named and is_adapted(student):
            folder.mkdir(parents=True, exist_ok=True)
            trained = {own_name(name) for name, parameter in student.named_parameters() if parameter.requires_grad}
            save_file({name: weights[name] for name in sorted(trained)}, folder / ADAPTERS)
            student.config.save_pretrained(folder)
        else:
            student.save_pretrained(folder, state_dict=weights, save_original_format=not as_named)
        trainer.processing_class.save_pretrained(folder)


def is_adapted(student: PreTrainedModel) -> bool:
    """Return whether low-rank adapters of the `peft` package are trained, and not the model itself."""
    return hasattr(student, "peft_config")


def save_run(
    trainer: "DistillationTrainer", student: DistilledStudent, folder: Path, sums: Mapping[str, Tensor]
) -> None:
    """Write a checkpoint's files; every rank takes part.

    Args:
        trainer: between two optimisation steps.
        student: unwrapped.
        folder: is there, and empty.
        sums: of this process, that are not logged yet.
    """
    writes = trainer.args.should_save
    save_student(trainer, student.student, folder, as_named=True)
    if student.alignment is not None:
        weights = whole_weights(student.alignment, keep=writes)
        if writes and weights:
            save_file(weights, folder / ALIGNMENT)
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.save_checkpoint(str(folder))
    else:
        save_optimizer(trainer.inner_optimizer, trainer.model, folder, keep=writes)
    save_process(folder / _process_file(trainer), sums)
    if not writes:
        return
    write_json(folder / SCHEDULER, trainer.lr_scheduler.state_dict())
    if scaler := getattr(trainer.accelerator, "scaler", None):
        write_json(folder / SCALER, scaler.state_dict())
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            trainer.state.stateful_callbacks[type(callback).__name__] = callback.state()
    trainer.state.save_to_json(str(folder / STATE))


def load_student(student: DistilledStudent, folder: Path) -> None:
    """Put a checkpoint's weights into the student and its alignment, sharded or not.

    Raises:
        IntegrityError: the checkpoint is of another student.
    """
    files = sorted(folder.glob(STUDENT))
    load_weights(student.student, files, partly=is_adapted(student.student))
    if student.alignment is not None and any(True for _ in student.alignment.parameters()):
        load_weights(student.alignment, [folder / ALIGNMENT])


def load_schedule(trainer: "DistillationTrainer", folder: Path) -> None:
    """Put the states of optimizer and learning rate back (DeepSpeed has read its own)."""
    if not trainer.is_deepspeed_enabled:
        load_optimizer(trainer.inner_optimizer, trainer.model, folder)
    trainer.lr_scheduler.load_state_dict(read_json(folder / SCHEDULER))


def load_scaler(trainer: "DistillationTrainer", folder: Path) -> None:
    """Put the scale of half-precision gradients back."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is not None and (folder / SCALER).exists():
        scaler.load_state_dict(read_json(folder / SCALER))


def load_this_process(trainer: "DistillationTrainer", folder: Path) -> dict[str, Tensor]:
    """Put this process's generators of random numbers back, and return its sums.

    With another number of processes than the run had, the data go on exactly, and dropout and unlogged sums do not.
    """
    if not (folder / _process_file(trainer)).exists():
        if trainer.is_world_process_zero():
            say(f"{folder.name} was written by another number of processes: dropout goes on with other random numbers")
        return {}
    return load_process(folder / _process_file(trainer))


def _process_file(trainer: "DistillationTrainer") -> str:
    return f"rank-{trainer.args.process_index}.safetensors"
