"""How a check is written down. Pure."""

from typing import Final

from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_jobs.base.wording import shorten

LIMIT: Final = 74
"""Characters of what was expected or seen: fifteen checks and a message fit a termination message."""


def judged(name: str, holds: bool, expected: str, seen: str) -> VerificationCheck:
    """A check that was made."""
    outcome = CheckOutcome.PASSED if holds else CheckOutcome.FAILED
    return VerificationCheck(name=name, expected=shorten(expected, LIMIT), seen=shorten(seen, LIMIT), outcome=outcome)


def skipped(name: str, why: str) -> VerificationCheck:
    """One that could not be made, and why."""
    return VerificationCheck(name=name, seen=shorten(why, LIMIT), outcome=CheckOutcome.SKIPPED)
