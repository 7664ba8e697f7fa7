"""`limbeck evaluate MODEL`: how far from the teacher, and what it can do."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="The student: a folder, a repository, or `pocket`.")],
    teacher: Annotated[str, typer.Option(help="The teacher: a folder, a repository, or `pocket`.")] = "pocket",
    out: Annotated[Path | None, typer.Option(help="Folder for results.json. Default: printed only.")] = None,
    items: Annotated[int, typer.Option(min=1, help="Exercises asked of each family.")] = 50,
    rows_a_document: Annotated[int, typer.Option(min=1, help="Rows measured of each held-out document.")] = 2,
    seed: Annotated[str, typer.Option(help="Decides which exercises are asked.")] = "1",
) -> None:
    """Measure a student on held-out text and exercises, every number with its 95 % interval."""
    from limbeck.engines.transformers import load_model
    from limbeck.pocket.measure import MeasureSettings, measure_student, print_summary, save_measurement
    from limbeck.pocket.places import resolve

    settings = MeasureSettings(seed=seed, items_a_family=items, rows_a_document=rows_a_document)
    measured = measure_student(model, resolve(model), load_model(resolve(teacher)), settings)
    print_summary([measured])
    if out is not None:
        save_measurement(out / "results.json", measured)
        typer.echo(out / "results.json")
