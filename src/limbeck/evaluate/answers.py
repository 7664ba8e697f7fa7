"""Typed answers, written on one declared last line: `Answer: …`.

An answer is a value of a type, not a pattern to be found anywhere in a text. Each type knows how the value is written
and how what a model wrote is read back; what can't be read is no answer.
"""

import re
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Integer:
    """A whole number. Thousands separators, a leading `+`, a `\\boxed{}` and a final full stop are accepted."""

    value: int

    def written(self) -> str:
        """Return the number in decimal digits."""
        return str(self.value)

    def accepts(self, text: str) -> bool:
        """Say whether `text` is this number and nothing else."""
        bare = _unwrapped(text).replace("\N{MINUS SIGN}", "-")
        if re.fullmatch(r"[+-]?[0-9]{1,3}(,[0-9]{3})+", bare):
            bare = bare.replace(",", "")
        return re.fullmatch(r"[+-]?[0-9]{1,4000}", bare) is not None and int(bare) == self.value


@dataclass(frozen=True)
class Words:
    """A short text, compared after collapsing white space; case counts unless `ignore_case`."""

    value: str
    ignore_case: bool = False

    def written(self) -> str:
        """Return the text."""
        return self.value

    def accepts(self, text: str) -> bool:
        """Say whether `text` is this text and nothing else."""
        given = {" ".join(form.split()) for form in (text, _unwrapped(text))}
        gold = " ".join(self.value.split())
        if self.ignore_case:
            return gold.lower() in {form.lower() for form in given}
        return gold in given


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


def _unwrapped(text: str) -> str:
    """Strip white space, a LaTeX box and one final full stop."""
    bare = text.strip()
    if boxed := re.fullmatch(r"\$?\\boxed\{(.*)\}\$?\.?", bare):
        bare = boxed.group(1).strip()
    return bare.removesuffix(".").strip()
