"""AdapterDeployments and what others do: conflicting objects, deleted sources and children, a second operator."""

from __future__ import annotations

import pytest

from finetune_api import meta
from finetune_api.job_status import Phase
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, ServingPhase
from finetune_api.stages import Stage
from finetune_operator.framework.client import Selection
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    PODS,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS
from finetune_operator.settings import Images
from tests.controlplane.conftest import wait
from tests.controlplane.serving import CHILDREN, NAME, Serving
from tests.support.played_pods import BETTER, GOOD
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.controlplane


def test_a_source_that_is_deleted_leaves_its_artifact_served_and_looked_after(serving: Serving) -> None:
    """Nothing goes on forever, what serves is healed, and the job's return makes all well without a new revision."""
    serving.start()
    serving.create({"source": {"fineTuneJob": {"name": "intents"}}, "runtime": "tgi-cpu"})
    serving.team.create("intents")
    revision = serving.until(ServingPhase.READY).last_good_revision
    serving.until_only(revision)
    serving.team.delete("intents")
    status = serving.until(ServingPhase.DEGRADED)
    assert {each.type: (each.status, each.reason) for each in status.conditions} == {
        "Ready": ("True", Reason.SERVING),
        "Reconciling": ("False", Reason.SERVING),
        "Stalled": ("True", Reason.SOURCE_NOT_FOUND),
    }
    for kind in (CONFIG_MAPS, DEPLOYMENTS):
        for name, child in serving.children(kind).items():
            serving.team.api.delete(kind, serving.team.namespace, name, child["metadata"]["uid"])
    wait(lambda: f"demo-{revision}" in serving.children(DEPLOYMENTS), "the Deployment")
    wait(lambda: any("-fetch-" in name for name in serving.children(CONFIG_MAPS)), "the input of fetch")
    wait(lambda: serving.status().ready_replicas == 1, "its pod")
    serving.team.create("intents")
    assert serving.until(ServingPhase.READY).last_good_revision == revision
    assert serving.traffic() == revision


