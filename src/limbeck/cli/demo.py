"""`limbeck demo`: the whole story on this machine, with nothing downloaded."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Decides every draw.")] = 1,
    quick: Annotated[bool, typer.Option(help="A smaller budget: about 90 seconds.")] = False,
) -> None:
    """Distil the pocket teacher, measure the copies, and crown the better one. Stopped, the same command goes on."""
    from limbeck.pocket.demo import Budget, run_demo

    run_demo(out, seed=seed, budget=Budget.quick() if quick else Budget())
