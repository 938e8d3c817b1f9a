"""Artifacts that a runtime cannot serve are refused before a pod starts; what it serves with a difference is told."""

from dataclasses import replace

import pytest

from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_operator.framework.objects import DEPLOYMENTS
from finetune_operator.settings import Engine, PodShape, Runtime, Settings
from tests.support.played_pods import BETTER, GOOD
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.support.serving_specs import SETTINGS, following, pinned, published

pytestmark = pytest.mark.unit

LABEL = "nvidia.com/gpu.product"
SOON = 30.0
"""Seconds: sooner than the next look at a channel."""


def on_gpus(card: str = "", **env: str) -> Settings:
    """A platform whose runtime has a GPU, and nodes with this card."""
    pod = PodShape(limits={"nvidia.com/gpu": "1"}, node_selector={LABEL: card} if card else {})
    runtime = Runtime(engine=Engine.TGI, image="images/tgi:3.3.7", drain_seconds=15, pod=pod, env=env)
    return SETTINGS.model_copy(update={"runtimes": {"tgi-cpu": runtime}})


def deployed(architecture: str, settings: Settings, *, by_channel: bool = False) -> ServingCluster:
    if by_channel:
        scalars = {"format": "INT8", "architecture": architecture}
        spec = following() | {"source": {"output": {"uri": "s3://models/team", "name": "intents"}}}
        cluster = ServingCluster(spec=spec, settings=settings, channel=GOOD, channel_scalars=scalars)
    else:
        source = published(GOOD, architecture=architecture)
        cluster = ServingCluster(spec=following(), source=source, settings=settings)
    cluster.settle(within=SOON)
    return cluster


@pytest.mark.parametrize(
    ("architecture", "settings", "says"),
    [
        ("qwen3", on_gpus(), "Runtime 'tgi-cpu' cannot serve it … no qwen3 … INT8"),
        ("llama", on_gpus("NVIDIA-B200"), "INT8 … Blackwell"),
        ("", on_gpus("NVIDIA-B200"), "INT8 … Blackwell"),
        ("llama", on_gpus(DTYPE="bfloat16"), "DTYPE (bfloat16)"),
        ("olmo2", on_gpus(), "Runtime 'tgi-cpu' is not known to serve it … olmo2 … spec.source.artifact"),
    ],
)
@pytest.mark.parametrize("by_channel", [False, True], ids=["job", "channel"])
def test_what_cannot_be_served_starts_nothing(
    architecture: str, settings: Settings, says: str, *, by_channel: bool
) -> None:
    cluster = deployed(architecture, settings, by_channel=by_channel)
    assert (cluster.status.phase, cluster.objects.get(DEPLOYMENTS)) == (ServingPhase.FAILED, None)
    [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
    assert stalled.reason == Reason.RUNTIME_UNSUITABLE
    assert_says(stalled.message, *says.split(" … "), "Choose another runtime")
    assert [event.type for event in cluster.events if event.reason is Reason.RUNTIME_UNSUITABLE] == ["Warning"]
    cluster.settings = SETTINGS
    cluster.settle(within=SOON)
    assert cluster.status.phase is ServingPhase.READY


@pytest.mark.parametrize(
    ("architecture", "settings", "says"),
    [
        ("llama", on_gpus("NVIDIA-L4"), "Runtime 'tgi-cpu' … llama in float16 … bfloat16"),
        ("olmo2", SETTINGS, ""),
        ("gemma", on_gpus("NVIDIA-L4"), ""),
        ("qwen3", SETTINGS, ""),
        ("", on_gpus(), ""),
    ],
)
def test_what_can_be_served_is(architecture: str, settings: Settings, says: str) -> None:
    """With what is to be known of it. On CPUs, and of a pinned artifact, the verification decides."""
    cluster = deployed(architecture, settings)
    assert cluster.status.phase is ServingPhase.READY
    told = [each.message for each in cluster.status.conditions if each.type == "Discouraged"]
    assert len(told) == bool(says)
    for message in told:
        assert_says(message, *says.split(" … "))


def test_what_serves_goes_on_when_a_new_artifact_cannot_be_served() -> None:
    cluster = deployed("llama", on_gpus())
    old = cluster.traffic()
    cluster.source = published(BETTER, architecture="qwen3")
    cluster.settle()
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (old, {old})
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert condition(cluster.status, "Stalled") == ("True", Reason.RUNTIME_UNSUITABLE)


def test_what_was_proved_is_not_refused_by_a_table() -> None:
    """Of an artifact that an earlier version published nobody knew what it is."""
    cluster = deployed("", on_gpus())
    cluster.source = published(GOOD, architecture="qwen3")
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY


def test_an_artifact_that_does_not_fit_its_volume_starts_nothing() -> None:
    """The admin gives the runtime more room, and it serves."""
    small = SETTINGS.runtimes["tgi-cpu"]
    large = small.model_copy(update={"pod": small.pod.model_copy(update={"scratch_size": "60Gi"})})
    source = published(GOOD)
    assert source.artifact is not None
    source = replace(source, artifact=source.artifact.model_copy(update={"size_bytes": 50 * 2**30}))
    cluster = ServingCluster(spec=following(), source=source)
    cluster.settle()
    assert (cluster.status.phase, cluster.objects) == (ServingPhase.FAILED, {})
    [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
    assert stalled.reason == Reason.RUNTIME_UNSUITABLE
    assert_says(stalled.message, "50.0 GiB", f"'tgi-cpu' have {small.pod.scratch_size} (scratchSize)", "ask the admin")
    cluster.settings = SETTINGS.model_copy(update={"runtimes": {"tgi-cpu": large}})
    cluster.settle(within=SOON)
    assert cluster.status.phase is ServingPhase.READY


def test_a_pinned_artifact_is_tried() -> None:
    cluster = ServingCluster(spec=pinned(GOOD), settings=on_gpus("NVIDIA-B200"))
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
