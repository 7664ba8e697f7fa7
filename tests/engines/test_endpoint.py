"""Asking a server: again where it may help, not for long where it does not, and never with the key on the screen."""

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.engines.endpoint import Endpoint
from limbeck.engines.retries import (
    LONGEST_BACKOFF_S,
    Budget,
    BudgetSpentError,
    Clock,
    backoff,
    parse_retry_after,
)
from limbeck.engines.server import ServerScorer
from limbeck.errors import LimbeckError, UserError
from limbeck.signals.codecs.topk_spec import TopkSpec
from tests.engines.loopback import Loopback, half_json, hang, serve, status, truncated
from tests.engines.tiny import new_model, tokenizer_of

MODEL, TOKENIZER = new_model(), tokenizer_of()
SPEC = TopkSpec(select="count", cap=3, temperatures=(1.0,))
ROWS = [(torch.arange(10, 10 + length), torch.ones(length, dtype=torch.bool)) for length in (5, 8, 6)]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Time:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.at = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.at, sleep=self.sleep, date=lambda: NOW)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serve(MODEL, TOKENIZER) as running:
        yield running


def score(server: Loopback, time: Time | None = None, **changes: Any) -> list[Any]:
    scorer = ServerScorer(server.engine(**changes), 300, TOKENIZER, (time or Time()).clock)
    try:
        return scorer.score(ROWS, SPEC)
    finally:
        scorer.close()


@pytest.mark.parametrize(
    "misdeed",
    [status(500), status(429), status(503), truncated, half_json],
    ids=["500", "429", "503", "truncated", "half_json"],
)
def test_what_passes_is_asked_again(server: Loopback, misdeed: Any) -> None:
    expected = score(server)
    server.next(misdeed, misdeed)
    time = Time()
    for one, other in zip(score(server, time, concurrency=1), expected, strict=True):
        assert torch.equal(one.logprobs, other.logprobs)
    assert len(time.slept) == 2


def test_a_server_that_hangs_is_asked_again_after_the_time_out(server: Loopback) -> None:
    server.next(hang)
    assert len(score(server, timeout_s=1.0, concurrency=1)) == 3
    assert len(server.asked("/v1/completions")) == 4


def test_retry_after_is_the_least_that_is_waited(server: Loopback) -> None:
    server.next(status(429, {"Retry-After": "37"}))
    time = Time()
    score(server, time, concurrency=1)
    assert sum(time.slept) >= 37


def test_retry_after_holds_back_every_request(server: Loopback) -> None:
    """One answer says that the server is too busy; the others need not find out one by one."""
    server.next(status(429, {"Retry-After": "50"}))
    time = Time()
    endpoint = Endpoint(server.engine(concurrency=1), time.clock)

    async def ask(row: int) -> None:
        await endpoint.post("completions", {"prompt": [1, 2], "prompt_logprobs": 1}, f"row {row}")

    endpoint.for_each([0], ask)
    endpoint._not_before = time.at + 20
    endpoint.for_each([1], ask)
    endpoint.close()
    assert time.slept[-1] == pytest.approx(20)


def test_a_server_that_asks_to_wait_too_long_is_left(server: Loopback) -> None:
    server.next(status(429, {"Retry-After": "4000"}))
    with pytest.raises(LimbeckError, match=r"it asks to wait 4000 s, longer than engine.longest_wait_s"):
        score(server, concurrency=1)


def test_attempts_are_counted_and_the_last_complaint_is_told(server: Loopback) -> None:
    server.next(*[status(500, message=f"broken {number}") for number in range(3)])
    with pytest.raises(LimbeckError, match="row 0: failed 3 times; the last time: HTTP 500: broken 2"):
        score(server, attempts=3, concurrency=1)
    assert len(server.asked("/v1/completions")) == 3


def test_what_will_not_pass_is_asked_once(server: Loopback) -> None:
    server.next(status(400, message="This model's maximum context length is 4 tokens"))
    with pytest.raises(UserError, match=r"row 0: it refuses the request: HTTP 400: .* Shorten the rows"):
        score(server, concurrency=1)
    assert len(server.asked("/v1/completions")) == 1


def test_a_server_that_is_not_there_is_one_line() -> None:
    with serve(MODEL, TOKENIZER) as gone:
        engine = gone.engine(attempts=2)
    with pytest.raises(LimbeckError, match="failed 2 times; the last time: ConnectError") as caught:
        ServerScorer(engine, 300, TOKENIZER, Time().clock)
    assert "\n" not in str(caught.value)


def test_a_wrong_key_is_reported_once_and_never_shown(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "the-right-key"
    monkeypatch.setenv("LIMBECK_TEST_KEY", "sk-wrong-and-secret")
    with pytest.raises(UserError, match="it refuses the key in LIMBECK_TEST_KEY") as caught:
        score(server, api_key_env="LIMBECK_TEST_KEY")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value.__context__)
    monkeypatch.setenv("LIMBECK_TEST_KEY", "the-right-key")
    assert len(score(server, api_key_env="LIMBECK_TEST_KEY")) == 3


