"""What is read of a FineTuneJob, and what is only asked for when there is reason to."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api.base import ObjectMeta
from finetune_api.stages import RunRef, Stage, StageInput
from finetune_api.storage import Storage
from finetune_operator.controller import INDEXES
from finetune_operator.finetunejob.kind import fine_tune_job_kind
from finetune_operator.finetunejob.observe import LABEL_SERVICE, ObservedJob
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.objects import (
    ENDPOINT_SLICES,
    JOBS,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.outcome.job import State
from finetune_operator.resources.peers import peers_service
from finetune_operator.resources.stage_job import stage_job
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import Images, PodShape, Profile, Settings
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.support.memory_cluster import NAMESPACE, MemoryCluster, fine_tune_job, read_all, runner

pytestmark = pytest.mark.unit

IMAGES = Images(data="d", prepare="p", jobs="j", quantize="q", proxy="x")
SETTINGS = Settings(images=IMAGES, profiles={"small": Profile(nodes=2)})


@dataclass
class AskedCluster(MemoryCluster):
    """Knows what it was asked for one by one."""

    asked: list[Resource] = field(default_factory=list)

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self.asked.append(resource)
        return super().get(resource, namespace, name)


def training(nodes: int) -> tuple[AskedCluster, StageRequest]:
    """A FineTuneJob whose training has so many pods, and nothing else."""
    cluster = AskedCluster()
    cluster.create(FINETUNEJOBS, fine_tune_job())
    owner = Owner.of(FINETUNEJOBS, ObjectMeta.model_validate(cluster.objects[FINETUNEJOBS.kind, "walk"]["metadata"]))
    run = RunRef(kind=FINETUNEJOBS.kind, namespace=NAMESPACE, name="walk", uid=owner.uid, id="run")
    given = StageInput(stage=Stage.TRAIN, run=run, storage=Storage())
    request = StageRequest(owner, given, "j", IMAGES, PodShape(), "finetune-runner", nodes=nodes)
    cluster.create(JOBS, stage_job(request))
    return cluster, request


def observe(cluster: AskedCluster) -> ObservedJob:
    """The FineTuneJob as the operator sees it."""
    cache = Cache(INDEXES)
    read_all(cache, cluster)
    raw = cache.get(FINETUNEJOBS, NAMESPACE, "walk")
    assert raw is not None
    cluster.asked.clear()
    seen = fine_tune_job_kind(cluster, cache, SETTINGS).observe(raw, cluster.now)
    assert isinstance(seen, ObservedJob)
    return seen


@pytest.mark.parametrize(
    ("nodes", "there", "asks", "missing"),
    [
        (2, (SERVICES, ENDPOINT_SLICES), False, False),
        (2, (SERVICES,), True, False),
        (2, (), True, True),
        (1, (), False, False),
    ],
)
def test_the_service_of_pods_that_train_together(
    nodes: int, there: tuple[Resource, ...], asks: bool, missing: bool
) -> None:
    """Its endpoints are watched; only where there are none, the Service itself is asked for."""
    cluster, request = training(nodes)
    service = peers_service(request.owner, request.name, request.input.run.id, request.stage)
    service["metadata"]["labels"][LABEL_SERVICE] = request.name
    for resource in there:
        cluster.create(resource, service)
    cluster.create(SERVICE_ACCOUNTS, runner())
    [job] = observe(cluster).jobs
    assert (SERVICES in cluster.asked, job.peers_missing) == (asks, missing)


OTHER_JOBS: dict[str, tuple[Object, bool]] = {
    "an older one": ({}, True),
    "of another namespace": ({"metadata": {"namespace": "other"}}, False),
    "of another store": ({"spec": {"storage": {"endpoint": "http://another"}}}, False),
    "suspended": ({"spec": {"suspend": True}}, False),
    "suspended, but it has published": (
        {"spec": {"suspend": True}, "status": {"artifact": {"digest": "0" * 64}}},
        True,
    ),
    "failed, never published": ({"status": {"run": {"outcome": "Failed", "generation": 1}}}, False),
    "failed, but its spec has changed since": ({"status": {"run": {"outcome": "Failed", "generation": 0}}}, True),
    "failed, but an earlier run has published": (
        {"status": {"run": {"outcome": "Failed", "generation": 1}, "artifact": {"digest": "0" * 64}}},
        True,
    ),
    "failed its goals, and published a candidate": (
        {"status": {"run": {"outcome": "Failed", "generation": 1}, "candidate": {"digest": "0" * 64}}},
        True,
    ),
    "not allowed": ({"spec": {"model": {"uri": "s3://secret/base"}}}, False),
    "of an unknown profile": ({"spec": {"profile": "huge"}}, False),
    "of a spec that nobody can read": ({"spec": {"training": {"rank": "many"}}}, False),
    "being deleted": ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, False),
    "younger": ({"metadata": {"creationTimestamp": "2027-01-01T00:00:00Z"}}, False),
}


@pytest.mark.parametrize(("differs", "conflicts"), OTHER_JOBS.values(), ids=OTHER_JOBS.keys())
def test_who_goes_first_with_an_output(differs: dict[str, Any], conflicts: bool) -> None:
    """Nobody waits for what is held back itself, or for what somebody wrote into another namespace."""
    cluster = MemoryCluster()
    cluster.create(FINETUNEJOBS, fine_tune_job())
    cluster.create(SERVICE_ACCOUNTS, runner())
    mine = cluster.objects[FINETUNEJOBS.kind, "walk"]
    elder = copy.deepcopy(mine)
    elder["metadata"] |= {"name": "elder", "uid": "0", "creationTimestamp": "2025-01-01T00:00:00Z"}
    for part, changes in differs.items():
        elder[part] |= changes
    cache = Cache(INDEXES)
    for each in (mine, elder):
        cache.record(FINETUNEJOBS, each)
    rule = TenancyRule(namespaces=["*"], inputs=["s3://models", "s3://data"])
    settings = SETTINGS.model_copy(update={"tenancy": Tenancy(rules=[rule])})
    seen = fine_tune_job_kind(cluster, cache, settings).observe(mine, cluster.now)
    assert isinstance(seen, ObservedJob)
    assert seen.conflicting_job == ("elder" if conflicts else "")


STAGE_JOB: Object = {"kind": "Job", "name": "walk-train-1", "uid": "uid-of-a-job-that-is-gone", "controller": True}


@pytest.mark.slow  # a running pod is asked for its progress
@pytest.mark.parametrize(
    ("reference", "counts", "orphaned"),
    [
        ({"controller": True, "kind": "Job"}, True, False),
        ({"kind": "Job"}, False, False),
        ({"controller": False, "kind": "Job"}, False, False),
        (STAGE_JOB, False, True),
        (STAGE_JOB | {"name": "somebody-elses"}, False, False),
        (STAGE_JOB | {"kind": "ReplicaSet"}, False, False),
        (None, False, False),
    ],
)
def test_a_pod_counts_only_under_a_controller_reference_to_a_job_of_ours(
    reference: Object | None, counts: bool, orphaned: bool
) -> None:
    """Anybody in the namespace may make a pod with our labels: it neither ends the stage nor holds up the next run."""
    cluster, request = training(1)
    cluster.create(SERVICE_ACCOUNTS, runner())
    job = cluster.objects[JOBS.kind, request.name]
    references = [] if reference is None else [{"name": request.name, "uid": job["metadata"]["uid"]} | reference]
    metadata = {"name": "pod", "namespace": NAMESPACE, "labels": job["metadata"]["labels"]}
    status = {"phase": "Running", "podIP": "192.0.2.1"}
    cluster.create(PODS, {"metadata": metadata | {"ownerReferences": references}, "status": status})
    seen = observe(cluster)
    assert [each.verdict.state is State.RUNNING for each in seen.jobs] == [counts]
    assert [each.verdict.attempts for each in seen.jobs] == [int(counts)]
    assert bool(seen.orphan_pods) is orphaned
