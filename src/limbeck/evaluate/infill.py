"""Infilling: how often a model writes exactly what was cut out of a document, how near it comes, and whether it stops.

Spans are drawn by `derive_seed`, character by character, so that they begin and end inside tokens; the same settings
and documents give the same spans to every model whose context holds them. Answers are the most probable tokens.

    exact match       the text written is the text cut out, character by character
    edit similarity   1 - distance / longer length, with Levenshtein's distance in characters
    stop rate         answers that the model ended itself, before `max_tokens`

An exact match is a lower bound of being right: what else would work there is counted as wrong, since nothing is
executed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from limbeck.data.fim import infill_prompt
from limbeck.engines.completions import Sampling
from limbeck.engines.writing import LocalGenerator
from limbeck.errors import UserError
from limbeck.evaluate.statistics import Estimate, by_cluster, clustered_ratio, proportion
from limbeck.progress import bar
from limbeck.seeds import derive_random
from limbeck.settings import Settings

SHORTEST = 16  # characters around a span that are worth asking about
BATCH = 32


class InfillSettings(Settings):
    """What is asked.

    Attributes:
        spans: how many.
        longest: characters of a span, at most; lengths are drawn evenly from 1 on.
        around: characters of prefix and suffix together.
        max_tokens: of an answer.
        seed: decides documents and spans.
    """

    spans: int = Field(default=200, ge=1)
    longest: int = Field(default=48, ge=1)
    around: int = Field(default=400, ge=SHORTEST)
    max_tokens: int = Field(default=64, ge=1)
    seed: str = "1"


@dataclass(frozen=True)
class Span:
    """A piece cut out of a document, with what stands around it."""

    document: str
    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True)
class Infilled:
    """What a model wrote for a span."""

    span: Span
    written: str
    stopped: bool

    @property
    def exact(self) -> bool:
        """Whether it is what was cut out."""
        return self.written == self.span.middle

    @property
    def similarity(self) -> float:
        """How near it is, from 0 to 1."""
        return edit_similarity(self.written, self.span.middle)


@dataclass(frozen=True)
class InfillSummary:
    """The figures, with 95 % intervals over documents."""

    exact_match: Estimate
    edit_similarity: Estimate
    stop_rate: Estimate
    spans: int
    documents: int


def draw_spans(documents: Sequence[tuple[str, str]], settings: InfillSettings) -> list[Span]:
    """Return spans of documents, every document once before any twice.

    Args:
        documents: name and text of each.
        settings: how many, and how long.

    Raises:
        UserError: no document is long enough.
    """
    usable = sorted((name, text) for name, text in documents if len(text) > SHORTEST)
    if not usable:
        raise UserError(f"no document has more than {SHORTEST} characters: there is nothing to cut a span out of.")
    derive_random(settings.seed, "infill", "documents").shuffle(usable)
    return [
        _span(*usable[index % len(usable)], settings, derive_random(settings.seed, "infill", "span", index))
        for index in range(settings.spans)
    ]


def _span(name: str, text: str, settings: InfillSettings, rng: Random) -> Span:
    length = rng.randint(1, min(settings.longest, len(text) - SHORTEST))
    width = min(len(text), length + settings.around)
    first = rng.randint(0, len(text) - width)
    cut = first + rng.randint(0, width - length)
    return Span(name, text[first:cut], text[cut : cut + length], text[cut + length : first + width])


def infill(
    generator: LocalGenerator, tokenizer: PreTrainedTokenizerBase, spans: Sequence[Span], settings: InfillSettings
) -> list[Infilled]:
    """Let a model fill in spans.

    Raises:
        UserError: the tokenizer has no sentinels, or a span does not fit into the model's context.
    """
    sampling = Sampling(temperature=0, max_tokens=settings.max_tokens)
    found: list[Infilled] = []
    with bar("filling gaps (spans)", len(spans)) as shown:
        for first in range(0, len(spans), BATCH):
            batch = spans[first : first + BATCH]
            prompts = [infill_prompt(tokenizer, span.prefix, span.suffix) for span in batch]
            for span, one in zip(batch, generator.generate(prompts, sampling, first_prompt=first), strict=True):
                found.append(Infilled(span, one.text, one.finish_reason == "stop"))
                shown.advance()
    return found


def summarise(found: Sequence[Infilled]) -> InfillSummary:
    """Return the figures of what was filled in.

    Raises:
        ValueError: there is nothing.
    """
    names = [one.span.document for one in found]
    documents, sizes = by_cluster([1.0] * len(found), names)
    _, similarity = by_cluster([one.similarity for one in found], names)
    return InfillSummary(
        exact_match=_rate([one.exact for one in found], names),
        edit_similarity=clustered_ratio(similarity, sizes),
        stop_rate=_rate([one.stopped for one in found], names),
        spans=len(found),
        documents=len(documents),
    )


def _rate(flags: Sequence[bool], names: Sequence[str]) -> Estimate:
    """Return a share with its interval; where all are alike, the documents count as the trials."""
    documents, sizes = by_cluster([1.0] * len(flags), names)
    _, sums = by_cluster([float(flag) for flag in flags], names)
    if 0 < sum(flags) < len(flags):
        return clustered_ratio(sums, sizes)
    return proportion(len(documents) if all(flags) else 0, len(documents))


def edit_similarity(first: str, second: str) -> float:
    """Return `1 - distance / longer length` with Levenshtein's distance in characters; 1 for two empty texts."""
    longer = max(len(first), len(second))
    return 1.0 if longer == 0 else 1 - edit_distance(first, second) / longer


def edit_distance(first: str, second: str) -> int:
    """Return Levenshtein's distance: insertions, deletions and substitutions from one text to the other."""
    above = list(range(len(second) + 1))
    for row, letter in enumerate(first, start=1):
        here = [row]
        for column, other in enumerate(second, start=1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (letter != other)))
        above = here
    return above[-1]
