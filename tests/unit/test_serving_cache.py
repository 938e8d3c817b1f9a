"""Serving pods that share a volume of models: what each container may do with it, and what does not fit."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api import meta
from finetune_api.endpoint_stages import MODEL_CACHE, MODEL_CACHE_PROBLEM, CacheUse
from finetune_api.reasons import Reason
from finetune_api.references import SecretRef
from finetune_api.serving_status import ModelCacheStatus, ServingPhase
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_api.storage import Storage
from finetune_jobs.runtime.commandline import parse
from finetune_jobs.self_check import parse as parse_self_check
from finetune_operator.framework.objects import DEPLOYMENTS
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.deployment import Adapter, Serving, pod_template
from finetune_operator.settings import Engine, ModelCache, PodShape, Runtime, Settings
from tests.support.played_pods import GOOD
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster
from tests.support.serving_specs import SETTINGS, following, pinned, published, uri

pytestmark = pytest.mark.unit

OWNER = Owner(ADAPTERDEPLOYMENTS, "team", "demo", "uid")
CACHE = ModelCache(claim_name="models", size_limit="180Gi")
STORAGE = Storage(endpoint="http://s3.svc:8333", secret_ref=SecretRef(name="s3-read"))
PLAIN = Runtime(engine=Engine.VLLM, image="vllm", pod=PodShape(scratch_size="40Gi"))
CACHED = PLAIN.model_copy(update={"model_cache": CACHE})
DE = Adapter("de", uri(GOOD), GOOD, base="b", rank=8)
KINDS: dict[str, dict[str, Any]] = {
    "a whole model": {},
    "adapters": {"artifact_uri": "", "adapters": (DE,)},
    "adapters that come and go": {"artifact_uri": "", "adapters": (DE,), "api_keys_secret": "keys"},
}


def pod(runtime: Runtime, kind: str) -> dict[str, Any]:
    asked = replace(Serving(uri(GOOD), GOOD, STORAGE, "vllm", runtime), **KINDS[kind])
    spec: dict[str, Any] = pod_template(OWNER, asked, SETTINGS, "0123abcd")["spec"]
    return spec


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_reads_the_shared_volume_and_cannot_change_it(kind: str) -> None:
    """A claim, which the restricted level allows. The proxy before the server sees nothing of it."""
    spec = pod(CACHED, kind)
    [volume] = [each for each in spec["volumes"] if each["name"] == "model-cache"]
    assert volume == {"name": "model-cache", "persistentVolumeClaim": {"claimName": "models"}}
    found = {}
    for container in (*spec["initContainers"], *spec["containers"]):
        mounts = [each for each in container["volumeMounts"] if each["name"] == "model-cache"]
        assert all(each["mountPath"] == meta.MODEL_CACHE_DIR for each in mounts), "where the links lead"
        found[container["name"]] = [each.get("readOnly", False) for each in mounts]
    assert {name: each for name, each in found.items() if each} == {
        "fetch": [False],
        "self-check": [False],
        "server": [True],
    }
    server = spec["containers"][0]
    assert meta.MODEL_CACHE_DIR not in str([server["args"], server["env"]]), "its path shows the digest, as without"


@pytest.mark.parametrize("kind", KINDS)
def test_fetch_fills_it_and_the_self_check_holds_it(kind: str) -> None:
    fetch, check, *_ = pod(CACHED, kind)["initContainers"]
    asked = parse(Stage.FETCH, fetch["command"][3:])
    assert (asked.model_cache, asked.model_cache_limit) == (meta.MODEL_CACHE_DIR, 180 << 30)
    assert asked.models_room == 40 << 30, "what the pod's own volume takes if the cache is of no use"
    assert parse_self_check(check["command"][3:]).model_cache == Path(meta.MODEL_CACHE_DIR)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_cache_pods_know_nothing_of_one(kind: str) -> None:
    spec = pod(PLAIN, kind)
    assert "model-cache" not in str(spec)
    fetch = spec["initContainers"][0]
    assert parse(Stage.FETCH, fetch["command"][3:]).models_room == 40 << 30, "which the model has to fit"


def test_no_limit_is_told_where_there_is_none() -> None:
    unlimited = PLAIN.model_copy(update={"model_cache": ModelCache(claim_name="models")})
    command = pod(unlimited, "a whole model")["initContainers"][0]["command"]
    assert "--model-cache-limit" not in command
    assert parse(Stage.FETCH, command[3:]).model_cache_limit == 0


def test_who_waits_for_the_download_has_time_to_read_it_after_that() -> None:
    plain, cached = (
        Serving(uri(GOOD), GOOD, STORAGE, "vllm", runtime, fetched_bytes=100 << 30) for runtime in (PLAIN, CACHED)
    )
    assert cached.start_seconds - plain.start_seconds == (100 << 30) // (50 << 20)


@pytest.mark.parametrize(
    ("limit", "right"),
    [("", True), ("200Gi", True), ("5000000000", True), ("2T", True), ("200GB", False), ("0Gi", False), ("-1", False)],
)
def test_a_limit_is_a_quantity_of_bytes(limit: str, right: bool) -> None:
    if right:
        assert ModelCache(claim_name="models", size_limit=limit).size_limit == limit
    else:
        with pytest.raises(ValidationError, match="sizeLimit"):
            ModelCache.model_validate({"claimName": "models", "sizeLimit": limit})


def deployed(cache: ModelCache | None) -> ServingCluster:
    """An artifact of 50 GiB on a runtime whose pods have 4 GiB."""
    settings: Settings = SETTINGS
    runtime = settings.runtimes["tgi-cpu"].model_copy(update={"model_cache": cache})
    source = published(GOOD)
    assert source.artifact is not None
    source = replace(source, artifact=source.artifact.model_copy(update={"size_bytes": 50 << 30}))
    settings = settings.model_copy(update={"runtimes": {"tgi-cpu": runtime}})
    cluster = ServingCluster(spec=following(), source=source, settings=settings)
    cluster.settle()
    return cluster


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        (None, "(scratchSize)"),
        (ModelCache(claim_name="models", size_limit="49Gi"), "the cache of runtime 'tgi-cpu' may hold 49Gi"),
    ],
)
def test_an_artifact_for_which_nothing_has_room_starts_nothing(cache: ModelCache | None, says: str) -> None:
    cluster = deployed(cache)
    assert (cluster.status.phase, cluster.objects) == (ServingPhase.FAILED, {})
    [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
    assert stalled.reason == Reason.RUNTIME_UNSUITABLE
    assert_says(stalled.message, "50.0 GiB", says, "ask the admin")


@pytest.mark.parametrize("limit", ["", "51Gi"])
def test_in_a_cache_an_artifact_needs_no_room_in_the_pods_own_volume(limit: str) -> None:
    assert deployed(ModelCache(claim_name="models", size_limit=limit)).status.phase is ServingPhase.READY


def test_a_cache_makes_another_revision_and_its_loss_the_earlier_one() -> None:
    """Pods read elsewhere: they prove themselves. What is proved is found again."""
    cluster = ServingCluster()
    cluster.settle()
    settings, plain = cluster.settings, cluster.traffic()
    cached = settings.runtimes["tgi-cpu"].model_copy(update={"model_cache": CACHE})
    cluster.settings = settings.model_copy(update={"runtimes": {"tgi-cpu": cached}})
    cluster.settle()
    assert cluster.traffic() != plain
    cluster.settings = settings
    cluster.settle()
    assert cluster.traffic() == plain


# What a person sees of it


def shared(replicas: int = 2) -> ServingCluster:
    """An endpoint whose pods share a volume."""
    runtime = SETTINGS.runtimes["tgi-cpu"].model_copy(update={"model_cache": CACHE})
    settings = SETTINGS.model_copy(update={"runtimes": {"tgi-cpu": runtime}})
    cluster = ServingCluster(spec=pinned(GOOD, replicas=replicas), settings=settings)
    cluster.settle()
    return cluster


def say(cluster: ServingCluster, *uses: CacheUse, problem: str = "") -> None:
    """What the downloads of the serving pods have left, pod by pod."""
    [pods] = [cluster.pods[name] for name in cluster.objects[DEPLOYMENTS]]
    for pod, use in zip(pods, uses, strict=False):
        scalars = {MODEL_CACHE: use.value} | ({MODEL_CACHE_PROBLEM: problem} if problem else {})
        result = StageResult(
            stage=Stage.FETCH, outcome=Outcome.SUCCEEDED, reason=Reason.STAGE_SUCCEEDED, scalars=scalars
        )
        [fetch] = pod["status"]["initContainerStatuses"]
        fetch["state"]["terminated"]["message"] = result.model_dump_json(by_alias=True)


def told(cluster: ServingCluster) -> ModelCacheStatus | None:
    return cluster.status.stable.model_cache if cluster.status.stable else None


def warnings(cluster: ServingCluster) -> list[str]:
    return [event.message for event in cluster.events if event.reason is Reason.MODEL_CACHE_UNUSED]


def test_the_status_says_where_pods_got_their_model_from() -> None:
    cluster = shared()
    assert told(cluster) is None, "an earlier image says nothing"
    say(cluster, CacheUse.DOWNLOADED)
    cluster.settle()
    assert told(cluster) == ModelCacheStatus(claim_name="models", downloaded=1)
    say(cluster, CacheUse.DOWNLOADED, CacheUse.FOUND)
    cluster.settle()
    assert told(cluster) == ModelCacheStatus(claim_name="models", found=1, downloaded=1)
    assert warnings(cluster) == []
    cluster.spec["replicas"] = 1
    cluster.settle()
    assert told(cluster) == ModelCacheStatus(claim_name="models", downloaded=1), "of the pods that run now"


def test_why_a_volume_is_not_used_is_said_once_and_stays_in_the_status() -> None:
    cluster = shared()
    for uses in ((CacheUse.FOUND, CacheUse.UNUSED), (CacheUse.UNUSED, CacheUse.UNUSED)):
        say(cluster, *uses, problem="Read-only file system")
        cluster.settle()
    found = told(cluster)
    assert found is not None
    assert (found.found, found.unused) == (0, 2)
    [warning] = warnings(cluster)
    for said in (found.message, warning):
        assert_says(said, "volume claim models: Read-only file system", "own volume", "ask the platform's admin")
    assert cluster.status.phase is ServingPhase.READY, "it serves all the same"


def test_what_a_pod_says_of_itself_is_cut_and_what_is_no_use_counts_for_none() -> None:
    cluster = shared(replicas=1)
    say(cluster, CacheUse.UNUSED, problem="x" * 3000)
    cluster.settle()
    found = told(cluster)
    assert found is not None
    assert len(found.message) < 1024
    [fetch] = cluster.pods[next(iter(cluster.objects[DEPLOYMENTS]))][0]["status"]["initContainerStatuses"]
    for message in ("no result", fetch["state"]["terminated"]["message"].replace("Unused", "Stolen")):
        fetch["state"]["terminated"]["message"] = message
        cluster.settle()
        found = told(cluster)
        assert found is not None
        assert (found.found, found.downloaded, found.unused, found.message) == (0, 0, 0, "")


def test_a_pod_that_is_replaced_makes_no_news_of_what_was_told() -> None:
    cluster = shared()
    say(cluster, CacheUse.FOUND, CacheUse.UNUSED, problem="Read-only file system")
    cluster.settle()
    found = told(cluster)
    assert found is not None
    since = found.unused_since
    assert since is not None
    for uses in ((CacheUse.FOUND, CacheUse.FOUND), (CacheUse.UNUSED, CacheUse.FOUND)):
        cluster.now += timedelta(minutes=5)
        say(cluster, *uses, problem="Read-only file system")
        cluster.settle()
    found = told(cluster)
    assert found is not None
    assert (found.unused, found.unused_since, len(warnings(cluster))) == (1, since, 1)
    cluster.pods.clear()  # a replacement takes a while to say anything
    cluster.run_controllers()
    cluster.settle()
    say(cluster, CacheUse.UNUSED, CacheUse.FOUND, problem="Read-only file system")
    cluster.settle()
    assert len(warnings(cluster)) == 1


def test_a_runtime_without_a_volume_says_nothing_of_one() -> None:
    cluster = ServingCluster()
    cluster.settle()
    say(cluster, CacheUse.UNUSED)
    cluster.settle()
    assert told(cluster) is None
    assert warnings(cluster) == []
