"""Endpoints that wait: for their turn while a chart upgrade moves others, for a node, for pods that were lost."""

from __future__ import annotations

from contextlib import suppress

import pytest

from finetune_api import meta
from finetune_api.reasons import Reason, remedy
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, ServingPhase
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.objects import DEPLOYMENTS, PODS, Object
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from tests.controlplane.conftest import wait
from tests.controlplane.serving import NAME, RUNTIMES, Serving, conditions
from tests.support.played_pods import BETTER, GOOD, served
from tests.support.sentences import assert_says
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.controlplane

NAMES = ("demo", "second", "third")
MOST_EVICTED = 8


def test_a_chart_upgrade_moves_one_endpoint_at_a_time(serving: Serving) -> None:
    """The others say so meanwhile, and serve."""
    first = serving.start()
    for name in NAMES:
        serving.create(pinned(GOOD), name)
    wait(lambda: all(each.phase is ServingPhase.READY for each in _statuses(serving)), "all to serve")
    before = [each.last_good_revision for each in _statuses(serving)]
    first.stop()
    serving.servers.homeless.add(GOOD)  # the first to move waits for a node, so that the others are seen to wait
    changed = RUNTIMES["tgi-cpu"].model_copy(update={"env": {"ADDED": "by the upgrade"}})
    serving.start(runtimes={"tgi-cpu": changed}, max_concurrent_rollouts=1)
    most, queued = 0, ""

    def moved() -> bool:
        nonlocal most, queued
        if queued:
            serving.servers.homeless.discard(GOOD)
        statuses = _statuses(serving)
        states = [each.candidate.state for each in statuses if each.candidate]
        most = max(most, sum(state is not RevisionState.WAITING for state in states))
        assert all(conditions(each)["Ready"].status == "True" for each in statuses)
        waits = [each for each in map(conditions, statuses) if each["Reconciling"].reason == Reason.ROLLOUT_QUEUED]
        queued = next((each["Reconciling"].message for each in waits if "(" in each["Reconciling"].message), queued)
        revisions = [each.last_good_revision for each in statuses]
        return all(new != old for new, old in zip(revisions, before, strict=True))

    wait(moved, "all to be moved", 300, lambda: str([each.candidate for each in _statuses(serving)]))
    assert most == 1
    assert_says(queued, "Waiting for its turn", "1 at once", "operator.maxConcurrentRollouts")
    assert any(name in queued for name in NAMES)


def test_a_candidate_without_a_node_waits_and_starts_once_there_is_one(serving: Serving) -> None:
    """Even after the Deployment's controller has given up: its deadline counts the wait for a node."""
    serving.servers.homeless.add(BETTER)
    serving.start()
    old = serving.serve(GOOD)
    serving.update(BETTER)
    wait(lambda: _reason(serving) == Reason.UNSCHEDULABLE, "the cause", describe=lambda: str(serving.status()))
    candidate = serving.status().candidate
    assert candidate is not None
    found = serving.children(DEPLOYMENTS)[candidate.deployment]
    conditions = [*found["status"]["conditions"]]
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "late"}
    conditions = [each for each in conditions if each["type"] != "Progressing"] + [late]
    serving.team.api.patch_status(
        DEPLOYMENTS, serving.team.namespace, candidate.deployment, {"status": {"conditions": conditions}}
    )
    serving.change(replicas=2)  # a pass after it
    wait(lambda: serving.status().observed_generation == 3, "a pass")
    assert serving.status().candidate is not None
    assert _reason(serving) == Reason.UNSCHEDULABLE
    serving.servers.homeless.clear()
    wait(lambda: serving.traffic() != old, "the promotion")
    serving.until(ServingPhase.READY)


