"""Scoring by a server: the same answer as the model itself gives, and never one about other tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from limbeck.engines.scorer import ServerEngine, open_scorer
from limbeck.engines.scoring import score_rows
from limbeck.engines.server import ServerScorer
from limbeck.errors import LimbeckError, UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.registry import make_codec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import TokenSignal, TopkSignal
from tests.engines.loopback import Answer, Loopback, serve
from tests.engines.tiny import new_model, tokenizer_of

MODEL, TOKENIZER = new_model(), tokenizer_of()
SPEC = TopkSpec(select="count", cap=6, temperatures=(1.0,))
Row = tuple[torch.Tensor, torch.Tensor]


def draw_row(length: int, seed: int) -> Row:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(300, (length,), generator=generator), torch.rand(length, generator=generator) < 0.7


ROWS = [draw_row(length, seed) for seed, length in enumerate([7, 2, 19, 1, 12, 3])]


@pytest.fixture(scope="module")
def running() -> Iterator[Loopback]:
    with serve(MODEL, TOKENIZER) as server:
        yield server


@pytest.fixture
def server(running: Loopback) -> Iterator[Loopback]:
    yield running
    running.always = lambda answer: answer
    running.reported, running.with_ids, running.most_logprobs = "org/teacher", True, 300
    running.misdeeds.clear()
    running.requests.clear()


def score(server: Loopback, spec: Settings = SPEC, rows: list[Row] = ROWS, **changes: Any) -> list[Any]:
    scorer = open_scorer("unused", None, server.engine(**changes), TOKENIZER)
    try:
        return scorer.score(rows, spec, first_sample=40)
    finally:
        scorer.close()


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        assert torch.equal(one.mask, other.mask)
        if not one.mask.any():
            continue
        torch.testing.assert_close(one.logprobs[one.mask], other.logprobs[one.mask], atol=1e-4, rtol=0)
        if isinstance(one, TopkSignal):
            assert torch.equal(one.ids[one.mask], other.ids[one.mask].long())
            torch.testing.assert_close(
                one.log_tail_mass[one.mask].exp(), other.log_tail_mass[one.mask].exp(), atol=1e-4, rtol=0
            )
            assert one.temperatures == (1.0,)


DISTILLKIT = DistillkitSpec(d=300, k=6, exact_k=6, polynomial_terms=None, residual_bins=())


@pytest.mark.parametrize("spec", [SPEC, TokenSpec(), DISTILLKIT], ids=["topk", "token", "distillkit"])
@pytest.mark.parametrize("concurrency", [1, 5])
def test_a_server_says_what_the_model_says(server: Loopback, spec: Settings, concurrency: int) -> None:
    assert_same(score(server, spec, concurrency=concurrency), score_rows(MODEL, ROWS, spec, batch_tokens=64))


def test_echo_with_log_probabilities_says_the_same_as_far_as_tokens_have_names(server: Loopback) -> None:
    """Tokens of a byte that is no character have no text; entries from the first such one on are left to the tail."""
    plain = [(torch.tensor(TOKENIZER("def double(x):\n    return x + x\n")["input_ids"]), None)]
    rows = [(ids, torch.ones(len(ids), dtype=torch.bool)) for ids, _ in plain]
    [found], [expected] = score(server, rows=rows, protocol="openai"), score_rows(MODEL, rows, SPEC, batch_tokens=64)
    assert isinstance(found, TopkSignal)
    assert isinstance(expected, TopkSignal)
    present = found.logprobs > float("-inf")
    assert present.sum() >= 12
    assert torch.equal(found.mask, present.any(-1))
    assert (present[:, 1:] <= present[:, :-1]).all()
    torch.testing.assert_close(found.logprobs[present], expected.logprobs[present], atol=1e-4, rtol=0)
    assert torch.equal(found.ids[present], expected.ids[present].long())
    mass = (found.logprobs.exp().sum(-1) + found.log_tail_mass.exp())[found.mask]
    torch.testing.assert_close(mass, torch.ones(len(mass)), atol=1e-5, rtol=0)


def test_the_codec_takes_what_came(server: Loopback) -> None:
    signals = score(server, TopkSpec(temperatures=(1.0,), cap=6))
    lengths = [len(ids) for ids, _ in ROWS]
    make_codec(TopkSpec(temperatures=(1.0,), cap=6), 300).encode(concatenate(signals), lengths)


def test_rows_that_teach_nothing_are_not_asked_about(server: Loopback) -> None:
    rows = [(torch.tensor([5, 6, 7]), torch.tensor([True, False, False]))]
    [signal] = score(server, rows=rows)
    assert not signal.mask.any()
    assert server.asked("/v1/completions") == []


def test_every_row_is_reported_as_done(server: Loopback) -> None:
    scorer = open_scorer("unused", None, server.engine(), TOKENIZER)
    done: list[int] = []
    scorer.score(ROWS, SPEC, on_row=done.append)
    scorer.close()
    assert sorted(done) == sorted(len(ids) for ids, _ in ROWS)


def test_no_more_requests_run_at_once_than_allowed(server: Loopback) -> None:
    score(server, rows=[draw_row(9, seed) for seed in range(12)], concurrency=2)
    assert len(server.asked("/v1/completions")) == 12
    assert server.most_running <= 5  # of this module's tests: concurrency 5 above


def test_the_request_is_vllms(server: Loopback) -> None:
    score(server, rows=ROWS[:1], top=4)
    [body] = server.asked("/v1/completions")
    assert body["prompt"] == ROWS[0][0].tolist()
    assert body["prompt_logprobs"] == 4
    assert (body["max_tokens"], body["temperature"], body["top_k"], body["repetition_penalty"]) == (1, 1.0, 0, 1.0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TopkSpec(), r"codec 'topk': temperatures lists 2, .* Set temperatures: \[1.0\]"),
        (DenseSpec(), "codec 'dense': engine server returns the most probable tokens"),
    ],
    ids=["temperatures", "dense"],
)
def test_a_codec_that_needs_more_is_refused_before_anything_is_asked(
    server: Loopback, spec: Settings, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score(server, spec)
    assert server.asked("/v1/completions") == []


def first(answer: Answer) -> Answer:
    return answer["choices"][0]


def change(act: Callable[[Answer], None]) -> Callable[[Answer], Answer]:
    def changed(answer: Answer) -> Answer:
        act(answer)
        return answer

    return changed


def cut(choice: Answer) -> None:
    choice["prompt_logprobs"] = choice["prompt_logprobs"][:-2]


def drop(choice: Answer) -> None:
    del choice["prompt_logprobs"][3]
    choice["prompt_logprobs"].append(choice["prompt_logprobs"][-1])


def swap(choice: Answer) -> None:
    lists = choice["prompt_logprobs"]
    lists[2], lists[4] = lists[4], lists[2]


def set_logprob(value: Any) -> Callable[[Answer], None]:
    def act(choice: Answer) -> None:
        next(iter(choice["prompt_logprobs"][2].values()))["logprob"] = value

    return act


def put(place: Any) -> Callable[[Answer], None]:
    return lambda choice: choice["prompt_logprobs"].__setitem__(5, place)


def other_id(choice: Answer) -> None:
    choice["prompt_logprobs"][2]["300"] = {"logprob": -9.0, "rank": 6, "decoded_token": ""}


def without_own(choice: Answer) -> None:
    place = choice["prompt_logprobs"][2]
    del place[next(iter(place))]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (cut, "row 40: it has 7 tokens, but log-probabilities came for 5"),
        (drop, "row 40, position 2: the list lacks token"),
        (swap, "row 40, position 1: the list lacks token"),
        (put(None), "row 40, position 4: no log-probabilities came"),
        (put({}), "row 40, position 4: no log-probabilities came"),
        (set_logprob(float("nan")), "row 40, position 1: the log-probability of token .* is not a number"),
        (set_logprob(0.3), "row 40, position 1: token .* has a log-probability of 0.3, above 0"),
        (other_id, "row 40, position 1: token id 300 is outside the vocabulary of 300"),
        (without_own, "row 40, position 1: the list lacks token"),
        (lambda choice: choice.pop("prompt_logprobs"), "row 40: the answer can't be used: there are"),
        (lambda choice: choice.update(prompt_logprobs=[None, 5]), "row 40: the answer can't be used: the list of"),
    ],
)  # fmt: skip
def test_an_answer_about_other_tokens_is_an_error_and_never_a_shift(
    server: Loopback, act: Callable[[Answer], Any], message: str
) -> None:
    server.with_ids = False
    server.always = change(lambda answer: act(first(answer)))
    row = (torch.tensor([9, 31, 77, 150, 201, 42, 66]), torch.ones(7, dtype=torch.bool))
    with pytest.raises(LimbeckError, match=message) as caught:
        score(server, rows=[row])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda answer: answer.update(model="org/other"), "'org/teacher' was asked, 'org/other' answered"),
        (lambda answer: answer.update(choices=[]), "0 choices came where 1 was asked for"),
        (lambda answer: answer.pop("choices"), "no choices came"),
        (lambda answer: first(answer)["prompt_token_ids"].pop(), "row 40: it read 6 tokens where 7 were sent"),
    ],
)
def test_another_model_or_another_prompt_is_an_error(
    server: Loopback, act: Callable[[Answer], Any], message: str
) -> None:
    server.always = change(act)
    with pytest.raises(LimbeckError, match=message):
        score(server, rows=ROWS[:1])


def test_a_model_may_report_another_name_that_was_announced(server: Loopback) -> None:
    server.reported = "org/teacher-2026"
    assert len(score(server, reported_model="org/teacher-2026")) == len(ROWS)


def test_fewer_entries_than_asked_for_are_legal(server: Loopback) -> None:
    """What is absent is in the tail, and the row's own token, which is there for another reason, is not kept."""

    def keep_three(answer: Answer) -> Answer:
        lists = first(answer)["prompt_logprobs"]
        for at, place in enumerate(lists[1:], start=1):
            own = next(iter(place))
            lists[at] = {token: entry for token, entry in place.items() if token == own or entry["rank"] <= 3}
        return answer

    server.always = keep_three
    expected = score_rows(MODEL, ROWS, TopkSpec(select="count", cap=3, temperatures=(1.0,)), batch_tokens=64)
    found = score(server)
    for one, other in zip(found, expected, strict=True):
        kept = one.logprobs[one.mask] > float("-inf")
        # a fourth entry is there only where the row's own token is the fourth in rank, and then it is known to be
        assert (kept.sum(-1) <= 4).all()
        if not one.mask.any():
            continue
        torch.testing.assert_close(one.logprobs[one.mask][:, :3], other.logprobs[one.mask], atol=1e-4, rtol=0)
        assert torch.equal(one.ids[one.mask][:, :3], other.ids[one.mask].long())


