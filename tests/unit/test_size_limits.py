"""What does not fit its pods' disk or memory is told, with the numbers, before a pod starts."""

from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_operator.adapterdeployment.size_limits import memory_violation, memory_warning, volume_violation
from finetune_operator.settings import Engine, ModelCache, PodShape, Runtime, Settings
from tests.support.played_pods import BETTER, GOOD
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.support.serving_specs import SETTINGS, following, pinned, published
from tests.unit.test_adapterdeployment_adapters import VLLM, serving
from tests.unit.test_adapterdeployment_adapters import published as adapter

pytestmark = pytest.mark.unit

GIB = 1 << 30


def runtime(engine: Engine = Engine.VLLM, *, requests: str = "", limits: str = "", **fields: Any) -> Runtime:
    """One on CPUs, unless ``gpus`` says how many."""
    gpus = {"nvidia.com/gpu": str(gpus)} if (gpus := fields.pop("gpus", 0)) else {}
    pod = PodShape(
        requests={"memory": requests} if requests else {}, limits=gpus | ({"memory": limits} if limits else {})
    )
    return Runtime.model_validate({"engine": engine, "image": "server", "pod": pod} | fields)


@pytest.mark.parametrize(
    ("asked", "size", "says"),
    [
        (runtime(limits="16Gi"), 14 * GIB, ""),
        (runtime(limits="14Gi"), 14 * GIB, ""),  # the least that could be enough is not refused
        (
            runtime(limits="13Gi"),
            14 * GIB,
            "For 14.0 GiB of weights … 'x' needs at least 14.0 GiB of memory … have 13Gi",
        ),
        (runtime(Engine.TGI, limits="13Gi"), 14 * GIB, "at least 14.0 GiB … 13Gi (pod.limits.memory)"),
        (runtime(limits="1Gi"), 0, ""),  # its size is not known
        (runtime(), 14 * GIB, ""),  # without a limit the node decides
        (runtime(limits="15Gi", env={"VLLM_CPU_KVCACHE_SPACE": "2"}), 14 * GIB, "needs at least 16.0 GiB"),
        (runtime(limits="15Gi", env={"VLLM_CPU_KVCACHE_SPACE": "many"}), 14 * GIB, ""),
        (runtime(limits="1Gi", gpus=1), 140 * GIB, ""),  # weights pass through as pages of files
        (runtime(Engine.TGI, limits="1Gi", gpus=1), 140 * GIB, ""),
        (runtime(limits="28Gi", gpus=2, num_shard=2, args=["--cpu-offload-gb=10"]), 140 * GIB, ""),
        (runtime(limits="19Gi", gpus=2, num_shard=2, args=["--cpu-offload-gb=10"]), 140 * GIB, "at least 20.0 GiB"),
        (
            runtime(limits="19Gi", gpus=2, num_shard=2, args=["--cpu-offload-gb=10"]),
            5 * GIB,
            "",
        ),  # no more than there is
        (runtime(limits="28Gi", gpus=1, args=["--kv-offloading-size=27.5"]), 14 * GIB, ""),
        (runtime(limits="28Gi", gpus=1, args=["--kv-offloading-size=32.5"]), 14 * GIB, "at least 32.5 GiB"),
    ],
)
def test_memory_that_cannot_be_enough(asked: Runtime, size: int, says: str) -> None:
    said = memory_violation(size, "x", asked)
    assert bool(said) is bool(says)
    if says:
        assert_says(said, *says.split(" … "))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (runtime(), "ask the scheduler for none (pod.requests.memory)"),
        (runtime(requests="1Gi"), "ask the scheduler for 1Gi"),
        (runtime(requests="1Gi", limits="16Gi"), "ask the scheduler for 1Gi"),
        (runtime(limits="16Gi"), ""),  # the API server makes it the request too
        (runtime(requests="14Gi"), ""),
        (runtime(gpus=1), ""),
    ],
)
def test_memory_that_the_scheduler_does_not_know_of(asked: Runtime, says: str) -> None:
    said = memory_warning(14 * GIB, "x", asked)
    assert bool(said) is bool(says)
    if says:
        assert_says(said, "needs at least 14.0 GiB of memory", says, "evicted")
    assert not memory_warning(0, "x", asked)


