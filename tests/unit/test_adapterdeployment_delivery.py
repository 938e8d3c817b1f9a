"""Adapters that are added and removed while their pods serve."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.artifact_source import set_address
from finetune_api.endpoint_stages import WantedAdapters
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState, RevisionState, RevisionStatus, ServingPhase
from finetune_api.stages import StageInput
from finetune_jobs.self_check import parse as parse_self_check
from finetune_operator.adapterdeployment.delivery_job import DELIVERY_SECONDS, delivery_seconds, is_of_delivery
from finetune_operator.adapterdeployment.health import LONG_WAIT_SECONDS
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, Object
from finetune_operator.settings import Engine, Proxy, Runtime
from tests.support.played_pods import BETTER, GOOD, INACTIVE, UNSCHEDULABLE
from tests.support.promoted import crash, passes, until
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, assert_looked_at_ever_more_rarely, condition
from tests.support.serving_specs import uri
from tests.unit.test_adapterdeployment_adapters import OTHER, STORE, VLLM, published

pytestmark = pytest.mark.unit

FULL = 'Error creating: pods "v-x" is forbidden: exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2'
LOADED = (AdapterState.LOADED, "2/2")


def endpoint(**digests: str) -> ServingCluster:
    """An endpoint at rest with these adapters, all pinned."""
    spec = {"source": {"adapters": []}, "runtime": "vllm", "keepLastGood": "0s", "replicas": 2}
    cluster = ServingCluster(spec=spec, settings=VLLM)
    asked(cluster, **digests)
    cluster.settle()
    return cluster


def asked(cluster: ServingCluster, **digests: str) -> None:
    """The spec asks for these adapters."""
    storage = STORE.model_dump(by_alias=True, exclude_defaults=True)
    adapters = [{"name": name, "artifact": {"uri": uri(each), "storage": storage}} for name, each in digests.items()]
    cluster.spec = cluster.spec | {"source": {"adapters": adapters}}


def told_pods(cluster: ServingCluster) -> WantedAdapters:
    """What the serving pods are told."""
    [found] = [each["data"] for each in cluster.objects[CONFIG_MAPS].values() if "adapters.json" in each["data"]]
    return WantedAdapters.model_validate_json(found["adapters.json"])


def told(cluster: ServingCluster) -> dict[str, bool]:
    """Of that the names, and whether no pod is ready without them."""
    return {each.name: each.required for each in told_pods(cluster).adapters}


def stable(cluster: ServingCluster) -> RevisionStatus:
    assert cluster.status.stable is not None
    return cluster.status.stable


def states(cluster: ServingCluster) -> dict[str, tuple[AdapterState | None, str]]:
    return {each.name: (each.state, each.pods) for each in stable(cluster).adapters}


def pod(cluster: ServingCluster) -> Object:
    [found] = cluster.objects[DEPLOYMENTS].values()
    spec: Object = found["spec"]["template"]["spec"]
    return spec


def test_its_server_starts_without_adapters_and_its_self_check_loads_them() -> None:
    cluster = endpoint(fr=GOOD)
    server, [fetch, check, proxy] = pod(cluster)["containers"][0], pod(cluster)["initContainers"]
    env = {each["name"]: each.get("value") for each in server["env"]}
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert {"--host=127.0.0.1", "--enable-lora", "--max-loras=2", "--max-cpu-loras=9"} <= {*server["args"]}
    assert "--lora-modules" not in server["args"]
    assert not [each for each in proxy["args"] if "lora" in each], "the public door has no such path"
    assert check["command"][3:7] == ["--wanted", "/etc/finetune-self-check/adapters.json", "--model", "demo"]
    room = fetch["command"].index("--models-room")
    assert parse_self_check(check["command"][3:]).models_room == int(fetch["command"][room + 1]) == 20 << 30
    mounts = {each["name"]: each for each in check["volumeMounts"]}
    assert not mounts["models"].get("readOnly")
    assert {"input", "self-check"} <= mounts.keys() & {each["name"] for each in fetch["volumeMounts"]}
    assert told(cluster) == {"fr": True}
    assert states(cluster) == {"fr": LOADED}


def test_its_self_check_reaches_the_store_as_fetch_does_and_the_server_past_the_platforms_proxy() -> None:
    """The server is on loopback, which no proxy of the platform reaches."""
    cluster = endpoint(fr=GOOD)
    cluster.settings = VLLM.model_copy(update={"proxy": Proxy(https_proxy="http://proxy:3128", no_proxy=".svc")})
    cluster.settle()
    fetch, check, _ = pod(cluster)["initContainers"]
    told_fetch, told_check = ({each["name"]: each.get("value") for each in of["env"]} for of in (fetch, check))
    assert (told_fetch["NO_PROXY"], told_check["NO_PROXY"]) == (".svc", ".svc,127.0.0.1")
    assert told_fetch["HTTPS_PROXY"] == told_check["HTTPS_PROXY"] == "http://proxy:3128"


def test_one_more_and_one_less_need_no_other_pods() -> None:
    cluster = endpoint(fr=GOOD)
    before = cluster.traffic()
    cluster.loading = {BETTER}
    asked(cluster, fr=GOOD, de=BETTER)
    cluster.settle()
    assert told(cluster) == {"de": False, "fr": True}
    assert states(cluster) == {"de": (AdapterState.LOADING, ""), "fr": LOADED}
    assert condition(cluster.status, "Reconciling") == ("True", Reason.VERIFYING)
    assert (cluster.status.phase, cluster.status.candidate) == (ServingPhase.PROGRESSING, None)
    cluster.loading = set()
    cluster.settle()
    assert told(cluster) == {"de": True, "fr": True}
    assert states(cluster) == {"de": LOADED, "fr": LOADED}
    pods, names = cluster.asked_of[-1]
    assert (len(pods), names) == (2, ["de"])
    assert all(each.startswith("http://10.0.0.") and each.endswith(":9401") for each in pods)
    assert stable(cluster).artifact_digest == set_address({"fr": GOOD, "de": BETTER})
    assert not [
        name
        for name in cluster.objects[JOBS]
        if cluster.objects[JOBS][name]["metadata"]["labels"].keys() & {"finetune.dev/delivery"}
    ], "it is done"
    asked(cluster, de=BETTER)
    cluster.settle()
    assert (told(cluster), states(cluster)) == ({"de": True}, {"de": LOADED})
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (before, {before})
    assert [each.message for each in cluster.events if each.reason == Reason.PROMOTED][1:] == [
        "Adapter 'de' was verified on 2 running pods, which now serve it by its name."
    ]


def test_pods_are_told_what_the_policy_asks_of_one_that_is_added() -> None:
    cluster = endpoint(fr=GOOD)
    policy = {"withdrawn": "Warn", "gates": "Passed", "requiredGates": ["accuracy"]}
    cluster.spec = cluster.spec | {"policy": policy}
    asked(cluster, fr=GOOD, de=BETTER)
    cluster.reconcile()
    found = told_pods(cluster).model_dump(by_alias=True, mode="json")
    assert {name: found[name] for name in policy} == policy
    assert told(cluster) == {"de": False, "fr": True}


@pytest.mark.parametrize("troubled", [False, True])
def test_one_that_is_added_without_pods_waits_and_nothing_is_in_progress(troubled: bool) -> None:
    """There is nobody to load it: whoever waits for the end of the rollout would wait for ever."""
    cluster = endpoint(fr=GOOD)
    before = cluster.traffic()
    if troubled:  # a store that did not answer says nothing of what is to come
        cluster.setbacks = [Reason.S3_UNREACHABLE]
        asked(cluster, fr=GOOD, de=BETTER)
        passes(cluster, count=2, seconds=1)
        assert condition(cluster.status, "Stalled") == ("True", Reason.S3_UNREACHABLE)
    cluster.spec = cluster.spec | {"replicas": 0}
    asked(cluster, fr=GOOD, de=BETTER)
    cluster.settle()
    [de, fr] = stable(cluster).adapters
    assert (de.state, de.outcome, de.reason, de.pods) == (AdapterState.WAITING, None, Reason.WAITING, "")
    assert_says(de.message, "no pods", "replicas: 0", "verify")
    assert fr.state is AdapterState.LOADED
    shown = {name: condition(cluster.status, name)[0] for name in ("Ready", "Reconciling", "Stalled")}
    assert shown == {"Ready": "True", "Reconciling": "False", "Stalled": "False"}
    assert (cluster.status.phase, cluster.status.candidate) == (ServingPhase.READY, None)
    assert told(cluster) == {"de": False, "fr": True}
    cluster.spec, cluster.loading = cluster.spec | {"replicas": 2}, {BETTER}
    passes(cluster)
    assert states(cluster)["de"] == (AdapterState.LOADING, "")
    assert cluster.status.phase is ServingPhase.PROGRESSING
    cluster.loading = set()
    cluster.settle()
    assert states(cluster) == {"de": LOADED, "fr": LOADED}
    assert (told(cluster), cluster.traffic()) == ({"de": True, "fr": True}, before)


@pytest.mark.slow
def test_one_that_fails_is_taken_from_all_pods_and_the_others_are_not_touched() -> None:
    cluster = endpoint(fr=GOOD)
    before = cluster.traffic()
    asked(cluster, fr=GOOD, de=INACTIVE, es=BETTER)
    cluster.settle()
    assert told(cluster) == {"es": True, "fr": True}
    assert states(cluster) == {"de": (AdapterState.FAILED, ""), "es": LOADED, "fr": LOADED}
    assert condition(cluster.status, "Stalled") == ("True", Reason.ADAPTER_INACTIVE)
    [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
    assert_says(stalled.message, "Adapter 'de': not served. It answers like the base.")
    assert condition(cluster.status, "Ready")[0] == "True"
    tries = len(cluster.asked_of)
    cluster.settle()
    assert len(cluster.asked_of) == tries, "it is not tried again by itself"
    cluster.spec = cluster.spec | {"rerun": "again"}
    cluster.settle()
    assert len(cluster.asked_of) > tries
    asked(cluster, fr=GOOD, de=BETTER, es=BETTER)
    cluster.settle()
    assert states(cluster) == dict.fromkeys(("de", "es", "fr"), LOADED)
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (before, {before})


def test_a_store_that_is_down_for_longer_is_no_fault_of_an_adapter() -> None:
    """The pods go on trying, so they are asked again, and the cause is told meanwhile."""
    cluster = endpoint(fr=GOOD)
    cluster.setbacks = [Reason.S3_UNREACHABLE] * 2
    asked(cluster, fr=GOOD, de=BETTER)
    for _ in range(2):
        passes(cluster, count=2, seconds=1)
        assert condition(cluster.status, "Stalled") == ("True", Reason.S3_UNREACHABLE)
        assert states(cluster) == {"de": (AdapterState.LOADING, ""), "fr": LOADED}
        assert told(cluster) == {"de": False, "fr": True}
    [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
    assert_says(stalled.message, "Adapter 'de'", "Not served yet", "tried again", "does not answer")
    cluster.settle()
    assert len(cluster.asked_of) == 3
    assert states(cluster) == {"de": LOADED, "fr": LOADED}
    assert condition(cluster.status, "Stalled") == ("False", Reason.SERVING)
    assert [each.reason for each in cluster.events].count(Reason.S3_UNREACHABLE) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"fr": BETTER}, "another version under the same name"),
        ({"de": BETTER}, "none of them stays"),
    ],
)
def test_what_changes_more_is_another_revision(change: dict[str, str], why: str) -> None:
    cluster = endpoint(fr=GOOD)
    before = cluster.traffic()
    asked(cluster, **change)
    cluster.settle()
    assert cluster.traffic() != before, why
    assert states(cluster) == {next(iter(change)): LOADED}


@pytest.mark.parametrize(
    ("added", "in_place"),
    [
        (published(BETTER, rank=16), True),
        (published(BETTER, rank=17), False),
        (published(BETTER, OTHER), False),
    ],
)
def test_it_has_to_fit_the_room_that_the_server_has(added: Any, in_place: bool) -> None:
    """A rank above the room takes other pods. Another base fits nowhere: nothing happens."""
    spec = {
        "source": {"adapters": [{"name": "fr", "fineTuneJob": {"name": "fr"}}]},
        "runtime": "vllm",
        "keepLastGood": "0s",
        "access": {"apiKeys": {"secretRef": {"name": "keys"}}},
    }
    cluster = ServingCluster(spec=spec, settings=VLLM, sources={"fr": published(GOOD, rank=9)})
    cluster.settle()
    before = cluster.traffic()
    cluster.sources = {**cluster.sources, "de": added}
    cluster.spec = spec | {"source": {"adapters": [{"name": n, "fineTuneJob": {"name": n}} for n in ("de", "fr")]}}
    cluster.settle()
    unsuitable = added.artifact.base_digest == OTHER
    assert (cluster.traffic() == before) == (in_place or unsuitable)
    assert states(cluster).keys() == ({"fr"} if unsuitable else {"de", "fr"})


@pytest.mark.slow
def test_another_runtime_rolls_out_what_is_served_by_then() -> None:
    cluster = endpoint(fr=GOOD)
    asked(cluster, fr=GOOD, de=BETTER)
    cluster.settle()
    first = cluster.traffic()
    cluster.settings = VLLM.model_copy(
        update={"runtimes": {**VLLM.runtimes, "vllm": Runtime(engine=Engine.VLLM, image="images/vllm:0.33.0")}}
    )
    cluster.reconcile()
    assert told_of(cluster, first) == {"de": True, "fr": True}, "what serves on keeps what it was told"
    cluster.settle()
    assert cluster.traffic() != first
    assert (told(cluster), states(cluster)) == ({"de": True, "fr": True}, {"de": LOADED, "fr": LOADED})


def told_of(cluster: ServingCluster, revision: str) -> dict[str, bool]:
    """The same of one revision."""
    data = cluster.objects[CONFIG_MAPS][f"demo-{revision}"]["data"]
    return {each.name: each.required for each in WantedAdapters.model_validate_json(data["adapters.json"]).adapters}


def test_what_serves_is_told_again_if_somebody_deletes_it_or_the_status() -> None:
    cluster = endpoint(fr=GOOD)
    asked(cluster, fr=GOOD, de=BETTER)
    cluster.settle()
    revision = cluster.traffic()
    del cluster.objects[CONFIG_MAPS][f"demo-{revision}"]
    cluster.settle()
    assert told(cluster) == {"de": True, "fr": True}
    cluster.status = type(cluster.status)()
    cluster.settle()
    assert (cluster.traffic(), states(cluster)) == (revision, {"de": LOADED, "fr": LOADED})


def test_going_back_to_a_revision_is_going_back_to_what_it_was_made_with() -> None:
    cluster = endpoint(fr=GOOD)
    asked(cluster, fr=GOOD, de=BETTER)
    cluster.settle()
    cluster.spec = cluster.spec | {"rollbackTo": cluster.traffic()}
    cluster.settle()
    assert (told(cluster), states(cluster)) == ({"fr": True}, {"fr": LOADED})


def test_one_that_was_removed_is_proved_again_when_it_comes_back() -> None:
    cluster = endpoint(fr=GOOD, de=BETTER)
    before = cluster.traffic()
    asked(cluster, de=BETTER)
    cluster.settle()
    cluster.loading = {GOOD}
    asked(cluster, fr=GOOD, de=BETTER)
    cluster.settle()
    assert (told(cluster), states(cluster)["fr"]) == ({"de": True, "fr": False}, (AdapterState.LOADING, ""))
    cluster.loading = set()
    cluster.settle()
    assert (cluster.traffic(), states(cluster)) == (before, {"de": LOADED, "fr": LOADED})


def test_a_pod_that_comes_or_goes_is_asked_with_the_others() -> None:
    cluster = endpoint(fr=GOOD)
    cluster.loading = {BETTER}
    asked(cluster, fr=GOOD, de=BETTER)
    cluster.settle()
    cluster.spec = cluster.spec | {"replicas": 3}
    cluster.loading = set()
    cluster.settle()
    assert [len(pods) for pods, _ in cluster.asked_of][-1] == 3
    assert states(cluster)["de"] == (AdapterState.LOADED, "3/3")


def followed(*names: str) -> dict[str, Any]:
    """A source: the FineTuneJobs of these names."""
    return {"source": {"adapters": [{"name": name, "fineTuneJob": {"name": name}} for name in names]}}


@pytest.mark.parametrize(("published_as", "outcome"), [(BETTER, LOADED), (INACTIVE, (AdapterState.FAILED, ""))])
def test_one_that_is_not_there_yet_holds_up_none_that_is_being_loaded(published_as: str, outcome: Any) -> None:
    """What is found out of an adapter reaches the pods, whatever the spec asks for besides."""
    access = {"access": {"apiKeys": {"secretRef": {"name": "keys"}}}}
    spec = {"runtime": "vllm", "keepLastGood": "0s", "replicas": 2} | access
    cluster = ServingCluster(spec=spec | followed("fr"), settings=VLLM, sources={"fr": published(GOOD)})
    cluster.settle()
    before = cluster.traffic()
    cluster.sources = {**cluster.sources, "de": published(published_as)}
    cluster.loading = {published_as}
    cluster.spec = spec | followed("de", "fr")
    cluster.settle()
    assert told(cluster) == {"de": False, "fr": True}
    cluster.spec = spec | followed("de", "es", "fr")
    cluster.loading = set()
    cluster.settle()
    assert cluster.traffic() == before
    assert states(cluster) == {"de": outcome, "fr": LOADED}
    assert told(cluster) == {"fr": True} | ({"de": True} if outcome == LOADED else {}), "in no pod only"


def test_what_failed_goes_into_another_revision_whose_pods_find_their_base() -> None:
    """An admin changes the runtime while the FineTuneJob of one adapter is gone and another has failed."""
    spec = {"runtime": "vllm", "keepLastGood": "0s", "access": {"apiKeys": {"secretRef": {"name": "keys"}}}}
    cluster = ServingCluster(spec=spec | followed("fr"), settings=VLLM, sources={"fr": published(GOOD)})
    cluster.settle()
    cluster.sources = {**cluster.sources, "de": published(INACTIVE)}
    cluster.spec = spec | followed("de", "fr")
    cluster.settle()
    assert states(cluster)["de"][0] is AdapterState.FAILED
    cluster.sources = {"de": published(INACTIVE)}
    newer = Runtime(engine=Engine.VLLM, image="images/vllm:0.33.0")
    cluster.settings = VLLM.model_copy(update={"runtimes": {**VLLM.runtimes, "vllm": newer}})
    cluster.reconcile()
    candidate = cluster.status.candidate
    assert candidate is not None
    served = {each.name: each.artifact_digest for each in candidate.adapters}
    assert candidate.artifact_digest == set_address(served), "where fetch puts the base, the server looks for it"


@pytest.mark.slow
@pytest.mark.parametrize("loading", [True, False])
def test_what_fell_is_not_tried_again_because_an_adapter_came_while_it_served(loading: bool) -> None:
    """The fallen revision is the one that the spec asks for, whatever its pods were started with."""
    cluster = endpoint(fr=GOOD)
    old = cluster.traffic()
    cluster.spec = cluster.spec | {"keepLastGood": "2h"}
    newer = Runtime(engine=Engine.VLLM, image="images/vllm:0.33.0")
    cluster.settings = VLLM.model_copy(update={"runtimes": {**VLLM.runtimes, "vllm": newer}})
    until(cluster, lambda: cluster.traffic() != old)
    new = cluster.traffic()
    cluster.loading = {BETTER} if loading else set()
    asked(cluster, fr=GOOD, de=BETTER)
    until(cluster, lambda: states(cluster).get("de") == ((AdapterState.LOADING, "") if loading else LOADED))
    assert cluster.traffic() == new, "it comes without another revision"
    crash(cluster, new)
    passes(cluster, 8)
    assert cluster.traffic() == old
    assert cluster.status.candidate is not None
    assert (cluster.status.candidate.revision, cluster.status.candidate.state) == (new, RevisionState.FAILED)
    assert cluster.revisions(DEPLOYMENTS) == {old}
    cluster.spec = cluster.spec | {"rerun": "again"}
    cluster.loading = set()
    until(cluster, lambda: cluster.traffic() != old)
    until(cluster, lambda: states(cluster).get("de") == LOADED)
    assert states(cluster) == {"de": LOADED, "fr": LOADED}


@pytest.mark.parametrize(("size", "more"), [(1 << 20, 1), (500 << 30, 10240), (None, 410)])
def test_the_wait_for_the_pods_grows_with_what_they_fetch(size: int | None, more: int) -> None:
    """What is not known fits the volume, whatever its size."""
    spec = {
        "source": {"adapters": [{"name": "fr", "fineTuneJob": {"name": "fr"}}]},
        "runtime": "vllm",
        "keepLastGood": "0s",
        "access": {"apiKeys": {"secretRef": {"name": "keys"}}},
    }
    cluster = ServingCluster(spec=spec, settings=VLLM, sources={"fr": published(GOOD)})
    cluster.settle()
    cluster.sources = {**cluster.sources, "de": published(BETTER, size_bytes=size)}
    cluster.spec = spec | {"source": {"adapters": [{"name": n, "fineTuneJob": {"name": n}} for n in ("de", "fr")]}}
    passes(cluster, 1)
    [job] = [each for each in cluster.objects[JOBS].values() if is_of_delivery(each)]
    given = StageInput.model_validate_json(cluster.objects[CONFIG_MAPS][job["metadata"]["name"]]["data"]["input.json"])
    assert given.params.verify is not None
    assert given.params.verify.timeout_seconds == DELIVERY_SECONDS + more
    assert job["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 2 * (DELIVERY_SECONDS + more)


def test_each_further_adapter_has_time_to_prove_itself() -> None:
    assert delivery_seconds([0]) == DELIVERY_SECONDS
    assert delivery_seconds([0, 0, 0]) == DELIVERY_SECONDS + 240


def test_pods_and_the_job_that_asks_them_are_told_of_each_attempt() -> None:
    """Pods that have read of no set without it would answer with what came of the attempt before."""

    def attempts() -> tuple[dict[str, str], set[str]]:
        jobs = [name for name, each in cluster.objects[JOBS].items() if is_of_delivery(each)]
        inputs = [cluster.objects[CONFIG_MAPS][name]["data"]["input.json"] for name in jobs]
        given = [StageInput.model_validate_json(each).params.verify for each in inputs]
        pods = {each.name: each.attempt for each in told_pods(cluster).adapters}
        return pods, {each.attempt for each in given if each}

    cluster = endpoint(fr=GOOD)
    asked(cluster, fr=GOOD, de=INACTIVE)
    cluster.reconcile()
    first, asked_first = attempts()
    assert first["fr"] == ""
    assert asked_first == {first["de"]} != {""}
    cluster.settle()
    assert told(cluster) == {"fr": True}
    cluster.spec = cluster.spec | {"rerun": "again"}
    cluster.reconcile()
    again, asks = attempts()
    assert again["de"] != first["de"]
    assert asks == {again["de"]}


class TestItsJobGetsNoPod:
    """The pods do their part, and nobody asks them what came of it."""

    @staticmethod
    def adding(monkeypatch: pytest.MonkeyPatch) -> ServingCluster:
        """An adapter is added, and nobody runs the Job that waits for the pods."""
        cluster = endpoint(fr=GOOD)
        monkeypatch.setattr(ServingCluster, "_run_job", lambda *_: None)
        asked(cluster, fr=GOOD, de=BETTER)
        cluster.reconcile()
        return cluster

    @staticmethod
    def job(cluster: ServingCluster) -> Object:
        [found] = [each for each in cluster.objects[JOBS].values() if is_of_delivery(each)]
        return found

    def refused(self, cluster: ServingCluster) -> None:
        """By a quota."""
        refusal = {"reason": "FailedCreate", "message": FULL, "lastTimestamp": timestamp(cluster.now)}
        cluster.job_events[self.job(cluster)["metadata"]["name"]] = [refusal]

    def test_it_is_looked_at_soon_and_then_ever_more_rarely(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing tells of it."""
        cluster = self.adding(monkeypatch)
        assert_looked_at_ever_more_rarely(cluster)

    def test_a_quota_is_quoted_with_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = self.adding(monkeypatch)
        self.refused(cluster)
        made = cluster.reconcile()
        assert made.blocked, "nothing shows when the quota has room"
        [row] = [each for each in stable(cluster).adapters if each.name == "de"]
        assert (row.state, row.reason) == (AdapterState.LOADING, Reason.QUOTA_EXCEEDED)
        assert_says(row.message, "Not served yet", "Job", "exceeded quota: few", "used: pods=2")
        assert condition(cluster.status, "Stalled") == ("True", Reason.QUOTA_EXCEEDED)
        assert condition(cluster.status, "Ready")[0] == "True"
        said = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
        assert_says(said, "Adapter 'de'", "exceeded quota: few", "Raise the ResourceQuota")
        assert (cluster.events[-1].type, cluster.events[-1].reason) == ("Warning", Reason.QUOTA_EXCEEDED)
        told_of_it = len(cluster.events)
        cluster.reconcile()
        assert len(cluster.events) == told_of_it

    def test_it_goes_on_once_there_is_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = self.adding(monkeypatch)
        self.refused(cluster)
        cluster.reconcile()
        cluster.job_events.clear()
        monkeypatch.undo()
        cluster.settle()
        assert states(cluster) == {"de": LOADED, "fr": LOADED}
        assert condition(cluster.status, "Stalled")[0] == "False"

    def test_a_wait_for_a_node_is_nothing_special_for_ten_minutes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = self.adding(monkeypatch)
        job = self.job(cluster)
        owners = [{"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}]
        metadata = {"name": "d", "creationTimestamp": timestamp(cluster.now), "ownerReferences": owners}
        since = {"lastTransitionTime": timestamp(cluster.now)}
        status = UNSCHEDULABLE | {"conditions": [each | since for each in UNSCHEDULABLE["conditions"]]}
        cluster.pods[job["metadata"]["name"]] = [{"metadata": metadata, "status": status}]
        made = cluster.reconcile()
        assert condition(cluster.status, "Reconciling") == ("True", Reason.VERIFYING)
        assert made.requeue_after == LONG_WAIT_SECONDS
        cluster.now += timedelta(seconds=LONG_WAIT_SECONDS)
        made = cluster.reconcile()
        assert condition(cluster.status, "Stalled") == ("True", Reason.UNSCHEDULABLE)
        assert not made.blocked, "its own events tell"