def test_clamped_log_probabilities_are_absent(server: Loopback) -> None:
    def clamp(answer: Answer) -> Answer:
        for place in first(answer)["prompt_logprobs"][1:]:
            for entry in place.values():
                if entry["rank"] > 2:
                    entry["logprob"] = -9999.0
        return answer

    server.always = clamp
    for signal in score(server):
        assert ((signal.logprobs > float("-inf")).sum(-1)[signal.mask] == 2).all()


@pytest.mark.parametrize("top", [21, 200])
def test_a_server_that_allows_fewer_says_how_to_start_it(server: Loopback, top: int) -> None:
    server.most_logprobs = 20
    with pytest.raises(UserError, match=r"greater than max allowed: 20. Start vLLM with --max-logprobs"):
        score(server, TopkSpec(cap=256, temperatures=(1.0,)), top=top)


def test_a_model_that_the_server_lacks_is_refused_with_those_it_has(server: Loopback) -> None:
    engine = server.engine().model_copy(update={"model": "org/absent"})
    with pytest.raises(UserError, match=r"it has no model 'org/absent'. It has: org/other, org/teacher"):
        open_scorer("unused", None, engine, TOKENIZER)


def test_generated_mode_scores_no_given_rows(server: Loopback) -> None:
    with pytest.raises(UserError, match=r"engine.mode: generated"):
        score(server, mode="generated")