def test_a_server_that_repeats_the_key_is_not_repeated(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_TEST_KEY", "sk-secret")
    server.next(status(422, message="request with key sk-secret is malformed"))
    with pytest.raises(UserError, match="request with key … is malformed") as caught:
        score(server, api_key_env="LIMBECK_TEST_KEY", concurrency=1)
    assert "secret" not in str(caught.value)


def test_a_key_that_is_not_set_is_named(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMBECK_TEST_KEY", raising=False)
    with pytest.raises(UserError, match="the environment has no LIMBECK_TEST_KEY"):
        score(server, api_key_env="LIMBECK_TEST_KEY")


def test_no_key_no_header(server: Loopback) -> None:
    server.key = "needed"
    with pytest.raises(UserError, match=r"it refuses requests without a key .* engine.api_key_env"):
        score(server)


def test_the_budget_stops_before_anything_beyond_it_is_asked(server: Loopback) -> None:
    cost = sum(len(ids) + 1 for ids, _ in ROWS)
    scorer = ServerScorer(server.engine(budget_tokens=2 * cost + 5), 300, TOKENIZER, Time().clock)
    scorer.score(ROWS, SPEC)
    scorer.score(ROWS, SPEC)
    asked = len(server.asked("/v1/completions"))
    with pytest.raises(BudgetSpentError, match="44 are used, and what comes next may take 22"):
        scorer.score(ROWS, SPEC)
    scorer.close()
    assert len(server.asked("/v1/completions")) == asked == 6


def test_what_was_not_answered_costs_nothing(server: Loopback) -> None:
    costs = [len(ids) + 1 for ids, _ in ROWS]
    scorer = ServerScorer(
        server.engine(budget_tokens=2 * sum(costs), concurrency=1, attempts=1), 300, TOKENIZER, Time().clock
    )
    server.next(lambda *_: False, status(503))
    with pytest.raises(LimbeckError, match="failed 1 times"):
        scorer.score(ROWS, SPEC)
    assert scorer._endpoint.budget.spent == costs[0]
    assert len(scorer.score(ROWS, SPEC)) == len(ROWS)
    server.always = lambda answer: {**answer, "choices": [{"index": 0}]}
    with pytest.raises(LimbeckError, match="can't be used"):
        scorer.score(ROWS[:1], SPEC)
    assert scorer._endpoint.budget.spent == sum(costs) + 2 * costs[0]  # an answer that can't be used was paid for
    scorer.close()


def test_requests_run_side_by_side_up_to_the_limit(server: Loopback) -> None:
    """Each of three waits for the two others to be under way."""
    together = threading.Barrier(3, timeout=20)

    def meet(*_: Any) -> bool:
        together.wait()
        return False

    server.next(meet, meet, meet)
    assert len(score(server, concurrency=3)) == 3
    assert server.most_running == 3


def test_jobs_are_drawn_as_they_are_needed(server: Loopback) -> None:
    """So a hundred thousand prompts are never all in memory."""
    endpoint = Endpoint(server.engine(concurrency=4))
    drawn: list[int] = []
    open_jobs: set[int] = set()

    def jobs() -> Iterator[int]:
        for job in range(50):
            drawn.append(job)
            open_jobs.add(job)
            assert len(open_jobs) <= 4
            yield job

    async def work(job: int) -> None:
        await asyncio.sleep(0)
        open_jobs.remove(job)

    endpoint.for_each(jobs(), work)
    endpoint.close()
    assert drawn == list(range(50))


@given(attempt=st.integers(0, 60), seed=st.integers(0, 99), asked=st.none() | st.floats(0, 500))
def test_waits_grow_and_are_bounded_and_at_least_what_was_asked(attempt: int, seed: int, asked: float | None) -> None:
    wait = backoff(attempt, Random(seed), asked)
    assert min(LONGEST_BACKOFF_S, 0.5 * 2.0**attempt) / 2 <= wait or wait == asked
    assert (asked or 0) <= wait <= max(LONGEST_BACKOFF_S, asked or 0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("5", 5.0),
        ("0.25", 0.25),
        ("-3", 0.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(limit=st.integers(1, 100), costs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))))
def test_no_reservation_goes_beyond_the_budget(limit: int, costs: list[tuple[int, int]]) -> None:
    budget = Budget(limit)
    for reserved, used in costs:
        try:
            budget.reserve(reserved)
        except BudgetSpentError:
            assert budget.spent + reserved > limit
        else:
            assert budget.spent <= limit
            budget.settle(reserved, min(used, reserved))
