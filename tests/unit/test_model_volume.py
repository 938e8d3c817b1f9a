"""The volume into which serving pods download their model: how large it is, and what the scheduler is asked for it."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.stages import Stage
from finetune_api.storage import Storage
from finetune_jobs.runtime.commandline import parse
from finetune_operator.framework.objects import CONTROLLER_REVISIONS, DEPLOYMENTS, Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.deployment import Adapter, Serving, pod_template
from finetune_operator.resources.model_volume import model_volume
from finetune_operator.settings import Engine, ModelCache, PodShape, Runtime, Settings
from tests.support.played_pods import BETTER, GOOD
from tests.support.serving import ServingCluster
from tests.support.serving_specs import SETTINGS, following, published, uri
from tests.unit.test_adapterdeployment_adapters import published as adapter
from tests.unit.test_adapterdeployment_adapters import serving

pytestmark = pytest.mark.unit

OWNER = Owner(ADAPTERDEPLOYMENTS, "team", "demo", "uid")
GIB = 1 << 30
CACHE = ModelCache(claim_name="models")


def runtime(scratch: str = "40Gi", cache: ModelCache | None = None, **limits: str) -> Runtime:
    pod = PodShape(scratch_size=scratch, limits={name.replace("_", "-"): each for name, each in limits.items()})
    return Runtime(engine=Engine.VLLM, image="vllm", pod=pod, model_cache=cache)


def pod(asked: Serving) -> Object:
    spec: Object = pod_template(OWNER, asked, SETTINGS, "0123abcd")["spec"]
    return spec


def models(spec: Object) -> str:
    [found] = [each["emptyDir"]["sizeLimit"] for each in spec["volumes"] if each["name"] == "models"]
    return str(found)


def requested(cluster: ServingCluster) -> str | None:
    """The room that the pods of the only revision ask for."""
    [live] = cluster.objects[DEPLOYMENTS].values()
    fetch = live["spec"]["template"]["spec"]["initContainers"][0]
    found: str | None = fetch["resources"].get("requests", {}).get("ephemeral-storage")
    return found


@pytest.mark.parametrize(
    ("asked", "fetched", "grows", "limit", "request_"),
    [
        (runtime(), 10 * GIB, False, "11776Mi", "10240Mi"),  # 5 % and 1 GiB more than the files
        (runtime(), 1, False, "1025Mi", "1Mi"),
        (runtime(), 39 * GIB, False, "40Gi", "39936Mi"),  # never more than the runtime allows
        (runtime(), 40 * GIB, False, "40Gi", ""),  # as much as fits: its size is not known
        (runtime(), 50 * GIB, False, "40Gi", ""),  # as after a rollback to what was larger then
        (runtime(), 0, False, "40Gi", ""),  # an earlier release did not record it
        (runtime(), 10 * GIB, True, "40Gi", "10240Mi"),  # others may come while it runs
        (runtime(cache=CACHE), 10 * GIB, False, "11776Mi", ""),  # it goes to the cache, if that can be used
        (runtime(cache=CACHE), 100 * GIB, False, "40Gi", ""),
        (runtime(ephemeral_storage="8Gi"), 10 * GIB, False, "8Gi", ""),  # what counts for a pod as a whole
        (runtime(ephemeral_storage="80Gi"), 10 * GIB, False, "11776Mi", "10240Mi"),
        (runtime(ephemeral_storage="12Gi"), 11 * GIB, False, "12Gi", "11264Mi"),
    ],
)
def test_a_volume_is_as_large_as_the_download_and_no_larger_than_the_runtime_allows(
    asked: Runtime, fetched: int, grows: bool, limit: str, request_: str
) -> None:
    assert model_volume(asked, fetched, grows=grows) == (limit, request_)


@pytest.mark.parametrize(
    ("more", "limit"),
    [
        ({}, "11776Mi"),
        ({"artifact_uri": "", "adapters": (Adapter("de", uri(GOOD), GOOD),)}, "40Gi"),
    ],
    ids=["a whole model", "adapters that come and go"],
)
def test_the_container_that_fills_it_asks_for_its_room(more: dict[str, Any], limit: str) -> None:
    """The scheduler keeps for a pod what its largest init container asks for; the others' requests stay as given."""
    asked = replace(Serving(uri(GOOD), GOOD, Storage(), "vllm", runtime(), fetched_bytes=10 * GIB), **more)
    spec = pod(asked)
    fetch, *others = spec["initContainers"] + spec["containers"]
    assert models(spec) == limit
    assert fetch["resources"]["requests"]["ephemeral-storage"] == "10240Mi"
    assert not [each for each in others if "ephemeral-storage" in each["resources"].get("requests", {})]
    assert parse(Stage.FETCH, fetch["command"][3:]).models_room == asked.model_volume.room > 10 * GIB
    mounts = [each for each in fetch["volumeMounts"] if each["name"] == "models"]
    assert [each["mountPath"] for each in mounts] == [meta.MODELS_DIR]