def test_the_manifest_says_who_answered_and_holds_no_address(server: Loopback) -> None:
    scorer = open_scorer("unused", None, server.engine(), TOKENIZER)
    scorer.close()
    assert isinstance(scorer, ServerScorer)
    assert scorer.description["reported_model"] == "org/teacher"
    assert scorer.description["vllm"] == "0.0-loopback"
    assert server.url not in str(scorer.description)


def test_token_signals_are_the_rows_own_tokens(server: Loopback) -> None:
    for (ids, _), signal in zip(ROWS, score(server, TokenSpec()), strict=True):
        assert isinstance(signal, TokenSignal)
        for t in signal.mask.nonzero()[:, 0].tolist():
            expected = MODEL(ids[None]).logits[0, t].log_softmax(-1)[ids[t + 1]]
            assert signal.logprobs[t].item() == pytest.approx(expected.item(), abs=1e-4)


def test_settings_name_the_nearest_key() -> None:
    from limbeck.engines.registry import parse_engine

    with pytest.raises(UserError, match=r"unknown key 'timeout'. Did you mean 'timeout_s'"):
        parse_engine({"engine": "server", "base_url": "http://x/v1", "model": "m", "timeout": 3})
    with pytest.raises(UserError, match=r"no engine is called 'vlm'. Did you mean 'vllm'"):
        parse_engine({"engine": "vlm"})
    engine = parse_engine({"engine": "server", "base_url": "http://x/v1", "model": "m"})
    assert isinstance(engine, ServerEngine)
