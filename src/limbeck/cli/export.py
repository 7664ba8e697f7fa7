"""`limbeck export STUDENT --format FORMAT --out FOLDER`."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    student: Annotated[Path, typer.Argument(help="The folder of a BitNet student.")],
    form: Annotated[str, typer.Option("--format", help="packed, hf, gguf or safetensors.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write to; for gguf it may be a file.")],
) -> None:
    """Write a ternary student in a format that others run; what the format can't express is refused."""
    from limbeck.models.exports.formats import export as write

    written = write(student, form, out)
    files = [written] if written.is_file() else sorted(path for path in written.iterdir() if path.is_file())
    for path in files:
        typer.echo(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")