def test_the_volume_follows_what_the_job_has_published() -> None:
    cluster = ServingCluster(spec=following(), source=published(GOOD, size_bytes=2 * GIB))
    cluster.settle()
    [live] = cluster.objects[DEPLOYMENTS].values()
    assert models(live["spec"]["template"]["spec"]) == "3175Mi"


@pytest.mark.parametrize(
    ("sizes", "request_"),
    [
        (((GIB, 6 * GIB), (GIB, 6 * GIB)), "8192Mi"),  # the base once
        (((GIB, None), (GIB, 6 * GIB)), "8192Mi"),  # an earlier version published the first
        (((GIB, None), (GIB, None)), None),
        (((None, 6 * GIB), (GIB, 6 * GIB)), None),
    ],
)
def test_adapters_count_with_the_base_that_they_share(
    sizes: tuple[tuple[int | None, int | None], ...], request_: str | None
) -> None:
    (first, its_base), (second, other_base) = sizes
    cluster = serving(
        fr=adapter(GOOD, size_bytes=first, base_size_bytes=its_base),
        de=adapter(BETTER, size_bytes=second, base_size_bytes=other_base),
    )
    cluster.settle()
    assert requested(cluster) == request_


def test_a_pinned_adapter_leaves_the_size_open() -> None:
    cluster = serving(fr=adapter(GOOD, size_bytes=GIB, base_size_bytes=GIB), de=BETTER)
    cluster.settle()
    assert requested(cluster) is None


def as_of_an_earlier_release(cluster: ServingCluster) -> Object:
    """Its pods have all that the runtime allows, and ask for nothing. Returns their template."""
    [live] = cluster.objects[DEPLOYMENTS].values()
    template: Object = live["spec"]["template"]
    for each in template["spec"]["volumes"]:
        if each["name"] == "models":
            each["emptyDir"]["sizeLimit"] = "20Gi"
    fetch = template["spec"]["initContainers"][0]
    del fetch["resources"]["requests"]["ephemeral-storage"]
    del fetch["command"][fetch["command"].index("--models-room") :]
    return template


@pytest.mark.parametrize("recorded", [True, False], ids=["with a record", "without one"])
def test_an_upgrade_moves_no_endpoint_to_a_volume_of_another_size(recorded: bool) -> None:
    """Its pods stay as they were proved, and so does what replaces one that is lost."""
    cluster = ServingCluster(spec=following(), source=published(GOOD, size_bytes=2 * GIB))
    cluster.settle()
    before, template = cluster.traffic(), as_of_an_earlier_release(cluster)
    [record] = cluster.objects[CONTROLLER_REVISIONS].values()
    record["data"]["template"] = template
    if not recorded:
        cluster.objects[CONTROLLER_REVISIONS].clear()
    for _ in range(3):
        cluster.settle()
    [live] = cluster.objects[DEPLOYMENTS].values()
    assert cluster.traffic() == before
    assert models(live["spec"]["template"]["spec"]) == "20Gi"
    cluster.source = published(BETTER, size_bytes=2 * GIB)
    cluster.settle()
    found = [models(each["spec"]["template"]["spec"]) for each in cluster.objects[DEPLOYMENTS].values()]
    assert found == ["3175Mi"], "the next revision has it"


def test_another_scratch_size_is_still_another_revision_where_it_decides() -> None:
    """Also of pods without a record, of which only their volumes tell."""
    cluster = ServingCluster(spec=following(), source=published(GOOD, size_bytes=2 * GIB))
    cluster.settle()
    before = cluster.traffic()
    cluster.objects[CONTROLLER_REVISIONS].clear()
    small = SETTINGS.runtimes["tgi-cpu"]
    larger = small.model_copy(update={"pod": small.pod.model_copy(update={"scratch_size": "60Gi"})})
    settings: Settings = SETTINGS.model_copy(update={"runtimes": {"tgi-cpu": larger}})
    cluster.settings = settings
    cluster.settle()
    assert cluster.traffic() != before
