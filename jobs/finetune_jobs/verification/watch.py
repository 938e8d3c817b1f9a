"""The quality watch: one question at a time to a server that has proved itself. It asks through what it is given.

```
every interval: one question ──the same as before──▶ nothing
                     ├──others wait at the server, or it does not answer──▶ skipped, and asked a little later
                     └──otherwise than before──▶ all the checks, which decide
```

The question is compared with what the same server answered when it proved itself, and not with the evaluation: what is
different between engines and precisions is in both, so that a small change shows. Whether it is a fault is another
matter, for which there are the checks.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from finetune_api.endpoint_stages import SelfCheckLimits
from finetune_api.serving_status import VerificationCheck
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification.engine import Forced, Reply

log = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 60.0
"""After a skipped question the next one comes so much later at most."""
_NOTICEABLE: Final = 0.5
"""Share of the usual tolerance between engines by which a server may differ from itself: what computes in the same
precision was up to 0.04 nats away, of a tolerance of 0.55, and the nearest damage 0.78 (tolerance.py)."""


class Provable(Protocol):
    """A server that has proved itself; ``Proof`` is one."""

    def waiting(self) -> int | None:
        """Requests that wait for their turn at the server; None: it does not say."""

    def moved(self, turn: int) -> str:
        """What one question shows to be otherwise than before; empty: nothing. Raises StageError."""

    def whole(self, limits: SelfCheckLimits) -> Sequence[VerificationCheck]:
        """All the checks. Raises StageError."""


@dataclass
class QualityWatch:
    """When the next question is due, and what came of those before."""

    server: Provable
    clock: Callable[[], float] = time.monotonic
    """Seconds."""

    def __post_init__(self) -> None:
        self._asked = self.clock()
        self._turn = 0
        self._skipped = False
        self._suspicion = ""

    def is_due(self, limits: SelfCheckLimits) -> bool:
        """Whether it is time for the next question."""
        pause = min(limits.watch_seconds, AGAIN_SECONDS) if self._skipped else limits.watch_seconds
        return limits.watch_seconds > 0 and self.clock() - self._asked >= pause

    def ask(self, limits: SelfCheckLimits) -> Sequence[VerificationCheck]:
        """All the checks, if there was a reason to make them; otherwise none.

        One slow or failed request is no change, and no answer is no wrong one: the question is skipped. Raises
        StageError if the server says that it will never answer, which is what a check that failed is.
        """
        self._asked = self.clock()
        if waiting := self.server.waiting():
            return self._skip(f"{waiting} requests wait at the server")
        try:
            self._suspicion = self._suspicion or self._look()
            if not self._suspicion:
                self._skipped = False
                return ()
            log.warning("%s: all the checks are made again", self._suspicion)
            made = self.server.whole(limits)
        except StageError as error:
            if not error.retriable:
                raise
            return self._skip(error.message)
        self._skipped, self._suspicion = False, ""
        return made

    def _look(self) -> str:
        """What the next question shows. A server that says that it will never answer is a reason to ask all."""
        try:
            moved = self.server.moved(self._turn)
        except StageError as error:
            if error.retriable:
                raise
            moved = error.message
        self._turn += 1
        return moved

    def _skip(self, why: str) -> Sequence[VerificationCheck]:
        log.info("the quality watch skips a question: %s", why)
        self._skipped = True
        return ()


def text_moved(before: Forced, now: Forced, tolerance: float) -> str:
    """How the probabilities of a text have moved, if that is noticeable; ``tolerance``: nats a token that another
    engine may be away."""
    if now.ids != before.ids:
        return "other tokens than before"
    if len(now.log_probs) != len(before.log_probs):
        return "no probabilities any more"
    pairs = zip(before.log_probs, now.log_probs, strict=True)
    moved = sum(abs(then - since) for then, since in pairs) / max(1, len(now.log_probs))
    # Not a number is noticeable.
    return "" if moved <= _NOTICEABLE * tolerance else f"{moved:.3f} nats a token from what it was before"


def answer_moved(before: Reply, now: Reply) -> str:
    """How an answer is another one than before; empty: it is the same."""
    if now.text.strip() != before.text.strip():
        return "another answer than before"
    if now.stopped != before.stopped:
        return "it ends otherwise than before"
    return "other tokens than before" if now.prompt_tokens != before.prompt_tokens else ""
