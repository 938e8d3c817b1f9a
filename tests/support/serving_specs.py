"""What an endpoint of the tests is asked to serve: the platform's settings, published artifacts and specs."""

from dataclasses import replace
from typing import Any

from finetune_api.export import ExportFormat
from finetune_api.job_status import ArtifactStatus, ArtifactTokens
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.observe import Source
from finetune_operator.resources.deployment import Serving
from finetune_operator.resources.drift import quantity
from finetune_operator.settings import Engine, Images, Runtime, Settings

SETTINGS = Settings(
    images=Images(
        data="images/data:1",
        prepare="images/prepare:1",
        jobs="images/jobs:1",
        quantize="images/quantize:1",
        proxy="images/proxy:1",
    ),
    profiles={},
    runtimes={
        "tgi": Runtime(engine=Engine.TGI, image="images/tgi:3.3.7", drain_seconds=15),
        "tgi-cpu": Runtime(engine=Engine.TGI, image="images/tgi-cpu:1", drain_seconds=5),
    },
    max_concurrent_rollouts=None,
)


def start_seconds(runtime: str) -> int:
    """For how long a pod with a pinned artifact may have a node before it is ready."""
    chosen = SETTINGS.runtimes[runtime]
    room = int(quantity(chosen.pod.scratch_size) or 0)
    return Serving("", "", Storage(), runtime, chosen, fetched_bytes=room).start_seconds


def uri(digest: str) -> str:
    """URI of an artifact."""
    return f"s3://models/team/artifacts/{digest}"


def published(
    digest: str,
    endpoint: str = "http://s3.storage.svc:8333",
    tokens: ArtifactTokens | None = None,
    architecture: str = "",
    size_bytes: int | None = None,
) -> Source:
    """A FineTuneJob that has published an artifact to a store."""
    storage = Storage(endpoint=endpoint)
    artifact = ArtifactStatus(
        digest=digest,
        uri=uri(digest),
        format=ExportFormat.INT8,
        architecture=architecture or None,
        storage=storage,
        tokens=tokens,
        size_bytes=size_bytes,
    )
    return Source("Succeeded", artifact, storage)


def without_record(source: Source) -> Source:
    """The same FineTuneJob, published by a version that did not yet note with which storage settings."""
    assert source.artifact is not None
    return replace(source, artifact=source.artifact.model_copy(update={"storage": None}))


def pinned(digest: str, **spec: Any) -> dict[str, Any]:
    """A spec that serves a pinned artifact on ``tgi-cpu``, and keeps no pods of the revision before."""
    return {"source": {"artifact": {"uri": uri(digest)}}, "runtime": "tgi-cpu", "keepLastGood": "0s"} | spec


def following(**spec: Any) -> dict[str, Any]:
    """A spec that serves what the FineTuneJob ``intents`` publishes, and keeps no pods of the revision before."""
    return {"source": {"fineTuneJob": {"name": "intents"}}, "runtime": "tgi-cpu", "keepLastGood": "0s"} | spec
