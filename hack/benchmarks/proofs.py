"""What verification found of artifacts that were planted, kept in files so that a run that was stopped goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from finetune_api.serving_status import CheckOutcome, VerificationCheck
from hack.benchmarks.gated import once
from hack.cluster.console import say

_CHECKS = TypeAdapter(list[VerificationCheck])


def kept(path: Path, name: str, serve: Callable[[], list[VerificationCheck]]) -> list[VerificationCheck]:
    """What the checks found, unless an earlier run in the same folder has asked."""

    def make(out: Path) -> None:
        out.write_bytes(_CHECKS.dump_json(serve()))

    found = _CHECKS.validate_json(once(path, f"serve and verify: {name}", make).read_bytes())
    say(f"    {name}: {', '.join(failed(found)) or 'takes traffic'}")
    return found


def failed(checks: Sequence[VerificationCheck]) -> list[str]:
    """Names of the checks that refuse."""
    return [check.name for check in checks if check.outcome is CheckOutcome.FAILED]


def seen(checks: Sequence[VerificationCheck]) -> dict[str, str]:
    """For the details of a result."""
    return {check.name: f"{check.outcome}: {check.seen}" for check in checks}
