"""Generators: whatever writes text after a prompt, behind one interface.

    generator = open_generator("org/teacher", revision, engine, tokenizer)
    completions = generator.generate(prompts, Sampling(max_tokens=200, seed=7))
    generator.close()

A prompt is a conversation, or token ids. Completion i of prompt p is drawn with a seed of its own, derived from the
run's seed, the prompt's number and i: a run that is resumed at a prompt goes on with the texts it would have had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeGuard

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbeck.engines.registry import opener_of
from limbeck.errors import LimbeckError
from limbeck.seeds import derive_seed
from limbeck.settings import Settings
from limbeck.signals.types import TeacherSignal, TokenSignal, TopkSignal, at

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = Sequence[Message] | Sequence[int]
SEED_BITS = 31  # servers take signed numbers, some of them of 32 bits


class Sampling(Settings):
    """How completions are drawn.

    Attributes:
        temperature: 0 takes the most probable token each time.
        top_p: draw from the fewest tokens whose mass reaches this.
        max_tokens: of one completion.
        stop: texts that end a completion; they are not part of it.
        seed: of the run.
        n: completions of each prompt.
        top_logprobs: entries to return for each generated token, at temperature 1; 0: none.
    """

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[str, ...] = ()
    seed: int = 0
    n: int = Field(default=1, ge=1)
    top_logprobs: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Usage:
    """Tokens read and written, as far as the engine says."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        prompt: the prompt's number in the whole run.
        choice: which of the prompt's completions this is, from 0.
        text: without special tokens, and without the text that stopped it.
        ids: the generated tokens, up to and with the one that ended the completion; None where they are not known.
        finish_reason: `stop` if the model or a stop text ended it, `length` if `max_tokens` did, or the server's word.
        usage: tokens of the prompt and of this completion.
        model: the id that the engine reports.
        top: what the model said about each of `ids`: position j is about `ids[j]`. None if it was not asked for.
        token_logprobs: `[n]`, of `ids` themselves, with `top`.
        prompt_ids: the prompt as the model read it, where that is known.
    """

    prompt: int
    choice: int
    text: str
    ids: tuple[int, ...] | None
    finish_reason: str
    usage: Usage
    model: str
    top: TopkSignal | None = None
    token_logprobs: Tensor | None = None
    prompt_ids: tuple[int, ...] | None = None


class Generator(Protocol):
    """A teacher that is ready to write.

    Attributes:
        description: for the manifest: engine, dtype, the model id that was reported, versions. No secrets.
    """

    description: dict[str, Any]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, first_prompt: int = 0) -> list[Completion]:
        """Return `sampling.n` completions of each prompt, in the order of prompts.

        Args:
            prompts: conversations, or token ids.
            sampling: how they are drawn.
            first_prompt: the number of the first prompt in the whole run; seeds and messages are made of it.

        Raises:
            UserError: this engine can't do what is asked.
            LimbeckError: an answer is not what it should be; the prompt is named.
        """
        ...

    def close(self) -> None:
        """Let go of the model or the connections."""
        ...


def open_generator(model: str, revision: str | None, engine: Settings, tokenizer: PreTrainedTokenizerBase) -> Generator:
    """Return a generator for a teacher; see `limbeck.engines.scorer.open_scorer` for what is given.

    Raises:
        UserError: there is no such engine, its package is not installed, or the teacher can't be had by it.
    """
    opened: Generator = opener_of("generator", str(getattr(engine, "engine", "")))(model, revision, engine, tokenizer)
    return opened


def completion_seed(sampling: Sampling, prompt: int, choice: int) -> int:
    """Return the seed of one completion: a non-negative number of 31 bits."""
    return derive_seed(sampling.seed, "completion", prompt, choice) >> (64 - SEED_BITS)


def is_ids(prompt: Prompt) -> TypeGuard[Sequence[int]]:
    """Return whether a prompt is token ids."""
    return len(prompt) > 0 and all(isinstance(part, int) for part in prompt)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the ids of a prompt, ready for the assistant to answer.

    Raises:
        LimbeckError: there is nothing in it.
    """
    if is_ids(prompt):
        return list(prompt)
    if not prompt:
        raise LimbeckError("a prompt without a token can't be gone on with.")
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def scored_row(
    prompt: Sequence[int], completion: Completion, kind: str = "topk"
) -> tuple[Tensor, Tensor, TeacherSignal]:
    """Return a row of a dataset: the prompt and what was written, with what was said about the latter.

    Args:
        prompt: the ids of the prompt.
        completion: with ids and `top`.
        kind: of the signal: `topk` or `token`.

    Returns:
        `input_ids` `[T]`, `trained` `[T]` (the completion's tokens), and the signal of the T positions.

    Raises:
        LimbeckError: the completion came without ids or log-probabilities, or is about another prompt.
    """
    where = f"prompt {completion.prompt}"
    if completion.ids is None or completion.top is None or completion.token_logprobs is None:
        raise LimbeckError(f"{where}: the completion came without log-probabilities. Set sampling.top_logprobs.")
    if completion.prompt_ids is not None and completion.prompt_ids != tuple(prompt):
        raise LimbeckError(
            f"{where}: the model read {len(completion.prompt_ids)} tokens as the prompt, our tokenizer makes "
            f"{len(prompt)} others of it. Use the teacher's own tokenizer and chat template."
        )
    ids_T = torch.tensor([*prompt, *completion.ids])
    trained_T = torch.arange(len(ids_T)) >= len(prompt)
    before, written = len(prompt) - 1, len(completion.ids)
    place = torch.full((len(ids_T),), -1)
    place[before : before + written] = torch.arange(written)
    said_T = place >= 0
    if kind == "token":
        logprobs_T = torch.zeros(len(ids_T))
        logprobs_T[said_T] = completion.token_logprobs
        return ids_T, trained_T, TokenSignal(logprobs_T, said_T)
    if not written:
        return ids_T, trained_T, _nothing_said(len(ids_T))
    whole = at(completion.top, place.clamp(min=0))
    mask_T = whole.mask & said_T
    signal = TopkSignal(
        ids=whole.ids.masked_fill(~mask_T[:, None], 0),
        logprobs=whole.logprobs.masked_fill(~mask_T[:, None], float("-inf")),
        log_tail_mass=whole.log_tail_mass.masked_fill(~mask_T, float("-inf")),
        log_normalisers=whole.log_normalisers.masked_fill(~mask_T[:, None], 0.0),
        temperatures=whole.temperatures,
        mask=mask_T,
    )
    return ids_T, trained_T, signal


def _nothing_said(length: int) -> TopkSignal:
    absent = torch.full((length, 1), float("-inf"))
    return TopkSignal(
        torch.zeros(length, 1, dtype=torch.int64), absent, absent[:, 0].clone(), torch.zeros(length, 1), (1.0,),
        torch.zeros(length, dtype=torch.bool),
    )  # fmt: skip
