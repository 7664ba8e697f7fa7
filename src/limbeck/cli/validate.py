"""`limbeck validate`: run a validator's rounds."""

from pathlib import Path
from typing import Annotated

import typer


def validate(
    arena_dir: Annotated[Path, typer.Option(help="Folder of the local arena.")],
    arena: Annotated[
        str | None, typer.Option(help="The arena: a YAML file, or a preset's name. Needed where there is none yet.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds to run at most.")] = 1,
    teacher: Annotated[Path | None, typer.Option(help="The teacher's folder. Default: as the arena says.")] = None,
) -> None:
    """Run rounds: take in commitments, admit, measure, decide, crown, and set weights. Stopped, it goes on."""
    from limbeck.arena.config import load_arena
    from limbeck.arena.evaluation import get_evaluator
    from limbeck.arena.local import LocalArena

    local = LocalArena.open(arena_dir, load_arena(arena) if arena else None, teacher=teacher)
    try:
        evaluator = get_evaluator(local.config.round.evaluator)
        for _ in range(rounds):
            verdict = local.run_round(evaluator)
            if verdict is None:
                typer.echo("Nobody challenges: there is nothing to measure.")
                break
            typer.echo(f"Round {verdict.round_id}: {verdict.words}")
            for standing in verdict.standings:
                kl = "" if standing.kl is None else f"KL {standing.kl:.6f}"
                typer.echo(f"  {standing.outcome:<13} {standing.commitment}  {kl}  {standing.reason}")
        for row in local.store.commitments.all():
            if row.reason:
                typer.echo(f"  out: {row.id} {row.payload.model}  {row.reason}")
    finally:
        local.close()
