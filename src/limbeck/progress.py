"""Progress bars and messages on the terminal: one console, standard error, so that standard output stays data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False)


@dataclass
class Bar:
    """One running progress bar."""

    progress: Progress
    task: TaskID

    def advance(self, by: int = 1, note: str = "") -> None:
        """Move on by `by` units and show `note` (a rate, a loss) behind the bar."""
        self.progress.update(self.task, advance=by, note=note)


@contextmanager
def bar(title: str, total: int, done: int = 0, *, visible: bool = True) -> Iterator[Bar]:
    """Show a progress bar for `total` units, `done` of them finished already, while the block runs."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, refresh_per_second=4, disable=not visible) as progress:
        yield Bar(progress, progress.add_task(title, total=total, completed=done, note=""))


def say(text: str) -> None:
    """Print one line of text (rich markup allowed)."""
    console.print(text)
