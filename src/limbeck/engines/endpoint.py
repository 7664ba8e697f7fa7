"""A server behind HTTP: requests side by side but not too many, again where a failure passes, within a budget.

Asynchronous inside, synchronous outside. A key comes from the environment, goes into one header, and is never written
anywhere else: what a server says is cleaned of it before it is repeated.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import Any, TypeVar

import httpx

from limbeck.engines.retries import PASSING, Budget, Clock, backoff, parse_retry_after
from limbeck.engines.settings import ServerEngine
from limbeck.errors import LimbeckError, UserError
from limbeck.seeds import derive_seed

LONGEST_COMPLAINT = 300
CONNECT_TIMEOUT_S = 10.0

Job = TypeVar("Job")


class TruncatedError(ValueError):
    """An answer that is not whole; asking again may help."""


class Endpoint:
    """One server; see the module. Close it when done.

    Args:
        engine: where it is and how it is asked.
        clock: time; tests hand in their own.

    Raises:
        UserError: the environment has no key where one is named.
    """

    def __init__(self, engine: ServerEngine, clock: Clock | None = None) -> None:
        self.engine = engine
        self.budget = Budget(engine.budget_tokens)
        self._clock = clock or Clock()
        self._key = _key(engine.api_key_env)
        self._rng = Random(derive_seed(os.getpid(), "back-off", engine.base_url))
        self._not_before = 0.0
        self._runner = asyncio.Runner()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.AsyncClient(
            base_url=engine.base_url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(engine.timeout_s, connect=min(CONNECT_TIMEOUT_S, engine.timeout_s), pool=None),
            limits=httpx.Limits(max_connections=engine.concurrency, max_keepalive_connections=engine.concurrency),
            follow_redirects=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.aclose())
        self._runner.close()

    def for_each(self, jobs: Iterable[Job], work: Callable[[Job], Awaitable[None]]) -> None:
        """Do `work` for each job, `concurrency` of them at a time; jobs are drawn as they are needed.

        The first failure ends the others, and is raised.
        """
        try:
            self._runner.run(self._work(iter(jobs), work))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _work(self, jobs: Iterable[Job], work: Callable[[Job], Awaitable[None]]) -> None:
        async def worker() -> None:
            for job in jobs:
                await work(job)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.engine.concurrency):
                group.create_task(worker())

    def get(self, path: str) -> dict[str, Any] | None:
        """Return what the server answers to a plain question, or None where it does not know the path.

        Raises:
            UserError: it can't be reached, or refuses the key.
            LimbeckError: it goes on failing.
        """
        try:
            return self._runner.run(self._ask("GET", path, None, f"asked for {path.rsplit('/', 1)[-1]}", json.loads))
        except _UnknownPathError:
            return None

    async def post(
        self, path: str, body: dict[str, Any], where: str, read: Callable[[bytes], Any] = json.loads
    ) -> dict[str, Any]:
        """Send a request until it is answered, and return the answer.

        Args:
            path: behind the base URL.
            body: of the request.
            where: what messages call it, such as `row 7`.
            read: makes an answer of its bytes; where it raises a `ValueError` the answer is not whole.

        Raises:
            UserError: the server refuses the request or the key: asking again would not help.
            LimbeckError: every attempt failed; the message says how the last one did.
        """
        return await self._ask("POST", path, body, where, read)

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, where: str, read: Callable[[bytes], Any]
    ) -> dict[str, Any]:
        complaint = ""
        for attempt in range(self.engine.attempts):
            if (wait := self._not_before - self._clock.now()) > 0:
                await self._clock.sleep(wait)
            retry_after = None
            try:
                async with asyncio.timeout(self.engine.timeout_s):
                    answer = await self._client.request(method, path, json=body)
                if answer.status_code == 200:
                    return _object(read, answer.content)
                complaint = self._complaint(answer)
                if answer.status_code not in PASSING:
                    self._refuse(answer.status_code, complaint, where)
                retry_after = parse_retry_after(answer.headers.get("retry-after"), self._clock.date())
            except TimeoutError:
                complaint = f"no answer within {self.engine.timeout_s:g} s"
            except TruncatedError as error:
                complaint = str(error)
            except httpx.HTTPError as error:
                complaint = self._clean(f"{type(error).__name__}: {error}")
            if attempt + 1 < self.engine.attempts:
                await self._wait(attempt, retry_after, where)
        raise LimbeckError(
            f"server {self.engine.base_url}: {where}: failed {self.engine.attempts} times; the last time: {complaint}. "
            "What was finished before is kept; run again to go on, with more engine.attempts or a longer "
            "engine.timeout_s if the server is slow."
        )

    async def _wait(self, attempt: int, retry_after: float | None, where: str) -> None:
        if retry_after is not None and retry_after > self.engine.longest_wait_s:
            raise LimbeckError(
                f"server {self.engine.base_url}: {where}: it asks to wait {retry_after:g} s, longer than "
                f"engine.longest_wait_s ({self.engine.longest_wait_s:g}). Run again later: what is finished is kept."
            )
        if retry_after:  # it is meant for all requests, not for this one alone
            self._not_before = max(self._not_before, self._clock.now() + retry_after)
        await self._clock.sleep(backoff(attempt, self._rng, retry_after))

    def _refuse(self, status: int, complaint: str, where: str) -> None:
        """Raise what a status means that asking again will not change."""
        server = f"server {self.engine.base_url}"
        if status in (401, 403):
            source = f"the key in {self.engine.api_key_env}" if self._key else "requests without a key"
            mend = "Set it to a valid key." if self._key else "Name the variable that holds it: engine.api_key_env."
            raise UserError(f"{server}: it refuses {source} (HTTP {status}). {mend}")
        if status in (404, 405):
            raise _UnknownPathError(f"{server}: {where}: {complaint}. Check engine.base_url and engine.model.")
        raise UserError(f"{server}: {where}: it refuses the request: {complaint}.{_hint(complaint)}")

    def _complaint(self, answer: httpx.Response) -> str:
        """Return status and what the server says about it, in one line, without the key."""
        try:
            said = answer.json()
            error = said.get("error", said) if isinstance(said, dict) else said
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except ValueError:
            text = answer.text
        return f"HTTP {answer.status_code}: {self._clean(text)}".rstrip(": ")

    def _clean(self, text: str) -> str:
        text = text.replace(self._key, "…") if self._key else text
        return " ".join(text.split())[:LONGEST_COMPLAINT].rstrip(".")


class _UnknownPathError(UserError):
    """The server does not know this path, or no such model."""


def _object(read: Callable[[bytes], Any], body: bytes) -> dict[str, Any]:
    try:
        answer = read(body)
    except ValueError as error:
        raise TruncatedError(f"an answer of {len(body)} bytes that is not whole JSON ({error})") from error
    if not isinstance(answer, dict):
        raise TruncatedError("an answer that is not a JSON object")
    return answer


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    if not (key := os.environ.get(variable, "").strip()):
        raise UserError(f"engine.api_key_env: the environment has no {variable}. Set it to the server's key.")
    return key


def _hint(complaint: str) -> str:
    asked_too_much = "logprobs" in complaint and ("max" in complaint or "at most" in complaint)
    if asked_too_much:
        return " Start vLLM with --max-logprobs as large as what is asked for, or lower engine.top."
    if "context length" in complaint or "max_model_len" in complaint:
        return " Shorten the rows, or start the server with a longer context."
    return ""
