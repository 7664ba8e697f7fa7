"""Engine `transformers`, generating: prompts in batches, each completion drawn by a random stream of its own.

The library walks the batch (padding on the left, a key-value cache); which token is taken, and where a completion ends,
is decided by `limbeck.engines.writing`. A draw depends on no other completion: another batch gives the same text, but
for tokens whose probabilities are level to the last digit.
"""

from collections.abc import Callable, Iterator, Sequence
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

from limbeck.engines.completions import Completion, Prompt, Sampling, completion_seed, prompt_ids
from limbeck.engines.registry import opens
from limbeck.engines.settings import TransformersEngine
from limbeck.engines.transformers import generating_by, load_model, quiet
from limbeck.engines.writing import (
    OnToken,
    TextStopper,
    TokenChooser,
    check_fit,
    completed,
    end_tokens,
    unheard,
)

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
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.ends = end_tokens(getattr(model.generation_config, "eos_token_id", None), tokenizer)
        self.description: dict[str, Any] = {
            **engine.model_dump(mode="json", exclude={"device"}),
            "dtype": str(model.dtype).removeprefix("torch."),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, first_prompt: int = 0, on_token: OnToken = unheard
    ) -> list[Completion]:
        """Return completions of each prompt; see `LocalGenerator`.

        Raises:
            UserError: a prompt and its completion do not fit into the model's context.
        """
        if self._model is None:
            raise ValueError("this generator is closed")
        ids = [prompt_ids(self._tokenizer, prompt) for prompt in prompts]
        check_fit(ids, sampling, self.context, first_prompt)
        jobs = [(place, choice) for place in range(len(ids)) for choice in range(sampling.n)]
        found: dict[Job, Completion] = {}
        for batch in self._batches(jobs, ids, sampling):
            written = self._write(batch, ids, sampling, first_prompt, on_token)
            for job, completion in zip(batch, written, strict=True):
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
        self, batch: list[Job], ids: list[list[int]], sampling: Sampling, first_prompt: int, on_token: OnToken
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
        chooser = TokenChooser(sampling, seeds)
        stopper = TextStopper(self._tokenizer, self.ends, sampling.stop, len(batch))
        stop = _Stop(stopper, width, lambda row, token: on_token(*batch[row], token))
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=sampling.max_tokens, use_cache=True, eos_token_id=None, pad_token_id=0
        )
        with quiet(), generating_by(self._model, settings):
            written_BS = self._model.generate(
                ids_BT.to(self._model.device),
                attention_mask=attention_BT.to(self._model.device),
                logits_processor=LogitsProcessorList([_Choice(chooser)]),
                stopping_criteria=StoppingCriteriaList([stop]),
            )[:, width:].tolist()
        for row, (place, choice) in enumerate(batch):
            yield completed(
                row, written_BS[row], chooser, stopper, prompt=first_prompt + place, choice=choice,
                prompt_ids=prompts[row], model=self._name,
            )  # fmt: skip


class _Choice(LogitsProcessor):
    """Leaves the library no other choice than the chooser's."""

    def __init__(self, chooser: TokenChooser) -> None:
        self._chooser = chooser

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen_B = self._chooser.take(scores)
        return torch.full_like(scores, float("-inf")).scatter(-1, chosen_B[:, None].to(scores.device), 0.0)


class _Stop(StoppingCriteria):
    """Ends rows where the stopper does, and tells the tokens of those that go on."""

    def __init__(self, stopper: TextStopper, width: int, hear: Callable[[int, int], None]) -> None:
        self._stopper, self._width, self._hear = stopper, width, hear

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        length = input_ids.shape[1] - self._width
        for row, newest in enumerate(input_ids[:, -min(length, self._stopper.reach) :].tolist()):
            if not self._stopper.lengths[row]:
                self._hear(row, newest[-1])
            self._stopper.see(row, newest, length)
        return torch.tensor([done > 0 for done in self._stopper.lengths], device=input_ids.device)


@opens("generator", "transformers", TransformersEngine)
def open_transformers_generator(
    model: str, revision: str | None, engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase
) -> TransformersGenerator:
    """Load the teacher and return its generator."""
    dtype = None if engine.dtype == "auto" else getattr(torch, engine.dtype)
    loaded = load_model(model, revision=revision, device=engine.device, dtype=dtype)
    return TransformersGenerator(loaded, tokenizer, engine, model)
