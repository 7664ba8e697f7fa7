"""The recipe of a capture: which teacher says what about which text, and how it is kept."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from limbeck.data.sources import TextSource
from limbeck.engines.completions import Sampling
from limbeck.engines.scorer import EngineSettings, TransformersEngine
from limbeck.errors import UserError
from limbeck.settings import Settings, read_yaml
from limbeck.signals.codecs.distillkit_spec import read_config
from limbeck.signals.codecs.registry import parse_spec
from limbeck.signals.codecs.topk_spec import TopkSpec

DISTILLKIT_KEYS = frozenset({"logprob_compressor", "legacy_logit_compression", "d", "vocab_size"})
"""Keys by which DistillKit's own settings are known."""


class GenerateSettings(Settings):
    """The section `generate:`: the teacher first answers the prompts, then its answers are scored.

    Attributes:
        sampling: how answers are drawn; each prompt's seed is derived from its own and the prompt's number.
        engine: what writes; the capture's own engine where absent.
        batch_prompts: prompts handed to the engine at a time, and kept on disk when they are answered.
        scores: `again` has the capture's engine read the answers; `as_written` keeps what came with them (of a server
            that returns the most probable tokens of what it writes, but scores no given text).
    """

    sampling: Sampling = Sampling()
    engine: EngineSettings | None = None
    batch_prompts: int = Field(64, gt=0)
    scores: Literal["again", "as_written"] = "again"

    @model_validator(mode="after")
    def _check(self) -> "GenerateSettings":
        if self.scores == "as_written" and (self.sampling.n != 1 or not self.sampling.top_logprobs or self.engine):
            raise ValueError("scores: as_written needs sampling.n 1, sampling.top_logprobs, and no engine of its own")
        return self


class CaptureRecipe(Settings):
    """Everything that decides what a dataset of signals holds.

    Attributes:
        model: the teacher: a folder, a repository, or what a server calls it.
        revision: of the teacher's repository; for a local folder the digest of its weights is used.
        name: what the manifest calls the teacher; `model` when absent.
        tokenizer: where the tokenizer lies, if not with the model.
        dataset: the text.
        output: the dataset's folder: empty, absent, or an unfinished capture of the same things.
        codec: settings of the codec that stores the signals: of `topk` where they name none, or DistillKit's own.
        engine: what runs the teacher.
        generate: let the teacher write the text that is scored.
        seed: of everything that is drawn.
        samples_per_shard: rows a shard.
        token_budget: stop cleanly, at the end of a shard, once this many tokens were read in this call.
        processes: how many of them share the work, each with a teacher of its own (on `cuda`, a device of its own).
        cluster: `local` processes, or actors of Ray Data.
    """

    model: str
    revision: str | None = None
    name: str | None = None
    tokenizer: str | None = None
    dataset: TextSource
    output: str
    codec: dict[str, Any] = Field(default_factory=lambda: TopkSpec().model_dump(mode="json"))
    engine: EngineSettings = Field(default_factory=TransformersEngine)
    generate: GenerateSettings | None = None
    seed: int = 42
    samples_per_shard: int = Field(1024, gt=0)
    token_budget: int | None = Field(None, gt=0)
    processes: int = Field(1, ge=1)
    cluster: Literal["local", "ray"] = "local"

    @field_validator("codec", mode="after")
    @classmethod
    def _name_codec(cls, codec: dict[str, Any]) -> dict[str, Any]:
        """Take settings without a name for DistillKit's where they are, and for those of `topk` otherwise."""
        if "codec" in codec:
            return codec
        if codec.keys() & DISTILLKIT_KEYS:
            return read_config(codec, "codec").model_dump(mode="json")
        return {"codec": "topk", **codec}


def read_codec(path: Path | None) -> Settings:
    """Return the codec's settings from a YAML file, or those of `topk` as it comes where there is no file.

    A file without the key `codec` is DistillKit's own: `logprob_compressor` or `legacy_logit_compression`.

    Raises:
        UserError: the file is missing, is not YAML, or describes no codec.
    """
    if path is None:
        return TopkSpec()
    data = read_yaml(path)
    if "codec" in data:
        return parse_spec(data, str(path))
    try:
        return read_config(data, str(path))
    except UserError as error:
        raise UserError(f"{error} (A file for one of our codecs has the key `codec`.)") from error
