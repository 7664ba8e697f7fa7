"""Answers that are numbers."""

import re
from dataclasses import dataclass

from limbeck.evaluate.answers.declared import unwrapped


@dataclass(frozen=True)
class Integer:
    """A whole number. Thousands separators, a leading `+`, a `\\boxed{}` and a final full stop are accepted."""

    value: int

    def written(self) -> str:
        """Return the number in decimal digits."""
        return str(self.value)

    def accepts(self, text: str) -> bool:
        """Say whether `text` is this number and nothing else."""
        bare = unwrapped(text).replace("\N{MINUS SIGN}", "-")
        if re.fullmatch(r"[+-]?[0-9]{1,3}(,[0-9]{3})+", bare):
            bare = bare.replace(",", "")
        return re.fullmatch(r"[+-]?[0-9]{1,4000}", bare) is not None and int(bare) == self.value
