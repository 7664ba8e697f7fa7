"""When to ask a server again: which failures pass, how long to wait, and how much may be asked for in all.

Waits double from one attempt to the next and are drawn evenly between half of that and all of it, so that clients that
failed together do not come back together. What a server asks for in `Retry-After` is the least that is waited.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any

from limbeck.errors import LimbeckError

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
FIRST_WAIT_S = 0.5
LONGEST_BACKOFF_S = 60.0


@dataclass(frozen=True)
class Clock:
    """Time as the engines see it; tests hand in their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    date: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))


def backoff(attempt: int, rng: Random, retry_after: float | None = None) -> float:
    """Return how many seconds to wait after failed attempt number `attempt` (from 0).

    Args:
        attempt: how many attempts failed before this one.
        rng: draws the jitter.
        retry_after: seconds that the server asked for; the wait is at least that.
    """
    widest = min(LONGEST_BACKOFF_S, FIRST_WAIT_S * 2.0**attempt)
    return max(retry_after or 0.0, rng.uniform(widest / 2, widest))


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3), or None where it says nothing usable.

    Args:
        value: a number of seconds, or a date; None where there is no header.
        now: what a date is compared with.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None


class BudgetSpentError(LimbeckError):
    """The budget of tokens does not allow what was to be asked next. What was finished before is kept.

    Attributes:
        finished: the results that were complete, in order; empty where the caller has them already.
    """

    def __init__(self, message: str, finished: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.finished = finished


class Budget:
    """Tokens that may be spent in all; without a limit everything is allowed.

    Args:
        limit: tokens, prompts and answers together; None: no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.spent = 0

    def reserve(self, tokens: int) -> None:
        """Count `tokens` as spent before they are.

        Raises:
            BudgetSpentError: they are more than what is left; nothing is counted.
        """
        if self.limit is not None and self.spent + tokens > self.limit:
            raise BudgetSpentError(
                f"the budget of {self.limit:,} tokens is spent: {self.spent:,} are used, and what comes next may take "
                f"{tokens:,}. Everything finished so far is kept; raise budget_tokens and run again to go on."
            )
        self.spent += tokens

    def settle(self, reserved: int, used: int) -> None:
        """Replace a reservation by what was really used."""
        self.spent += used - reserved
