"""Engine `server`, scoring: rows sent to an OpenAI-compatible server, which returns prompt log-probabilities.

vLLM's server is asked by token ids for `prompt_logprobs`; a server that keeps to OpenAI's protocol for `echo` with
`logprobs`, whose tokens are told apart by `token_id:…` or by their bytes. One request a row, many at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from limbeck.engines.alignment import TokenBytes
from limbeck.engines.echo import read_echo
from limbeck.engines.endpoint import Endpoint
from limbeck.engines.entries import Entries, ShapeError, read_answer, signal_of_entries
from limbeck.engines.registry import opens
from limbeck.engines.retries import Clock
from limbeck.engines.scorer import OnRow, Row, Scorer, entries_asked, quietly, vocabulary_of
from limbeck.engines.settings import ServerEngine
from limbeck.errors import LimbeckError, UserError
from limbeck.settings import Settings
from limbeck.signals.types import TeacherSignal, TokenSignal, TopkSignal

# A model's own generation settings would otherwise bend the distribution that some servers report.
PLAIN = {"temperature": 1.0, "top_p": 1.0}
PLAIN_VLLM = {**PLAIN, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class ServerScorer:
    """Rows are scored by a server; see the module."""

    def __init__(
        self, engine: ServerEngine, vocabulary: int, tokenizer: PreTrainedTokenizerBase, clock: Clock | None = None
    ) -> None:
        self.vocabulary = vocabulary
        self._engine = engine
        self._endpoint = Endpoint(engine, clock)
        self._tokens = TokenBytes(tokenizer)
        try:
            self.description: dict[str, Any] = describe(self._endpoint)
        except LimbeckError:
            self._endpoint.close()
            raise

    def score(
        self,
        rows: Sequence[Row],
        spec: Settings,
        *,
        first_sample: int = 0,
        seed: int = 0,
        on_row: OnRow = quietly,
    ) -> list[TeacherSignal]:
        """Return the signal of each row; see `Scorer`.

        Raises:
            BudgetSpentError: the rows are more than what is left of the budget; nothing was asked.
        """
        kind, most = entries_asked(spec, self.vocabulary, "server")
        width = min(most, self._engine.top or most)
        needed = [row for row, (ids, trained) in enumerate(rows) if bool(trained[1:].any()) and len(ids) > 1]
        costs = {row: len(rows[row][0]) + 1 for row in needed}
        self._endpoint.budget.reserve(sum(costs.values()))
        answered: set[int] = set()
        found: dict[int, TeacherSignal] = {}

        async def ask(row: int) -> None:
            ids, trained = rows[row]
            where = f"row {first_sample + row}"
            request = self._request(ids.tolist(), width)
            try:
                answer = await self._endpoint.post("completions", request, where, read_answer)
                answered.add(row)
                entries = self._entries(answer, request["prompt"], where)
            except ShapeError as error:
                raise LimbeckError(
                    f"server {self._engine.base_url}: {where}: the answer can't be used: {error}. Only servers that "
                    "return prompt log-probabilities can score rows (vLLM's does; for others use mode: generated)."
                ) from error
            found[row] = signal_of_entries(
                entries, ids, counted(trained), kind=kind, width=width, vocabulary=self.vocabulary,
                where=f"server {self._engine.base_url}: {where}",
            )  # fmt: skip
            on_row(len(ids))

        try:
            self._endpoint.for_each(needed, ask)
        finally:  # what was not answered has cost nothing
            self._endpoint.budget.settle(sum(cost for row, cost in costs.items() if row not in answered), 0)
        for row, (ids, _) in enumerate(rows):
            if row not in found:
                found[row] = silent(kind, len(ids))
                on_row(len(ids))
        return [found[row] for row in range(len(rows))]

    def complete(self, spec: Settings) -> Settings:
        """Return a codec's settings as they are, if this engine can fill it; see `Scorer`."""
        entries_asked(spec, self.vocabulary, "server")
        return spec

    def write_references(self, folder: Path | str, spec: Settings) -> None:
        """Do nothing: what this engine returns refers to nothing; see `Scorer`."""

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def _request(self, ids: list[int], width: int) -> dict[str, Any]:
        common = {"model": self._engine.model, "prompt": ids, "n": 1, "stream": False}
        if self._engine.protocol == "vllm":
            return {
                **common, **PLAIN_VLLM, "max_tokens": 1, "prompt_logprobs": width, "add_special_tokens": False,
                "return_token_ids": True,
            }  # fmt: skip
        return {**common, **PLAIN, "max_tokens": 0, "echo": True, "logprobs": width}

    def _entries(self, answer: dict[str, Any], ids: list[int], where: str) -> Entries:
        """Return the lists of an answer that is what it should be."""
        choice = one_choice(answer, self._engine, where)
        read = choice.get("prompt_token_ids", answer.get("prompt_token_ids"))
        if read is not None and read != ids:
            place = next((at for at, (sent, got) in enumerate(zip(ids, read, strict=False)) if sent != got), len(read))
            raise LimbeckError(
                f"server {self._engine.base_url}: {where}: it read {len(read)} tokens where {len(ids)} were sent; they "
                f"differ from token {place} on. Nothing of this row is taken."
            )
        if self._engine.protocol == "openai":
            return read_echo(choice.get("logprobs"), ids, self._tokens)
        lists = choice.get("prompt_logprobs", answer.get("prompt_logprobs"))
        if not isinstance(lists, Entries):
            raise ShapeError("there are no prompt_logprobs in it")
        return lists


