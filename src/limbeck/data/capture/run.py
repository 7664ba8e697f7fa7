"""Capturing: a teacher reads a text, and what it says becomes a dataset of signals.

Rows keep the order of their source; each shard holds a fixed range of them. A capture that was killed goes on at the
first missing shard and ends byte for byte like one that was not, however many processes either has.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from transformers import PreTrainedTokenizerBase

import limbeck
from limbeck.data.capture.ray_data import made_on_ray
from limbeck.data.capture.recipe import CaptureRecipe
from limbeck.data.capture.shards import CaptureJob, Teacher, make_shard
from limbeck.data.capture.teacher import reference_of, tokenizer_for, vocabulary_for
from limbeck.data.capture.text import CaptureText, open_text
from limbeck.data.capture.workers import made_by_processes
from limbeck.data.tokenizer import tokenizer_digest
from limbeck.engines.scorer import Scorer, open_scorer
from limbeck.progress import bar, say
from limbeck.settings import Settings
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.hidden_head import HiddenSpec
from limbeck.signals.codecs.registry import parse_spec
from limbeck.signals.manifest import ManifestHeader, ShardRecord, make_header
from limbeck.signals.writer import DatasetWriter

WHERE_AND_HOW_FAST = {
    "device", "base_url", "api_key_env", "concurrency", "attempts", "timeout_s", "longest_wait_s", "budget_tokens",
    "gpu_memory_utilization",
}  # fmt: skip
"""Settings of engines that don't bear on what is captured; a capture may go on with others."""


def capture(recipe: CaptureRecipe) -> str:
    """Capture by a recipe, or go on with a capture that stopped.

    Returns:
        the dataset's folder.

    Raises:
        UserError: the text, the teacher or the folder can't be used; the message says which and why.
        LimbeckError: the teacher failed or the disk is full; what was captured stays usable.
    """
    tokenizer = tokenizer_for(recipe)
    spec = parse_spec(recipe.codec, "codec")
    vocabulary = vocabulary_for(recipe, tokenizer)
    if isinstance(spec, DistillkitSpec) and spec.d < vocabulary:
        say(f"codec distillkit: d is {spec.d}, but the teacher's vocabulary {vocabulary}; ids are stored for that one")
        spec = spec.model_copy(update={"d": vocabulary})
    text = open_text(recipe, tokenizer)
    scorer: Scorer | None = None
    if isinstance(spec, HiddenSpec):  # its settings name the teacher's output head
        scorer = open_scorer(recipe.model, recipe.revision, recipe.engine, tokenizer)
        spec = scorer.complete(spec)
    job = CaptureJob(recipe, _header(recipe, spec, vocabulary, text, tokenizer))
    with closing(text.teacher(job, scorer)) as teacher, DatasetWriter(recipe.output, job.header) as writer:
        if scorer is not None:
            writer.write_beside(lambda folder: scorer.write_references(folder, spec))
        if missing := writer.missing_ranges():
            _fill(writer, job, teacher, text, missing)
        if left := len(writer.missing_ranges()):
            say(f"{recipe.output}: stopped at the budget of tokens, {left} shards left. The same command goes on.")
            return recipe.output
        manifest = writer.finish()
    tokens, size = (sum(getattr(shard, part) for shard in manifest.shards) for part in ("tokens", "bytes"))
    say(f"{recipe.output}: {manifest.samples:,} rows, {tokens:,} tokens, {size / tokens:.1f} bytes a token on disk")
    return recipe.output


def _header(
    recipe: CaptureRecipe, spec: Settings, vocabulary: int, text: CaptureText, tokenizer: PreTrainedTokenizerBase
) -> ManifestHeader:
    engine: dict[str, Any] = recipe.engine.model_dump(mode="json", exclude=WHERE_AND_HOW_FAST)
    if device := getattr(recipe.engine, "device", None):
        engine["device"] = str(device).partition(":")[0]
    return make_header(
        codec=spec,
        teacher=reference_of(recipe),
        tokenizer_digest=tokenizer_digest(tokenizer),
        vocabulary=vocabulary,
        text_digest=text.digest,
        samples=len(text),
        samples_per_shard=recipe.samples_per_shard,
        capture={"engine": engine, "seed": recipe.seed, "limbeck": limbeck.__version__},
    )


def _fill(writer: DatasetWriter, job: CaptureJob, teacher: Teacher, text: CaptureText, missing: list[range]) -> None:
    """Have the missing shards made, as far as the budget of tokens goes, and enter them into the manifest."""
    recipe, ranges = job.recipe, job.header.ranges()
    sizes = {samples: text.size(samples) for samples in ranges}
    missing = _within_budget(missing, sizes, recipe.token_budget)
    total, left = sum(sizes.values()), sum(sizes[samples] for samples in missing)
    if len(missing) < len(ranges):
        say(f"{len(missing)} of {len(ranges)} shards are to be captured now")
    with bar(f"capturing signals ({text.unit})", total, total - left) as shown:
        started, read, size, tokens = time.perf_counter(), 0, 0, 0

        def advance(count: int) -> None:
            nonlocal read
            read += count
            density = f"  {size / tokens:.1f} bytes/token" if tokens else ""
            by = count if text.unit == "tokens" else 1
            shown.advance(by, note=f"{read / (time.perf_counter() - started):,.0f} tokens/s{density}")

        alone = recipe.cluster == "local" and recipe.processes == 1
        for record in _records(job, teacher, missing, advance):
            writer.adopt(record)
            size, tokens = size + record.bytes, tokens + record.tokens
            if not alone:
                advance(record.tokens)


def _records(
    job: CaptureJob, teacher: Teacher, missing: list[range], advance: Callable[[int], None]
) -> Iterator[ShardRecord]:
    if job.recipe.cluster == "ray":
        yield from made_on_ray(job, missing)
    elif job.recipe.processes > 1:
        yield from made_by_processes(job, missing)
    else:
        for samples in missing:
            yield make_shard(job, teacher, samples, advance)


def _within_budget(missing: list[range], sizes: dict[range, int], budget: int | None) -> list[range]:
    """Return the first of the missing ranges that a budget pays for; one at least."""
    affordable, spent = missing[:1], sizes[missing[0]]
    for samples in missing[1:]:
        spent += sizes[samples]
        if budget is not None and spent > budget:
            break
        affordable.append(samples)
    return affordable
