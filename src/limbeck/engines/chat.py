"""Engine `server`, generating: prompts sent to an OpenAI-compatible server.

vLLM's server gets token ids of our own chat template (`/completions`) and returns token ids. Any other server gets the
messages (`/chat/completions`) and returns text, with the log-probabilities of up to 20 tokens a position if asked;
those are aligned with our tokenizer by their bytes, or refused. Each completion is one request with a seed of its own.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck.engines.alignment import TokenBytes, align_content
from limbeck.engines.completions import (
    Completion,
    Generator,
    Prompt,
    Sampling,
    Usage,
    completion_seed,
    is_ids,
    prompt_ids,
)
from limbeck.engines.endpoint import Endpoint
from limbeck.engines.entries import ShapeError, signal_of_answer
from limbeck.engines.registry import opens
from limbeck.engines.retries import BudgetSpentError, Clock
from limbeck.engines.scorer import vocabulary_of
from limbeck.engines.server import describe, one_choice
from limbeck.engines.settings import ServerEngine
from limbeck.errors import LimbeckError, UserError

MOST_TOP_LOGPROBS = 20


class ServerGenerator:
    """Completions are written by a server; see the module."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        engine: ServerEngine,
        tokenizer: PreTrainedTokenizerBase,
        clock: Clock | None = None,
    ) -> None:
        self._source = (model, revision)
        self._engine = engine
        self._tokenizer = tokenizer
        self._tokens = TokenBytes(tokenizer)
        self._endpoint = Endpoint(engine, clock)
        try:
            self.description: dict[str, Any] = describe(self._endpoint)
        except LimbeckError:
            self._endpoint.close()
            raise

    @cached_property
    def vocabulary(self) -> int:
        """Size of the teacher's distributions."""
        return self._engine.vocabulary or vocabulary_of(*self._source, self._tokenizer)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, first_prompt: int = 0) -> list[Completion]:
        """Return completions of each prompt; see `Generator`.

        Raises:
            BudgetSpentError: the budget ends before the prompts do. What was under way is finished first, and is the
                error's `finished`.
        """
        if self._engine.mode == "generated" and not sampling.top_logprobs:
            sampling = sampling.model_copy(update={"top_logprobs": self._engine.top or MOST_TOP_LOGPROBS})
        self._check(sampling)
        jobs = [(place, choice) for place in range(len(prompts)) for choice in range(sampling.n)]
        found: dict[tuple[int, int], Completion] = {}
        spent: list[BudgetSpentError] = []

        async def ask(job: tuple[int, int]) -> None:
            if spent:
                return
            place, choice = job
            ids = prompt_ids(self._tokenizer, prompts[place])
            reserved = len(ids) + sampling.max_tokens
            try:
                self._endpoint.budget.reserve(reserved)
            except BudgetSpentError as error:
                spent.append(error)
                return
            number = first_prompt + place
            where = f"prompt {number}" + (f", choice {choice}" if sampling.n > 1 else "")
            path, body = self._request(prompts[place], ids, sampling)
            body["seed"] = completion_seed(sampling, number, choice)
            used = 0  # what is not answered has cost nothing
            try:
                answer = await self._endpoint.post(path, body, where)
                usage = _usage(answer, len(ids), None)
                used = usage.prompt_tokens + usage.completion_tokens
                found[job] = self._completion(answer, number, choice, ids, sampling, where)
                used = found[job].usage.prompt_tokens + found[job].usage.completion_tokens
            finally:
                self._endpoint.budget.settle(reserved, used)

        self._endpoint.for_each(jobs, ask)
        finished = [found[job] for job in jobs if job in found]
        if spent:
            raise BudgetSpentError(str(spent[0]), tuple(finished))
        return finished

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def _check(self, sampling: Sampling) -> None:
        if self._engine.protocol == "vllm" or not sampling.top_logprobs:
            return
        if sampling.top_logprobs > MOST_TOP_LOGPROBS:
            raise UserError(f"sampling.top_logprobs: protocol openai returns at most {MOST_TOP_LOGPROBS}.")
        if sampling.temperature != 1.0 or sampling.top_p != 1.0:
            raise UserError(
                "sampling: servers of protocol openai do not say whether log-probabilities are those before or after "
                "temperature and top_p. With top_logprobs set both to 1."
            )

    def _request(self, prompt: Prompt, ids: list[int], sampling: Sampling) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self._engine.model, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens, "n": 1, "stream": False,
        }  # fmt: skip
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self._engine.protocol == "vllm":
            body |= {
                "prompt": ids, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "add_special_tokens": False,
                "return_token_ids": True, "return_tokens_as_token_ids": True,
            }  # fmt: skip
            if sampling.top_logprobs:
                body["logprobs"] = sampling.top_logprobs
            return "completions", body
        if is_ids(prompt):
            raise UserError(
                "engine.protocol: openai takes conversations, not token ids. Use protocol: vllm, or chat prompts."
            )
        body["messages"] = [dict(message) for message in prompt if isinstance(message, dict)]
        if sampling.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        return "chat/completions", body

    def _completion(
        self, answer: dict[str, Any], number: int, choice_number: int, ids: list[int], sampling: Sampling, where: str
    ) -> Completion:
        choice = one_choice(answer, self._engine, where)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        server = f"server {self._engine.base_url}: {where}"
        if not isinstance(text, str):
            raise LimbeckError(f"{server}: the answer holds no text.")
        written = _ids(choice.get("token_ids"), server)
        read = _ids(choice.get("prompt_token_ids", answer.get("prompt_token_ids")), server)
        if read is not None and list(read) != ids:
            raise LimbeckError(f"{server}: it read another prompt of {len(read)} tokens; {len(ids)} were sent.")
        top = token_logprobs = None
        if sampling.top_logprobs:
            try:
                aligned, entries = align_content(_content(choice.get("logprobs")), text, self._tokens, written)
            except ShapeError as error:
                raise LimbeckError(
                    f"{server}: the answer can't be aligned with the tokenizer: {error}. Nothing of it is taken."
                ) from error
            written = tuple(aligned)
            top, token_logprobs = signal_of_answer(
                entries, aligned, width=sampling.top_logprobs, vocabulary=self.vocabulary, where=server
            )
        return Completion(
            prompt=number, choice=choice_number, text=text, ids=written,
            finish_reason=str(choice.get("finish_reason")), usage=_usage(answer, len(ids), written),
            model=str(answer.get("model")), top=top, token_logprobs=token_logprobs, prompt_ids=read,
        )  # fmt: skip


