"""`transformers.Trainer` with Limbeck's losses, data order, optimizer, checkpoints, logs and progress.

What differs from the base class: the loss is normalised by the tokens that count in the whole optimisation step (over
accumulated micro-batches and ranks); the rows of a step do not depend on how it is divided; a checkpoint is safetensors
and JSON, whole or absent, and goes on bit for bit; each loss is logged by its name; a loss that is not a number stops
the run before the weights are touched.

The student is run by calling the wrapper around it (DDP, FSDP2), never the module inside: gradients are reduced there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from limbeck.distill import checkpoints, saving
from limbeck.distill.batches import Division, EpochLoader, MappedBatches, StreamedBatches
from limbeck.distill.checkpoints import complete_checkpoints, drop_incomplete
from limbeck.distill.isolation import check_isolation
from limbeck.distill.meters import Meters, Watch
from limbeck.distill.optimizers.muon import MuonAdamW
from limbeck.distill.optimizers.roles import describe, split_by_role
from limbeck.distill.recipe import OptimizerSettings, QuantisationSettings
from limbeck.distill.running_state import check_storable, whole
from limbeck.distill.sampling import LengthGroupedOrder
from limbeck.distill.student import DistilledStudent
from limbeck.distill.ternary import TernaryTraining, decay_at, largest_over_ranks
from limbeck.distill.view import TeacherView
from limbeck.distill.wrapping import leaves_parameters_unused, settle_fsdp
from limbeck.errors import UserError
from limbeck.progress import Bar, say
from limbeck.signals.loader import SignalBatch

__all__ = ["Annotate", "DistillationTrainer", "Roll", "complete_checkpoints", "drop_incomplete"]

Roll = Callable[[SignalBatch, int, int], SignalBatch]
Annotate = Callable[[SignalBatch], tuple[SignalBatch, TeacherView | None]]


class DistillationTrainer(Trainer):
    """Trains a `DistilledStudent` on rows with signals.

    Args:
        model: the student with its losses.
        args: the training arguments.
        train_dataset: rows; map-style (`rows[i]`, `len(rows)`), or a stream, see `batches.StreamedBatches`.
        row_lengths: tokens of each row of a map-style dataset; None: a stream.
        tokenizer: saved beside the weights.
        optimizer_settings: Muon with AdamW where given, else the optimizer that `args.optim` names.
        keep: how many checkpoints to keep.
        bar: shows progress.
        roll: replaces a batch by the student's own completions, before tokens are counted:
            `(batch, optimisation step from 0, micro-batch of this rank) -> batch`.
        annotate: adds what an online teacher says about a batch, just before the student runs on it.
        eval_dataset: held-out rows, map-style.
        signal_bytes: of the stored signal, a token; for the log.
        packed: rows hold several documents; the student is tried on whether it keeps them apart.
        quantisation: how the rounding of a ternary student sets in.

    Raises:
        UserError: a stream, and `max_steps` does not say where it ends; or the student mixes up packed documents.
    """

    def __init__(
        self,
        model: DistilledStudent,
        args: TrainingArguments,
        train_dataset: Any,
        row_lengths: Sequence[int] | None,
        tokenizer: PreTrainedTokenizerBase,
        optimizer_settings: OptimizerSettings | None,
        keep: int,
        bar: Bar,
        *,
        roll: Roll | None = None,
        annotate: Annotate | None = None,
        eval_dataset: Any = None,
        signal_bytes: float = 0.0,
        packed: bool = False,
        quantisation: QuantisationSettings | None = None,
    ) -> None:
        if row_lengths is None and args.max_steps <= 0:
            raise UserError("training_args.max_steps: a stream has no length, so the number of steps has to be given.")
        self.optimizer_settings = optimizer_settings
        self.row_lengths = row_lengths
        self.keep = keep
        self.roll = roll
        self.annotate = annotate
        self.meters = Meters(signal_bytes)
        self.watch = Watch()
        self.ternary = TernaryTraining(model.student, quantisation)
        self._resumed: Path | None = None
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = leaves_parameters_unused(model)
        args.logging_nan_inf_filter = False  # it waits for the device at each micro-batch; the watch looks once a step
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=[_Progress(self, bar)],
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.loss_is_scaled_for_ga = True
        if packed:
            check_isolation(model.student)

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train, and watch the student's ternary layers if there are any."""
        with self.ternary.training():
            return super().train(*arguments, **named)

    # Data

    @property
    def division(self) -> Division:
        """How the rows of an optimisation step are divided among micro-batches and ranks."""
        return Division(
            self._train_batch_size,
            self.args.gradient_accumulation_steps,
            self.args.process_index,
            self.args.world_size,
        )

    def get_train_dataloader(self) -> EpochLoader:
        """Return the reader of this rank's micro-batches."""
        division, pad_id = self.division, self.processing_class.pad_token_id or 0
        if self.row_lengths is None:
            streamed = StreamedBatches(self.train_dataset, division, pad_id)
            return self._loader(streamed, self.args.max_steps * division.micro_batches)
        order = LengthGroupedOrder(
            self.row_lengths,
            division.a_step,
            self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            grouped=self.args.train_sampling_strategy == "group_by_length",
        )
        steps = division.steps(len(order), drop_last=self.args.dataloader_drop_last)
        mapped = MappedBatches(self.train_dataset, order.of_epoch, division, pad_id)
        return self._loader(mapped, steps * division.micro_batches)

    def _loader(self, batches: MappedBatches | StreamedBatches, count: int) -> EpochLoader:
        workers = self.args.dataloader_num_workers
        return EpochLoader(
            batches, count, workers, prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
        )  # fmt: skip

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, SignalBatch]], Tensor]:
        """Return the micro-batches of the next optimisation step, rolled out, and how many tokens count in it."""
        self._before_step(self.state.global_step, self.state.max_steps)
        samples = [inputs for _, inputs in zip(range(num_batches), epoch_iterator, strict=False)]
        if self.roll is not None:
            step = self.state.global_step
            samples = [{"batch": self.roll(one["batch"], step, number)} for number, one in enumerate(samples)]
        return samples, self._get_num_items_in_batch(samples, device)

    def _before_step(self, step: int, steps: int) -> None:
        """Set what is a function of the step alone: how strongly ternary layers round, and the weight decay."""
        self.ternary.before_step(step, steps)
        if self.optimizer_settings is not None and self.optimizer is not None:
            for group in self.inner_optimizer.param_groups:
                if group.get("muon"):
                    group["weight_decay"] = decay_at(self.optimizer_settings, step, steps)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, SignalBatch]], device: torch.device) -> Tensor:
        """Count the tokens that are trained in this optimisation step, over all micro-batches and ranks."""
        counts = [sample["batch"].counted.sum().to(device) for sample in batch_samples]
        return self._summed(torch.stack(counts).sum()).clamp_min(1)

    def _prepare_inputs(self, inputs: dict[str, SignalBatch]) -> dict[str, SignalBatch]:
        return {"batch": inputs["batch"].to(self.args.device)}

    def _summed(self, value: Tensor) -> Tensor:
        """Return the sum over ranks."""
        summed: Tensor = self.accelerator.reduce(value, reduction="sum")
        return summed

    # Wrapping and optimizing

    def create_accelerator_and_postprocess(self) -> None:
        """Set up the wrappers; FSDP2 runs on processors, too."""
        super().create_accelerator_and_postprocess()
        settle_fsdp(self.accelerator, self.args.fsdp_plugin_args)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that the recipe asks for, and say how it is split."""
        if self.optimizer_settings is None:
            return super().create_optimizer(model)
        settings = self.optimizer_settings
        groups = split_by_role(self.model if model is None else model, settings.weight_decay)
        if self.is_world_process_zero():
            say(describe(groups))
        self.optimizer: torch.optim.Optimizer = MuonAdamW(
            groups, lr=self.args.learning_rate, momentum=settings.momentum, scaling=settings.scaling
        )
        return self.optimizer

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, without the wrapper around it."""
        inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, SignalBatch],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the weighted sum of the losses, times the number of ranks, over which the wrapper averages."""
        batch, view = self._annotated(inputs["batch"])
        denominator = num_items_in_batch if num_items_in_batch is not None else batch.counted.sum().clamp_min(1)
        loss, parts = model(batch, denominator, view)
        self.watch.add(batch, loss, parts)
        self.meters.add(batch, parts)
        loss = loss * self.accelerator.num_processes
        return (loss, parts) if return_outputs else loss

    def _annotated(self, batch: SignalBatch) -> tuple[SignalBatch, TeacherView | None]:
        if self.annotate is None:
            return batch, None
        with torch.no_grad():
            return self.annotate(batch)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient's norm; stop if it, or a loss of this step, is not a number.

        Raises:
            LimbeckError: it is not; the micro-batch and its losses are named.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = (
            getattr(self.accelerator, "scaler", None) is not None
        )  # its steps overflow now and then, and are left out
        shown = None if scaled or norm is None else whole(torch.as_tensor(norm))
        self.watch.check(self.state.global_step + 1, self._summed, shown, self.args.output_dir)
        return norm

    # Logs and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what the base class logs, and what the meters show since the last time."""
        if "loss" in logs:
            logs = {**logs, **self.meters.read(self._summed)}
            largest = largest_over_ranks(self.accelerator.gather, self.args.device)
            logs |= self.ternary.logged(self.state.global_step, largest, speaks=self.is_world_process_zero())
        if "train_loss" in logs:  # of the whole run, as if it had not been interrupted
            logs = {**logs, "train_loss": self._total_loss_scalar / max(self.state.global_step, 1)}
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the means of the losses over the held-out rows' tokens, over all ranks.

        Raises:
            UserError: there are no held-out rows.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            raise UserError("training_args.eval_strategy: there are no held-out rows. Name dataset.eval_dataset.")
        division = replace(self.division, rows=self.args.per_device_eval_batch_size, micro_batches=1)
        batches = MappedBatches(rows, lambda epoch: range(len(rows)), division, self.processing_class.pad_token_id or 0)
        model = self.model_wrapped
        training = model.training
        model.eval()
        totals: dict[str, Tensor] = {}
        with self.ternary.whole():
            for step in range(division.steps(len(rows))):
                batch, view = self._annotated(batches[0, step].to(self.args.device))
                loss, parts = model(batch, 1.0, view)
                for name, value in {"loss": loss, **parts, "tokens": batch.counted.sum()}.items():
                    totals[name] = totals.get(name, 0) + value.double()
        model.train(training)
        summed = self._summed(torch.stack(list(totals.values()))).tolist()
        values = dict(zip(totals, summed, strict=True))
        tokens = values.pop("tokens")
        metrics = {f"{metric_key_prefix}_{name}": value / max(tokens, 1) for name, value in values.items()}
        metrics[f"{metric_key_prefix}_tokens"] = tokens
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student alone, as safetensors, with its tokenizer; every rank takes part, one writes."""
        saving.save_student(self, self._student().student, Path(output_dir or self.args.output_dir))

    def _student(self) -> DistilledStudent:
        student: DistilledStudent = self.accelerator.unwrap_model(self.model)
        return student

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write everything that going on needs, publish it, and only then drop the ones before the last `keep`."""
        run, step = Path(self.args.output_dir), self.state.global_step
        if self.args.should_save:
            checkpoints.begin(run, step)
        self.accelerator.wait_for_everyone()
        saving.save_run(self, self._student(), checkpoints.unfinished_folder(run, step), self._unlogged())
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.publish(run, step, self.keep)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saving.load_student(self._student(), Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saving.load_schedule(self, Path(checkpoint))
            self._resumed = Path(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saving.load_scaler(self, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saving.load_this_process(self, Path(checkpoint))

    def _unlogged(self) -> dict[str, Tensor]:
        """Return what has been summed up and not been logged."""
        steps = [self.meters.steps, self._globalstep_last_logged]
        return {
            "loss": self._tr_loss,
            "loss_before": torch.tensor(self._total_loss_scalar, dtype=torch.float64),
            "steps": torch.tensor(steps),
            **{f"mean/{name}": value for name, value in self.meters.losses.items()},
            **self.ternary.unlogged(self.state.global_step),
        }

    def _restore_unlogged(self) -> None:
        if self._resumed is None:
            return
        sums = saving.load_this_process(self, self._resumed)
        self.ternary.restore(sums)
        if not sums:
            return
        self._tr_loss = sums["loss"].to(self.args.device)
        self._total_loss_scalar = sums["loss_before"].item()
        self.meters.steps, self._globalstep_last_logged = sums["steps"].tolist()
        means = {name.removeprefix("mean/"): value for name, value in sums.items() if name.startswith("mean/")}
        self.meters.losses = {name: value.to(self.args.device) for name, value in means.items()}


class _Progress(TrainerCallback):
    """Moves the progress bar, counts steps for the means that are logged, and puts back what was not logged yet."""

    def __init__(self, trainer: DistillationTrainer, bar: Bar) -> None:
        self.trainer = trainer
        self.bar = bar
        self.note = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._restore_unlogged()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0 and args.save_strategy != "no" and not self.trainer.is_deepspeed_enabled:
            check_storable(self.trainer.inner_optimizer)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.meters.steps += 1
        self.bar.advance(note=self.note)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"
