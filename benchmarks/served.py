"""From what servers and vLLM return to bytes of a dataset: compiled reading against a plain loop over the objects.

The plain loop is what capture scripts usually do: parse the JSON, walk its objects entry by entry, sort, make tensors.
Both ends write codec `topk` with all 128 entries. V = 151,936, one row of 1,024 tokens.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.timing import Row, in_turn
from limbeck.engines.entries import Entries, read_answer, signal_of_entries
from limbeck.engines.vllm import entries_of_vllm
from limbeck.signals.codecs.topk import TopkCodec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import TopkSignal

TITLE = "Log-probabilities of a server and of vLLM to bytes, 1,024 tokens, K = 128, V = 151,936"
T, K, V = 1024, 128, 151_936
SPEC = TopkSpec(select="count", cap=K, temperatures=(1.0,))


@dataclass
class Flat:
    """vLLM's flat form."""

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class Logprob:
    """vLLM's object form."""

    logprob: float
    rank: int
    decoded_token: str | None = None


def make() -> tuple[torch.Tensor, list[dict[int, Logprob] | None], Flat, bytes]:
    """Return a row, and what is said of it in three forms."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V, (T,), generator=generator)
    logprobs = (torch.randn(T, 4 * K, generator=generator) * 3).log_softmax(-1)
    best, _ = logprobs.topk(K)
    lists: list[dict[int, Logprob] | None] = [None]
    flat = Flat([0], [0])
    rng = np.random.default_rng(1)
    for place in range(1, T):
        ids = rng.choice(V, K, replace=False).tolist()
        values = best[place].tolist()
        own = int(tokens[place])
        found = {own: Logprob(-20.5, 900, " own")}
        found |= {token: Logprob(value, at, " word") for at, (token, value) in enumerate(zip(ids, values), 1)}  # noqa: B905
        lists.append(found)
        flat.start_indices.append(len(flat.token_ids))
        flat.token_ids += list(found)
        flat.logprobs += [one.logprob for one in found.values()]
        flat.end_indices.append(len(flat.token_ids))
    as_json = [None if one is None else {str(token): vars(entry) for token, entry in one.items()} for one in lists]
    answer = {"model": "m", "choices": [{"index": 0, "text": "x", "prompt_logprobs": as_json}]}
    body = json.dumps(answer, separators=(",", ":")).encode()  # as vLLM's server writes it
    return tokens, lists, flat, body


def plain(places: list[Any], codec: TopkCodec) -> object:
    """Walk objects one by one, as capture scripts do."""
    all_ids, all_logprobs = [], []
    for found in places[1:]:
        entries = [(int(token), *_fields(entry)) for token, entry in found.items()]
        kept = sorted((entry for entry in entries if entry[2] <= K), key=lambda entry: entry[2])
        all_ids.append([token for token, _, _ in kept])
        all_logprobs.append([value for _, value, _ in kept])
    ids, logprobs = torch.tensor([*all_ids, [0] * K]), torch.tensor([*all_logprobs, [float("-inf")] * K])
    mask = torch.arange(T) < T - 1
    tail = torch.log1p(-logprobs.exp().sum(-1).clamp(max=1 - 1e-7))
    signal = TopkSignal(ids, logprobs, tail, torch.zeros(T, 1), (1.0,), mask)
    return codec.encode(signal, [T])


def _fields(entry: Any) -> tuple[float, int]:
    return (entry["logprob"], entry["rank"]) if isinstance(entry, dict) else (entry.logprob, entry.rank)


def run() -> list[Row]:
    tokens, lists, flat, body = make()
    codec = TopkCodec(SPEC, V)
    counted = torch.arange(T) < T - 1

    def ours(entries: Entries) -> object:
        signal = signal_of_entries(entries, tokens, counted, kind="topk", width=K, vocabulary=V, where="row 0")
        return codec.encode(signal, [T])  # type: ignore[arg-type]

    def from_text() -> object:
        return ours(read_answer(body)["choices"][0]["prompt_logprobs"])

    rows = []
    for what, call, other, against in (
        ("a server's JSON to bytes", from_text, lambda: plain(_parsed(body), codec), "json and a plain loop"),
        (
            "vLLM's flat lists to bytes",
            lambda: ours(entries_of_vllm(flat, "")),
            lambda: plain(lists, codec),
            "a plain loop",
        ),
        (
            "vLLM's objects to bytes",
            lambda: ours(entries_of_vllm(lists, "")),
            lambda: plain(lists, codec),
            "a plain loop",
        ),
    ):
        found = in_turn(call, other, runs=3)
        rows.append(Row(f"{what}: {T / found[0]:,.0f} tokens/s", *found, against))
    return rows


def _parsed(body: bytes) -> list[Any]:
    answer = json.loads(body)
    lists: list[Any] = answer["choices"][0]["prompt_logprobs"]
    return lists
