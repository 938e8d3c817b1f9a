"""AdapterDeployments on a real API server with real Deployments: the test plays kubelet and verifier."""

from __future__ import annotations

import time
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.adapterdeployment import RevisionState, ServingPhase
from finetune_api.finetunejob import Phase
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    NETWORK_POLICIES,
    PODS,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS
from finetune_operator.settings import Images
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.controlplane.conftest import ADDED_LATER, newer_crds, wait
from tests.controlplane.serving import CHILDREN, NAME, Serving
from tests.support.operator_process import CRASH_EXIT
from tests.support.serving import BETTER, CORRUPT, GOOD, INACTIVE, pinned

pytestmark = pytest.mark.controlplane


def test_first_rollout(serving: Serving) -> None:
    """One Deployment is started and proved before there is a public Service at all; then all is at rest."""
    serving.start()
    serving.create(pinned(GOOD, replicas=2))
    status = serving.until(ServingPhase.READY)
    assert status.stable is not None
    assert status.stable.accuracy == "0.9400"
    assert (status.replicas, status.ready_replicas) == (2, 2)
    assert status.endpoint == f"http://demo.{serving.team.namespace}.svc:80"
    assert serving.traffic() == status.stable.revision
    assert serving.reached() == {status.stable.revision}
    [asked] = serving.asked
    assert asked.params.verify is not None
    assert (
        asked.params.verify.endpoint
        == f"http://demo-{status.stable.revision}-candidate.{serving.team.namespace}.svc:80"
    )
    wait(lambda: set(serving.children(SERVICES)) == {NAME}, "the candidate's Service to go")
    [policy] = serving.children(NETWORK_POLICIES).values()
    assert policy["spec"]["ingress"][0]["from"][1:] == [{"podSelector": {}}]
    assert serving.events() == [("Normal", "CandidateStarting"), ("Normal", "Promoted")]


def test_what_the_namespace_may_not_have(serving: Serving) -> None:
    """No pod starts for it; what serves when the rules change goes on serving."""

    def restart(**limits: Any) -> None:
        for operator in serving.team.operators:
            operator.stop()
        serving.start(tenancy=Tenancy(rules=[TenancyRule(namespaces=["team-*"], **limits)]))

    restart(runtimes=["tgi-cpu"], inputs=["s3://models/{namespace}"])
    serving.create(pinned(GOOD))
    status = serving.until(ServingPhase.FAILED)
    assert {each.type: each.reason for each in status.conditions}["Stalled"] == Reason.NOT_ALLOWED
    assert not serving.children(DEPLOYMENTS)
    restart(runtimes=["tgi-cpu"], inputs=["s3://models"])
    revision = serving.until(ServingPhase.READY).last_good_revision
    restart(runtimes=[])
    status = serving.until(ServingPhase.DEGRADED)
    assert {each.type: each.status for each in status.conditions}["Ready"] == "True"
    assert (serving.traffic(), set(serving.children(DEPLOYMENTS))) == (revision, {f"demo-{revision}"})


def test_at_rest_nothing_is_written(serving: Serving) -> None:
    """Neither events nor a new operator make writes: what the API server adds to objects is no drift."""
    serving.start()
    serving.serve(GOOD)
    wait(lambda: set(serving.children(SERVICES)) == {NAME}, "the candidate's Service to go")
    before = serving.team.writes()
    serving.team.operators[0].stop()
    serving.start().wait_ready()
    serving.team.api.patch(PODS, serving.team.namespace, _a_pod(serving), {"metadata": {"labels": {"touched": "yes"}}})
    time.sleep(4)  # more than the operator needs for a pass
    assert serving.team.writes() == before


def test_update_and_drain(serving: Serving) -> None:
    """The old revision serves until the new one is proved, then drains and goes, with all that belongs to it."""
    serving.servers.loading.add(BETTER)
    serving.start()
    old = serving.serve(GOOD)
    serving.update(BETTER)
    status = serving.until(ServingPhase.PROGRESSING)
    assert status.candidate is not None
    new = status.candidate.revision
    assert serving.traffic() == old
    assert len(serving.children(DEPLOYMENTS)) == 2
    policy = serving.get(NETWORK_POLICIES, f"demo-{new}")
    assert policy is not None
    assert len(policy["spec"]["ingress"][0]["from"]) == 1, "the verifier only"
    serving.servers.loading.clear()
    wait(lambda: serving.traffic() == new, "the promotion")
    assert f"demo-{old}" in serving.children(DEPLOYMENTS)
    serving.until_only(new)
    assert serving.until(ServingPhase.READY).last_good_revision == new


