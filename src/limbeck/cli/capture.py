"""`limbeck capture`: what a teacher says about a text, as a dataset of signals."""

from pathlib import Path
from typing import Annotated

import typer


def capture(
    model: Annotated[str, typer.Option(help="The teacher: a folder, a repository, or `pocket`.")],
    dataset: Annotated[Path, typer.Option(help="JSONL with text, prompt and response, or messages.")],
    output: Annotated[Path, typer.Option(help="Folder for the dataset of signals.")],
    revision: Annotated[str | None, typer.Option(help="Revision of the teacher's repository.")] = None,
    compression_config: Annotated[Path | None, typer.Option(help="YAML with the codec's settings.")] = None,
    sequence_length: Annotated[int, typer.Option(min=2, help="Longest row, in tokens.")] = 256,
    batch_tokens: Annotated[int, typer.Option(min=64, help="Tokens that the teacher reads at a time.")] = 8192,
    device: Annotated[str, typer.Option(help="Where the teacher runs.")] = "cpu",
) -> None:
    """Capture a teacher's next-token distributions; stopped, the same command goes on at the first missing shard."""
    from limbeck.data.capture import capture_file, read_codec
    from limbeck.pocket.world import resolve

    folder = capture_file(
        resolve(model), dataset, output,
        codec=read_codec(compression_config), revision=revision, sequence_length=sequence_length,
        batch_tokens=batch_tokens, device=device, name=model,
    )  # fmt: skip
    typer.echo(folder)
