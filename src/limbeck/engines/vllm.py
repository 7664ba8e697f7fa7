"""Engine `vllm`: vLLM in this process (extra `vllm`), for scoring and for generating.

Log-probabilities come in vLLM's flat form (`flat_logprobs`), three plain lists a row instead of an object a token;
versions without it return lists of objects, which are read too. They are raw: no temperature, no penalties.
"""

import gc
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from limbeck.engines.completions import (
    Completion,
    Generator,
    Prompt,
    Sampling,
    Usage,
    completion_seed,
    prompt_ids,
)
from limbeck.engines.entries import Entries, signal_of_answer, signal_of_entries
from limbeck.engines.registry import opens
from limbeck.engines.scorer import OnRow, Row, Scorer, entries_asked, quietly, vocabulary_of
from limbeck.engines.server import counted, silent
from limbeck.engines.settings import VllmEngine
from limbeck.errors import LimbeckError, UserError
from limbeck.settings import Settings
from limbeck.signals.types import TeacherSignal

NO_CAP = -1


class VllmModel:
    """A model that vLLM has loaded; scores and writes."""

    def __init__(
        self, model: str, revision: str | None, engine: VllmEngine, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._vllm = _import_vllm()
        self._tokenizer = tokenizer
        self._name = model
        self.vocabulary = vocabulary_of(model, revision, tokenizer)
        self.description: dict[str, Any] = {
            **engine.model_dump(mode="json", exclude={"gpu_memory_utilization"}),
            "vllm": str(getattr(self._vllm, "__version__", "unknown")),
        }
        arguments = engine.model_dump(exclude={"engine"})
        self._llm: Any = self._vllm.LLM(
            model=model, revision=revision, tokenizer=model, tokenizer_revision=revision, max_logprobs=NO_CAP,
            logprobs_mode="raw_logprobs", **arguments,
        )  # fmt: skip

    def score(
        self,
        rows: Sequence[Row],
        spec: Settings,
        *,
        first_sample: int = 0,
        seed: int = 0,
        on_row: OnRow = quietly,
    ) -> list[TeacherSignal]:
        """Return the signal of each row; see `Scorer`."""
        kind, width = entries_asked(spec, self.vocabulary, "vllm")
        needed = [row for row, (ids, trained) in enumerate(rows) if len(ids) > 1 and bool(trained[1:].any())]
        sampling = self._sampling_params(
            temperature=1.0, top_p=1.0, max_tokens=1, prompt_logprobs=width, detokenize=False
        )
        answers = self._ask([rows[row][0].tolist() for row in needed], [sampling] * len(needed))
        found: dict[int, TeacherSignal] = {}
        for row, answer in zip(needed, answers, strict=True):
            ids, trained = rows[row]
            where = f"vllm: row {first_sample + row}"
            if list(answer.prompt_token_ids) != ids.tolist():
                raise LimbeckError(f"{where}: other tokens were read than were asked about. Nothing of it is taken.")
            entries = entries_of_vllm(answer.prompt_logprobs, where)
            found[row] = signal_of_entries(
                entries, ids, counted(trained), kind=kind, width=width, vocabulary=self.vocabulary, where=where
            )
            on_row(len(ids))
        for row, (ids, _) in enumerate(rows):
            if row not in found:
                found[row] = silent(kind, len(ids))
                on_row(len(ids))
        return [found[row] for row in range(len(rows))]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, first_prompt: int = 0) -> list[Completion]:
        """Return completions of each prompt; see `Generator`."""
        ids = [prompt_ids(self._tokenizer, prompt) for prompt in prompts]
        jobs = [(place, choice) for place in range(len(ids)) for choice in range(sampling.n)]
        parameters = [
            self._sampling_params(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop),
                seed=completion_seed(sampling, first_prompt + place, choice),
                logprobs=sampling.top_logprobs or None,
            )
            for place, choice in jobs
        ]
        answers = self._ask([ids[place] for place, _ in jobs], parameters)
        return [
            self._completion(answer, first_prompt + place, choice, ids[place], sampling)
            for (place, choice), answer in zip(jobs, answers, strict=True)
        ]

    def complete(self, spec: Settings) -> Settings:
        """Return a codec's settings as they are, if this engine can fill it; see `Scorer`."""
        entries_asked(spec, self.vocabulary, "vllm")
        return spec

    def write_references(self, folder: Path | str, spec: Settings) -> None:
        """Do nothing: what this engine returns refers to nothing; see `Scorer`."""

    def close(self) -> None:
        """Let go of the model and its memory."""
        self._llm = None
        gc.collect()

    def _sampling_params(self, **settings: Any) -> Any:
        """Return vLLM's parameters, with flat log-probabilities where this version has them."""
        kind = self._vllm.SamplingParams
        flat = {"flat_logprobs": True} if "flat_logprobs" in getattr(kind, "__annotations__", {}) else {}
        return kind(n=1, **settings, **flat)

    def _ask(self, prompts: list[list[int]], parameters: list[Any]) -> list[Any]:
        if not prompts:
            return []
        asked = [self._vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        answers = list(self._llm.generate(asked, parameters, use_tqdm=False))
        if len(answers) != len(prompts):
            raise LimbeckError(f"vllm: {len(prompts)} rows were asked about, {len(answers)} answers came.")
        return answers

    def _completion(self, answer: Any, number: int, choice: int, prompt: list[int], sampling: Sampling) -> Completion:
        where = f"vllm: prompt {number}"
        [written] = answer.outputs
        chosen = tuple(int(token) for token in written.token_ids)
        top = token_logprobs = None
        if sampling.top_logprobs:
            said = entries_of_vllm(written.logprobs, where)
            entries = Entries(np.concatenate([said.starts[:1], said.starts]), said.ids, said.logprobs, said.ranks)
            top, token_logprobs = signal_of_answer(
                entries, chosen, width=sampling.top_logprobs, vocabulary=self.vocabulary, where=where
            )
        return Completion(
            prompt=number, choice=choice, text=written.text, ids=chosen, finish_reason=str(written.finish_reason),
            usage=Usage(len(prompt), len(chosen)), model=self._name, top=top, token_logprobs=token_logprobs,
            prompt_ids=tuple(prompt),
        )  # fmt: skip


@opens("scorer", "vllm", VllmEngine)
def open_vllm(model: str, revision: str | None, engine: VllmEngine, tokenizer: PreTrainedTokenizerBase) -> Scorer:
    """Load the teacher into vLLM and return its scorer."""
    return VllmModel(model, revision, engine, tokenizer)


@opens("generator", "vllm", VllmEngine)
def open_vllm_generator(
    model: str, revision: str | None, engine: VllmEngine, tokenizer: PreTrainedTokenizerBase
) -> Generator:
    """Load the teacher into vLLM and return its generator."""
    return VllmModel(model, revision, engine, tokenizer)


def entries_of_vllm(lists: Any, where: str) -> Entries:
    """Return the entries of vLLM's log-probabilities, flat or as one dictionary a place.

    Raises:
        LimbeckError: there are none, or they are something else.
    """
    if lists is None:
        raise LimbeckError(f"{where}: vLLM returned no log-probabilities.")
    if hasattr(lists, "start_indices"):
        starts = np.array([*lists.start_indices, len(lists.token_ids)], dtype=np.int64)
        ids = np.array(lists.token_ids, dtype=np.int64)
        logprobs = np.array(lists.logprobs, dtype=np.float64)
        if len(ids) != len(logprobs) or list(starts[1:]) != list(lists.end_indices):
            raise LimbeckError(f"{where}: vLLM's flat log-probabilities have gaps.")
    else:
        places = [place or {} for place in lists]
        starts = np.cumsum([0, *map(len, places)], dtype=np.int64)
        ids = np.fromiter(chain.from_iterable(places), dtype=np.int64, count=int(starts[-1]))
        logprobs = np.array([entry.logprob for place in places for entry in place.values()], dtype=np.float64)
    return Entries(starts, ids, logprobs, np.zeros(len(ids), dtype=np.int64))


def _import_vllm() -> ModuleType:
    try:
        return import_module("vllm")
    except ImportError as error:
        raise UserError(
            "engine vllm: the package is not installed here. Install limbeck's extra: pip install 'limbeck[vllm]' "
            "(it needs a GPU that vLLM supports), or use engine transformers or server."
        ) from error
