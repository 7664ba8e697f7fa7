"""`limbeck tokenizer`: a student's vocabulary."""

from pathlib import Path
from typing import Annotated, Literal

import typer

tokenizer = typer.Typer(name="tokenizer", help="A student's vocabulary.", no_args_is_help=True)


@tokenizer.callback()
def group() -> None:
    """Keep `transplant` a command of its own, also while it is the only one."""


@tokenizer.command()
def transplant(
    student: Annotated[str, typer.Argument(help="The student: a folder, a repository, or `pocket`.")],
    teacher: Annotated[str, typer.Option("--tokenizer", help="Whose tokenizer it is to have: a folder, a repository.")],
    out: Annotated[Path, typer.Option(help="Folder for the student with the other tokenizer.")],
    method: Annotated[
        Literal["average", "tokensurgeon"],
        typer.Option(help="How tokens that the student does not have are made; tokensurgeon: mergekit's."),
    ] = "average",
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="Rows of embeddings and head. Default: as many as the teacher has.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the student's repository.")] = None,
    tokenizer_revision: Annotated[str | None, typer.Option(help="Of the tokenizer's repository.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the rows of tokens that nothing is known of.")] = 1,
) -> None:
    """Move a student to a teacher's tokenizer, so that every loss can compare the two."""
    from limbeck.models.transplant_folder import transplant_folder
    from limbeck.pocket.places import resolve
    from limbeck.progress import say

    result = transplant_folder(
        resolve(student), resolve(teacher), out, method=method, vocabulary=vocabulary, revision=revision,
        tokenizer_revision=tokenizer_revision, seed=seed,
    )  # fmt: skip
    counts = ", ".join(f"{count} {kind}" for kind, count in result.counts.items() if count)
    say(f"{result.old_vocabulary} rows became {result.new_vocabulary}: {counts}")
    for token, pieces in result.examples.get("composed", [])[:3]:
        say(f"  {token!r} from {' + '.join(map(repr, pieces))}")
    typer.echo(out)
