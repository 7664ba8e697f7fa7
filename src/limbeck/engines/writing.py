"""What generators of this process share: which token is taken, where a text ends, and what is said about it.

A generator owns the model and its cache; given the same logits, every one of them writes the same. A draw is one number
between 0 and 1 from the completion's own stream, looked up in the cumulated probabilities, so that it depends on no
other completion.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from limbeck.engines.completions import Completion, Prompt, Sampling, Usage
from limbeck.errors import UserError
from limbeck.signals.tail import log_complement
from limbeck.signals.types import TopkSignal

OnToken: TypeAlias = Callable[[int, int, int], None]
"""Called with prompt, choice and token, as tokens are taken; the prompt's number is its place in the call."""


def unheard(prompt: int, choice: int, token: int) -> None:
    """Ignore a token; see `OnToken`."""


class LocalGenerator(Protocol):
    """A generator whose model lies in this process; see `limbeck.engines.completions.Generator`.

    Attributes:
        description: for the manifest.
        context: the longest prompt and completion together, in tokens; None: unknown.
        ends: tokens that end a text.
    """

    description: dict[str, Any]
    context: int | None
    ends: frozenset[int]

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, first_prompt: int = 0, on_token: OnToken = unheard
    ) -> list[Completion]:
        """Return completions of each prompt, and tell each token as it is taken."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


class TokenChooser:
    """Takes the next token of each row, and remembers what the model said about it.

    Args:
        sampling: how tokens are drawn.
        seeds: of each row's stream.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self._sampling = sampling
        self._draws_BS = torch.stack(
            [
                torch.rand(sampling.max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
                for seed in seeds
            ]
        )
        self._step = 0
        self._said: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, logits_BV: Tensor) -> Tensor:
        """Return the tokens `[B]` that follow."""
        logits_BV = logits_BV.float()
        if logits_BV.device.type == "mps":  # has no float64
            logits_BV = logits_BV.cpu()
        chosen_B = self._chosen(logits_BV)
        if self._sampling.top_logprobs:
            logprobs_BV = logits_BV.double().log_softmax(-1)
            best_BK, ids_BK = logprobs_BV.topk(min(self._sampling.top_logprobs, logprobs_BV.shape[-1]), dim=-1)
            own_B = logprobs_BV.gather(-1, chosen_B[:, None])[:, 0]
            self._said.append((ids_BK.cpu(), best_BK.cpu(), own_B.cpu()))
        self._step += 1
        return chosen_B

    def _chosen(self, logits_BV: Tensor) -> Tensor:
        if self._sampling.temperature == 0:
            return logits_BV.argmax(-1)
        mass_BV = (logits_BV.double() / self._sampling.temperature).softmax(-1)
        if self._sampling.top_p < 1:
            falling_BV, order_BV = mass_BV.sort(dim=-1, descending=True, stable=True)
            falling_BV[falling_BV.cumsum(-1) - falling_BV >= self._sampling.top_p] = 0.0
            mass_BV = torch.zeros_like(mass_BV).scatter(-1, order_BV, falling_BV)
        below_BV = mass_BV.cumsum(-1)
        drawn_B1 = self._draws_BS[:, self._step, None].to(below_BV.device) * below_BV[:, -1:]
        return torch.searchsorted(below_BV, drawn_B1, right=True)[:, 0].clamp(max=mass_BV.shape[-1] - 1)

    def said(self, row: int, length: int) -> tuple[TopkSignal | None, Tensor | None]:
        """Return what the model said about a row's first tokens, and their own log-probabilities."""
        if not self._said:
            return None, None
        ids_SK, best_SK, own_S = (torch.stack([step[part][row] for step in self._said[:length]]) for part in range(3))
        signal = TopkSignal(
            ids=ids_SK,
            logprobs=best_SK.float(),
            log_tail_mass=log_complement(best_SK.logsumexp(-1)).float(),
            log_normalisers=torch.zeros(length, 1),
            temperatures=(1.0,),
            mask=torch.ones(length, dtype=torch.bool),
        )
        return signal, own_S.float()


