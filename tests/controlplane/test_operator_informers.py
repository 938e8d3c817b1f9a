"""What the operator sees of its children on a real API server, whatever others do to labels and owner references."""

from __future__ import annotations

import threading

import pytest
from kubernetes import client, config

from finetune_api import meta
from finetune_api.job_status import Phase
from finetune_api.serving_status import ServingPhase
from finetune_api.stages import PIPELINE, Stage
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import HttpKubeClient, Selection
from finetune_operator.framework.informer import Informer
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, PODS, SERVICES, Object, Resource
from finetune_operator.kinds import FINETUNEJOBS, selector
from hack.cluster.controlplane import ControlPlane
from tests.controlplane.conftest import Team, wait
from tests.controlplane.serving import NAME, Serving
from tests.support.played_pods import GOOD

pytestmark = pytest.mark.controlplane


def labels(team: Team, resource: Resource, name: str) -> dict[str, str]:
    found = team.api.get(resource, team.namespace, name)
    assert found is not None
    return dict(found["metadata"].get("labels") or {})


def take_off(team: Team, resource: Resource, name: str, *names: str) -> dict[str, str]:
    """Take labels off an object; those that it had."""
    before = labels(team, resource, name)
    team.api.patch(resource, team.namespace, name, {"metadata": {"labels": dict.fromkeys(names)}})
    return before


@pytest.mark.parametrize("label", [meta.LABEL_MANAGED_BY, meta.LABEL_OWNER_KIND])
@pytest.mark.parametrize("put_back", [True, False])
def test_a_deployment_that_loses_a_label_is_not_lost(serving: Serving, label: str, put_back: bool) -> None:
    """Somebody takes it off, and perhaps puts it back: it is there in the end, and the endpoint is ready."""
    serving.start()
    name, team = f"{NAME}-{serving.serve(GOOD)}", serving.team
    before = take_off(team, DEPLOYMENTS, name, label)
    if put_back:
        team.api.patch(DEPLOYMENTS, team.namespace, name, {"metadata": {"labels": {label: before[label]}}})
    wait(lambda: labels(team, DEPLOYMENTS, name) == before, "the label")
    serving.change(replicas=2)
    assert serving.until(ServingPhase.READY).ready_replicas == 2


def test_a_service_that_loses_its_labels_gets_them_back(serving: Serving) -> None:
    serving.start()
    serving.serve(GOOD)
    before = take_off(serving.team, SERVICES, NAME, meta.LABEL_OWNER_KIND, meta.LABEL_OWNER_NAME)
    wait(lambda: labels(serving.team, SERVICES, NAME) == before, "the labels")
    serving.until(ServingPhase.READY)


@pytest.mark.parametrize("put_back", [True, False])
def test_a_stage_job_that_loses_its_labels_is_not_lost(team: Team, put_back: bool) -> None:
    """It was created again and again, in vain: its name was taken, by itself."""
    team.node.scripts[Stage.TRAIN] = lambda given: None
    team.start()
    team.create("storm")
    wait(lambda: team.node.started and team.node.started[-1][0] is Stage.TRAIN, "train's pod")
    [job] = team.jobs("storm", Stage.TRAIN)
    name = job["metadata"]["name"]
    before = take_off(team, JOBS, name, meta.LABEL_OWNER_KIND, meta.LABEL_STAGE)
    if put_back:
        team.api.patch(JOBS, team.namespace, name, {"metadata": {"labels": before}})
    wait(lambda: labels(team, JOBS, name) == before, "the labels")
    del team.node.scripts[Stage.TRAIN]
    team.until("storm", Phase.SUCCEEDED)
    assert [each["metadata"]["uid"] for each in team.jobs("storm", Stage.TRAIN)] == [job["metadata"]["uid"]]
    assert team.node.store.executed == list(PIPELINE)


def pod(name: str, labelled: dict[str, str]) -> Object:
    """A tenant's pod."""
    container = {"name": "stage", "image": "example/mine"}
    spec = {"containers": [container], "nodeName": "nowhere", "serviceAccountName": "finetune-runner"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labelled}, "spec": spec}


def test_a_tenants_pod_with_our_labels_changes_nothing(team: Team) -> None:
    """Of an unknown kind it was retried for ever, with a traceback each time. Of a known one it counted."""
    team.node.scripts[Stage.TRAIN] = lambda given: None
    team.start()
    team.create("storm")
    wait(lambda: team.node.started and team.node.started[-1][0] is Stage.TRAIN, "train's pod")
    [job] = team.jobs("storm", Stage.TRAIN)
    ours = {**job["spec"]["template"]["metadata"]["labels"], meta.LABEL_OWNER_KIND: meta.FINETUNEJOB}
    ours.pop(meta.LABEL_STAGE)  # the test's kubelet would run it
    forged = pod("forged", ours)
    mine = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine", "namespace": team.namespace}}
    uid = team.api.create(CONFIG_MAPS, mine)["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "mine", "uid": uid, "controller": True}
    forged["metadata"]["ownerReferences"] = [reference]
    poison = pod("poison", {meta.LABEL_MANAGED_BY: meta.MANAGED_BY, meta.LABEL_OWNER_KIND: "Nonsense"})
    poison["metadata"]["labels"][meta.LABEL_OWNER_NAME] = "storm"
    for each in (forged, poison):
        each["metadata"]["namespace"] = team.namespace
        team.api.create(PODS, each)
    first = job["metadata"]["uid"]
    team.api.delete(JOBS, team.namespace, job["metadata"]["name"], first)
    wait(lambda: {each["metadata"]["uid"] for each in team.jobs("storm", Stage.TRAIN)} - {first}, "a new Job")
    del team.node.scripts[Stage.TRAIN]
    team.until("storm", Phase.SUCCEEDED)
    log = (team.directory / "operator.log").read_text()
    assert "Traceback" not in log
    assert "Nonsense" not in log


def test_what_was_deleted_before_a_watch_starts_anew_is_found_at_once(team: Team, plane: ControlPlane) -> None:
    """The API server refuses a version that it no longer knows; the LIST that follows shows what is gone."""
    configuration = client.Configuration()
    config.load_kube_config(str(plane.kubeconfig), client_configuration=configuration)
    cache, stopping, told = Cache(), threading.Event(), list[str]()
    informer = Informer(
        HttpKubeClient(configuration, 2),
        cache,
        Selection(FINETUNEJOBS, team.namespace, selector(FINETUNEJOBS, "")),
        changed=lambda _, found: told.append(found["metadata"]["name"]),
        seen=lambda *_: None,
        turn=threading.Lock(),
    )
    made = team.create("gone")
    informer.list(3600)
    assert told == ["gone"]
    assert [each["metadata"]["uid"] for each in cache.all(FINETUNEJOBS)] == [made["metadata"]["uid"]]
    team.delete("gone")
    informer._version = 1
    threading.Thread(target=informer.run, args=(stopping, 3600), daemon=True).start()
    try:
        wait(lambda: told == ["gone", "gone"] and not list(cache.all(FINETUNEJOBS)), "the deletion")
    finally:
        stopping.set()
