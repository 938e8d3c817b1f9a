"""What is read of a FineTuneJob, and what is only asked for when there is reason to."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from finetune_api.base import ObjectMeta
from finetune_api.stages import RunRef, Stage, StageInput
from finetune_api.storage import Storage
from finetune_operator.finetunejob.kind import fine_tune_job_kind
from finetune_operator.finetunejob.observe import LABEL_SERVICE, ObservedJob
from finetune_operator.finetunejob.output import OUTPUT_INDEX
from finetune_operator.framework.cache import CHILDREN, Cache
from finetune_operator.framework.objects import ENDPOINT_SLICES, JOBS, SERVICE_ACCOUNTS, SERVICES, Object, Resource
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.resources.peers import peers_service
from finetune_operator.resources.stage_job import stage_job
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import Images, PodShape, Profile, Settings
from tests.support.memory_cluster import NAMESPACE, MemoryCluster, fine_tune_job, runner

pytestmark = pytest.mark.unit

IMAGES = Images(data="d", prepare="p", jobs="j", quantize="q")
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
    cache = Cache(OUTPUT_INDEX)
    for resource in (FINETUNEJOBS, *CHILDREN):
        cache.replace(resource, {}, cluster.select(resource, None))
    raw = cache.get(FINETUNEJOBS, NAMESPACE, "walk")
    assert raw is not None
    cluster.asked.clear()
    seen = fine_tune_job_kind(cluster, cache, SETTINGS).observe(raw, cluster.now)
    assert isinstance(seen, ObservedJob)
    [job] = seen.jobs
    assert (SERVICES in cluster.asked, job.peers_missing) == (asks, missing)
