"""Engine `transformers`, generating: prompts in batches, each completion drawn by a random stream of its own.

The library walks the batch (padding on the left, a key-value cache); which token is taken, and where a completion ends,
is decided here. A draw is one number between 0 and 1 from the completion's own stream, looked up in the cumulated
probabilities, so that it depends on no other completion: another batch gives the same text, but for tokens whose
probabilities are level to the last digit.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from limbeck.engines.completions import (
    Completion,
    Generator,
    Prompt,
    Sampling,
    Usage,
    completion_seed,
    prompt_ids,
)
from limbeck.engines.registry import opens
from limbeck.engines.settings import TransformersEngine
from limbeck.engines.transformers import generating_by, load_model, quiet
from limbeck.errors import UserError
from limbeck.signals.tail import log_complement
from limbeck.signals.types import TopkSignal

Job = tuple[int, int]


class TransformersGenerator:
    """A loaded model that writes; see the module.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        engine: `batch_tokens` bounds prompts and completions of a batch together.
        name: what completions call the model.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, engine: TransformersEngine, name: str
    ) -> None:
        self._model: PreTrainedModel | None = model
        self._tokenizer = tokenizer
        self._batch_tokens = engine.batch_tokens
        self._name = name
        self._ends = _end_tokens(model, tokenizer)
        self.description: dict[str, Any] = {
            **engine.model_dump(mode="json", exclude={"device"}),
            "dtype": str(model.dtype).removeprefix("torch."),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, first_prompt: int = 0) -> list[Completion]:
        """Return completions of each prompt; see `Generator`.

        Raises:
            UserError: a prompt and its completion do not fit into the model's context.
        """
        if self._model is None:
            raise ValueError("this generator is closed")
        ids = [prompt_ids(self._tokenizer, prompt) for prompt in prompts]
        context = getattr(self._model.config, "max_position_embeddings", None)
        for place, prompt in enumerate(ids):
            if context is not None and len(prompt) + sampling.max_tokens > context:
                raise UserError(
                    f"prompt {first_prompt + place}: its {len(prompt)} tokens and {sampling.max_tokens} new ones are "
                    f"more than the model's context of {context}. Lower sampling.max_tokens, or shorten the prompt."
                )
        jobs = [(place, choice) for place in range(len(ids)) for choice in range(sampling.n)]
        found: dict[Job, Completion] = {}
        for batch in self._batches(jobs, ids, sampling):
            for job, completion in zip(batch, self._write(batch, ids, sampling, first_prompt), strict=True):
                found[job] = completion
        return [found[job] for job in jobs]

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _batches(self, jobs: list[Job], ids: list[list[int]], sampling: Sampling) -> Iterator[list[Job]]:
        """Yield the jobs, longest prompts first, in batches of at most `batch_tokens` tokens (one job at least)."""
        ordered = sorted(jobs, key=lambda job: (-len(ids[job[0]]), job))
        while ordered:
            widest = len(ids[ordered[0][0]]) + sampling.max_tokens
            size = max(1, self._batch_tokens // widest)
            yield ordered[:size]
            ordered = ordered[size:]

    def _write(
        self, batch: list[Job], ids: list[list[int]], sampling: Sampling, first_prompt: int
    ) -> Iterator[Completion]:
        """Yield the completions of a batch, in order."""
        assert self._model is not None
        prompts = [ids[place] for place, _ in batch]
        width = max(map(len, prompts))
        ids_BT = torch.zeros(len(batch), width, dtype=torch.int64)
        attention_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
            attention_BT[row, width - len(prompt) :] = 1
        seeds = [completion_seed(sampling, first_prompt + place, choice) for place, choice in batch]
        chooser = _Chooser(sampling, seeds)
        stopper = _Stopper(self._tokenizer, self._ends, sampling.stop, width, len(batch))
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=sampling.max_tokens, use_cache=True, eos_token_id=None, pad_token_id=0
        )
        with quiet(), generating_by(self._model, settings):
            written_BS = self._model.generate(
                ids_BT.to(self._model.device),
                attention_mask=attention_BT.to(self._model.device),
                logits_processor=LogitsProcessorList([chooser]),
                stopping_criteria=StoppingCriteriaList([stopper]),
            )[:, width:].tolist()
        for row, (place, choice) in enumerate(batch):
            length = stopper.lengths[row] or len(written_BS[row])
            chosen = tuple(written_BS[row][:length])
            top, token_logprobs = chooser.said(row, length)
            yield Completion(
                prompt=first_prompt + place,
                choice=choice,
                text=stopper.text_of(chosen),
                ids=chosen,
                finish_reason="stop" if stopper.lengths[row] else "length",
                usage=Usage(len(prompts[row]), length),
                model=self._name,
                top=top,
                token_logprobs=token_logprobs,
                prompt_ids=tuple(prompts[row]),
            )


