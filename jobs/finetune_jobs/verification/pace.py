"""How long a server may take: for one request by its tokens, and for streams by whether any of them goes on."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from finetune_api.endpoint_stages import TOKEN_SECONDS

REQUEST_SECONDS: Final = 60.0
"""Longest wait for a request, besides what its tokens may take."""
COMPILE_SECONDS: Final = 120.0
"""What a server may take, beside that, to compile a schema or tools to a grammar. It does so once for each."""
SILENT_SECONDS: Final = 60.0
"""For how long none of the streams that are open may bring anything."""
_READ_SECONDS: Final = TOKEN_SECONDS / 5
"""What a token of the prompt may take. A server reads many at once."""


def request_seconds(prompt_tokens: int, answer_tokens: int) -> float:
    """Longest wait for an answer: a verification expects a token in half of the time."""
    return REQUEST_SECONDS + 2 * TOKEN_SECONDS * answer_tokens + _READ_SECONDS * prompt_tokens


class Pace:
    """Whether the streams of a server go on. Several threads tell it.

    All count together: a server that works on one request at a time sends the others nothing meanwhile, and is right.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open = 0
        self._heard = 0.0

    @contextmanager
    def stream(self) -> Iterator[Callable[[], float]]:
        """While a stream is open; what is given is called for each of its parts, and is the time then."""
        with self._lock:
            self._open += 1
        self._part()
        try:
            yield self._part
        finally:
            with self._lock:
                self._open -= 1

    def silent_seconds(self) -> float:
        """For how long no stream has brought anything; 0 while none is open."""
        with self._lock:
            return self._clock() - self._heard if self._open else 0.0

    def _part(self) -> float:
        with self._lock:
            self._heard = self._clock()
            return self._heard
