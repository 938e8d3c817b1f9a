"""What the verifier makes of what running pods say of adapters that they load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from finetune_api.endpoint_stages import AdapterRef, AdapterReport, AdapterReports
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState, CheckOutcome, VerificationCheck
from finetune_jobs.base.errors import StageError
from finetune_jobs.self_check import Gate
from finetune_jobs.verification.delivery import await_adapters, await_removed

pytestmark = [pytest.mark.unit, pytest.mark.slow]

REFS = [AdapterRef(name=name, uri=f"s3://models/artifacts/{name}", digest=name[0] * 64) for name in ("de", "fr")]
LOADED, FAILED, LOADING = AdapterState.LOADED, AdapterState.FAILED, AdapterState.LOADING
NOTHING = AdapterReports()


def says(*states: AdapterState, attempt: str | None = None) -> AdapterReports:
    """What a pod says of both, or of the first. Attempt None: one of an earlier version."""
    return AdapterReports(
        adapters=[
            AdapterReport(
                name=ref.name,
                digest=ref.digest,
                state=state,
                reason=Reason.ADAPTER_INACTIVE,
                message="" if state is LOADED else f"{ref.name} is {state}",
                attempt=attempt,
            )
            for ref, state in zip(REFS, states, strict=False)
        ]
    )


@pytest.fixture
def pods() -> Iterator[list[Gate]]:
    gates = [Gate(0), Gate(0)]
    yield gates
    for gate in gates:
        gate.close()


def ask(pods: list[Gate], seconds: float, attempt: str = "") -> list[VerificationCheck]:
    urls = [f"http://127.0.0.1:{gate.port}" for gate in pods]
    return await_adapters(urls, REFS, time.monotonic() + seconds, lambda _share, _said: None, attempt)


def test_it_waits_until_all_pods_have_loaded_all(pods: list[Gate]) -> None:
    def later() -> None:
        for gate in pods:
            gate.tell(says(LOADED, LOADED))

    pods[0].tell(says(LOADED, LOADING))
    threading.Timer(0.1, later).start()
    found = ask(pods, 600)
    assert [(each.name, each.outcome, each.expected, each.seen) for each in found] == [
        ("de", CheckOutcome.PASSED, "loaded by 2 pods", "loaded by 2"),
        ("fr", CheckOutcome.PASSED, "loaded by 2 pods", "loaded by 2"),
    ]


@pytest.mark.parametrize(
    ("second", "seconds", "reason", "says_", "outcomes"),
    [
        (says(LOADED, FAILED), 600, Reason.ADAPTER_INACTIVE, "^fr is Failed$", ("Passed", "Failed")),
        (says(LOADING, LOADED), 0, Reason.ADAPTER_INACTIVE, "^de is Loading$", ("Failed", "Passed")),
        (NOTHING, 0, Reason.VERIFICATION_FAILED, "'de' was not loaded in time: .*'fr' was not", ("Failed", "Failed")),
    ],
)
def test_one_that_cannot_load_it_or_is_late_decides(
    pods: list[Gate], second: AdapterReports, seconds: float, reason: Reason, says_: str, outcomes: tuple[str, str]
) -> None:
    pods[0].tell(says(LOADED, LOADED))
    pods[1].tell(second)
    with pytest.raises(StageError, match=says_) as error:
        ask(pods, seconds)
    assert error.value.reason is reason
    assert tuple(str(each.outcome) for each in error.value.checks) == outcomes


def test_what_a_pod_says_of_an_earlier_attempt_does_not_count(pods: list[Gate]) -> None:
    """It has not read of this one yet: the kubelet takes a minute."""

    def later() -> None:
        pods[1].tell(says(LOADED, LOADED, attempt="second"))

    pods[0].tell(says(LOADED, LOADED, attempt="second"))
    pods[1].tell(says(LOADED, FAILED, attempt="first"))
    threading.Timer(0.1, later).start()
    assert [each.outcome for each in ask(pods, 600, "second")] == [CheckOutcome.PASSED] * 2


@pytest.mark.parametrize("state", [LOADED, FAILED])
def test_one_that_never_reads_of_it_is_late(pods: list[Gate], state: AdapterState) -> None:
    for gate in pods:
        gate.tell(says(state, state, attempt="first"))
    with pytest.raises(StageError, match="'de' was not loaded in time"):
        ask(pods, 0, "second")


def left(pods: list[Gate], seconds: float) -> list[VerificationCheck]:
    """What comes of waiting until no pod has either."""
    urls = [f"http://127.0.0.1:{gate.port}" for gate in pods]
    return await_removed(urls, REFS, time.monotonic() + seconds, lambda _share, _said: None)


def test_it_waits_until_no_pod_has_what_was_removed(pods: list[Gate]) -> None:
    for gate in pods:
        gate.open()
    pods[0].tell(NOTHING)
    pods[1].tell(says(LOADED, attempt=""))
    threading.Timer(0.1, lambda: pods[1].tell(NOTHING)).start()
    found = left(pods, 600)
    assert [(each.name, each.outcome, each.expected, each.seen) for each in found] == [
        ("de", CheckOutcome.PASSED, "removed by 2 pods", "removed by 2"),
        ("fr", CheckOutcome.PASSED, "removed by 2 pods", "removed by 2"),
    ]


@pytest.mark.parametrize(
    ("ready", "second", "outcomes", "says_"),
    [
        (
            True,
            says(LOADED),
            ("Failed", "Passed"),
            "'de' was not removed in time: .* still has one of the name",
        ),
        (True, says(LOADING), ("Failed", "Passed"), "still has one of the name"),
        (False, NOTHING, ("Failed", "Failed"), "is not ready, or does not answer"),
        (True, None, ("Failed", "Failed"), "is not ready, or does not answer"),
    ],
    ids=["loaded", "loading", "proves itself still", "says nothing"],
)
def test_a_pod_may_have_what_it_does_not_say_that_it_has_not(
    pods: list[Gate], ready: bool, second: AdapterReports | None, outcomes: tuple[str, str], says_: str
) -> None:
    """One that proves itself still may load what it has not told of yet: the kubelet may not have brought the list."""
    pods[0].open()
    pods[0].tell(NOTHING)
    if ready:
        pods[1].open()
    if second is not None:
        pods[1].tell(second)
    with pytest.raises(StageError, match=says_) as error:
        left(pods, 0)
    assert error.value.reason is Reason.ADAPTER_STAYS
    assert tuple(str(each.outcome) for each in error.value.checks) == outcomes


def test_a_name_that_stands_for_another_artifact_is_not_gone(pods: list[Gate]) -> None:
    """It was removed, came back with another artifact, and was removed again before the pod had read any of it."""
    for gate in pods:
        gate.open()
        gate.tell(says(LOADED))
    other = [REFS[0].model_copy(update={"digest": "9" * 64})]
    urls = [f"http://127.0.0.1:{gate.port}" for gate in pods]
    with pytest.raises(StageError, match="'de' was not removed in time"):
        await_removed(urls, other, time.monotonic(), lambda _share, _said: None)
