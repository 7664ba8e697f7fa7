"""`transformers.Trainer` with Limbeck's losses, optimizer, checkpoints and progress.

What differs from the base class: the loss is normalised by the tokens that count in the whole optimisation step (over
accumulated micro-batches and ranks); a checkpoint is safetensors and counts only once it is complete; the last k
complete ones are kept; each loss is logged by its name.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from limbeck.distill.optimizers.muon import MuonAdamW, split_by_role
from limbeck.distill.recipe import OptimizerSettings
from limbeck.distill.sampling import LengthGroupedOrder
from limbeck.distill.student import DistilledStudent
from limbeck.engines.transformers import quiet
from limbeck.errors import LimbeckError
from limbeck.files import write_json
from limbeck.progress import Bar
from limbeck.signals.loader import SignalBatch, collate

COMPLETE = "complete.json"
WEIGHTS = "model.safetensors"


class DistillationTrainer(Trainer):
    """Trains a `DistilledStudent` on rows with signals.

    Args:
        model: the student with its losses.
        args: the training arguments.
        train_dataset: map-style, of signal rows.
        row_lengths: tokens of each row.
        tokenizer: saved beside the weights.
        optimizer_settings: Muon with AdamW where given, else the optimizer that `args.optim` names.
        keep: how many checkpoints to keep.
        bar: shows progress.
    """

    def __init__(
        self,
        model: DistilledStudent,
        args: TrainingArguments,
        train_dataset: Dataset[Any],
        row_lengths: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        optimizer_settings: OptimizerSettings | None,
        keep: int,
        bar: Bar,
    ) -> None:
        self.optimizer_settings = optimizer_settings
        self.row_lengths = row_lengths
        self.keep = keep
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=lambda rows: {"batch": collate(rows, tokenizer.pad_token_id)},
            processing_class=tokenizer,
            callbacks=[_Progress(self, bar)],
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.loss_is_scaled_for_ga = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that the recipe asks for."""
        if self.optimizer_settings is None:
            return super().create_optimizer(model)
        settings = self.optimizer_settings
        groups = split_by_role(self.model if model is None else model, settings.weight_decay)
        self.optimizer: torch.optim.Optimizer = MuonAdamW(
            groups, lr=self.args.learning_rate, momentum=settings.momentum
        )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> LengthGroupedOrder:
        """Order rows by seed and epoch alone; `train_sampling_strategy: group_by_length` keeps padding small."""
        return LengthGroupedOrder(
            self.row_lengths,
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            grouped=self.args.train_sampling_strategy == "group_by_length",
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, SignalBatch]], device: torch.device) -> Tensor:
        """Count the tokens that are trained in this optimisation step, over all micro-batches and ranks."""
        counted = sum(int(sample["batch"].counted.sum()) for sample in batch_samples)
        return self.accelerator.reduce(torch.tensor(counted, device=device), reduction="sum").clamp_min(1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, SignalBatch],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the weighted sum of the losses, times the number of ranks, over which the wrapper averages.

        Raises:
            LimbeckError: the loss is not a number; the step and the losses are named.
        """
        batch = inputs["batch"]
        denominator = num_items_in_batch if num_items_in_batch is not None else int(batch.counted.sum())
        loss, parts = model(batch, denominator)
        if not torch.isfinite(loss):
            shown = ", ".join(f"{name}={value.item():g}" for name, value in parts.items())
            raise LimbeckError(
                f"step {self.state.global_step + 1}: the loss is not finite ({shown}). "
                f"The last good checkpoint is in {self.args.output_dir}. Lower the learning rate, or look at the batch."
            )
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        loss = loss * self.accelerator.num_processes
        return (loss, parts) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what the base class logs, and the mean of each loss since the last time."""
        if "loss" in logs and self._steps:
            logs = {**logs, **{name: (value / self._steps).item() for name, value in self._sums.items()}}
            self._sums, self._steps = {}, 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the student alone, as safetensors, with its tokenizer."""
        folder = output_dir or self.args.output_dir
        student: DistilledStudent = self.accelerator.unwrap_model(self.model)
        with quiet():
            student.student.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        student: DistilledStudent = self.accelerator.unwrap_model(self.model if model is None else model)
        load_model(student.student, Path(resume_from_checkpoint) / WEIGHTS, strict=False)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, mark it complete, and only then drop the ones before the last `keep`."""
        super()._save_checkpoint(model, trial)
        step = self.state.global_step
        write_json(Path(self.args.output_dir) / f"checkpoint-{step}" / COMPLETE, {"step": step})
        for old in complete_checkpoints(Path(self.args.output_dir))[: -self.keep]:
            (old / COMPLETE).unlink()
            shutil.rmtree(old)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    marked = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(marked, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def drop_incomplete(folder: Path) -> None:
    """Remove checkpoints that a killed run left unfinished."""
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)


class _Progress(TrainerCallback):
    """Moves the progress bar, and counts steps for the means that are logged."""

    def __init__(self, trainer: DistillationTrainer, bar: Bar) -> None:
        self.trainer = trainer
        self.bar = bar
        self.note = ""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer._steps += 1
        self.bar.advance(note=self.note)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"
