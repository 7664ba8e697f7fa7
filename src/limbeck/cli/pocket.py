"""`limbeck pocket`: the embedded world's teacher, texts and untrained students."""

from pathlib import Path
from typing import Annotated

import typer

pocket = typer.Typer(
    name="pocket", help="The embedded world: its teacher, its texts, its untrained students.", no_args_is_help=True
)


@pocket.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for the finished teacher.")] = Path("pocket-teacher"),
    work: Annotated[Path | None, typer.Option(help="Folder for checkpoints. Default: OUT/work.")] = None,
    quick: Annotated[bool, typer.Option(help="A smaller teacher in at most three minutes: tests the path.")] = False,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, mps.")] = "cpu",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of the recipe: key=value.")
    ] = None,
) -> None:
    """Train the pocket teacher from scratch; stopped, the same command goes on."""
    from limbeck.pocket.build import build as build_teacher
    from limbeck.pocket.card import save_teacher
    from limbeck.pocket.corpus import load_corpus
    from limbeck.pocket.recipe import QUICK, TeacherRecipe
    from limbeck.progress import say
    from limbeck.settings import validate_settings, with_overrides

    base = QUICK if quick else TeacherRecipe()
    recipe = validate_settings(with_overrides(base.model_dump(), settings or []), TeacherRecipe, "--set")
    built = build_teacher(recipe, work or out / "work", device)
    card = save_teacher(built, recipe, load_corpus(), out)
    mastered = sum(score.accuracy >= 0.8 for score in card.families)
    say(
        f"{card.bits_per_byte:.3f} bits per byte on held-out files (trigram {card.trigram_bits_per_byte:.3f}); "
        f"{mastered} of {len(card.families)} exercise families at 80 % or more"
    )
    typer.echo(out)


@pocket.command()
def card(
    folder: Annotated[Path | None, typer.Argument(help="A built teacher. Default: the shipped one.")] = None,
) -> None:
    """Print the teacher's model card: how it was made and what it can do."""
    from limbeck.errors import UserError
    from limbeck.pocket.places import teacher_folder

    path = (folder or teacher_folder()) / "README.md"
    if not path.exists():
        raise UserError(f"{path}: no such file. Name a folder that `limbeck pocket build` wrote.")
    typer.echo(path.read_text(encoding="utf-8"))


@pocket.command()
def text(
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")] = Path("pocket-text.jsonl"),
    texts: Annotated[int, typer.Option(min=0, help="Excerpts of the standard library.")] = 1000,
    exercises: Annotated[int, typer.Option(min=0, help="Exercises with answers.")] = 4000,
    seed: Annotated[int, typer.Option(help="Decides which, and their order.")] = 1,
) -> None:
    """Write training text: excerpts of this Python's library, and exercises."""
    from limbeck.pocket.corpus import load_corpus
    from limbeck.pocket.texts import write_training_text

    write_training_text(out, load_corpus(), seed=seed, texts=texts, exercises=exercises)
    typer.echo(out)


@pocket.command()
def student(
    out: Annotated[Path, typer.Option(help="Folder for the untrained student.")] = Path("pocket-student"),
    seed: Annotated[int, typer.Option(help="Decides the weights.")] = 1,
) -> None:
    """Write an untrained pocket student: weights from a seed, the teacher's tokenizer."""
    from limbeck.pocket.students import write_student

    write_student(out, seed)
    typer.echo(out)
