"""`training_args`: arguments of `transformers.TrainingArguments`, under their present names or those of older recipes.

Arguments of TRL's trainer that DistillKit's recipes hold are taken where they mean something here, or where leaving
them out changes nothing; all others are refused by name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from limbeck.distill.recipe import Recipe
from limbeck.errors import UserError
from limbeck.settings import nearest

RENAMED = {
    "evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu", "max_length": None, "max_seq_length": None,
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}  # fmt: skip
WITHOUT_MEANING = frozenset(
    {"dataset_text_field", "dataset_num_proc", "dataset_kwargs", "packing", "eval_packing", "packing_strategy"}
    | {"save_safetensors", "overwrite_output_dir", "logging_dir"}
)
"""Of TRL's trainer and older versions: read in `Recipe` (`packing`, `dataset_text_field`), or of no consequence."""


@dataclass(frozen=True)
class Arguments:
    """What the trainer is told.

    Attributes:
        values: `transformers.TrainingArguments`.
        keep: how many checkpoints are kept.
    """

    values: TrainingArguments
    keep: int


def training_arguments(recipe: Recipe, output_dir: Path, *, evaluated: bool) -> Arguments:
    """Return the training arguments of a recipe.

    Args:
        recipe: the recipe.
        output_dir: where checkpoints go.
        evaluated: whether there are held-out rows.

    Raises:
        UserError: there is no such argument, or the library refuses one.
    """
    given = _renamed(dict(recipe.training_args))
    keep = max(1, int(given.pop("save_total_limit", None) or 1))
    if given.get("load_best_model_at_end"):
        raise UserError(
            "training_args.load_best_model_at_end: the last student is the one that is saved. Leave it out."
        )
    known = [name for name in TrainingArguments.__dataclass_fields__ if name not in ("output_dir", "local_rank")]
    for name in given:
        if name not in known:
            hint = " The folder is the recipe's output_path." if name == "output_dir" else nearest(name, known)
            raise UserError(f"training_args.{name}: transformers.TrainingArguments has no such argument.{hint}")
    asked = str(given.get("eval_strategy", "steps" if "eval_steps" in given and evaluated else "no"))
    if asked != "no" and not evaluated:
        raise UserError(
            "training_args.eval_strategy: there is nothing to evaluate on. "
            "Name dataset.eval_dataset, or hold out a share of the rows with evaluation.share."
        )
    defaults = {
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "logging_steps": 10,
        "project": recipe.project_name,
        "accelerator_config": {"dispatch_batches": False},
        "eval_strategy": asked,
    }
    forced = {"output_dir": str(output_dir), "remove_unused_columns": False}
    try:
        values = TrainingArguments(**{**defaults, **given, **forced})
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training_args: {str(error).splitlines()[0]}") from error
    values._n_gpu = min(values.n_gpu, 1)  # several GPUs in one process are for a teacher, not for copies of the student
    return Arguments(values, keep)


def _renamed(given: dict[str, Any]) -> dict[str, Any]:
    """Return arguments under their present names."""
    if "warmup_ratio" in given:  # a share of the steps is a number below 1 of what counts them otherwise
        given.setdefault("warmup_steps", given.pop("warmup_ratio"))
    if "group_by_length" in given:
        grouped = given.pop("group_by_length")
        given.setdefault("train_sampling_strategy", "group_by_length" if grouped else "random")
    for old, new in RENAMED.items():
        if old in given:
            value = given.pop(old)
            if new:
                given.setdefault(new, value)
    return {name: value for name, value in given.items() if name not in WITHOUT_MEANING}
