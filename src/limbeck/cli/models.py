"""`limbeck models list`: presets of ternary students and what they weigh."""

import typer

models = typer.Typer(no_args_is_help=True, help="Architectures of students.")


@models.command("list")
def list_presets() -> None:
    """Show every preset of BitNet students: parameters, ternary share, and bytes."""
    from rich.console import Console
    from rich.table import Table

    from limbeck.models.bitnet.presets import PRESETS, preset_config, weigh

    table = Table(box=None, pad_edge=False)
    table.add_column("preset")
    for column in ("parameters", "ternary", "fp32 MB", "bf16 MB", "packed MB", "KV cache MB", "context", "vocabulary"):
        table.add_column(column, justify="right")
    for name in PRESETS:
        config = preset_config(name)
        found = weigh(config)
        sizes = (f"{size / 1e6:,.1f}" for size in (found.fp32, found.bf16, found.packed, found.cache))
        table.add_row(
            name, f"{found.total:,}", f"{found.ternary / found.total:.1%}", *sizes,
            f"{config.max_position_embeddings:,}", f"{config.vocab_size:,}",
        )  # fmt: skip
    Console(width=120).print(table)


@models.callback()
def architectures() -> None:
    """Architectures of students."""
