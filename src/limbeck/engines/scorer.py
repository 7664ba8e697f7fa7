"""Scorers: whatever can say what a teacher thinks of given rows, behind one interface.

    scorer = open_scorer("org/teacher", revision, ServerEngine(engine="server", base_url=…, model=…), tokenizer)
    signals = scorer.score(rows, codec)
    scorer.close()

Every engine gives the same answer for the same teacher, as far as it can see it: a server that returns K entries knows
nothing of the distribution's shape beyond them, so only codecs that need no more are accepted from it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from limbeck.engines.registry import opener_of
from limbeck.engines.settings import EngineSettings, ServerEngine, TransformersEngine, VllmEngine
from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.from_logits import kind_stored, selection_of
from limbeck.signals.types import TeacherSignal

__all__ = [
    "EngineSettings",
    "Row",
    "Scorer",
    "ServerEngine",
    "TransformersEngine",
    "VllmEngine",
    "entries_asked",
    "open_scorer",
    "vocabulary_of",
]

Row = tuple[Tensor, Tensor]
OnRow = Callable[[int], None]


def quietly(tokens: int) -> None:
    """Do nothing: the progress callback where nobody asked for one."""


class Scorer(Protocol):
    """A teacher that is ready to read rows.

    Attributes:
        vocabulary: size of its distributions.
        description: for the manifest: engine, dtype, the model id that was reported, versions. No secrets.
    """

    vocabulary: int
    description: dict[str, Any]

    def score(
        self,
        rows: Sequence[Row],
        spec: Settings,
        *,
        first_sample: int = 0,
        seed: int = 0,
        on_row: OnRow = quietly,
    ) -> list[TeacherSignal]:
        """Return the signal of each row, on the CPU.

        Args:
            rows: `input_ids` `[T]` and `trained` `[T]` of each row. Position `t` says something where token `t + 1`
                is there and trained; the other positions are masked.
            spec: settings of the codec that will store the signals; decides their kind.
            first_sample: the number of the first row in the whole capture, for messages and for drawn signals.
            seed: of whatever is drawn.
            on_row: called with the number of tokens of each finished row, in any order.

        Raises:
            UserError: this engine can't make the codec's kind of signal, or can't be asked at all.
            LimbeckError: what the teacher answered is not about these rows; row and position are named.
        """
        ...

    def complete(self, spec: Settings) -> Settings:
        """Return a codec's settings with what they have to know of the teacher (of `hidden`: its head's digest).

        Raises:
            UserError: this engine can't make the codec's kind of signal, or the settings name another teacher.
        """
        ...

    def write_references(self, folder: Path | str, spec: Settings) -> None:
        """Publish in a dataset's folder what its signals refer to and its columns don't hold (of `hidden`: the head).

        Raises:
            IntegrityError: the folder holds another file in its place.
        """
        ...

    def close(self) -> None:
        """Let go of the model or the connections."""
        ...


def open_scorer(model: str, revision: str | None, engine: Settings, tokenizer: PreTrainedTokenizerBase) -> Scorer:
    """Return a scorer for a teacher.

    Args:
        model: the teacher, a folder or a repository. A server has its own name for it (`engine.model`); here it says
            where the configuration is.
        revision: of the repository.
        engine: settings of a registered engine.
        tokenizer: the teacher's.

    Raises:
        UserError: there is no such engine, its package is not installed, or the teacher can't be had by it.
    """
    scorer: Scorer = opener_of("scorer", str(getattr(engine, "engine", "")))(model, revision, engine, tokenizer)
    return scorer


def vocabulary_of(model: str, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the size of a teacher's distributions by its configuration; it may be padded beyond the tokenizer.

    Raises:
        UserError: there is no configuration, or the tokenizer has more entries than the model.
    """
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{model}: no configuration can be read from here ({first_line}). Name the teacher's folder or repository, "
            "or say engine.vocabulary."
        ) from error
    size = int(config.vocab_size)
    if size < len(tokenizer):
        raise UserError(
            f"{model}: the tokenizer has {len(tokenizer)} entries, but the model's vocabulary only {size}. "
            "They do not belong together."
        )
    return size


def entries_asked(spec: Settings, vocabulary: int, engine: str) -> tuple[str, int]:
    """Return the kind of signal that a codec stores, and how many entries of a position it can keep.

    For engines that return the K most probable tokens, and know nothing of the rest but its mass.

    Raises:
        UserError: K entries are not enough for this codec; the message says which setting would do.
    """
    name = str(getattr(spec, "codec", ""))
    kind = kind_stored(spec, vocabulary)
    if kind not in ("topk", "token"):
        raise UserError(
            f"codec {name!r}: engine {engine} returns the most probable tokens, not what {name} stores. "
            "Use codec topk, distillkit or token, or engine transformers."
        )
    if kind == "token":
        return kind, 1
    chosen = selection_of(spec)
    others = [temperature for temperature in chosen.temperatures if temperature != 1.0]
    if others:
        raise UserError(
            f"codec {name!r}: temperatures lists {', '.join(f'{one:g}' for one in others)}, but engine {engine} "
            "returns the most probable tokens only, which do not tell the normaliser at any temperature but 1. "
            "Set temperatures: [1.0] in the codec's settings, or capture with engine transformers."
        )
    return kind, min(chosen.cap, vocabulary)
