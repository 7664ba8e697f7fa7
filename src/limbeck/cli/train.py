"""`limbeck train RECIPE.yaml`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from limbeck.distill.plan import Plan

UNITS = ("B", "kB", "MB", "GB", "TB")


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the recipe: a.b=c.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, train nothing.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say more: -v what libraries warn of, -vv all they say.")
    ] = 0,
) -> None:
    """Train a student by a recipe; stopped, the same command goes on at the last checkpoint."""
    from limbeck.distill.recipe import Recipe
    from limbeck.settings import read_yaml, validate_settings, with_overrides

    given = with_overrides(read_yaml(recipe), settings or [])
    loaded = validate_settings(with_pocket(given), Recipe, str(recipe))  # torch is not loaded yet
    if verbose:
        import logging

        logging.basicConfig(level=logging.DEBUG if verbose > 1 else logging.INFO)
    from limbeck.distill.train import plan
    from limbeck.distill.train import train as train_student

    if dry_run:
        typer.echo(shown(plan(loaded)))
        return
    result = train_student(loaded)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts this command once a process
        typer.echo(result.folder)


def with_pocket(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe in which `pocket`, where a student or teacher is named, is the shipped teacher's folder."""
    from limbeck.pocket.places import resolve

    def named(section: Any) -> Any:
        if isinstance(section, str):
            return resolve(section)
        if isinstance(section, list):
            return [named(one) if isinstance(one, dict) else one for one in section]
        if not isinstance(section, dict):
            return section
        keys = ("path", "tokenizer", "from_dense", "teachers")
        return {key: named(value) if key in keys else value for key, value in section.items()}

    return {key: named(value) if key in ("model", "teacher") else value for key, value in recipe.items()}


def shown(plan: "Plan") -> str:
    """Return a plan as lines of text."""
    epoch = "a stream" if plan.rows is None or plan.tokens is None else f"{plan.rows:,} rows, {plan.tokens:,} tokens"
    lines = {
        "student": f"{plan.parameters:,} parameters, {plan.trained:,} trained",
        "teacher": f"{plan.teacher_parameters:,} parameters" if plan.teacher_parameters else "none in this process",
        "data": f"{epoch} an epoch",
        "steps": f"{plan.steps:,}, of at most {plan.tokens_a_step:,} tokens",
        **{f"memory: {part}": size(count) for part, count in plan.memory.items()},
        "memory: teacher": size(plan.teacher_memory),
        "memory: together": f"about {size(sum(plan.memory.values()) + plan.teacher_memory)}, undivided",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def size(count: float) -> str:
    """Return a number of bytes with its unit."""
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {UNITS[unit]}" if unit else f"{count:.0f} B"
