"""Failures of a stage: each has a reason of the API, a message, and whether a retry would help."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from finetune_api.reasons import Reason
from finetune_api.serving_status import VerificationCheck

T = TypeVar("T")


class StageError(Exception):
    """A stage cannot give its result. ``message`` names place, value and cause, and never holds a secret."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retriable: bool = False,
        peer_initiated: bool = False,
        scalars: Mapping[str, str] | None = None,
        checks: Sequence[VerificationCheck] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retriable = retriable
        """True when the same attempt may succeed later: the container exits with ExitCode.RETRIABLE."""
        self.peer_initiated = peer_initiated
        """True when another pod is the cause, or all pods agreed to restart: RESTART_GROUP, which is not a failure."""
        self.scalars = dict(scalars or {})
        """What was found all the same: facts for the status."""
        self.checks = list(checks)
        """What verify had compared by then."""

    def of(self, who: str, checks: Sequence[VerificationCheck] | None = None) -> "StageError":
        """The same failure as that of one of several, which its message names; ``checks``: in place of its own."""
        return StageError(
            self.reason,
            f"{who}: {self.message}",
            retriable=self.retriable,
            peer_initiated=self.peer_initiated,
            scalars=self.scalars,
            checks=self.checks if checks is None else checks,
        )


class StoppedError(BaseException):
    """The pod received SIGTERM: suspended, drained, preempted. Resumable state is saved.

    No ``Exception``, since it may be raised inside a library that would catch one and try again.
    """


def require(value: T | None, field: str) -> T:
    """The value of a field of StageInput that this stage cannot do without. Raises StageError (SpecInvalid)."""
    if value is None:
        raise StageError(Reason.SPEC_INVALID, f"the stage's input has no {field}")
    return value
