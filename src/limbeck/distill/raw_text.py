"""KL on raw text: a student learns a teacher's whole distribution on streamed text, but for the first positions.

The command's few options become an ordinary training recipe (`recipes/raw-text-kl.yaml` is what the defaults make), and
the same trainer runs it. Losses count from `kl_start_pos` on, where the teacher has read enough to be worth imitating:
position t is the distribution of token t + 1, so the first token that is learnt is number `kl_start_pos + 1`.

A text longer than a row becomes several rows, each with its own beginning that does not count; nothing is cut off. A
row that ends before `kl_start_pos` has nothing to count and is left out.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from limbeck.errors import UserError
from limbeck.settings import Settings

SHORTEST_PART = 10  # positions of a row that count, at the least, in the longest row


class RawText(Settings):
    """The options, under the names by which users of training scripts know them.

    Attributes:
        teacher: folder or repository.
        student: folder or repository that training starts from.
        teacher_gpu: where the teacher goes, where there are GPUs.
        student_gpu: where the student goes.
        dataset: a dataset of the Hugging Face hub, or a file, folder or glob here.
        lr: the largest learning rate; it falls by a cosine to the last step.
        warmup_steps: over which it rises.
        weight_decay: of AdamW.
        samples_per_step: rows in an optimisation step, over all ranks.
        batch_size: rows that are on the GPU at a time, at the most.
        max_seq_len: the longest row, in tokens.
        kl_start_pos: the first position that counts.
        max_steps: optimisation steps.
        save_every: steps between checkpoints.
        output_dir: becomes the student's folder; checkpoints go to `<output_dir>.run`.
        wandb_project: where Weights & Biases files the run.
        wandb_run: what it calls it.
        no_wandb: don't tell Weights & Biases.
    """

    teacher: str = "Qwen/Qwen3.5-4B"
    student: str = "Qwen/Qwen3.5-0.8B"
    teacher_gpu: int = Field(default=0, ge=0)
    student_gpu: int = Field(default=1, ge=0)
    dataset: str = "karpathy/climbmix-400b-shuffle"
    lr: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=10, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    samples_per_step: int = Field(default=100, ge=1)
    batch_size: int = Field(default=4, ge=1)
    max_seq_len: int = Field(default=640, ge=2)
    kl_start_pos: int = Field(default=128, ge=0)
    max_steps: int = Field(default=100_000, ge=1)
    save_every: int = Field(default=500, ge=1)
    output_dir: Path = Path("distil-checkpoints")
    wandb_project: str = "limbeck-raw-text"
    wandb_run: str | None = None
    no_wandb: bool = False

    @model_validator(mode="after")
    def _check(self) -> "RawText":
        if self.max_seq_len < self.kl_start_pos + SHORTEST_PART:
            raise ValueError(
                f"kl_start_pos: from position {self.kl_start_pos} on, rows of max_seq_len {self.max_seq_len} have "
                f"fewer than {SHORTEST_PART} positions left; lower it, or raise max_seq_len"
            )
        return self


def raw_text_recipe(options: RawText, *, gpus: int, ranks: int = 1) -> dict[str, Any]:
    """Return the recipe that the options stand for, as YAML would say it.

    Args:
        options: what was asked for.
        gpus: how many are here; 0: the processor does it all, in float32.
        ranks: processes that train together. Each has the GPU that its launcher gave it, for both models.

    Raises:
        UserError: the samples of a step can't be divided among the ranks, or there is no such GPU.
    """
    if options.samples_per_step % ranks:
        raise UserError(
            f"samples_per_step: {options.samples_per_step} can't be divided by {ranks} processes. Choose a multiple."
        )
    if gpus and ranks == 1:
        for name in ("teacher_gpu", "student_gpu"):
            if getattr(options, name) >= gpus:
                raise UserError(f"{name}: there is no GPU {getattr(options, name)} here, only 0 to {gpus - 1}.")
    share = options.samples_per_step // ranks
    at_once = max(size for size in range(1, min(options.batch_size, share) + 1) if share % size == 0)
    place = "disk_path" if _is_here(options.dataset) else "repo_id"
    teacher: dict[str, Any] = {"kind": "hf", "path": options.teacher}
    if gpus and ranks == 1:  # the trainer's device is the first that is visible; see `visible_gpus`
        teacher["device"] = "cuda:0" if options.teacher_gpu == options.student_gpu else "cuda:1"
    arguments: dict[str, Any] = {
        "max_steps": options.max_steps,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": share // at_once,
        "learning_rate": options.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": options.warmup_steps,
        "weight_decay": options.weight_decay,
        "max_grad_norm": 1.0,
        "bf16": gpus > 0,
        "save_steps": options.save_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none" if options.no_wandb else "wandb",
    }
    if options.wandb_run is not None:
        arguments["run_name"] = options.wandb_run
    return {
        "project_name": options.wandb_project,
        "model": options.student,
        "output_path": str(options.output_dir),
        "sequence_length": options.max_seq_len,
        "dataset": {
            "train_dataset": {
                place: options.dataset,
                "streaming": True,
                "shuffle_buffer": 1,
                "kl_start_pos": options.kl_start_pos,
            }
        },
        "teacher": teacher,
        "loss_functions": [{"function": "kl", "weight": 1.0}],
        "training_args": arguments,
    }


def visible_gpus(options: RawText, visible: str | None) -> str:
    """Return `CUDA_VISIBLE_DEVICES` by which the student's GPU is the first and the teacher's the other.

    Args:
        options: the numbers that the user knows the GPUs by.
        visible: what the variable says already; numbers count among these.
    """
    names = [name.strip() for name in visible.split(",")] if visible else None
    chosen = dict.fromkeys((options.student_gpu, options.teacher_gpu))
    return ",".join(names[number] if names else str(number) for number in chosen)


def train_on_raw_text(options: RawText, overrides: tuple[str, ...] = ()) -> Path:
    """Train by the options and return the student's folder; stopped, the same call goes on at the last checkpoint.

    Args:
        options: what was asked for.
        overrides: `a.b=c`, changes of the recipe that the options stand for.

    Raises:
        UserError: as `limbeck.distill.train.train`.
    """
    if not options.no_wandb and find_spec("wandb") is None:
        raise UserError("no_wandb: Weights & Biases is not installed. Give --no_wandb, or pip install wandb.")
    import torch

    from limbeck.distill.recipe import Recipe
    from limbeck.distill.train import train
    from limbeck.settings import validate_settings, with_overrides

    gpus, ranks = torch.cuda.device_count(), int(os.environ.get("WORLD_SIZE", "1"))
    data = with_overrides(raw_text_recipe(options, gpus=gpus, ranks=ranks), overrides)
    recipe = validate_settings(data, Recipe, "train-raw-text")
    if gpus and ranks == 1:  # nothing has touched a GPU yet, so that it can still be said which ones there are
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus(options, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return train(recipe).folder


def _is_here(dataset: str) -> bool:
    return Path(dataset).exists() or any(sign in dataset for sign in "*?[")
