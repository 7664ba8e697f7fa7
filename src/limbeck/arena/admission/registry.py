"""The registry of admission checks: small functions with a name, run cheapest first.

A check looks at a `Submission` under `Rules` and returns one sentence when it is satisfied; it raises `RefusalError`
when it is not. A check that needs another one's facts (`needs`) is skipped when that one failed. Only the candidate's
own files can make a check fail: whatever else goes wrong is a `ForeignError`, ends the run, and disqualifies nobody.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from limbeck.arena.admission.submission import Submission
from limbeck.arena.config import StudentRules
from limbeck.arena.faults import CandidateError, Fault
from limbeck.arena.identity import CommitmentId


class RefusalError(CandidateError):
    """A check is not satisfied.

    Args:
        why: what is wrong, with the file or tensor.
        mend: what the miner can do about it.
    """

    def __init__(self, why: str, mend: str) -> None:
        super().__init__(why)
        self.mend = mend


class Status(StrEnum):
    """How a check ended."""

    PASSED = "pass"
    FAILED = "fail"
    SKIPPED = "skip"


@dataclass(frozen=True)
class CheckResult:
    """One check's answer; `fault` says whose a failure is."""

    name: str
    status: Status
    why: str
    mend: str = ""
    fault: Fault | None = None


@dataclass(frozen=True)
class Rules:
    """What a submission is held to.

    Attributes:
        student: the arena's rules for models.
        tokenizer: digest of the teacher's tokenizer; None: that of `teacher`.
        teacher: folder that holds the teacher's tokenizer files.
        commitment: who asks to be admitted; None for a check before committing.
        manifest: the manifest digest that was committed.
        first_owner: returns the earliest commitment that showed a content, by kind and digest; None where there is no
            store to ask.
    """

    student: StudentRules
    tokenizer: str | None
    teacher: Path
    commitment: CommitmentId | None = None
    manifest: str | None = None
    first_owner: Callable[[str, str], CommitmentId | None] | None = None


CheckFunction = Callable[[Submission, Rules], str]


@dataclass(frozen=True)
class Check:
    """A registered check; `cost` orders them."""

    name: str
    function: CheckFunction
    cost: int
    needs: tuple[str, ...] = ()
    about: str = ""


@dataclass(frozen=True)
class Report:
    """The results of a run, in the order of the checks."""

    results: tuple[CheckResult, ...] = ()
    contents: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return self.failure is None

    @property
    def failure(self) -> CheckResult | None:
        """The first failure."""
        return next((result for result in self.results if result.status is Status.FAILED), None)


_CHECKS: dict[str, Check] = {}


def check(name: str, *, cost: int, needs: tuple[str, ...] = ()) -> Callable[[CheckFunction], CheckFunction]:
    """Register the decorated function as the check `name`; its docstring's first line says what it holds to."""

    def register(function: CheckFunction) -> CheckFunction:
        if name in _CHECKS:
            raise ValueError(f"check {name} is registered twice")
        about = (function.__doc__ or "").strip().splitlines()
        _CHECKS[name] = Check(name, function, cost, needs, about[0] if about else "")
        return function

    return register


def all_checks() -> list[Check]:
    """Return the registered checks, cheapest first."""
    return sorted(_CHECKS.values(), key=lambda check: (check.cost, check.name))


def run_checks(
    submission: Submission, rules: Rules, *, names: Sequence[str] | None = None, stop_at_failure: bool = False
) -> Report:
    """Run the checks, cheapest first.

    Args:
        submission: the model's files.
        rules: what they are held to.
        names: run these alone; those that they need must be among them.
        stop_at_failure: leave out what comes after the first failure, as a validator does.

    Raises:
        ForeignError: a file could not be read, or the teacher's could not: nobody is to be blamed for it.
    """
    results: list[CheckResult] = []
    unmet: set[str] = set()
    for entry in all_checks():
        if names is not None and entry.name not in names:
            continue
        result = _run_one(entry, submission, rules, unmet)
        results.append(result)
        if result.status is not Status.PASSED:
            unmet.add(entry.name)
        if result.status is Status.FAILED and stop_at_failure:
            break
    return Report(tuple(results), dict(submission.contents))


def _run_one(entry: Check, submission: Submission, rules: Rules, unmet: set[str]) -> CheckResult:
    if missing := [name for name in entry.needs if name in unmet]:
        return CheckResult(entry.name, Status.SKIPPED, f"needs {', '.join(missing)}")
    try:
        return CheckResult(entry.name, Status.PASSED, entry.function(submission, rules))
    except CandidateError as error:
        mend = error.mend if isinstance(error, RefusalError) else "See the message."
        return CheckResult(entry.name, Status.FAILED, str(error), mend, Fault.CANDIDATE)
