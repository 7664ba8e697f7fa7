"""`limbeck train`: a student trained by a recipe, from what a teacher said about the text, or says meanwhile.

Everything that can be known is checked before a model is loaded (`limbeck.distill.checks`). A run that was killed goes
on from its last complete checkpoint, with the same data in the same order; a run that had finished is not run again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

import limbeck
from limbeck.distill.alignment import Alignment, split_terms
from limbeck.distill.checkpoints import complete_checkpoints, drop_incomplete, step_of
from limbeck.distill.checks import Checked, check
from limbeck.distill.layers import decoder_config
from limbeck.distill.making import calibration
from limbeck.distill.places import PAGE, PREPARED, RESULT, run_folder
from limbeck.distill.plan import Plan, make_plan, steps_of
from limbeck.distill.recipe import Recipe
from limbeck.distill.rollout import Rollout, open_rollout
from limbeck.distill.rows import Rows, RowSet, make_rows, with_other_targets
from limbeck.distill.sources import Stored, dataset_of
from limbeck.distill.starting import load_student, without_adapters
from limbeck.distill.student import DistilledStudent
from limbeck.distill.teachers.online import OnlineTeacher, open_teacher
from limbeck.distill.teachers.settings import HfTeacher, MixedTeachers, ServedTeacher
from limbeck.distill.ternary import ramp_of
from limbeck.distill.trainer import DistillationTrainer
from limbeck.distill.training_page import write_page
from limbeck.distill.view import TeacherView
from limbeck.errors import UserError
from limbeck.files import digest_of, read_json, write_json
from limbeck.progress import bar, say
from limbeck.signals.loader import SignalBatch

__all__ = ["RESULT", "TrainingResult", "plan", "run_folder", "train"]


@dataclass(frozen=True)
class TrainingResult:
    """What a training run left behind.

    Attributes:
        folder: holds the student and nothing else (safetensors, configuration, tokenizer): it can be uploaded as it
            is. Checkpoints, `training.json` and `training.html` lie beside it, in `<folder>.run`.
        history: what was logged: `step`, `loss`, and each loss by name, in nats a token.
        evaluations: what was measured on held-out rows: `step`, and `eval_` with the name of each loss.
    """

    folder: Path
    history: tuple[dict[str, float], ...]
    evaluations: tuple[dict[str, float], ...] = field(default=())


def train(recipe: Recipe, title: str = "") -> TrainingResult:
    """Train by `recipe`.

    Raises:
        UserError: something in the recipe can't be; the message begins with its key.
        LimbeckError: a loss was not a number, or a teacher failed; the last checkpoint is good.
    """
    checked = check(recipe)
    arguments = checked.arguments.values
    folder, run = recipe.output_path, run_folder(recipe.output_path)
    with arguments.main_process_first(desc="rows"):
        rows = _rows(checked)
    identity = digest_of({"recipe": recipe.model_dump(mode="json", exclude={"output_path"}), "data": rows.digest})
    if (finished := _finished(folder, run, identity)) is not None:
        return finished
    set_seed(arguments.seed)
    if arguments.should_save:
        drop_incomplete(run)
    checkpoints = complete_checkpoints(run)
    done = step_of(checkpoints[-1]) if checkpoints else 0
    if done and arguments.should_save:
        say(f"Going on from step {done}")
    steps = steps_of(arguments, len(rows.train) if isinstance(rows.train, RowSet) else None)
    ramp_of(recipe.quantisation, steps)
    longest = min(recipe.sequence_length, decoder_config(checked.start.config).max_position_embeddings)
    student = load_student(
        recipe, checked.start, seed=arguments.seed, calibration=lambda: calibration(rows, longest)
    ).train()
    parameters = _parameters(student)
    label = title or f"training {folder.name}"
    with _teacher(checked) as teacher, bar(label, steps, done, visible=arguments.should_save) as shown:
        roll = _rollout(checked, student)
        lengths = _lengths(checked, rows)
        trainer = DistillationTrainer(
            _with_losses(checked, student), arguments, rows.train, lengths, checked.tokenizer, recipe.optimizer,
            checked.arguments.keep, shown, roll=roll, annotate=_annotate(checked, teacher),
            eval_dataset=rows.evaluation, signal_bytes=_signal_bytes(checked), packed=_packed(checked),
            quantisation=recipe.quantisation,
        )  # fmt: skip
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
        seconds = time.monotonic() - started
        if roll is not None:
            roll.close()
        described = None if teacher is None else teacher.description
    if recipe.lora is not None:
        without_adapters(student)
    trainer.save_model(str(folder))
    history = tuple(entry for entry in trainer.state.log_history if "loss" in entry)
    evaluations = tuple(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    if arguments.should_save:
        figures = {"steps": trainer.state.global_step, "resumed_at_step": done, "seconds": seconds}
        result = {
            "identity": identity, "recipe": recipe.model_dump(mode="json"), "data": rows.digest, "history": history,
            "evaluations": evaluations, "figures": figures | parameters, "teacher": described,
            "environment": _environment(arguments),
        }  # fmt: skip
        write_page(run / PAGE, result)
        write_json(run / RESULT, result)  # last: it says that the run is finished
    return TrainingResult(folder, history, evaluations)


def plan(recipe: Recipe) -> Plan:
    """Check a recipe and return what training by it would be; nothing is loaded and nothing written.

    Raises:
        UserError: something in the recipe can't be; the message begins with its key.
    """
    checked = check(recipe)
    return make_plan(checked, None if _unprepared(checked) else _rows(checked))


def _rows(checked: Checked) -> Rows:
    recipe = checked.recipe
    prepared = recipe.dataset.prepared_dataset_path or run_folder(recipe.output_path) / PREPARED
    opened = [
        dataset_of(one, checked.tokenizer_digest, recipe.teacher, prepared) if isinstance(one, Stored) else one
        for one in checked.sources.values()
    ]
    training = len(recipe.dataset.train_dataset)
    return make_rows(
        opened[:training], opened[training] if len(opened) > training else None, recipe.dataset, checked.tokenizer,
        length=recipe.sequence_length, packs=recipe.packs, share=recipe.evaluation.share,
        decode=checked.compares and checked.teacher is None,
    )  # fmt: skip


def _unprepared(checked: Checked) -> bool:
    """Return whether files have to be read into a dataset of ours first."""
    return any(isinstance(one, Stored) and isinstance(one.opened, tuple) for one in checked.sources.values())


def _lengths(checked: Checked, rows: Rows) -> Any:
    """Return the tokens of each row, which are asked for only where the order depends on them; None for a stream."""
    if not isinstance(rows.train, RowSet):
        return None
    grouped = checked.arguments.values.train_sampling_strategy == "group_by_length"
    return rows.train.lengths if grouped else np.zeros(len(rows.train), dtype=np.int64)


def _packed(checked: Checked) -> bool:
    """Return whether rows hold several documents."""
    datasets = [one.opened for one in checked.sources.values() if isinstance(one, Stored)]
    return (
        checked.recipe.packs
        or checked.recipe.dataset.prepacked
        or any(not isinstance(one, tuple) and one.manifest.documents for one in datasets)
    )


def _signal_bytes(checked: Checked) -> float:
    """Return the bytes of stored signals a token; 0 where none are read."""
    if checked.teacher is not None or not checked.compares:
        return 0.0
    shards = [
        shard
        for one in checked.sources.values()
        if isinstance(one, Stored) and not isinstance(one.opened, tuple)
        for shard in one.opened.manifest.shards
    ]
    return sum(shard.bytes for shard in shards) / max(1, sum(shard.tokens for shard in shards))


def _with_losses(checked: Checked, student: Any) -> DistilledStudent:
    """Return the student with its losses: on distributions, and on inner layers."""
    recipe = checked.recipe
    outside, inside = split_terms(checked.terms, mapped=bool(checked.layers))
    alignment = None
    if inside:
        alignment = Alignment(
            inside, checked.layers, checked.widths, relations=checked.relations, settings=recipe.attention_relation,
            force_projection=recipe.force_hidden_state_projection, seed=checked.arguments.values.seed,
        )  # fmt: skip
    return DistilledStudent(
        student, outside, needs_teacher=checked.compares, alignment=alignment, evaluated=checked.evaluated or None,
        compiled=checked.recipe.compile_losses,
    )  # fmt: skip


@contextmanager
def _teacher(checked: Checked) -> Iterator[OnlineTeacher | None]:
    settings = checked.recipe.teacher
    if not isinstance(settings, HfTeacher | ServedTeacher | MixedTeachers):
        yield None
        return
    teacher = open_teacher(settings, checked.needs, checked.arguments.values.device, checked.tokenizer)
    try:
        yield teacher
    finally:
        teacher.close()


def _rollout(checked: Checked, student: Any) -> Rollout | None:
    recipe, arguments = checked.recipe, checked.arguments.values
    if recipe.rollout is None:
        return None
    half = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    return open_rollout(
        recipe.rollout, student, checked.tokenizer, seed=arguments.seed, sequence_length=recipe.sequence_length,
        rank=arguments.process_index, autocast=half,
    )  # fmt: skip


def _annotate(checked: Checked, teacher: OnlineTeacher | None) -> Any:
    """Return what is done to a batch just before the student runs on it; None: nothing."""
    ids, eos = checked.recipe.dataset.eos_label_token_ids, checked.tokenizer.eos_token_id
    if teacher is None and not ids:
        return None
    if ids and eos is None:
        raise UserError("dataset.eos_label_token_ids: the student's tokenizer has no end-of-text token.")

    def annotate(batch: SignalBatch) -> tuple[SignalBatch, TeacherView | None]:
        if ids:
            batch = with_other_targets(batch, ids, int(eos))
        return (batch, None) if teacher is None else teacher.annotate(batch)

    return annotate


def _finished(folder: Path, run: Path, identity: str) -> TrainingResult | None:
    if not (run / RESULT).exists():
        return None
    result = read_json(run / RESULT)
    if result["identity"] != identity:
        raise UserError(
            f"output_path: {folder}: holds the student of another recipe or dataset. Choose another, or remove it."
        )
    say(f"{folder}: this recipe is trained already; nothing to do")
    return TrainingResult(folder, tuple(result["history"]), tuple(result.get("evaluations", ())))


def _parameters(student: Any) -> dict[str, int]:
    parameters = list(student.parameters())
    return {
        "parameters": sum(one.numel() for one in parameters),
        "trained_parameters": sum(one.numel() for one in parameters if one.requires_grad),
    }


def _environment(arguments: Any) -> dict[str, Any]:
    import accelerate
    import transformers

    return {
        "limbeck": limbeck.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "accelerate": accelerate.__version__, "device": str(arguments.device), "processes": arguments.world_size,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip
