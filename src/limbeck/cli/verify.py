"""`limbeck verify ROUND`: make a verdict again from what is stored, and say whether it is identical."""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    round_: Annotated[str, typer.Argument(metavar="ROUND", help="The round's number, `last`, or a bundle's file.")],
    arena_dir: Annotated[Path | None, typer.Option(help="Folder of the local arena.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the round's bundle to this file.")] = None,
) -> None:
    """Recompute a verdict from the stored evidence; exit code 1 where it is not identical."""
    from limbeck.arena.identity import BlockNumber
    from limbeck.arena.local import LocalArena
    from limbeck.arena.replay import export_round, verify_bundle
    from limbeck.errors import UserError
    from limbeck.files import read_json

    if arena_dir is None:
        if round_ == "last" or round_.isdigit():
            raise UserError(f"{round_}: of which arena? Give its folder: --arena-dir DIR.")
        replay = verify_bundle(read_json(Path(round_)))
    else:
        arena = LocalArena.open(arena_dir)
        try:
            number = arena.last_round() if round_ == "last" else None
            if round_ == "last" and number is None:
                raise UserError(f"{arena_dir}: no round is closed yet. Run one: limbeck validate.")
            if number is None:
                if not round_.isdigit():
                    raise UserError(f"{round_!r} is not a round's number.")
                number = BlockNumber(int(round_))
            replay = arena.verify(number)
            if export is not None:
                export_round(arena.store, number, export)
        finally:
            arena.close()
    if not replay.identical:
        typer.echo(f"Round {replay.round_id}: NOT identical: {replay.difference}.")
        raise typer.Exit(1)
    typer.echo(f"Round {replay.round_id}: identical, to the byte ({replay.digest}).")
    typer.echo(replay.words)
