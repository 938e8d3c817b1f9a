"""What verification found of artifacts that were planted, kept in files so that a run that was stopped goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from hack.benchmarks.gated import once
from hack.cluster.console import say

_LONGEST = 128
"""The API's limit for what a check has seen."""
_CHECKS = TypeAdapter(list[VerificationCheck])


def kept(path: Path, name: str, serve: Callable[[], list[VerificationCheck]]) -> list[VerificationCheck]:
    """What the checks found, unless an earlier run in the same folder has asked."""

    def make(out: Path) -> None:
        out.write_bytes(_CHECKS.dump_json(serve()))

    found = _CHECKS.validate_json(once(path, f"serve and verify: {name}", make).read_bytes())
    say(f"    {name}: {', '.join(failed(found)) or 'takes traffic'}")
    return found


def or_refused(ask: Callable[[], list[VerificationCheck]]) -> list[VerificationCheck]:
    """What the checks find. A model whose server does not start, or does not answer, is refused, too."""
    from tests.support.server_process import ServerEndedError

    try:
        return ask()
    except ServerEndedError as error:
        said = str(error).rstrip().rpartition("\n")[2]
        return [VerificationCheck(name="start", outcome=CheckOutcome.FAILED, seen=shorten(said, _LONGEST))]
    except StageError as error:
        said = shorten(error.message, _LONGEST)
        return [VerificationCheck(name="answers", outcome=CheckOutcome.FAILED, seen=said)]


def failed(checks: Sequence[VerificationCheck]) -> list[str]:
    """Names of the checks that refuse."""
    return [check.name for check in checks if check.outcome is CheckOutcome.FAILED]


def seen(checks: Sequence[VerificationCheck]) -> dict[str, str]:
    """For the details of a result."""
    return {check.name: f"{check.outcome}: {check.seen}" for check in checks}
