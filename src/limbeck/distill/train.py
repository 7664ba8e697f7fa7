"""`limbeck train`: a student trained by a recipe, from what a teacher said about the text.

Everything that can be known is checked before a model is loaded: the dataset against its manifest, the losses against
the kind of signal, the tokenizer against the student's. A run that was killed goes on from its last complete
checkpoint, with the same data in the same order; a run that had finished is not run again.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
from limbeck.distill.executor import Term
from limbeck.distill.losses import get_loss
from limbeck.distill.recipe import Recipe
from limbeck.distill.student import DistilledStudent
from limbeck.distill.trainer import DistillationTrainer, complete_checkpoints, drop_incomplete
from limbeck.engines.transformers import load_model, quiet
from limbeck.errors import UserError
from limbeck.files import digest_of, read_json, write_json
from limbeck.progress import bar, say
from limbeck.settings import nearest
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.manifest import Manifest

RESULT = "training.json"
SHARDS_KEPT = 64  # rows are drawn from anywhere: a shard that is dropped is read again at once


@dataclass(frozen=True)
class TrainingResult:
    """What a training run left behind.

    Attributes:
        folder: holds the student and nothing else (safetensors, configuration, tokenizer): it can be uploaded as it
            is. Checkpoints and `training.json` lie beside it, in `<folder>.run`.
        history: what was logged: `step`, `loss`, and each loss by name, in nats a token.
    """

    folder: Path
    history: tuple[dict[str, float], ...]


def train(recipe: Recipe, title: str = "") -> TrainingResult:
    """Train by `recipe`.

    Raises:
        UserError: something in the recipe can't be: an unknown loss or training argument, a loss that this signal
            can't feed, another tokenizer or vocabulary than the dataset's, rows that are too long, or an output folder
            that holds another run.
    """
    dataset = SignalDataset.open(recipe.dataset.train_dataset.disk_path)
    terms = _terms(recipe, dataset.manifest)
    needs_teacher = any(get_loss(term.name).signals for term in terms)
    identity = digest_of({"recipe": recipe.model_dump(mode="json", exclude={"output_path"}), "data": dataset.digest})
    folder = recipe.output_path
    run = run_folder(folder)
    if (finished := _finished(folder, run, identity)) is not None:
        return finished

    arguments, keep = _training_arguments(recipe)
    tokenizer = load_tokenizer(recipe.model)
    digest = tokenizer_digest(tokenizer)
    if digest != dataset.manifest.tokenizer_digest:
        raise UserError(
            f"{recipe.model}: this student's tokenizer ({digest[:12]}…) is not the one that "
            f"{recipe.dataset.train_dataset.disk_path} was captured with ({dataset.manifest.tokenizer_digest[:12]}…). "
            "Train a student with the teacher's tokenizer, or capture with the student's."
        )
    rows = _Rows(dataset, recipe.sequence_length, decode=needs_teacher)
    set_seed(arguments.seed)
    with quiet():
        student = load_model(recipe.model, device="cpu", dtype=torch.float32).train()
    if student.config.vocab_size != dataset.manifest.vocabulary:
        raise UserError(
            f"{recipe.model}: a vocabulary of {student.config.vocab_size}, but the signals in "
            f"{recipe.dataset.train_dataset.disk_path} are over {dataset.manifest.vocabulary}."
        )

    drop_incomplete(Path(arguments.output_dir))
    checkpoints = complete_checkpoints(Path(arguments.output_dir))
    done = int(checkpoints[-1].name.rsplit("-", 1)[1]) if checkpoints else 0
    if done:
        say(f"Going on from step {done}")
    with bar(title or f"training {folder.name}", _steps(arguments, len(rows)), done) as shown:
        trainer = DistillationTrainer(
            DistilledStudent(student, terms, needs_teacher=needs_teacher),
            arguments, rows, dataset.lengths.tolist(), tokenizer, recipe.optimizer, keep, shown,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    history = tuple(entry for entry in trainer.state.log_history if "loss" in entry)
    with quiet():
        student.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_json(
        run / RESULT,
        {"identity": identity, "recipe": recipe.model_dump(mode="json"), "data": dataset.digest, "history": history},
    )
    return TrainingResult(folder, history)


def run_folder(folder: Path) -> Path:
    """Return where a run keeps its own files, beside the folder of its student."""
    return folder.with_name(f"{folder.name}.run")


def _finished(folder: Path, run: Path, identity: str) -> TrainingResult | None:
    if not (run / RESULT).exists():
        return None
    result = read_json(run / RESULT)
    if result["identity"] != identity:
        raise UserError(
            f"{folder}: holds the student of another recipe or dataset. Choose another output_path, or remove it."
        )
    say(f"{folder}: this recipe is trained already; nothing to do")
    return TrainingResult(folder, tuple(result["history"]))


def _terms(recipe: Recipe, manifest: Manifest) -> list[Term]:
    captured = tuple(manifest.codec.get("temperatures", (1.0,)))
    terms = []
    for index, settings in enumerate(recipe.loss_functions):
        try:
            term = Term.of(
                get_loss(settings.function), settings.weight, settings.temperature,
                missing=settings.missing_probability_handling, parameters=settings.parameters,
            )  # fmt: skip
            term.check(manifest.kind, captured)
        except UserError as error:
            raise UserError(f"loss_functions.{index}: {error}") from error
        terms.append(term)
    if len({term.name for term in terms}) < len(terms):
        raise UserError("loss_functions: each loss can stand in a recipe once.")
    return terms


def _training_arguments(recipe: Recipe) -> tuple[TrainingArguments, int]:
    """Return the arguments for the trainer, and how many checkpoints to keep."""
    given: dict[str, Any] = dict(recipe.training_args)
    keep = max(1, int(given.pop("save_total_limit", 1)))
    known = list(TrainingArguments.__dataclass_fields__)
    for name in given:
        if name not in known:
            raise UserError(
                f"training_args.{name}: transformers.TrainingArguments has no such argument.{nearest(name, known)}"
            )
    defaults = {
        "output_dir": str(run_folder(recipe.output_path)),
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "logging_steps": 10,
    }
    try:
        return TrainingArguments(**{**defaults, **given}), keep
    except (ValueError, TypeError) as error:
        raise UserError(f"training_args: {str(error).splitlines()[0]}") from error


def _steps(arguments: TrainingArguments, rows: int) -> int:
    if arguments.max_steps > 0:
        return arguments.max_steps
    rows_a_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return max(1, math.ceil(math.ceil(rows / rows_a_step) * arguments.num_train_epochs))


class _Rows(Dataset[SignalRow]):
    """The dataset's rows, with their lengths checked, and decoded only if a loss needs the teacher."""

    def __init__(self, dataset: SignalDataset, longest: int, *, decode: bool) -> None:
        self.dataset = dataset
        self.decode = decode
        dataset.keep_shards(SHARDS_KEPT)
        if dataset.longest > longest:
            raise UserError(
                f"sequence_length: the dataset has a row of {dataset.longest} tokens, more than {longest}. "
                "Raise sequence_length, or capture shorter rows."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> SignalRow:
        return self.dataset.row(index, decode=self.decode)

    def __getitems__(self, indices: list[int]) -> list[SignalRow]:
        """Return the rows of a batch; those of one shard are decoded together."""
        return self.dataset.rows(indices, decode=self.decode)
