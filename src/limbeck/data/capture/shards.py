"""The unit of work of a capture: one shard, which any process can make from the recipe alone.

A shard's bytes are a function of the recipe, the text and the shard's number: not of which process makes it, of how
many there are, or of what was made before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from limbeck.data.capture.answers import NamedPrompt
from limbeck.data.capture.recipe import CaptureRecipe
from limbeck.data.capture.teacher import tokenizer_for
from limbeck.data.sources import Rows
from limbeck.engines.completions import Generator, open_generator, prompt_ids, scored_row
from limbeck.engines.scorer import Scorer, open_scorer
from limbeck.errors import LimbeckError
from limbeck.settings import Settings
from limbeck.signals.codecs.registry import parse_spec
from limbeck.signals.dataset import SignalRow
from limbeck.signals.manifest import ManifestHeader, ShardRecord
from limbeck.signals.writer import publish_shard

OnRow = Callable[[int], None]


@dataclass(frozen=True)
class CaptureJob:
    """What a process has to know; all of it can be sent to another machine.

    Attributes:
        recipe: of the capture.
        header: of the dataset.
    """

    recipe: CaptureRecipe
    header: ManifestHeader

    @property
    def spec(self) -> Settings:
        """Return the codec's settings."""
        return parse_spec(self.header.codec)


class Teacher(Protocol):
    """What makes the rows of a shard with their signals."""

    def rows(self, samples: range, on_row: OnRow) -> list[SignalRow]:
        """Return the rows of a range of samples."""
        ...

    def close(self) -> None:
        """Let go of the model or the connections."""
        ...


class Reader:
    """A teacher that reads given rows.

    Args:
        job: the capture.
        rows: the text.
        scorer: the teacher; loaded when it is first needed, where absent.
    """

    def __init__(self, job: CaptureJob, rows: Rows, scorer: Scorer | None = None) -> None:
        if rows.digest != job.header.text_digest:
            raise LimbeckError(
                f"{job.recipe.dataset.path}: the text has changed since the capture began (digest {rows.digest[:12]}…, "
                f"not {job.header.text_digest[:12]}…). Restore it, or capture it anew."
            )
        self._job, self._rows, self._scorer = job, rows, scorer

    def rows(self, samples: range, on_row: OnRow) -> list[SignalRow]:
        """Score the rows of a range of samples; see `Teacher`."""
        recipe = self._job.recipe
        if self._scorer is None:
            self._scorer = open_scorer(recipe.model, recipe.revision, recipe.engine, tokenizer_for(recipe))
        rows = [self._rows.rows[sample].row for sample in samples]
        tensors = [(torch.tensor(row.ids), torch.tensor(row.trained)) for row in rows]
        signals = self._scorer.score(
            tensors, self._job.spec, first_sample=samples.start, seed=recipe.seed, on_row=on_row
        )
        return [SignalRow(ids, trained, signal) for (ids, trained), signal in zip(tensors, signals, strict=True)]

    def close(self) -> None:
        """Let go of the teacher."""
        if self._scorer is not None:
            self._scorer.close()


class Writer:
    """A teacher that answers prompts, and says with each token what else it might have been."""

    def __init__(self, job: CaptureJob, prompts: Sequence[NamedPrompt]) -> None:
        self._job, self._prompts = job, prompts
        self._tokenizer = tokenizer_for(job.recipe)

    @cached_property
    def _generator(self) -> Generator:
        recipe = self._job.recipe
        return open_generator(recipe.model, recipe.revision, recipe.engine, self._tokenizer)

    def rows(self, samples: range, on_row: OnRow) -> list[SignalRow]:
        """Have the prompts of a range of samples answered; see `Teacher`."""
        job = self._job
        if (generate := job.recipe.generate) is None:
            raise ValueError("a writer needs the section `generate`")
        prompts = [self._prompts[sample].prompt for sample in samples]
        completions = self._generator.generate(prompts, generate.sampling, first_prompt=samples.start)
        found = []
        for prompt, completion in zip(prompts, completions, strict=True):
            ids, trained, signal = scored_row(prompt_ids(self._tokenizer, prompt), completion, job.header.kind)
            found.append(SignalRow(ids, trained, signal))
            on_row(len(ids))
        return found

    def close(self) -> None:
        """Let go of the model or the connections."""
        if "_generator" in self.__dict__:
            self._generator.close()


def make_shard(job: CaptureJob, teacher: Teacher, samples: range, on_row: OnRow = lambda tokens: None) -> ShardRecord:
    """Make one shard, write it, and return its record, which the process that holds the dataset has to adopt.

    Raises:
        LimbeckError: the teacher or the disk failed; nothing half-written is left.
    """
    return publish_shard(job.recipe.output, job.header, samples, teacher.rows(samples, on_row))