@pytest.mark.parametrize(
    ("digest", "reason"), [(INACTIVE, Reason.ADAPTER_INACTIVE), (CORRUPT, Reason.ARTIFACT_CORRUPT)]
)
def test_a_failed_candidate_leaves_the_old_revision_alone(serving: Serving, digest: str, reason: Reason) -> None:
    serving.start()
    old = serving.serve(GOOD)
    before = serving.children(DEPLOYMENTS)[f"demo-{old}"]["metadata"]["generation"]
    serving.update(digest)
    status = serving.until(ServingPhase.DEGRADED)
    assert status.candidate is not None
    assert (status.candidate.state, status.candidate.reason) == (RevisionState.FAILED, reason)
    assert {each.type: each.status for each in status.conditions}["Ready"] == "True"
    assert {each.type: each.reason for each in status.conditions}["Stalled"] == reason
    wait(lambda: set(serving.children(DEPLOYMENTS)) == {f"demo-{old}"}, "the candidate's pods to go")
    assert serving.children(DEPLOYMENTS)[f"demo-{old}"]["metadata"]["generation"] == before
    assert serving.traffic() == old
    assert serving.events()[-1] == ("Warning", reason)


def test_a_failed_candidate_is_tried_again_when_asked_for(serving: Serving) -> None:
    serving.start()
    serving.create(pinned(INACTIVE))
    serving.until(ServingPhase.FAILED)
    serving.inactive.clear()
    serving.change(replicas=2)
    assert serving.until(ServingPhase.FAILED).candidate is not None
    serving.change(rerun="the-image-is-right-now")
    serving.until(ServingPhase.READY)
    assert len(serving.asked) == 2


def test_rollback_by_the_spec(serving: Serving) -> None:
    """Going back serves the revision of before, proved once more."""
    serving.start()
    old = serving.serve(GOOD)
    serving.update(BETTER)
    new = wait(lambda: serving.traffic() if serving.traffic() != old else "", "the promotion")
    serving.update(GOOD)
    wait(lambda: serving.traffic() == old, "the way back")
    serving.until_only(old)
    assert new != old
    assert serving.until(ServingPhase.READY).last_good_revision == old


def test_a_namespace_with_room_for_one_service(serving: Serving) -> None:
    """The candidate's own makes way for the public one, in time; a second candidate waits without harm."""
    serving.team.limit({"services": "1"})
    serving.start(policy_seconds=5)
    old = serving.serve(GOOD)
    assert set(serving.children(SERVICES)) == {NAME}
    serving.update(BETTER)
    status = serving.until(ServingPhase.DEGRADED)
    assert {each.type: each.reason for each in status.conditions}["Stalled"] == Reason.QUOTA_EXCEEDED
    assert serving.traffic() == old
    serving.team.unlimit()
    serving.change(replicas=2)  # rather than wait for the next look
    wait(lambda: serving.traffic() != old, "the promotion")
    serving.until(ServingPhase.READY)
    assert [reason for kind, reason in serving.events() if kind == "Warning"] == [Reason.QUOTA_EXCEEDED]


def test_a_newer_target_replaces_an_unfinished_candidate(serving: Serving) -> None:
    serving.servers.loading.add(BETTER)
    serving.start()
    old = serving.serve(GOOD)
    serving.update(BETTER)
    candidate = serving.until(ServingPhase.PROGRESSING).candidate
    assert candidate is not None
    third = "f" * 64
    serving.update(third)
    newest = wait(lambda: serving.traffic() if serving.traffic() != old else "", "the promotion")
    serving.until_only(newest)
    status = serving.until(ServingPhase.READY)
    assert status.stable is not None
    assert status.stable.artifact_digest == third
    assert [given.artifact_uri.rsplit("/", 1)[-1] for given in serving.asked] == [GOOD, third]


def test_the_source_is_followed(serving: Serving) -> None:
    """It waits for the FineTuneJob, serves what it publishes, and the next artifact too."""
    serving.start()
    serving.create({"source": {"fineTuneJob": {"name": "intents"}}, "runtime": "tgi-cpu"})
    status = serving.until(ServingPhase.PENDING)
    assert {each.type: each.reason for each in status.conditions}["Ready"] == Reason.SOURCE_NOT_READY
    serving.team.create("intents")
    first = serving.until(ServingPhase.READY).stable
    assert first is not None
    artifact = serving.team.status("intents").artifact
    assert artifact is not None
    assert first.artifact_digest == artifact.digest
    serving.team.change("intents", training={"epochs": 5})

    def followed() -> bool:
        stable = serving.status().stable
        newest = serving.team.status("intents").artifact
        return bool(stable and newest and newest.digest != artifact.digest and stable.artifact_digest == newest.digest)

    wait(followed, "the second artifact", 90)