@opens("scorer", "server", ServerEngine)
def open_server(model: str, revision: str | None, engine: ServerEngine, tokenizer: PreTrainedTokenizerBase) -> Scorer:
    """Return the scorer of a server that answers and knows the teacher."""
    if engine.mode == "generated":
        raise UserError(
            "engine.mode: generated takes log-probabilities of what the server itself writes and can't score given "
            "rows. Add a generate section, or set mode: prompt for a server that returns prompt log-probabilities."
        )
    return ServerScorer(engine, engine.vocabulary or vocabulary_of(model, revision, tokenizer), tokenizer)


def describe(endpoint: Endpoint) -> dict[str, Any]:
    """Return what a manifest says about a server, having asked it which models it has.

    Raises:
        UserError: it can't be reached, refuses the key, or does not have the model.
    """
    engine = endpoint.engine
    listed = (endpoint.get("models") or {}).get("data")
    models = {str(one.get("id")): one for one in listed if isinstance(one, dict)} if isinstance(listed, list) else {}
    if models and engine.model not in models:
        shown = ", ".join(sorted(models)[:8]) + (", …" if len(models) > 8 else "")
        raise UserError(f"server {engine.base_url}: it has no model {engine.model!r}. It has: {shown}.")
    description: dict[str, Any] = {
        "engine": "server", "protocol": engine.protocol, "mode": engine.mode, "model": engine.model,
        "reported_model": engine.answering_model, "top": engine.top,
    }  # fmt: skip
    if engine.protocol == "vllm":
        version = endpoint.get(f"{engine.base_url.rstrip('/').removesuffix('/v1')}/version") or {}
        description["root"] = models.get(engine.model, {}).get("root")
        description["vllm"] = version.get("version")
    return description


def one_choice(answer: dict[str, Any], engine: ServerEngine, where: str) -> dict[str, Any]:
    """Return the only choice of an answer by the model that was asked.

    Raises:
        LimbeckError: another model answered, or there is not exactly one choice.
    """
    [choice] = choices_of(answer, engine, 1, where)
    return choice


def choices_of(answer: dict[str, Any], engine: ServerEngine, count: int, where: str) -> list[dict[str, Any]]:
    """Return the `count` choices of an answer by the model that was asked, by rising index.

    Raises:
        LimbeckError: another model answered, or there are more or fewer choices.
    """
    if answer.get("model") != engine.answering_model:
        raise LimbeckError(
            f"server {engine.base_url}: {where}: model {engine.answering_model!r} was asked, {answer.get('model')!r} "
            "answered. If that is the same model by its full name, set engine.reported_model to it."
        )
    choices = answer.get("choices")
    whole = isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)
    if not whole or sorted(choice.get("index", 0) for choice in choices or ()) != list(range(count)):
        raise LimbeckError(
            f"server {engine.base_url}: {where}: {len(choices) if isinstance(choices, list) else 'no'} choices came "
            f"where {count} {'was' if count == 1 else 'were'} asked for."
        )
    return sorted(choices or (), key=lambda choice: choice.get("index", 0))


def counted(trained_T: torch.Tensor) -> torch.Tensor:
    """Return which positions say something: those whose next token is there and trained."""
    counted_T = torch.zeros(len(trained_T), dtype=torch.bool)
    counted_T[: max(len(trained_T) - 1, 0)] = trained_T[1:].cpu()
    return counted_T


def silent(kind: str, length: int) -> TeacherSignal:
    """Return the signal of a row about which nothing was asked."""
    mask_T = torch.zeros(length, dtype=torch.bool)
    if kind == "token":
        return TokenSignal(torch.zeros(length), mask_T)
    absent = torch.full((length, 1), float("-inf"))
    return TopkSignal(
        torch.zeros(length, 1, dtype=torch.int64), absent, absent[:, 0].clone(), torch.zeros(length, 1), (1.0,), mask_T
    )
