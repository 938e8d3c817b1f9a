"""Two replicas of the operator, of which one works: frozen, killed, stopped, and thawed again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from finetune_api.job_status import Phase
from finetune_operator.framework.objects import LEASES
from finetune_operator.settings import Lease
from tests.controlplane.conftest import Team, wait
from tests.support.operator_process import PATIENCE, Running

pytestmark = pytest.mark.controlplane

TAKE_OVER = 60
"""Seconds after the leader's freeze within which another replica must have begun its first work. The Lease and the
looks at it are 17 of them; the rest is for a machine at an eighth of its speed."""
END = 4
"""Seconds that an orderly stop may take: less than the five that Kopf would wait for a flag that nobody sets. At full
speed it takes a twentieth of one."""


def replica(team: Team, name: str) -> Running:
    """A replica that is ready, with a file of its own for what it writes."""
    operator = team.start(lease=Lease(namespace=team.namespace, name="operator"), writes_log=log(team, name))
    operator.wait_ready()
    return operator


def log(team: Team, name: str) -> Path:
    return team.directory / f"writes-{name}.log"


def leads(operator: Running) -> bool:
    return operator.metric("finetune_operator_leader") == 1


def holder(team: Team) -> str | None:
    """Who has the Lease."""
    found = team.api.get(LEASES, team.namespace, "operator")
    assert found is not None
    name: str | None = found["spec"].get("holderIdentity")
    return name


def test_a_replica_takes_over_from_a_frozen_one_which_then_writes_no_more(team: Team) -> None:
    """Nor does it when nobody leads: here the second one has died meanwhile, and a job waits."""
    first = replica(team, "first")
    wait(lambda: leads(first), "the first to lead")
    second = replica(team, "second")
    team.create("before")
    team.until("before", Phase.SUCCEEDED)
    assert not log(team, "second").exists(), "it stands by"
    assert not leads(second)
    succeeded = {"kind": "FineTuneJob", "phase": "Succeeded"}
    wait(lambda: second.metric("finetune_operator_resources", **succeeded) == 1, "the one that stands by to know")
    # A write that is under way when the first is frozen is logged when it thaws: the Event after the last status, say.
    first.wait_idle()

    os.kill(first.process.pid or 0, signal.SIGSTOP)
    written = log(team, "first").read_text()
    team.create("during")
    wait(lambda: team.jobs("during"), "the second to start a job", TAKE_OVER)
    team.until("during", Phase.SUCCEEDED)
    assert leads(second)

    second.process.kill()
    second.process.join()
    team.create("orphan")
    os.kill(first.process.pid or 0, signal.SIGCONT)
    wait(lambda: first.process.exitcode is not None, "the first to find out and to end")
    assert first.process.exitcode == 1
    assert log(team, "first").read_text() == written
    assert team.jobs("orphan") == []

    third = replica(team, "third")
    team.until("orphan", Phase.SUCCEEDED)
    assert leads(third)


def test_a_replica_that_stops_hands_over_at_once(team: Team) -> None:
    """Kubernetes stops it for an upgrade: the other one need not wait until the Lease has run out, since the first one
    gives it up before it ends. Whoever reads such a Lease takes it at once, as a unit test shows."""
    first = replica(team, "first")
    wait(lambda: leads(first), "the first to lead")
    second = replica(team, "second")
    had = holder(team)
    assert had
    first.process.terminate()
    first.process.join(PATIENCE)
    left = holder(team)
    assert first.process.exitcode == 0
    assert left != had, "it was given up before the process ended"
    # Only now, or the first would start the job with its last breath, as it may.
    wait(lambda: leads(second), "the second to lead")
    team.create("next")
    wait(lambda: team.jobs("next"), "the second to start a job")


def test_an_operator_without_work_ends_as_soon_as_it_is_told_to(team: Team) -> None:
    """Every upgrade waits for it."""
    operator = team.start()
    # Kopf logs in and asks what the cluster offers when the first probe is answered already. It would wait for that.
    operator.wait_ready()
    operator.process.terminate()
    told = time.monotonic()
    operator.process.join(PATIENCE)
    assert operator.process.exitcode == 0
    assert time.monotonic() - told < END


def test_metrics_of_a_run(team: Team) -> None:
    """What happened, by kind and result; requests in the words of RBAC; nothing is left undone."""
    operator = team.start()
    operator.wait_ready()
    team.create("counted")
    team.until("counted", Phase.SUCCEEDED)
    operator.wait_idle()
    turns = operator.metric("finetune_operator_reconcile_duration_seconds_count", kind="FineTuneJob", result="ok")
    assert turns >= 6, "at least one a stage"
    assert operator.metric("finetune_operator_api_requests_total", verb="create", resource="jobs", code="201") == 6
    assert operator.metric("finetune_operator_api_requests_total", verb="list", resource="pods", code="200") >= 1
    assert operator.metric("finetune_operator_api_requests_total", resource="secrets") == 0
    said = {"kind": "FineTuneJob", "phase": "Succeeded", "reason": "RunSucceeded"}
    wait(lambda: operator.metric("finetune_operator_resources", **said) == 1, "the cache to have the last status")
    assert operator.metric("process_resident_memory_bytes") > 0
    assert operator.metric("finetune_operator_leader") == 1
