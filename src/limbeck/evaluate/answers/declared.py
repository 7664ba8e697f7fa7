"""The declared last line: what an answer is, and where in a response it stands."""

import re
from typing import Protocol

ANSWER_MARK = "Answer:"


class Answer(Protocol):
    """A gold answer that can be written down and compared with what a model wrote."""

    def written(self) -> str:
        """Return the answer as it stands after `Answer: `."""
        ...

    def accepts(self, text: str) -> bool:
        """Say whether `text`, as a model wrote it after `Answer:`, states this value."""
        ...


def declared_answer(response: str) -> str | None:
    """Return what stands after `Answer:` on the last line, or None where no single answer is declared.

    Exactly one line of the response may start with `Answer:`, and it must be the last one that is not blank: a model
    that answers twice, or goes on talking, has not answered.
    """
    lines = [line.strip() for line in response.strip().splitlines() if line.strip()]
    declared = [line for line in lines if line.startswith(ANSWER_MARK)]
    if len(declared) != 1 or lines[-1] != declared[0]:
        return None
    return declared[0].removeprefix(ANSWER_MARK).strip()


def unwrapped(text: str) -> str:
    """Return `text` without white space around it, a LaTeX box and one final full stop."""
    bare = text.strip()
    if boxed := re.fullmatch(r"\$?\\boxed\{(.*)\}\$?\.?", bare):
        bare = boxed.group(1).strip()
    return bare.removesuffix(".").strip()
