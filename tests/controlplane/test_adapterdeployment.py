"""AdapterDeployments on a real API server with real Deployments: the test plays kubelet and verifier."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.endpoint_stages import WantedAdapters
from finetune_api.job_status import Phase
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_api.stages import Stage
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    PODS,
    SERVICES,
)
from finetune_operator.settings import Engine, Runtime
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.controlplane.conftest import wait
from tests.controlplane.serving import DRAIN_SECONDS, NAME, Serving
from tests.support.played_pods import BETTER, CORRUPT, GOOD, INACTIVE
from tests.support.serving_specs import SETTINGS, pinned, uri

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
    assert policy["spec"]["ingress"][0]["from"][2:] == [{"podSelector": {}}]
    assert serving.events() == [("Normal", "CandidateStarting"), ("Normal", "Promoted")]


def test_several_adapters_are_one_revision(serving: Serving) -> None:
    """Their names, digests and outcomes are in the status. They come and go on the same pods; another artifact is
    another revision."""

    def adapters(**digests: str) -> dict[str, Any]:
        return {"adapters": [{"name": name, "artifact": {"uri": uri(each)}} for name, each in digests.items()]}

    vllm = Runtime(engine=Engine.VLLM, image="images/vllm:0.32.0", drain_seconds=DRAIN_SECONDS)
    serving.start(runtimes={"vllm": vllm})
    serving.create({"source": adapters(fr=GOOD, de=BETTER), "runtime": "vllm", "keepLastGood": "0s"})
    status = serving.until(ServingPhase.READY)
    assert status.stable is not None
    assert [(each.name, each.artifact_digest) for each in status.stable.adapters] == [("de", BETTER), ("fr", GOOD)]
    [asked] = serving.asked
    assert asked.params.verify is not None
    assert (asked.params.verify.model, [each.name for each in asked.params.verify.adapters]) == ("demo", ["de", "fr"])
    revision = serving.traffic()

    def states() -> dict[str, str]:
        """Where each adapter stands, and what pods are told of it."""
        found = serving.status().stable
        return {each.name: str(each.state) for each in found.adapters} if found else {}

    def told() -> dict[str, bool]:
        found = serving.get(CONFIG_MAPS, f"{NAME}-{revision}")
        assert found is not None
        wanted = WantedAdapters.model_validate_json(found["data"]["adapters.json"])
        return {each.name: each.required for each in wanted.adapters}

    serving.change(source=adapters(fr=GOOD))
    wait(lambda: states() == {"fr": "Loaded"}, "the pods to let go of the other")
    serving.change(source=adapters(fr=GOOD, es=INACTIVE))
    wait(lambda: states() == {"es": "Failed", "fr": "Loaded"}, "what running pods make of it")
    wait(lambda: told() == {"fr": True}, "what has failed to be taken from the pods")
    serving.change(source=adapters(fr=GOOD, de=BETTER))
    wait(lambda: states() == {"de": "Loaded", "fr": "Loaded"}, "one more on pods that run")
    wait(lambda: told() == {"de": True, "fr": True}, "no pod to be ready without it")
    assert (serving.traffic(), set(serving.children(DEPLOYMENTS))) == (revision, {f"{NAME}-{revision}"})
    asked = serving.asked[-1]
    assert asked.params.verify is not None
    assert [each.endswith(":9401") for each in asked.params.verify.pods] == [True]
    serving.change(source=adapters(de=BETTER))
    wait(lambda: states() == {"de": "Loaded"}, "the pods to let go of one")
    asked = serving.asked[-1]
    assert asked.params.verify is not None
    assert [each.name for each in asked.params.verify.removed] == ["fr"]
    wait(lambda: ("Normal", "AdapterRemoved") in serving.events(), "the event that says so")
    assert (serving.traffic(), told()) == (revision, {"de": True})
    serving.change(source=adapters(de=GOOD))
    wait(lambda: serving.is_updated(revision), "another artifact")


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
    """Neither events nor a new operator make writes: what the API server adds to objects is no drift. Clients need keys
    and speak TLS here, so the pods have all that pods can have; their Secrets are nobody's business but theirs."""
    first = serving.start()
    access = {"apiKeys": {"secretRef": {"name": "clients"}}, "tls": {"secretRef": {"name": "servers"}}}
    serving.create(pinned(GOOD, access=access))
    serving.until(ServingPhase.READY)
    [policy] = serving.children(NETWORK_POLICIES).values()
    assert policy["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": meta.CLIENT_PORT}]
    wait(lambda: set(serving.children(SERVICES)) == {NAME}, "the candidate's Service to go")
    first.wait_idle()
    first.stop()
    before = serving.team.writes()
    serving.start().wait_ready()
    serving.team.api.patch(PODS, serving.team.namespace, _a_pod(serving), {"metadata": {"labels": {"touched": "yes"}}})
    time.sleep(4)  # more than the operator needs for a pass
    assert serving.team.writes() == before