class _Chooser(LogitsProcessor):
    """Takes each row's next token, and leaves the library no other choice."""

    def __init__(self, sampling: Sampling, seeds: list[int]) -> None:
        self._sampling = sampling
        self._draws_BS = torch.stack(
            [
                torch.rand(sampling.max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
                for seed in seeds
            ]
        )
        self._step = 0
        self._said: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits_BV = scores.float()
        if logits_BV.device.type == "mps":  # has no float64
            logits_BV = logits_BV.cpu()
        chosen_B = self._chosen(logits_BV)
        if self._sampling.top_logprobs:
            logprobs_BV = logits_BV.double().log_softmax(-1)
            best_BK, ids_BK = logprobs_BV.topk(min(self._sampling.top_logprobs, logprobs_BV.shape[-1]), dim=-1)
            own_B = logprobs_BV.gather(-1, chosen_B[:, None])[:, 0]
            self._said.append((ids_BK.cpu(), best_BK.cpu(), own_B.cpu()))
        self._step += 1
        return torch.full_like(scores, float("-inf")).scatter(-1, chosen_B[:, None].to(scores.device), 0.0)

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


class _Stopper(StoppingCriteria):
    """Ends a row at an end-of-text token or a stop text, and remembers where.

    Attributes:
        lengths: of each row that ended so, its tokens up to and with the one that ended it; 0 for the others.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], stop: tuple[str, ...], width: int, rows: int
    ) -> None:
        self._tokenizer, self._ends, self._stop, self._width = tokenizer, ends, stop, width
        # a token that adds no byte to the text is rare; a few more than the bytes of the longest stop text are enough
        self._reach = max((len(text.encode()) for text in stop), default=0) + 8
        self.lengths = [0] * rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        length = input_ids.shape[1] - self._width
        recent = input_ids[:, -min(length, self._reach) :].tolist()
        for row, tokens in enumerate(recent):
            if not self.lengths[row] and (tokens[-1] in self._ends or self._stops(tokens)):
                self.lengths[row] = length
        return torch.tensor([done > 0 for done in self.lengths], device=input_ids.device)

    def _stops(self, tokens: list[int]) -> bool:
        return bool(self._stop) and any(text in self._decoded(tokens) for text in self._stop)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of a completion, up to the stop text if there is one in it."""
        text = self._decoded(tokens[:-1] if tokens and tokens[-1] in self._ends else tokens)
        return text[: min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=len(text))]

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@opens("generator", "transformers", TransformersEngine)
def open_transformers_generator(
    model: str, revision: str | None, engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase
) -> Generator:
    """Load the teacher and return its generator."""
    dtype = None if engine.dtype == "auto" else getattr(torch, engine.dtype)
    loaded = load_model(model, revision=revision, device=engine.device, dtype=dtype)
    return TransformersGenerator(loaded, tokenizer, engine, model)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a text: the tokenizer's, and those of the model's generation settings."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = own if isinstance(own, list) else [own]
    return frozenset(int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None)
