"""The command line: `limbeck COMMAND`. Each command has a file of its own; heavy imports happen inside commands."""

import sys
from typing import Annotated

import typer

from limbeck import __version__
from limbeck.cli.capture import capture
from limbeck.cli.chat import chat
from limbeck.cli.check import check
from limbeck.cli.complete import complete
from limbeck.cli.demo import demo
from limbeck.cli.evaluate import evaluate
from limbeck.cli.evaluate_infill import evaluate_infill
from limbeck.cli.export import export
from limbeck.cli.models import models
from limbeck.cli.pocket import pocket
from limbeck.cli.raw_text import train_raw_text
from limbeck.cli.serve import serve
from limbeck.cli.signals import signals
from limbeck.cli.submit import submit
from limbeck.cli.tokenizer import tokenizer
from limbeck.cli.train import train
from limbeck.cli.validate import validate
from limbeck.cli.verify import verify
from limbeck.errors import LimbeckError

app = typer.Typer(
    name="limbeck",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.add_typer(pocket, name="pocket")
app.add_typer(signals, name="signals")
app.add_typer(models, name="models")
app.add_typer(tokenizer, name="tokenizer")
for command in (
    capture, train, train_raw_text, export, complete, chat, evaluate, evaluate_infill, check, submit, validate, verify,
    serve,
):  # fmt: skip
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"limbeck {__version__}")
        raise typer.Exit


@app.callback()
def limbeck(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Distil language models, measure what the copies are worth, and crown the best."""


def run() -> None:
    """Run the command line; an error becomes one line and an exit code (2: the request, 1: anything else)."""
    debug = "--debug" in sys.argv
    if debug:  # accepted anywhere on the line
        sys.argv = [sys.argv[0], *(argument for argument in sys.argv[1:] if argument != "--debug")]
    try:
        app()
    except LimbeckError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted. The same command takes it up where it stopped.", 130)
    except Exception as error:
        if debug:
            raise
        said = " ".join(str(error).split()) or "no message"
        _fail(f"unexpected {type(error).__name__}: {said} (run again with --debug to see where)", 1)


def _fail(message: str, code: int) -> None:
    print(f"limbeck: {message}", file=sys.stderr)
    sys.exit(code)