def test_an_artifact_is_not_looked_for_in_a_store_to_which_its_job_has_yet_to_publish(serving: Serving) -> None:
    serving.start()
    serving.create({"source": {"fineTuneJob": {"name": "intents"}}, "runtime": "tgi-cpu"})
    serving.team.create("intents", storage={"endpoint": "http://first.storage.svc:8333"})
    old = serving.until(ServingPhase.READY).last_good_revision
    held = [True]
    serving.team.node.scripts[Stage.RESOLVE] = lambda given: None if held else serving.team.node.store.run(given)
    serving.team.change("intents", storage={"endpoint": "http://second.storage.svc:8333"})
    serving.team.until("intents", Phase.RUNNING)
    serving.change(rerun="look-now")
    assert serving.until(ServingPhase.READY).last_good_revision == old
    assert serving.status().candidate is None
    held.clear()
    serving.team.until("intents", Phase.SUCCEEDED)
    wait(lambda: serving.traffic() != old, "the second store", 90)
    stable = serving.until(ServingPhase.READY).stable
    assert stable is not None
    assert stable.storage is not None
    assert stable.storage.endpoint == "http://second.storage.svc:8333"


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


def test_scaling_by_the_subresource(serving: Serving) -> None:
    """As kubectl scale and autoscalers do it."""
    serving.start()
    serving.serve(GOOD)
    for replicas in (3, 0):
        serving.team.plane.kubectl(
            "scale", "adep", NAME, f"--replicas={replicas}", "--namespace", serving.team.namespace
        )
        wait(lambda wanted=replicas: serving.status().replicas == wanted, f"{replicas} pods")  # type: ignore[misc]
        assert serving.until(ServingPhase.READY).ready_replicas == replicas


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
    wait(lambda: serving.traffic() == revision, "the selector", 40)
    wait(lambda: serving.reached() == {revision}, "its endpoints")


def test_a_service_that_is_deleted_comes_back_and_ready_is_not_said_without_it(serving: Serving) -> None:
    serving.start()
    revision = serving.serve(GOOD)
    deleted = serving.get(SERVICES, NAME)
    assert deleted is not None
    serving.team.api.delete(SERVICES, serving.team.namespace, NAME, deleted["metadata"]["uid"])
    status = serving.until(ServingPhase.PROGRESSING)
    assert [(each.status, each.reason) for each in status.conditions if each.type == "Ready"] == [("False", "Waiting")]
    serving.until(ServingPhase.READY)
    assert serving.traffic() == revision
    assert serving.reached() == {revision}


@pytest.mark.parametrize("crash", range(1, 16))
def test_a_crash_after_any_write_of_an_update_changes_nothing_in_the_end(serving: Serving, crash: int) -> None:
    """The operator dies after its nth write; the next one ends where an undisturbed one does."""
    first = serving.start()
    old = serving.serve(GOOD)
    wait(lambda: set(serving.children(SERVICES)) == {NAME}, "the candidate's Service to go")
    first.stop()
    serving.update(BETTER)
    dying = serving.start(crash_after_writes=crash)
    wait(lambda: dying.process.exitcode is not None or serving.is_updated(old), "its death, or all its work done", 60)
    dying.process.join(3)
    exit_code = dying.process.exitcode
    dying.stop()
    serving.start()
    wait(lambda: serving.traffic() not in ("", old), "the promotion")
    new = serving.traffic()
    serving.until_only(new)
    status = serving.until(ServingPhase.READY)
    assert status.stable is not None
    assert (status.stable.revision, status.stable.accuracy) == (new, "0.9400")
    assert exit_code == CRASH_EXIT or crash > 12, "the operator was to die in the middle"
    assert {kind: len(serving.children(kind)) for kind in CHILDREN} == {
        DEPLOYMENTS: 1,
        SERVICES: 1,
        NETWORK_POLICIES: 1,
        JOBS: 1,
        CONFIG_MAPS: 2,
    }


def test_an_operator_that_is_older_than_the_crds(serving: Serving) -> None:
    """As after its rollback: what serves is left as it is, and another artifact is rolled out as before."""
    newer = serving.start()
    revision = serving.serve(GOOD)
    serving.until_only(revision)
    newer.stop()
    with newer_crds(serving.team.plane):
        wait(lambda: ADDED_LATER in (serving.get(ADAPTERDEPLOYMENTS, NAME) or {})["spec"]["source"], "the CRDs")
        before = serving.team.writes()
        serving.start().wait_ready()
        time.sleep(4)  # more than the operator needs for a pass
        assert serving.team.writes() == before
        serving.update(BETTER)
        assert serving.until(ServingPhase.READY).last_good_revision != revision


def _a_pod(serving: Serving) -> str:
    [name] = [name for name, pod in serving.children(PODS).items() if meta.LABEL_STAGE not in pod["metadata"]["labels"]]
    return name


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
    other = Images(data="canary/data", prepare="canary/prepare", jobs="canary/jobs", quantize="canary/quantize")
    serving.start(instance="canary", images=other, writes_log=canary, resync_seconds=10).wait_ready()
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
    team.api.patch(FINETUNEJOBS, team.namespace, "theirs", handed_over)
    size = len(canary.read_text())
    found = team.status("theirs").conditions[0].observed_generation
    wait(lambda: team.status("theirs").conditions[0].observed_generation != found, "the other operator's status", 30)
    assert {job["metadata"]["uid"] for job in team.jobs("theirs")} == jobs
    assert len(canary.read_text()) == size
