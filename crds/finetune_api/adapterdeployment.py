"""AdapterDeployment: published artifact in, verified endpoint out."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel, Condition, Message, Name, ObjectMeta, Timestamp, WireModel
from finetune_api.rules import exactly_one_of
from finetune_api.storage import Storage

ARTIFACT_URI = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/([A-Za-z0-9!_.*'()=+@-]+/)*artifacts/[0-9a-f]{64}$"


class FineTuneJobRef(ApiModel):
    """A FineTuneJob of the same namespace."""

    name: Name
    """Its name. The newest artifact that it published is served, and followed when it publishes a new one."""


class ArtifactRef(ApiModel):
    """One published artifact, pinned."""

    uri: Annotated[str, Field(pattern=ARTIFACT_URI, min_length=6, max_length=512)]
    """As in a FineTuneJob's status.artifact.uri: s3://bucket/prefix/artifacts/<digest>."""
    storage: Storage = Storage()
    """How to reach S3."""


class ArtifactSource(ApiModel):
    """What to serve: exactly one of the two."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("fine_tune_job", "artifact"))

    fine_tune_job: FineTuneJobRef | None = None
    """Follow a FineTuneJob; the storage settings with which it published are used."""
    artifact: ArtifactRef | None = None
    """Serve one pinned artifact."""

    @model_validator(mode="after")
    def _one(self) -> "ArtifactSource":
        if (self.fine_tune_job is None) == (self.artifact is None):
            raise ValueError("exactly one of fineTuneJob and artifact must be set")
        return self


class Verification(ApiModel):
    """What a new revision must prove before traffic reaches it."""

    samples: Annotated[int, Field(ge=0, le=1000)] = 50
    """Test examples that are asked through the server; their accuracy must agree with the evaluation."""
    min_agreement_percent: Annotated[int, Field(ge=1, le=100)] = 75
    """Share of the golden prompts whose answers must be those of the evaluated artifact."""


class AdapterDeploymentSpec(ApiModel):
    """What to serve and how."""

    source: ArtifactSource
    """The artifact."""
    runtime: Name
    """Model server from the platform's values, e.g. tgi or tgi-cpu."""
    replicas: Annotated[int, Field(ge=0, le=100, json_schema_extra={"format": "int32"})] = 1
    """Pods of the serving revision."""
    verification: Verification = Verification()
    """The proof that a new revision must give."""
    rerun: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9._:-]*$")] = ""
    """Any new value tries a failed revision again, e.g. with new credentials; a serving one stays as it is."""


class ServingPhase(StrEnum):
    """One word for people; programs read the conditions."""

    PENDING = "Pending"
    PROGRESSING = "Progressing"
    READY = "Ready"
    DEGRADED = "Degraded"
    FAILED = "Failed"


class RevisionState(StrEnum):
    """Where a revision stands."""

    STARTING = "Starting"
    VERIFYING = "Verifying"
    PROMOTING = "Promoting"
    SERVING = "Serving"
    FAILED = "Failed"


class RevisionStatus(WireModel):
    """One artifact on one runtime configuration."""

    revision: Annotated[str, Field(max_length=16)]
    """Short hash of artifact and runtime; part of the Deployment's name."""
    state: RevisionState
    """Starting, Verifying, Promoting (proved; its network opens and the rest of its pods start), Serving or Failed."""
    artifact_digest: Annotated[str, Field(max_length=64)]
    """What it serves."""
    artifact_uri: Annotated[str, Field(max_length=1024)]
    """Where that is."""
    deployment: Annotated[str, Field(max_length=63)]
    """Name of its Deployment."""
    runtime: Annotated[str, Field(max_length=63)] = ""
    """Model server that it runs on."""
    storage: Storage | None = None
    """How its pods reach the artifact; known also when the FineTuneJob that published it is gone."""
    since: Timestamp
    """When it came into this state."""
    accuracy: Annotated[str, Field(max_length=16)] = ""
    """Accuracy measured through the server, on the sample."""
    expected_accuracy: Annotated[str, Field(max_length=16)] = ""
    """Accuracy that the evaluation measured on the same examples."""
    spec_hash: Annotated[str, Field(max_length=64)] = ""
    """Identity of the spec (without replicas) that it was tried for; a failed one is tried again when this changes."""
    reason: Annotated[str, Field(max_length=63)] = ""
    """Root cause of the state, as one word for programs."""
    message: Message = ""
    """What it waits for, or why it failed."""


class AdapterDeploymentStatus(WireModel):
    """What serves, and what is about to."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = -1
    """Generation of the spec that this status speaks of."""
    phase: ServingPhase | None = None
    """Pending, Progressing, Ready, Degraded or Failed."""
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    """Ready, Reconciling and Stalled (kstatus); Discouraged where what is served may go wrong."""
    endpoint: Annotated[str, Field(max_length=253)] = ""
    """URL inside the cluster, e.g. http://transactions.default.svc:80."""
    stable: RevisionStatus | None = None
    """The revision that the Service points to."""
    candidate: RevisionStatus | None = None
    """The revision that is being started, verified, or that failed."""
    last_good_revision: Annotated[str, Field(max_length=16)] = ""
    """The last revision that was verified."""
    replicas: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Pods of the stable revision."""
    ready_replicas: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Pods of the stable revision that answer."""
    selector: Annotated[str, Field(max_length=253)] = ""
    """Label selector of the serving pods, for autoscalers."""


class AdapterDeployment(WireModel):
    """An AdapterDeployment serves a published artifact and proves it before traffic reaches it."""

    api_version: str = "finetune.dev/v1alpha1"
    kind: str = "AdapterDeployment"
    metadata: ObjectMeta
    spec: AdapterDeploymentSpec
    status: AdapterDeploymentStatus = AdapterDeploymentStatus()
