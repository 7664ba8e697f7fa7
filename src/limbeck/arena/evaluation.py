"""The arena's door to measuring: what an evaluator is, and where evaluators and teachers are registered.

The arena plans, decides and records; it does not load models. A room above registers an evaluator and a teacher under
a name, either when it is imported or by an entry point of the group `limbeck.plugins` that names a module to import.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from pydantic import Field

from limbeck.arena.decision import PromptEvidence
from limbeck.arena.identity import BlockNumber
from limbeck.errors import UserError
from limbeck.settings import Settings, nearest

PLUGIN_GROUP = "limbeck.plugins"


@dataclass(frozen=True)
class RoundSpec:
    """What an evaluator is told of a round.

    Attributes:
        round_id: block number of the round.
        seed: 64-bit seed derived from the block hash; all that is random in the round follows from it.
        teacher: local folder of the teacher.
        prompts: how many prompts to draw.
        max_prompt_tokens: longest prompt, in tokens.
        max_new_tokens: longest continuation by the teacher, in tokens; 0: the prompts themselves are compared.
        work: folder for what may be kept between calls of one round, such as the teacher's side.
    """

    round_id: BlockNumber
    seed: int
    teacher: Path
    prompts: int
    max_prompt_tokens: int
    max_new_tokens: int
    work: Path


class RoundPrompt(Settings):
    """One prompt of a round, by digest; `tokens` is how many predictions it holds."""

    index: int = Field(ge=0)
    digest: str
    tokens: int = Field(ge=0)


class RoundMeasurement(Protocol):
    """A round's prompts with the teacher's side of them, measured once."""

    @property
    def prompts(self) -> Sequence[RoundPrompt]:
        """The prompts, with indices 0, 1, …"""
        ...

    def evaluate(self, model: Path) -> Sequence[PromptEvidence]:
        """Measure the model in a local folder on every prompt.

        Raises:
            CandidateError: the model can't be loaded or run, by its own fault.
            ForeignError: something else failed.
        """
        ...


class Evaluator(Protocol):
    """Measures models against the teacher. The same spec and the same model must give the same numbers."""

    @property
    def description(self) -> str:
        """What measured, for the record: name, version, precision, device."""
        ...

    def prepare(self, spec: RoundSpec) -> RoundMeasurement:
        """Draw the round's prompts and measure the teacher on them; called again after a crash, with the same spec."""
        ...


_EVALUATORS: dict[str, Callable[[], Evaluator]] = {}
_TEACHERS: dict[str, Callable[[], Path]] = {}


def evaluator(name: str) -> Callable[[Callable[[], Evaluator]], Callable[[], Evaluator]]:
    """Register the decorated function as the maker of the evaluator `name`."""

    def register(maker: Callable[[], Evaluator]) -> Callable[[], Evaluator]:
        if name in _EVALUATORS:
            raise ValueError(f"evaluator {name} is registered twice")
        _EVALUATORS[name] = maker
        return maker

    return register


def teacher(name: str) -> Callable[[Callable[[], Path]], Callable[[], Path]]:
    """Register the decorated function as the one that returns the local folder of the teacher `name`."""

    def register(finder: Callable[[], Path]) -> Callable[[], Path]:
        if name in _TEACHERS:
            raise ValueError(f"teacher {name} is registered twice")
        _TEACHERS[name] = finder
        return finder

    return register


def get_evaluator(name: str) -> Evaluator:
    """Make a registered evaluator.

    Raises:
        UserError: there is none of that name.
    """
    if name not in _EVALUATORS:
        _load_plugins()
    if name not in _EVALUATORS:
        raise UserError(f"round.evaluator: no evaluator is called {name!r}.{nearest(name, list(_EVALUATORS))}")
    return _EVALUATORS[name]()


def find_teacher(repo: str, given: Path | None = None) -> Path:
    """Return the teacher's local folder: the one given, the one that `repo` is, or the one registered as `repo`.

    Raises:
        UserError: it is none of them.
    """
    for folder in (given, Path(repo)):
        if folder is not None and folder.is_dir():
            return folder
    if given is not None:
        raise UserError(f"{given}: no such folder. Give the teacher's folder.")
    if repo not in _TEACHERS:
        _load_plugins()
    if repo not in _TEACHERS:
        raise UserError(
            f"teacher.repo: {repo!r} is no local folder and no registered teacher. Give its folder: --teacher DIR."
        )
    return _TEACHERS[repo]()


def _load_plugins() -> None:
    for entry_point in entry_points(group=PLUGIN_GROUP):
        entry_point.load()