@opens("generator", "server", ServerEngine)
def open_server_generator(
    model: str, revision: str | None, engine: ServerEngine, tokenizer: PreTrainedTokenizerBase
) -> Generator:
    """Return the generator of a server that answers and knows the teacher."""
    return ServerGenerator(model, revision, engine, tokenizer)


def _ids(found: Any, server: str) -> tuple[int, ...] | None:
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(token, int) for token in found):
        raise LimbeckError(f"{server}: its token ids are no list of numbers.")
    return tuple(found)


def _content(logprobs: Any) -> Any:
    """Return `logprobs.content` of the chat protocol, made of the older completions' lists where those came."""
    if not isinstance(logprobs, dict) or "content" in logprobs:
        return logprobs.get("content") if isinstance(logprobs, dict) else None
    parts = [logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
    if not all(isinstance(part, list) for part in parts) or len({len(part or ()) for part in parts}) != 1:
        return None
    return [
        {
            "token": token,
            "logprob": logprob,
            "top_logprobs": [{"token": text, "logprob": value} for text, value in (top or {}).items()],
        }
        for token, logprob, top in zip(*parts, strict=True)
    ]


def _usage(answer: dict[str, Any], prompt: int, written: tuple[int, ...] | None) -> Usage:
    """Return what the server counted; what we count where it says nothing."""
    said = answer.get("usage")
    said = said if isinstance(said, dict) else {}
    read, wrote = said.get("prompt_tokens"), said.get("completion_tokens")
    return Usage(read if isinstance(read, int) else prompt, wrote if isinstance(wrote, int) else len(written or ()))