class TextStopper:
    """Ends a row at an end-of-text token or a stop text, and remembers where.

    Args:
        tokenizer: of the model.
        ends: tokens that end a text.
        stop: texts that do.
        rows: how many texts are written at a time.

    Attributes:
        reach: how many of a row's newest tokens it has to see.
        lengths: of each row that ended so, its tokens up to and with the one that ended it; 0 for the others.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], stop: tuple[str, ...], rows: int
    ) -> None:
        self._tokenizer, self._ends, self._stop = tokenizer, ends, stop
        # a token that adds no byte to the text is rare; a few more than the bytes of the longest stop text are enough
        self.reach = max((len(text.encode()) for text in stop), default=0) + 8
        self.lengths = [0] * rows

    def see(self, row: int, newest: list[int], length: int) -> bool:
        """Return whether a row has ended, with `length` tokens written, the `newest` of which are these."""
        if not self.lengths[row] and (newest[-1] in self._ends or self._stops(newest[-self.reach :])):
            self.lengths[row] = length
        return self.lengths[row] > 0

    def _stops(self, tokens: list[int]) -> bool:
        return bool(self._stop) and any(text in self._decoded(tokens) for text in self._stop)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of a completion, up to the stop text if there is one in it."""
        text = self._decoded(tokens[:-1] if tokens and tokens[-1] in self._ends else tokens)
        return text[: min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=len(text))]

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def completed(
    row: int, written: Sequence[int], chooser: TokenChooser, stopper: TextStopper, *, prompt: int, choice: int,
    prompt_ids: Sequence[int], model: str,
) -> Completion:  # fmt: skip
    """Return the completion of a row, of which at least so much was `written` as counts."""
    length = stopper.lengths[row] or len(written)
    chosen = tuple(written[:length])
    top, token_logprobs = chooser.said(row, length)
    return Completion(
        prompt=prompt,
        choice=choice,
        text=stopper.text_of(chosen),
        ids=chosen,
        finish_reason="stop" if stopper.lengths[row] else "length",
        usage=Usage(len(prompt_ids), length),
        model=model,
        top=top,
        token_logprobs=token_logprobs,
        prompt_ids=tuple(prompt_ids),
    )


def end_tokens(own: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a text: the tokenizer's, and the model's `own` (of its generation settings)."""
    ends = own if isinstance(own, list) else [own]
    return frozenset(int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None)


def check_fit(ids: Sequence[Sequence[int]], sampling: Sampling, context: int | None, first_prompt: int) -> None:
    """Refuse a prompt that does not fit into the model's context together with its completion.

    Raises:
        UserError: there is one; it is named.
    """
    for place, prompt in enumerate(ids):
        if context is not None and len(prompt) + sampling.max_tokens > context:
            raise UserError(
                f"prompt {first_prompt + place}: its {len(prompt)} tokens and {sampling.max_tokens} new ones are "
                f"more than the model's context of {context}. Lower sampling.max_tokens, or shorten the prompt."
            )


def room_for(prompt: int, context: int | None, wanted: int | None, default: int) -> int:
    """Return how long a completion of a prompt of so many tokens may be.

    Args:
        prompt: tokens of the prompt.
        context: of the model.
        wanted: tokens asked for; None: `default`, or as many as fit.
        default: what is asked for otherwise.

    Raises:
        UserError: so many don't fit, or none does.
    """
    left = default if context is None else context - prompt
    if left < (wanted or 1):
        raise UserError(
            f"the prompt's {prompt} tokens and {wanted or 'even one'} more do not fit into the model's context of "
            f"{context}. Shorten it{', or ask for fewer new ones' if wanted and left > 0 else ''}."
        )
    return wanted or min(default, left)