def test_a_candidate_that_its_nodes_evict_again_and_again_gives_its_hardware_back(serving: Serving) -> None:
    """The next pod would download as much, and go the same way."""
    serving.servers.loading.add(BETTER)
    serving.start()
    old = serving.serve(GOOD)
    serving.update(BETTER)
    message = "The node was low on resource: ephemeral-storage. Container fetch was using 52Gi, request is 0. "
    evicted = {"phase": "Failed", "reason": "Evicted", "message": message, "conditions": [_not_ready()]}
    gone: set[str] = set()

    def given_back() -> bool:
        """Its nodes evict no more than ``MOST_EVICTED``: an operator that gave up later would wait for the next one."""
        pods = {name: each for name, each in serving.children(PODS).items() if _serves(each)}
        new = {name for name, each in pods.items() if served(each["spec"]) == BETTER} - gone
        new = set(sorted(new)[: MOST_EVICTED - len(gone)])
        for name in new:
            with suppress(ApiError):  # given back meanwhile
                serving.team.api.patch_status(PODS, serving.team.namespace, name, {"status": evicted})
        gone.update(new)
        candidate = serving.status().candidate
        return candidate is not None and candidate.state is RevisionState.WAITING

    wait(given_back, "the end of its try", describe=lambda: str(serving.status()))
    candidate = serving.status().candidate
    assert candidate is not None
    assert candidate.reason == Reason.PREEMPTED
    assert_says(candidate.message, "Nodes that were low on ephemeral-storage have evicted", "was using 52Gi")
    assert_says(candidate.message, "so that others can use the hardware; it is tried again at")
    wait(lambda: not serving.others(old), "its pods to go", describe=lambda: str(serving.others(old)))
    assert len(gone) >= 3
    assert serving.traffic() == old


def test_a_verification_for_whose_pod_a_quota_has_no_room(serving: Serving) -> None:
    """It says which quota, and goes on by itself once there is room."""
    serving.team.limit({"pods": "1"})
    serving.start()
    serving.create(pinned(GOOD))
    wait(lambda: _reason(serving) == Reason.QUOTA_EXCEEDED, "the cause", describe=lambda: str(serving.status()))
    status = serving.status()
    assert status.phase is ServingPhase.PROGRESSING
    said = conditions(status)["Reconciling"].message
    assert_says(said, "verification", "exceeded quota: few, requested: pods=1, used: pods=1, limited: pods=1")
    assert_says(said, remedy(Reason.QUOTA_EXCEEDED, meta.ADAPTERDEPLOYMENT))
    wait(lambda: ("Warning", Reason.QUOTA_EXCEEDED) in serving.events(), "the event")
    serving.team.unlimit()
    serving.until(ServingPhase.READY)


def test_why_what_serves_does_not(serving: Serving) -> None:
    """A pod is evicted, and its replacement finds no node."""
    serving.start()
    serving.serve(GOOD)
    [pod] = [name for name, each in serving.children(PODS).items() if _serves(each)]
    serving.servers.homeless.add(GOOD)
    message = "The node was low on resource: memory."
    evicted = {"phase": "Failed", "reason": "Evicted", "message": message, "conditions": [_not_ready()]}
    serving.team.api.patch_status(PODS, serving.team.namespace, pod, {"status": evicted})
    status = serving.until(ServingPhase.DEGRADED)
    wait(
        lambda: conditions(serving.status())["Ready"].reason == Reason.UNSCHEDULABLE,
        "the cause",
        describe=lambda: str(serving.status().conditions),
    )
    status = serving.status()
    assert conditions(status)["Ready"].status == "False"
    said = conditions(status)["Ready"].message
    assert_says(said, "The pod of revision", "is not ready", "insufficient GPU", f"Pod {pod}", message)
    serving.servers.homeless.clear()
    serving.until(ServingPhase.READY)


def _statuses(serving: Serving) -> list[AdapterDeploymentStatus]:
    """All of one moment: between two reads, one may end and the next one begin."""
    found = serving.team.api.select(ADAPTERDEPLOYMENTS, serving.team.namespace)
    assert len(found) == len(NAMES)
    return [AdapterDeploymentStatus.model_validate(each.get("status") or {}) for each in found]


def _reason(serving: Serving) -> str:
    candidate = serving.status().candidate
    return candidate.reason if candidate else ""


def _serves(pod: Object) -> bool:
    return meta.LABEL_STAGE not in pod["metadata"]["labels"] and pod["metadata"]["name"].startswith(NAME)


def _not_ready() -> Object:
    return {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}
