"""When the next request may be sent: a rate limit, patience with a server in trouble, and an end to that patience.

Why not aiolimiter and tenacity: docs/decisions/0016-which-parts-are-our-own.md.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.chat_api.answers import AttemptError


@dataclass(frozen=True)
class Patience:
    """How failed requests are repeated. Times are in seconds."""

    attempts: int = 5
    """Failures after which a prompt is given up; a 429 is none, for it says nothing about the prompt."""
    first_pause: float = 1.0
    """Doubled for every further attempt."""
    longest_pause: float = 60.0
    longest_asked: float = 300.0
    """A Retry-After of the server above this ends the asking: a pod should not sleep for hours."""
    grace: float = 3.0
    """After SIGTERM, answers that are on their way get so much time to arrive."""

    def pause(self, failures: int) -> float:
        """Exponential backoff with jitter (after ``failures`` in a row)."""
        longest = min(self.longest_pause, self.first_pause * 2.0 ** min(failures - 1, 30))
        return longest * _jitter(0.5, 1.0)


PATIENCE: Final = Patience()
_FEWEST: Final = 5
"""With few requests at a time, a few broken prompts in a row must not stop the stage."""


class Pacer:
    """Spreads requests evenly over time and holds all of them back while the server asks for it."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._next = self._closed_until = 0.0

    async def turn(self) -> None:
        """Wait until a request may be sent, and take that turn."""
        while True:
            now = self._clock()
            if self._closed_until > now:
                await asyncio.sleep((self._closed_until - now) * _jitter(1.0, 1.1))
            elif self._next > now:
                await asyncio.sleep(self._next - now)
            else:
                self._next = now + self._interval
                return

    def hold(self, seconds: float) -> None:
        """No request for so long."""
        self._closed_until = max(self._closed_until, self._clock() + seconds)


class Breaker:
    """Stops the stage after so many failures in a row that every request in flight must have used up its attempts."""

    def __init__(self, url: str, role: str, concurrency: int, patience: Patience) -> None:
        self._url, self._role = url, role
        self._limit = patience.attempts * max(concurrency, _FEWEST)
        self._failures = 0

    def answered(self) -> None:
        """An answer came back."""
        self._failures = 0

    def failed(self, error: AttemptError) -> None:
        """Raises StageError: TeacherUnavailable (a retry may help), TeacherRefused."""
        self._failures += 1
        if self._failures >= self._limit:
            message = f"{self._url}: {self._limit} consecutive requests failed; last, the {self._role} {error}."
            if error.refused:
                raise StageError(Reason.TEACHER_REFUSED, message)
            raise StageError(Reason.TEACHER_UNAVAILABLE, message, retriable=True)


def _jitter(low: float, high: float) -> float:
    """So that requests that failed together do not come back together."""
    return random.uniform(low, high)  # noqa: S311 # spreads load, hides nothing
