"""`limbeck check MODEL`: every check that a validator makes, before anything is committed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from limbeck.arena.admission import Report


def check(
    model: Annotated[Path, typer.Argument(help="The model's folder.")],
    arena: Annotated[str, typer.Option(help="The arena: a YAML file, or a preset's name.")] = "pocket",
    arena_dir: Annotated[
        Path | None, typer.Option(help="Folder of a local arena: compare with what is committed there too.")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="The teacher's folder. Default: as the arena says.")] = None,
) -> None:
    """Check a model as a validator would: each check by name, with what is wrong and how to mend it."""
    from limbeck.arena.config import load_arena
    from limbeck.arena.evaluation import find_teacher
    from limbeck.arena.local import LocalArena, check_folder

    if arena_dir is not None:
        local = LocalArena.open(arena_dir)
        report = local.check(model)
        local.close()
    else:
        config = load_arena(arena)
        report = check_folder(model, config, find_teacher(config.teacher.repo, teacher))
    show(report)
    if not report.passed:
        raise typer.Exit(1)


def show(report: "Report") -> None:
    """Print a report: a line a check, and under a failure how to mend it."""
    for result in report.results:
        typer.echo(f"{result.status:<5} {result.name:<13} {result.why}")
        if result.mend:
            typer.echo(f"{'':<19} {result.mend}")