def test_a_conflicting_service_is_never_taken_over(serving: Serving) -> None:
    theirs = serving.team.api.create(SERVICES, _service(serving.team.namespace, NAME))
    serving.start()
    serving.create(pinned(GOOD))
    status = serving.until(ServingPhase.FAILED)
    assert {each.type: each.reason for each in status.conditions}["Stalled"] == Reason.NAME_TAKEN
    wait(
        lambda: serving.events() == [("Warning", Reason.NAME_TAKEN)],
        "the event",
        describe=lambda: str(serving.events()),
    )
    assert not any(serving.children(resource) for resource in CHILDREN)
    found = serving.get(SERVICES, NAME)
    assert found is not None
    assert found["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]
    serving.team.api.delete(SERVICES, serving.team.namespace, NAME, theirs["metadata"]["uid"])
    serving.change(replicas=2)  # rather than wait for the next look
    serving.until(ServingPhase.READY)


def test_a_conflicting_deployment_is_never_taken_over(serving: Serving) -> None:
    operator = serving.start()
    revision = serving.serve(GOOD)
    _delete(serving)
    operator.stop()
    theirs = _deployment(serving.team.namespace, f"demo-{revision}")
    made = serving.team.api.create(DEPLOYMENTS, theirs)
    serving.create(pinned(GOOD))
    serving.start()
    status = serving.until(ServingPhase.FAILED)
    stalled = next(each for each in status.conditions if each.type == "Stalled")
    assert stalled.reason == Reason.NAME_TAKEN
    assert f"Deployment demo-{revision}" in stalled.message
    found = serving.get(DEPLOYMENTS, f"demo-{revision}")
    assert found is not None
    assert found["metadata"]["uid"] == made["metadata"]["uid"]
    assert found["spec"]["template"] == made["spec"]["template"]


def test_deletion_takes_everything_along(serving: Serving) -> None:
    serving.start()
    serving.serve(GOOD)
    serving.servers.loading.add(BETTER)
    serving.update(BETTER)
    serving.until(ServingPhase.PROGRESSING)
    _delete(serving)


def test_one_that_is_deleted_and_applied_again_waits_for_what_the_first_one_left(serving: Serving) -> None:
    """It has the same names; that they are taken is nobody's fault, and no news."""
    serving.start()
    serving.serve(GOOD)
    found = serving.get(ADAPTERDEPLOYMENTS, NAME)
    assert found is not None
    serving.team.api.delete(ADAPTERDEPLOYMENTS, serving.team.namespace, NAME, found["metadata"]["uid"])
    serving.create(pinned(GOOD))
    status = serving.until(ServingPhase.READY)
    assert status.stable is not None
    assert [kind for kind, _ in serving.events() if kind == "Warning"] == []


@pytest.mark.parametrize("kind", [DEPLOYMENTS, JOBS])
def test_a_deleted_child_comes_back_or_is_not_needed(serving: Serving, kind: Resource) -> None:
    serving.start()
    revision = serving.serve(GOOD)
    for name, child in serving.children(kind).items():
        serving.team.api.delete(kind, serving.team.namespace, name, child["metadata"]["uid"])
    wait(lambda: f"demo-{revision}" in serving.children(DEPLOYMENTS), "the Deployment")
    assert serving.until(ServingPhase.READY).last_good_revision == revision
    assert serving.traffic() == revision


def test_tampering_is_put_right(serving: Serving) -> None:
    """At once: a Deployment because it is watched, the Service because its endpoints are."""
    serving.start()
    revision = serving.serve(GOOD)
    api, namespace = serving.team.api, serving.team.namespace
    api.patch(DEPLOYMENTS, namespace, f"demo-{revision}", {"spec": {"replicas": 5}})
    wait(lambda: serving.children(DEPLOYMENTS)[f"demo-{revision}"]["spec"]["replicas"] == 1, "one pod")
    api.patch(SERVICES, namespace, NAME, {"spec": {"selector": {meta.LABEL_REVISION: "00000000"}}})
    wait(lambda: serving.traffic() == revision, "the selector")
    wait(lambda: serving.reached() == {revision}, "its endpoints")


def test_a_service_that_is_deleted_comes_back_and_ready_is_not_said_without_it(serving: Serving) -> None:
    serving.start()
    revision = serving.serve(GOOD)
    before, deleted = serving.get(ADAPTERDEPLOYMENTS, NAME), serving.get(SERVICES, NAME)
    assert before is not None
    assert deleted is not None
    serving.team.api.delete(SERVICES, serving.team.namespace, NAME, deleted["metadata"]["uid"])
    status = _saw(serving, ServingPhase.PROGRESSING, before)
    assert [(each.status, each.reason) for each in status.conditions if each.type == "Ready"] == [("False", "Waiting")]
    serving.until(ServingPhase.READY)
    assert serving.traffic() == revision
    assert serving.reached() == {revision}


def _saw(serving: Serving, phase: ServingPhase, since: Object) -> AdapterDeploymentStatus:
    """The first status with a phase after a state of the resource: a watch shows it, however soon it passes."""
    selection = Selection(ADAPTERDEPLOYMENTS, serving.team.namespace)
    for change in serving.team.api.watch(selection, int(since["metadata"]["resourceVersion"]), 180):
        status = AdapterDeploymentStatus.model_validate(change.object.get("status") or {})
        if status.phase is phase:
            return status
    raise AssertionError(f"it was never {phase}")


def _delete(serving: Serving) -> None:
    """Delete the resource, and wait until the garbage collector has taken everything."""
    found = serving.get(ADAPTERDEPLOYMENTS, NAME)
    assert found is not None
    serving.team.api.delete(ADAPTERDEPLOYMENTS, serving.team.namespace, NAME, found["metadata"]["uid"])
    wait(lambda: not any(serving.children(resource) for resource in (*CHILDREN, PODS)), "the garbage collector")


def _service(namespace: str, name: str) -> Object:
    metadata = {"name": name, "namespace": namespace}
    spec = {"selector": {"app": "theirs"}, "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _deployment(namespace: str, name: str) -> Object:
    labels = {"app": "theirs"}
    pod = {"containers": [{"name": "theirs", "image": "theirs"}]}
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def test_two_operators_leave_what_is_not_theirs_alone(serving: Serving) -> None:
    """Another release with other images would make another revision of every endpoint, and delete this one's.

    What carries its label is its own; and what loses the label goes to the other operator as it is.
    """
    serving.start()
    revision = serving.serve(GOOD)
    before = serving.children(DEPLOYMENTS).keys()
    team, canary = serving.team, serving.team.directory / "canary.log"
    other = Images(
        data="canary/data",
        prepare="canary/prepare",
        jobs="canary/jobs",
        quantize="canary/quantize",
        proxy="canary/proxy",
    )
    operator = serving.start(instance="canary", images=other, writes_log=canary, resync_seconds=10)
    operator.wait_ready()
    team.create("theirs", labels={meta.LABEL_INSTANCE: "canary"})
    team.create("ours")
    for name, image in (("theirs", "canary/data"), ("ours", "example/data")):
        team.until(name, Phase.SUCCEEDED)
        [job] = team.jobs(name, Stage.RESOLVE)
        assert job["spec"]["template"]["spec"]["containers"][0]["image"] == image
    assert serving.status().last_good_revision == revision
    assert serving.children(DEPLOYMENTS).keys() == before
    assert {line.split()[1] for line in canary.read_text().splitlines()} == {"ConfigMap", "Job", "FineTuneJob", "Event"}
    jobs = {job["metadata"]["uid"] for job in team.jobs("theirs")}
    handed_over = {"metadata": {"labels": {meta.LABEL_INSTANCE: None}}, "spec": {"suspend": True}}
    operator.wait_idle()
    size = len(canary.read_text())
    found = team.status("theirs").conditions[0].observed_generation
    team.api.patch(FINETUNEJOBS, team.namespace, "theirs", handed_over)
    wait(lambda: team.status("theirs").conditions[0].observed_generation != found, "the other operator's status")
    assert {job["metadata"]["uid"] for job in team.jobs("theirs")} == jobs
    assert len(canary.read_text()) == size
