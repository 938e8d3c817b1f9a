"""Waiting until running pods have loaded adapters, or let go of them: each is asked what its self-check says."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from huggingface_hub import get_session, hf_raise_for_status
from pydantic import ValidationError

from finetune_api.endpoint_stages import AdapterRef, AdapterReport, AdapterReports
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState, CheckOutcome, VerificationCheck
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.store.hub import CLIENT_ERROR

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 2.0
_REQUEST_SECONDS: Final = 5.0
_LONGEST: Final = 128
"""The API's limit for what a check has seen."""

Said = Mapping[str, AdapterReport]
"""What the self-check of a pod says of each adapter, by its digest and name."""
Told = Mapping[str, Said]
"""The same of each pod, by its URL."""


def await_adapters(
    pods: Sequence[str],
    adapters: Sequence[AdapterRef],
    deadline: float,
    report: Callable[[float, str], None],
    attempt: str = "",
) -> list[VerificationCheck]:
    """Until every pod serves these adapters, or says that it cannot; a check for each. What a pod says of an earlier
    ``attempt`` does not count: it has not read of this one yet.

    Raises StageError with the checks: the reason of the first that failed, or VerificationFailed for one that was not
    loaded by the ``deadline`` of the monotonic clock.
    """
    while True:
        told = {pod: _of_attempt(_ask(pod) or {}, attempt) for pod in pods}
        late = time.monotonic() >= deadline
        checks = [_check(each, told, late) for each in adapters]
        settled = [each for each in checks if each.outcome is not CheckOutcome.SKIPPED]
        report(len(settled) / len(checks), f"{len(settled)} of {len(checks)} adapters are settled")
        if len(settled) == len(checks):
            break
        time.sleep(_POLL_SECONDS)
    failed = [each for each in adapters if _outcome(checks, each.name) is CheckOutcome.FAILED]
    if failed:
        said = " ".join(_why(each, told) for each in failed)
        raise StageError(_reason(failed[0], told), said, checks=checks)
    return checks


def await_removed(
    pods: Sequence[str],
    adapters: Sequence[AdapterRef],
    deadline: float,
    report: Callable[[float, str], None],
) -> list[VerificationCheck]:
    """Until no pod has any of these adapters; a check for each. A pod that says nothing may have all of them.

    Raises StageError (AdapterStays) with the checks: a pod has one by the ``deadline`` of the monotonic clock.
    """
    while True:
        told = {pod: _ask(pod) if _is_ready(pod) else None for pod in pods}
        late = time.monotonic() >= deadline
        holders = {each.name: _holders(each, told) for each in adapters}
        checks = [_check_removed(name, len(pods), held) for name, held in holders.items()]
        gone = sum(not held for held in holders.values())
        report(gone / len(checks), f"{gone} of {len(checks)} adapters are removed")
        if gone == len(checks):
            return checks
        if late:
            break
        time.sleep(_POLL_SECONDS)
    name, held = next((name, held) for name, held in holders.items() if held)
    said = f"Adapter {name!r} was not removed in time: {_still(held[0], told)}"
    raise StageError(Reason.ADAPTER_STAYS, said, checks=checks)


def _holders(each: AdapterRef, told: Mapping[str, Said | None]) -> list[str]:
    """The pods that have an adapter of the name, with whatever artifact, as far as is known."""
    return [pod for pod, said in told.items() if said is None or any(it.name == each.name for it in said.values())]


def _check_removed(name: str, pods: int, holders: Sequence[str]) -> VerificationCheck:
    return VerificationCheck(
        name=name,
        expected=f"removed by {pods} pods",
        seen=f"removed by {pods - len(holders)}",
        outcome=CheckOutcome.FAILED if holders else CheckOutcome.PASSED,
    )


def _still(pod: str, told: Mapping[str, Said | None]) -> str:
    if told[pod] is None:
        return f"the self-check at {pod} is not ready, or does not answer."
    return f"the self-check at {pod} says that its server still has one of the name."


def _is_ready(pod: str) -> bool:
    """Whether a pod speaks of all that it was told of: before it is ready, not of what it has not come to yet."""
    try:
        hf_raise_for_status(get_session().get(f"{pod}/ready", timeout=_REQUEST_SECONDS))
    except CLIENT_ERROR:
        return False
    return True


def _of_attempt(said: Said, attempt: str) -> Said:
    """One of an earlier version says the same of all."""
    return {key: each for key, each in said.items() if each.attempt in (None, attempt)}


def _ask(pod: str) -> Said | None:
    """What a pod says; None if it does not answer now."""
    try:
        response = get_session().get(f"{pod}/adapters", timeout=_REQUEST_SECONDS)
        hf_raise_for_status(response)
        reports = AdapterReports.model_validate_json(response.text).adapters
        return {_key(each): each for each in reports}
    except (CLIENT_ERROR, ValidationError) as error:
        log.info("%s says nothing of its adapters (%s)", pod, type(error).__name__)
        return None


def _key(each: AdapterRef | AdapterReport) -> str:
    return f"{each.digest} {each.name}"


def _check(each: AdapterRef, told: Told, late: bool) -> VerificationCheck:
    """Skipped: it is open still."""
    states = [found.state if (found := pod.get(_key(each))) else AdapterState.LOADING for pod in told.values()]
    loaded = sum(state is AdapterState.LOADED for state in states)
    outcome = CheckOutcome.FAILED if late or AdapterState.FAILED in states else CheckOutcome.SKIPPED
    return VerificationCheck(
        name=each.name,
        expected=f"loaded by {len(states)} pods",
        seen=shorten(f"loaded by {loaded}", _LONGEST),
        outcome=CheckOutcome.PASSED if loaded == len(states) else outcome,
    )


def _outcome(checks: Sequence[VerificationCheck], name: str) -> CheckOutcome:
    return next(each.outcome for each in checks if each.name == name)


def _trouble(each: AdapterRef, told: Told) -> tuple[str, AdapterReport | None]:
    """A pod that has not loaded an adapter, and what it says; one that has failed before one that waits."""
    found = [(pod, reports.get(_key(each))) for pod, reports in told.items()]
    open_still = [(pod, report) for pod, report in found if report is None or report.state is not AdapterState.LOADED]
    return next((it for it in open_still if it[1] and it[1].state is AdapterState.FAILED), open_still[0])


def _reason(each: AdapterRef, told: Told) -> Reason:
    report = _trouble(each, told)[1]
    return report.reason if report is not None and report.message else Reason.VERIFICATION_FAILED


def _why(each: AdapterRef, told: Told) -> str:
    pod, report = _trouble(each, told)
    if report is not None and report.message:
        return report.message
    why = "has not said anything of it" if report is None else "is still downloading or verifying it"
    return f"Adapter {each.name!r} was not loaded in time: the self-check at {pod} {why}."
