"""`limbeck tokenizer`: a student's vocabulary, trained from text or taken over from a teacher."""

from pathlib import Path
from typing import Annotated, Literal

import typer

tokenizer = typer.Typer(name="tokenizer", help="A student's vocabulary.", no_args_is_help=True)


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


@tokenizer.command()
def train(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Files (JSONL, Parquet, plain), folders, globs, or datasets of the hub.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer.")] = Path("tokenizer"),
    vocabulary: Annotated[int | None, typer.Option(help="Entries, special tokens included. Default: 16384.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe to start from, such as recipes/tokenizers/…")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of the recipe: key=value.")
    ] = None,
) -> None:
    """Train a tokenizer, with entries for chat roles, filling in the middle, padding and the end of text."""
    from limbeck.data.tokenizer_training import TokenizerRecipe, train_tokenizer_folder
    from limbeck.progress import say
    from limbeck.settings import read_yaml, validate_settings, with_overrides

    data = read_yaml(recipe) if recipe else {}
    if texts:
        data["texts"] = texts
    if vocabulary is not None:
        data["vocabulary"] = vocabulary
    asked = validate_settings(with_overrides(data, settings or []), TokenizerRecipe, str(recipe or "tokenizer"))
    trained = train_tokenizer_folder(asked, out)
    say(f"{trained.entries:,} entries from {trained.documents:,} documents; digest {trained.digest[:16]}")
    if trained.entries < asked.vocabulary:
        say(f"the text has no more to give: {asked.vocabulary:,} entries were asked for")
    if trained.bytes_a_token is not None:
        say(f"{trained.bytes_a_token:.3f} bytes a token on {trained.held_out:,} documents kept from training")
    typer.echo(out)