@pytest.mark.parametrize(
    ("scratch", "limit", "cache", "says"),
    [
        ("60Gi", "", None, ""),
        ("40Gi", "", None, "The artifact has 50.0 GiB; pods of runtime 'x' have 40Gi (scratchSize)."),
        ("60Gi", "45Gi", None, "pods of runtime 'x' have 45Gi (pod.limits.ephemeral-storage)"),
        ("40Gi", "", ModelCache(claim_name="models"), ""),
        ("60Gi", "", ModelCache(claim_name="models", size_limit="49Gi"), "may hold 49Gi (modelCache.sizeLimit)"),
    ],
)
def test_a_volume_that_is_too_small(scratch: str, limit: str, cache: ModelCache | None, says: str) -> None:
    pod = PodShape(scratch_size=scratch, limits={"ephemeral-storage": limit} if limit else {})
    said = volume_violation(50 * GIB, "x", Runtime(engine=Engine.VLLM, image="vllm", pod=pod, model_cache=cache))
    assert says in said
    assert bool(said) is bool(says)


def said(cluster: ServingCluster, kind: str) -> str:
    """The message of a condition."""
    [found] = [each for each in cluster.status.conditions if each.type == kind]
    return found.message


def with_memory(requests: str, limits: str) -> Settings:
    small = SETTINGS.runtimes["tgi-cpu"]
    pod = small.pod.model_copy(update={"requests": {"memory": requests}, "limits": {"memory": limits}})
    return SETTINGS.model_copy(update={"runtimes": {"tgi-cpu": small.model_copy(update={"pod": pod})}})


def test_weights_that_do_not_fit_the_memory_start_nothing() -> None:
    """The admin gives the runtime more, and it serves."""
    cluster = ServingCluster(
        spec=following(), source=published(GOOD, size_bytes=6 * GIB), settings=with_memory("1Gi", "4Gi")
    )
    cluster.settle()
    assert (cluster.status.phase, cluster.objects) == (ServingPhase.FAILED, {})
    assert condition(cluster.status, "Stalled") == ("True", Reason.RUNTIME_UNSUITABLE)
    assert_says(said(cluster, "Stalled"), "6.0 GiB", "4Gi (pod.limits.memory)", "ask the admin to change this one")
    cluster.settings = with_memory("8Gi", "8Gi")
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    assert not [each for each in cluster.status.conditions if each.type == "Discouraged"]


def test_weights_for_which_pods_ask_no_memory_are_served_with_a_warning() -> None:
    """Nobody's values are changed for it."""
    cluster = ServingCluster(
        spec=following(), source=published(GOOD, size_bytes=6 * GIB), settings=with_memory("1Gi", "8Gi")
    )
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    assert_says(said(cluster, "Discouraged"), "at least 6.0 GiB of memory", "ask the scheduler for 1Gi")


def test_what_serves_goes_on_when_the_next_artifact_does_not_fit() -> None:
    cluster = ServingCluster(
        spec=following(), source=published(GOOD, size_bytes=GIB), settings=with_memory("1Gi", "4Gi")
    )
    cluster.settle()
    before = cluster.traffic()
    cluster.source = published(BETTER, size_bytes=6 * GIB)
    cluster.settle()
    assert (cluster.status.phase, cluster.traffic()) == (ServingPhase.DEGRADED, before)
    assert_says(said(cluster, "Stalled"), "6.0 GiB", "4Gi (pod.limits.memory)")


def test_adapters_count_with_their_base() -> None:
    """The adapter alone would fit."""
    cluster = serving(fr=adapter(GOOD, size_bytes=GIB, base_size_bytes=30 * GIB))
    cluster.settle()
    assert (cluster.status.phase, cluster.objects) == (ServingPhase.FAILED, {})
    room = VLLM.runtimes["vllm"].pod.scratch_size
    assert_says(said(cluster, "Stalled"), "31.0 GiB", f"{room} (scratchSize)")


def test_of_a_pinned_artifact_the_download_finds_it_out() -> None:
    cluster = ServingCluster(spec=pinned(GOOD), settings=with_memory("1Gi", "1Gi"))
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
