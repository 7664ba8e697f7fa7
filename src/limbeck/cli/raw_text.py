"""`limbeck train-raw-text`: KL to a teacher on streamed text, by flags instead of a recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.distill.raw_text import RawText

DEFAULTS = RawText()


def _flag(name: str, text: str) -> Any:
    return typer.Option(f"--{name}", f"--{name.replace('_', '-')}", help=text)


def train_raw_text(
    teacher: Annotated[str, typer.Option(help="Teacher: a folder or repository.")] = DEFAULTS.teacher,
    student: Annotated[str, typer.Option(help="Student to start from: any folder or repository.")] = DEFAULTS.student,
    dataset: Annotated[
        str, typer.Option(help="Text: a dataset of the hub, a file, a folder or a glob.")
    ] = DEFAULTS.dataset,
    teacher_gpu: Annotated[int, _flag("teacher_gpu", "The teacher's GPU.")] = DEFAULTS.teacher_gpu,
    student_gpu: Annotated[int, _flag("student_gpu", "The student's GPU.")] = DEFAULTS.student_gpu,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = DEFAULTS.lr,
    warmup_steps: Annotated[int, _flag("warmup_steps", "Steps over which it rises.")] = DEFAULTS.warmup_steps,
    weight_decay: Annotated[float, _flag("weight_decay", "Weight decay of AdamW.")] = DEFAULTS.weight_decay,
    samples_per_step: Annotated[
        int, _flag("samples_per_step", "Rows in an optimisation step.")
    ] = DEFAULTS.samples_per_step,
    batch_size: Annotated[int, _flag("batch_size", "Rows on the GPU at a time, at most.")] = DEFAULTS.batch_size,
    max_seq_len: Annotated[int, _flag("max_seq_len", "Longest row, in tokens.")] = DEFAULTS.max_seq_len,
    kl_start_pos: Annotated[int, _flag("kl_start_pos", "First position that counts.")] = DEFAULTS.kl_start_pos,
    max_steps: Annotated[int, _flag("max_steps", "Optimisation steps.")] = DEFAULTS.max_steps,
    save_every: Annotated[int, _flag("save_every", "Steps between checkpoints.")] = DEFAULTS.save_every,
    output_dir: Annotated[Path, _flag("output_dir", "Becomes the student's folder.")] = DEFAULTS.output_dir,
    wandb_project: Annotated[str, _flag("wandb_project", "Project in Weights & Biases.")] = DEFAULTS.wandb_project,
    wandb_run: Annotated[str | None, _flag("wandb_run", "Name of the run there.")] = None,
    no_wandb: Annotated[bool, _flag("no_wandb", "Don't log to Weights & Biases.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of the recipe that this makes: a.b=c.")
    ] = None,
) -> None:
    """Train a student on raw text, by the KL to a teacher; stopped, the same command goes on at the last checkpoint."""
    given = {name: value for name, value in locals().items() if name not in ("settings",)}
    from limbeck.distill.raw_text import train_on_raw_text
    from limbeck.pocket.places import resolve
    from limbeck.settings import validate_settings

    given |= {"teacher": resolve(teacher), "student": resolve(student)}
    options = validate_settings(given, RawText, "train-raw-text")
    typer.echo(train_on_raw_text(options, tuple(settings or ())))