def test_an_endpoint_comes_to_speak_tls(serving: Serving) -> None:
    """Server-side apply would leave the old port beside the new one."""

    def ports() -> list[tuple[str, int, str]]:
        public = serving.get(SERVICES, NAME)
        assert public is not None
        return [(each["name"], each["port"], each["targetPort"]) for each in public["spec"]["ports"]]

    serving.start()
    old = serving.serve(GOOD)
    assert ports() == [("http", 80, "http")]
    serving.change(access={"tls": {"secretRef": {"name": "servers"}}})
    wait(lambda: serving.is_updated(old), "pods that speak TLS")
    assert ports() == [("https", 443, "https")]
    assert serving.reached() == {serving.traffic()}
    assert serving.status().endpoint == f"https://{NAME}.{serving.team.namespace}.svc:443"
    sealed, asked = serving.traffic(), serving.asked[-1].params.verify
    assert asked is not None
    assert asked.endpoint == f"https://{NAME}-{sealed}-candidate.{serving.team.namespace}.svc:443"
    serving.change(access=None)
    wait(lambda: serving.is_updated(sealed), "pods that do not")
    assert ports() == [("http", 80, "http")]


def test_update_and_drain(serving: Serving) -> None:
    """The old revision serves until the new one is proved, then drains and goes, with all that belongs to it."""
    serving.servers.loading.add(BETTER)
    serving.start(runtimes=SETTINGS.runtimes)  # a drain that is longer than the pass after a promotion
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
    serving.until_only(new)
    gone = datetime.now(UTC)
    status = serving.until(ServingPhase.READY)
    assert status.last_good_revision == new
    assert status.stable is not None
    drain = timedelta(seconds=SETTINGS.runtimes["tgi-cpu"].drain_seconds)
    assert gone - parse_timestamp(status.stable.since) >= drain, "its clients had their time"


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
    wait(lambda: serving.events()[-1] == ("Warning", reason), "the event", describe=lambda: str(serving.events()))


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
    live = serving.children(DEPLOYMENTS)[first.deployment]
    pod = live["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["resources"]["requests"]["ephemeral-storage"] == "1Mi", "1000 bytes were published"
    assert {"name": "models", "emptyDir": {"sizeLimit": "1025Mi"}} in pod["volumes"]
    assert live["metadata"]["generation"] == 1, "what the API server makes of it is as desired"
    serving.team.change("intents", training={"epochs": 5})

    def followed() -> bool:
        stable = serving.status().stable
        newest = serving.team.status("intents").artifact
        return bool(stable and newest and newest.digest != artifact.digest and stable.artifact_digest == newest.digest)

    wait(followed, "the second artifact")


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
    wait(lambda: serving.traffic() != old, "the second store")
    stable = serving.until(ServingPhase.READY).stable
    assert stable is not None
    assert stable.storage is not None
    assert stable.storage.endpoint == "http://second.storage.svc:8333"


def test_scaling_by_the_subresource(serving: Serving) -> None:
    """As kubectl scale and autoscalers do it. Several pods have a disruption budget, which the API server follows."""
    serving.start()
    serving.serve(GOOD)
    for replicas in (3, 0):
        serving.team.plane.kubectl(
            "scale", "adep", NAME, f"--replicas={replicas}", "--namespace", serving.team.namespace
        )
        wait(lambda wanted=replicas: serving.status().replicas == wanted, f"{replicas} pods")  # type: ignore[misc]
        assert serving.until(ServingPhase.READY).ready_replicas == replicas
        wait(lambda few=replicas < 2: (serving.get(DISRUPTION_BUDGETS, NAME) is None) is few, "the budget")  # type: ignore[misc]


def _a_pod(serving: Serving) -> str:
    [name] = [name for name, pod in serving.children(PODS).items() if meta.LABEL_STAGE not in pod["metadata"]["labels"]]
    return name
