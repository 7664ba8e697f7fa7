"""vLLM in process, against a stand-in with the shapes that vLLM documents: flat lists, dictionaries, outputs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from limbeck.engines.completions import Sampling, open_generator, scored_row
from limbeck.engines.scorer import VllmEngine, open_scorer
from limbeck.engines.scoring import score_rows
from limbeck.errors import LimbeckError, UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import TopkSignal
from tests.engines.loopback import logprobs_of
from tests.engines.tiny import new_model, save, tokenizer_of

MODEL, TOKENIZER = new_model(), tokenizer_of()
SPEC = TopkSpec(select="count", cap=5, temperatures=(1.0,))
ROWS = [
    (torch.tensor([9, 31, 77, 150, 201, 42]), torch.tensor([True, True, False, True, True, True])),
    (torch.tensor([12]), torch.tensor([True])),
    (torch.tensor([60, 61, 62]), torch.tensor([False, False, True])),
]


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class FlatLogprobs:
    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def add(self, tokens: list[int], values: list[float]) -> None:
        self.start_indices.append(len(self.token_ids))
        self.token_ids += tokens
        self.logprobs += values
        self.ranks += [None] * len(tokens)
        self.decoded_tokens += [None] * len(tokens)
        self.end_indices.append(len(self.token_ids))


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    stop: list[str] | None = None
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    flat_logprobs: bool = False


@dataclass
class OldSamplingParams:
    """As before there were flat log-probabilities."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    stop: list[str] | None = None
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Any
    finish_reason: str | None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: Any
    outputs: list[CompletionOutput]


def collected(places: list[tuple[torch.Tensor, int]], count: int, flat: bool, first_empty: bool) -> Any:
    """The row's own token, then the most probable; twice in a flat list, once in a dictionary."""
    lists: Any = FlatLogprobs() if flat else []
    if first_empty:
        lists.add([], []) if flat else lists.append(None)
    for logprobs_V, own in places:
        best = logprobs_V.topk(count)
        tokens = [own, *best.indices.tolist()]
        values = [float(logprobs_V[own]), *best.values.tolist()]
        if flat:
            lists.add(tokens, values)
        else:
            lists.append({token: Logprob(value) for token, value in zip(tokens, values, strict=True)})
    return lists


class LLM:
    made: dict[str, Any]

    def __init__(self, model: str, **arguments: Any) -> None:
        type(self).made = {"model": model, **arguments}

    def generate(self, prompts: list[Any], sampling_params: list[Any], use_tqdm: bool = True) -> list[RequestOutput]:
        return [
            self._one(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, sampling_params, strict=True)
        ]

    def _one(self, ids: list[int], params: Any) -> RequestOutput:
        flat = getattr(params, "flat_logprobs", False)
        asked = None
        if params.prompt_logprobs is not None:
            logprobs = logprobs_of(MODEL, ids)
            places = [(logprobs[t], ids[t + 1]) for t in range(len(ids) - 1)]
            asked = collected(places, params.prompt_logprobs, flat, first_empty=True)
        written: list[int] = []
        said: list[tuple[torch.Tensor, int]] = []
        generator = torch.Generator().manual_seed(params.seed or 0)
        while len(written) < params.max_tokens:
            logprobs_V = logprobs_of(MODEL, ids + written)[-1]
            written.append(int(torch.multinomial(logprobs_V.exp(), 1, generator=generator)))
            said.append((logprobs_V, written[-1]))
        top = collected(said, params.logprobs, flat, first_empty=False) if params.logprobs else None
        text = TOKENIZER.decode(written) if params.detokenize else ""
        return RequestOutput(list(ids), asked, [CompletionOutput(0, text, written, top, "length")])


