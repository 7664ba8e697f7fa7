"""`limbeck submit`: commit a model to an arena, after the validator's own checks. A hotkey commits once."""

from pathlib import Path
from typing import Annotated

import typer


def submit(
    model_repo: Annotated[
        str, typer.Option(help="The model: owner/name in the arena's model store, or a local folder to copy there.")
    ],
    arena_dir: Annotated[Path, typer.Option(help="Folder of the local arena.")],
    hotkey_name: Annotated[str, typer.Option(help="The hotkey that commits.")] = "default",
    wallet_name: Annotated[str, typer.Option(help="The wallet that it belongs to.")] = "miner",
    network: Annotated[str, typer.Option(help="The chain: `ledger`, the one in the arena's folder.")] = "ledger",
    netuid: Annotated[int, typer.Option(help="The subnet's number; 0 on the ledger.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and commit nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Commit a model: checks, a question, the commitment, and a look at whether the chain shows it."""
    from limbeck.arena.identity import ModelRef
    from limbeck.arena.local import LocalArena
    from limbeck.cli.check import show
    from limbeck.errors import LimbeckError, UserError

    if network != "ledger":
        raise UserError(f"--network {network}: only `ledger`, the embedded chain, can be committed to.")
    arena = LocalArena.open(arena_dir)
    try:
        if netuid != arena.ledger.netuid:
            raise UserError(f"--netuid {netuid}: the ledger of {arena_dir} is subnet {arena.ledger.netuid}.")
        folder = Path(model_repo)
        found: Path | ModelRef = folder if folder.is_dir() else arena.models.latest(model_repo)
        report = arena.check(found)
        show(report)
        if not report.passed:
            raise LimbeckError(f"{model_repo}: would not be admitted, so nothing was committed.")
        if dry_run:
            typer.echo("Dry run: everything holds, nothing was committed.")
            return
        typer.echo(f"{wallet_name}/{hotkey_name} will commit {model_repo}: for ever, and once.")
        if not yes and not typer.confirm("Commit?"):
            raise LimbeckError("nothing was committed.")
        model = arena.publish(f"{wallet_name}/{folder.resolve().name}", found) if isinstance(found, Path) else found
        neuron = arena.register(hotkey_name, wallet_name)
        commitment = arena.submit(model, hotkey_name, wallet_name)
        typer.echo(f"Committed {model} in block {commitment.block} by UID {neuron.uid}, and read back: {commitment}")
    finally:
        arena.close()
