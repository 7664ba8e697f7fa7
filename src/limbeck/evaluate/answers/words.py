"""Answers that are short texts."""

from dataclasses import dataclass

from limbeck.evaluate.answers.declared import unwrapped


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
        given = {" ".join(form.split()) for form in (text, unwrapped(text))}
        gold = " ".join(self.value.split())
        if self.ignore_case:
            return gold.lower() in {form.lower() for form in given}
        return gold in given