@pytest.fixture(params=["flat", "dictionaries"])
def standin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("vllm")
    module.LLM = LLM  # type: ignore[attr-defined]
    module.SamplingParams = SamplingParams if request.param == "flat" else OldSamplingParams  # type: ignore[attr-defined]
    module.TokensPrompt = dict  # type: ignore[attr-defined]
    module.__version__ = "0.99"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize("spec", [SPEC, TokenSpec()], ids=["topk", "token"])
def test_vllm_says_what_the_model_says(standin: ModuleType, folder: Path, spec: Settings) -> None:
    scorer = open_scorer(str(folder), None, VllmEngine(engine="vllm"), TOKENIZER)
    done: list[int] = []
    found = scorer.score(ROWS, spec, on_row=done.append)
    scorer.close()
    for one, other in zip(found, score_rows(MODEL, ROWS, spec, batch_tokens=64), strict=True):
        assert torch.equal(one.mask, other.mask)
        if one.mask.any():
            torch.testing.assert_close(one.logprobs[one.mask], other.logprobs[one.mask], atol=1e-4, rtol=0)
        if isinstance(one, TopkSignal) and one.mask.any():
            assert torch.equal(one.ids[one.mask], other.ids[one.mask].long())
    assert sorted(done) == [1, 3, 6]


def test_settings_reach_vllm_by_its_own_names(standin: ModuleType, folder: Path) -> None:
    engine = VllmEngine(
        engine="vllm", tensor_parallel_size=4, pipeline_parallel_size=2, dtype="bfloat16", max_model_len=99
    )
    scorer = open_scorer(str(folder), "abc", engine, TOKENIZER)
    made = LLM.made
    assert (made["tensor_parallel_size"], made["pipeline_parallel_size"], made["max_model_len"]) == (4, 2, 99)
    assert (made["revision"], made["tokenizer_revision"]) == ("abc", "abc")
    assert made["trust_remote_code"] is False
    assert made["logprobs_mode"] == "raw_logprobs"
    assert scorer.vocabulary == 300
    assert scorer.description["vllm"] == "0.99"


def test_vllm_writes_and_says(standin: ModuleType, folder: Path) -> None:
    generator = open_generator(str(folder), None, VllmEngine(engine="vllm"), TOKENIZER)
    sampling = Sampling(max_tokens=5, top_logprobs=5, n=2, seed=8)
    completions = generator.generate([[20, 21], [30, 31, 32]], sampling)
    assert [(one.prompt, one.choice) for one in completions] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert completions[0].ids != completions[1].ids
    assert generator.generate([[30, 31, 32]], sampling, first_prompt=1)[0].ids == completions[2].ids
    ids, trained, signal = scored_row([20, 21], completions[0])
    [expected] = score_rows(MODEL, [(ids, trained)], SPEC, batch_tokens=64)
    assert torch.equal(signal.mask, expected.mask)
    torch.testing.assert_close(signal.logprobs[signal.mask], expected.logprobs[signal.mask], atol=1e-4, rtol=0)


def test_another_prompt_or_no_answer_is_an_error(
    standin: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = open_scorer(str(folder), None, VllmEngine(engine="vllm"), TOKENIZER)
    honest = LLM._one

    def truncating(self: LLM, ids: list[int], params: Any) -> RequestOutput:
        return honest(self, ids[:-1], params)

    monkeypatch.setattr(LLM, "_one", truncating)
    with pytest.raises(LimbeckError, match="vllm: row 70: other tokens were read"):
        scorer.score(ROWS, SPEC, first_sample=70)

    def silent(self: LLM, ids: list[int], params: Any) -> RequestOutput:
        answer = honest(self, ids, params)
        answer.prompt_logprobs = None
        return answer

    monkeypatch.setattr(LLM, "_one", silent)
    with pytest.raises(LimbeckError, match="vllm: row 0: vLLM returned no log-probabilities"):
        scorer.score(ROWS, SPEC)


def test_without_vllm_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'limbeck\[vllm\]'"):
        open_scorer(str(folder), None, VllmEngine(engine="vllm"), TOKENIZER)
