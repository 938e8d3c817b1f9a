"""What is wrong with a revision, or with the cluster, under each strategy: traffic stays on the last good revision, or
in place returns to it, and the status says what, why and what next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState
from finetune_operator.framework.objects import DEPLOYMENTS
from tests.support.played_pods import BETTER, CORRUPT, CRASHING, GOOD, INACTIVE, MISSING, pod_status
from tests.support.promoted import passes, until
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.support.serving_specs import following, pinned, published
from tests.unit.test_adapterdeployment_adapters import OTHER
from tests.unit.test_adapterdeployment_adapters import published as adapter
from tests.unit.test_adapterdeployment_adapters import serving as several
from tests.unit.test_adapterdeployment_suitability import on_gpus
from tests.unit.test_adapterdeployment_walk import CANARY, IN_PLACE, OneAtATime, Safety, wanted

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PODS = 2
STRATEGIES: Mapping[str, dict[str, Any]] = {
    "BlueGreen": {},
    "Canary": {"strategy": CANARY},
    "InPlace": {"strategy": IN_PLACE | {"notice": "5s"}},
}


@dataclass(frozen=True)
class Bad:
    """What goes wrong."""

    reason: Reason
    says: str
    """Words of the condition Stalled, cause and remedy, with " … " between them."""
    change: Callable[[ServingCluster], None]
    each_pass: Callable[[ServingCluster], None] = lambda _: None
    """What the cluster does after each pass."""
    begin: Callable[[dict[str, Any]], ServingCluster] = lambda spec: ServingCluster(spec=pinned(GOOD, **spec))


def asks_for(digest: str) -> Callable[[ServingCluster], None]:
    def change(cluster: ServingCluster) -> None:
        cluster.spec = cluster.spec | {"source": pinned(digest)["source"]}

    return change


def no_image(cluster: ServingCluster) -> None:
    """The pods of a candidate wait for an image that is not there."""
    candidate = cluster.status.candidate
    for pod in cluster.pods.get(candidate.deployment, []) if candidate else []:
        pod["status"] |= pod_status(Reason.IMAGE_PULL_FAILED) | {"conditions": [{"type": "Ready", "status": "False"}]}
    for name, live in cluster.objects[DEPLOYMENTS].items():
        if candidate and name == candidate.deployment:
            live["status"] |= {"readyReplicas": 0, "availableReplicas": 0}


def full(cluster: ServingCluster) -> None:
    """Others take all room that there is; what served finds its own again once nobody else asks for it."""
    candidate = cluster.status.candidate
    ended = candidate is None or candidate.state is RevisionState.FAILED
    old = f"demo-{cluster.traffic()}"
    cluster.room = PODS if ended or cluster.held_by(old) else 0


def with_adapters(spec: dict[str, Any]) -> ServingCluster:
    cluster = several(fr=adapter(GOOD))
    cluster.spec |= spec
    return cluster


def one_more(**artifact: Any) -> Callable[[ServingCluster], None]:
    """An adapter for which there is no place beside the other."""

    def change(cluster: ServingCluster) -> None:
        adapters = [*cluster.spec["source"]["adapters"], {"name": "de", "fineTuneJob": {"name": "de"}}]
        cluster.spec = cluster.spec | {"source": {"adapters": adapters}}
        cluster.sources = {**cluster.sources, "de": adapter(BETTER, **artifact)}

    return change


def followed(spec: dict[str, Any]) -> ServingCluster:
    source = published(GOOD, architecture="llama")
    return ServingCluster(spec=following(**spec), source=source, settings=on_gpus())


def publishes(digest: str, architecture: str) -> Callable[[ServingCluster], None]:
    def change(cluster: ServingCluster) -> None:
        cluster.source = published(digest, architecture=architecture)

    return change


BAD: Mapping[str, Bad] = {
    "no manifest": Bad(Reason.ARTIFACT_NOT_FOUND, "nothing is published there", asks_for(MISSING)),
    "another byte": Bad(Reason.ARTIFACT_CORRUPT, "has another hash", asks_for(CORRUPT)),
    "the base": Bad(Reason.ADAPTER_INACTIVE, "those of the base model", asks_for(INACTIVE)),
    "it crashes": Bad(Reason.CANDIDATE_FAILED, "exited with code 1", asks_for(CRASHING)),
    "no image": Bad(Reason.IMAGE_PULL_FAILED, "cannot pull image … Check the image name", asks_for(BETTER), no_image),
    "a full cluster": Bad(Reason.UNSCHEDULABLE, "insufficient GPU … add a node", asks_for(BETTER), full),
    "another base": Bad(Reason.ADAPTERS_UNSUITABLE, "'de' … 'fr' … base", one_more(base=OTHER), begin=with_adapters),
    "a rank": Bad(Reason.ADAPTERS_UNSUITABLE, "rank 513 … at most 512", one_more(rank=513), begin=with_adapters),
    "a format": Bad(Reason.RUNTIME_UNSUITABLE, "no qwen3", publishes(BETTER, "qwen3"), begin=followed),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", BAD)
def test_traffic_stays_with_the_last_good_revision(name: str, strategy: str) -> None:
    bad = BAD[name]
    cluster = bad.begin(STRATEGIES[strategy] | {"replicas": PODS})
    cluster.settle()
    old = cluster.traffic()
    cluster.watch = safety = Safety(proved={old})
    safety.forget(cluster)
    bad.each_pass(cluster)
    bad.change(cluster)
    cluster.generation += 1
    for _ in range(60):
        cluster.reconcile()
        cluster.run_controllers()
        bad.each_pass(cluster)
        assert cluster.traffic() == old
        assert not cluster.shared()
        if strategy != "InPlace":
            assert wanted(cluster)[old] == PODS, "what serves is left alone"
        cluster.now += timedelta(seconds=20)
    cluster.reconcile()
    assert wanted(cluster)[old] == PODS
    assert cluster.status.ready_replicas == PODS
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
    assert (stalled.status, stalled.reason) == ("True", bad.reason)
    assert_says(stalled.message, *bad.says.split(" … "))


def in_the_middle(strategy: str) -> tuple[ServingCluster, str, Safety]:
    """A rollout under way: its candidate is being verified, or has its share; what serves until then; and an eye on
    what must always hold."""
    cluster = ServingCluster(spec=following(replicas=PODS, **STRATEGIES[strategy]), source=published(GOOD))
    cluster.settle()
    old = cluster.traffic()
    cluster.watch = safety = Safety(proved={old})
    safety.forget(cluster)
    cluster.source = published(BETTER)
    wanted_state = RevisionState.CANARY if strategy == "Canary" else RevisionState.VERIFYING
    until(cluster, lambda: cluster.status.candidate is not None and cluster.status.candidate.state is wanted_state)
    if strategy == "Canary":
        until(cluster, cluster.shared)
    return cluster, old, safety


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_source_that_is_deleted_ends_no_rollout(strategy: str) -> None:
    cluster, _, _ = in_the_middle(strategy)
    cluster.source = None
    cluster.settle()
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER
    assert cluster.status.ready_replicas == PODS
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert condition(cluster.status, "Stalled") == ("True", Reason.SOURCE_NOT_FOUND)


def test_what_serves_is_deleted_beside_a_canary() -> None:
    """It comes back as it was, with as many pods as it had, and nothing else becomes of the rollout."""
    cluster, old, safety = in_the_middle("Canary")
    name = f"demo-{old}"
    before = cluster.objects[DEPLOYMENTS].pop(name)
    del cluster.pods[name]
    safety.forget(cluster)
    cluster.reconcile()
    after = cluster.objects[DEPLOYMENTS][name]
    assert after["spec"]["template"] == before["spec"]["template"]
    assert wanted(cluster)[old] == PODS
    assert cluster.traffic() == old
    cluster.settle()
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER
    assert cluster.status.ready_replicas == PODS


def delete(cluster: ServingCluster, revision: str, safety: OneAtATime, *, pods_only: bool) -> None:
    """Somebody deletes the pods of a revision, or its Deployment with them."""
    name = f"demo-{revision}"
    cluster.pods.pop(name, None)
    if pods_only:
        cluster.objects[DEPLOYMENTS][name]["status"] = {}
    else:
        del cluster.objects[DEPLOYMENTS][name]
    safety.forget(cluster)


@pytest.mark.parametrize("pods_only", [True, False])
def test_what_serves_is_deleted_before_its_gap_begins(pods_only: bool) -> None:
    """It comes back for the rest of the notice: nobody was told of a gap that begins earlier."""
    cluster = ServingCluster(spec=pinned(GOOD, replicas=PODS, strategy=IN_PLACE | {"notice": "10m"}))
    cluster.settle()
    old = cluster.traffic()
    cluster.watch = safety = Safety(proved={old})
    safety.forget(cluster)
    asks_for(BETTER)(cluster)
    cluster.reconcile()
    announced = cluster.status.candidate
    assert announced is not None
    assert announced.state is RevisionState.STOPPING
    delete(cluster, old, safety, pods_only=pods_only)
    passes(cluster, seconds=20)
    assert wanted(cluster) == {old: PODS}
    assert cluster.status.ready_replicas == PODS
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert cluster.status.candidate is not None
    assert cluster.status.candidate.gap_starts_at == announced.gap_starts_at
    cluster.settle()
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER
    assert (wanted(cluster), cluster.status.ready_replicas) == ({cluster.traffic(): PODS}, PODS)


@pytest.mark.parametrize("digest", [BETTER, INACTIVE])
def test_what_is_to_come_back_is_deleted_in_its_gap(digest: str) -> None:
    """Its Deployment is there again, as it was and without pods, so that it serves again if the candidate fails."""
    cluster, old, _ = in_the_middle("InPlace")
    # What the pass writes before the Deployment is not in question here.
    cluster.watch = once = OneAtATime()
    cluster.source = published(digest)
    before = cluster.objects[DEPLOYMENTS][f"demo-{old}"]["spec"]["template"]
    delete(cluster, old, once, pods_only=False)
    cluster.reconcile()
    cluster.run_controllers()
    assert cluster.objects[DEPLOYMENTS][f"demo-{old}"]["spec"]["template"] == before
    assert wanted(cluster).get(old, 0) == 0
    assert cluster.traffic() == old
    cluster.settle()
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == (BETTER if digest == BETTER else GOOD)
    assert (wanted(cluster), cluster.status.ready_replicas) == ({cluster.traffic(): PODS}, PODS)
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_spec_changes_twice_during_a_rollout(strategy: str) -> None:
    cluster, old, _ = in_the_middle(strategy)
    for digest in (INACTIVE, CORRUPT):
        cluster.source = published(digest)
        cluster.reconcile()
        cluster.run_controllers()
        assert cluster.traffic() == old
        assert not cluster.shared()
    cluster.settle()
    assert (cluster.traffic(), wanted(cluster)) == (old, {old: PODS})
    assert cluster.status.ready_replicas == PODS
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert condition(cluster.status, "Stalled") == ("True", Reason.ARTIFACT_CORRUPT)
