"""`limbeck train RECIPE.yaml`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the recipe: a.b=c.")] = None,
) -> None:
    """Train a student by a recipe; stopped, the same command goes on at the last checkpoint."""
    from limbeck.distill.recipe import Recipe
    from limbeck.settings import load_settings

    loaded = load_settings(recipe, Recipe, settings or [])  # what is wrong with a recipe is said before torch is loaded
    from limbeck.distill.train import train as train_student

    result = train_student(loaded)
    typer.echo(result.folder)
