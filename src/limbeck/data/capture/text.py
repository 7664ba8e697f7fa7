"""The text of a capture: rows that the teacher reads, or prompts that it answers while its words are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from limbeck.data.capture.answers import NamedPrompt, read_prompts, write_answers
from limbeck.data.capture.recipe import CaptureRecipe
from limbeck.data.capture.shards import CaptureJob, Reader, Teacher, Writer
from limbeck.data.sources import Rows, read_source
from limbeck.engines.scorer import Scorer
from limbeck.files import digest_of


class CaptureText(Protocol):
    """What a dataset is made from."""

    @property
    def digest(self) -> str:
        """Return what identifies it."""
        ...

    @property
    def unit(self) -> str:
        """Return what progress is counted in."""
        ...

    def __len__(self) -> int:
        """Return the samples that it makes."""
        ...

    def size(self, samples: range) -> int:
        """Return the units of a range of samples."""
        ...

    def teacher(self, job: CaptureJob, scorer: Scorer | None = None) -> Teacher:
        """Return what makes shards of it."""
        ...


@dataclass(frozen=True)
class GivenRows:
    """Rows that the teacher reads; see `CaptureText`."""

    rows: Rows
    unit: str = "tokens"

    @property
    def digest(self) -> str:
        """Return the digest of the rows."""
        return self.rows.digest

    def __len__(self) -> int:
        return len(self.rows.rows)

    def size(self, samples: range) -> int:
        """Return the tokens of these samples."""
        return int(self.rows.rows.lengths[samples.start : samples.stop].sum())

    def teacher(self, job: CaptureJob, scorer: Scorer | None = None) -> Teacher:
        """Return a teacher that reads."""
        return Reader(job, self.rows, scorer)


@dataclass(frozen=True)
class GivenPrompts:
    """Prompts that the teacher answers; see `CaptureText`."""

    prompts: Sequence[NamedPrompt]
    digest: str
    unit: str = "rows"

    def __len__(self) -> int:
        return len(self.prompts)

    def size(self, samples: range) -> int:
        """Return the prompts of these samples."""
        return len(samples)

    def teacher(self, job: CaptureJob, scorer: Scorer | None = None) -> Teacher:
        """Return a teacher that writes."""
        return Writer(job, self.prompts)


def open_text(recipe: CaptureRecipe, tokenizer: PreTrainedTokenizerBase) -> CaptureText:
    """Return the text of a recipe; where the teacher's answers are to be read again, they are written first.

    Raises:
        UserError: the source can't be read.
        LimbeckError: the teacher failed to answer; what it has written is kept.
    """
    generate = recipe.generate
    if generate is None:
        return GivenRows(read_source(recipe.dataset, tokenizer))
    if generate.scores == "again":
        return GivenRows(write_answers(recipe, generate, tokenizer))
    prompts = read_prompts(recipe, tokenizer)
    asked = [list(one.prompt) for one in prompts]
    return GivenPrompts(prompts, digest_of({"prompts": asked, "sampling": generate.sampling.model_dump(mode="json")}))
