"""Status of an AdapterDeployment: its revisions, what they proved, and their history."""

from typing import Annotated, Final

from pydantic import Field

from finetune_api.artifact_source import LONGEST_ADAPTER, MAX_ADAPTERS, Channel
from finetune_api.base import Condition, Message, OpenEnum, Timestamp, WireModel, Word, as_map
from finetune_api.job_status import ArtifactStatus
from finetune_api.storage import Storage
from finetune_api.verification import Verification


class ServingPhase(OpenEnum):
    """A one-word summary for people; programs read the conditions."""

    PENDING = "Pending"
    PROGRESSING = "Progressing"
    READY = "Ready"
    DEGRADED = "Degraded"
    FAILED = "Failed"


class RevisionState(OpenEnum):
    """State of a revision."""

    WAITING = "Waiting"
    STOPPING = "Stopping"
    STARTING = "Starting"
    VERIFYING = "Verifying"
    CANARY = "Canary"
    PROMOTING = "Promoting"
    SERVING = "Serving"
    FAILED = "Failed"
    KEPT = "Kept"
    SUPERSEDED = "Superseded"
    ROLLED_BACK = "RolledBack"


class CheckOutcome(OpenEnum):
    """Whether something that a revision must prove was proved."""

    PASSED = "Passed"
    FAILED = "Failed"
    SKIPPED = "Skipped"
    """The artifact or the server does not have what it takes, and another check decides; or the spec asks for nothing
    here."""


class VerificationCheck(WireModel):
    """One thing that a revision had to prove."""

    name: Annotated[str, Field(max_length=63)]
    """What was compared, e.g. logProbabilities."""
    expected: Annotated[str, Field(max_length=128)] = ""
    """What the evaluated artifact promises."""
    seen: Annotated[str, Field(max_length=128)] = ""
    """What the server showed."""
    outcome: CheckOutcome
    """Passed, Failed or Skipped."""


class AnalysisOutcome(OpenEnum):
    """What the servers' metrics say of a canary."""

    RUNNING = "Running"
    PASSED = "Passed"
    FAILED = "Failed"
    INCONCLUSIVE = "Inconclusive"


class CanaryAnalysisStatus(WireModel):
    """The analysis of the step under way."""

    outcome: AnalysisOutcome
    """Running (it is looked at until the time below), Passed, Failed or Inconclusive (there was too little to judge by;
    with onInconclusive: Hold, it is looked at again until the time below)."""
    until: Timestamp
    """Until when it is looked at."""
    message: Message = ""
    """The figures, or what is lacking."""
    checks: Annotated[list[VerificationCheck], Field(max_length=4), as_map("name")] = []
    """What was compared; Skipped: there was too little to compare."""


class CanaryStatus(WireModel):
    """The share of the traffic that a verified candidate has, or is about to get."""

    step: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """The step under way, from 1 on, or the last one. 0: it had a share, and is verified again."""
    steps: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Number of steps."""
    weight: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Percent that the step asks for."""
    share: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Percent that it really is, since pods cannot be divided."""
    pods: Annotated[str, Field(max_length=32)] = ""
    """The same in pods, e.g. "1 of 4"."""
    routed_weight: Annotated[int, Field(json_schema_extra={"format": "int32"})] | None = None
    """Percent of the requests that the HTTPRoute of spec.access.route is to send to it by now; absent where its share
    is that of its pods."""
    summary: Annotated[str, Field(max_length=32)] = ""
    """Step and share in a few characters, e.g. "1/2 25%"."""
    started_at: Timestamp | None = None
    """When clients were first sent to it."""
    reached_at: Timestamp | None = None
    """When it had the share of this step; absent while its pods start. The pause counts from here."""
    until: Timestamp | None = None
    """When this step ends, if all goes well; absent while its pods start."""
    analysis: CanaryAnalysisStatus | None = None
    """What the servers' metrics say, if the spec asks for it; absent while its pods start."""
    stable_unready_since: Timestamp | None = None
    """Since when no pod of the revision that serves has been ready; absent while one is. After a minute the canary
    takes over and skips the remaining steps."""


class AdapterState(OpenEnum):
    """Where one of several adapters stands on the pods that serve."""

    WAITING = "Waiting"
    LOADING = "Loading"
    LOADED = "Loaded"
    FAILED = "Failed"
    REMOVING = "Removing"


class AdapterStatus(WireModel):
    """One of several adapters of a revision."""

    name: Annotated[str, Field(max_length=LONGEST_ADAPTER)]
    """As in spec.source.adapters."""
    artifact_digest: Annotated[str, Field(max_length=64)]
    """Content address of its artifact."""
    artifact_uri: Annotated[str, Field(max_length=1024)]
    """Folder of that artifact."""
    base_digest: Annotated[str, Field(max_length=64)] = ""
    """Content address of the model that it was trained on; empty for a pinned artifact."""
    rank: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Its rank; 0 for a pinned artifact."""
    outcome: CheckOutcome | None = None
    """What came of its verification: Passed or Failed; absent if it has not come to it."""
    state: AdapterState | None = None
    """Of what serves: Waiting (scaled to zero: pods fetch it, prove it and load it once there are any), Loading
    (running pods do so), Loaded (the pods that are ready answer to its name), Failed (it is taken from all pods; the
    other adapters are not touched) or Removing (the spec no longer names it; a pod may still answer to its name)."""
    pods: Annotated[str, Field(max_length=32)] = ""
    """Of a loaded one: pods that answer to its name, e.g. "2/2"."""
    reason: Word = ""
    """Of one that is not loaded: why, as one word for programs."""
    message: Annotated[str, Field(max_length=256)] = ""
    """The same for people."""


class ModelCacheStatus(WireModel):
    """Where the pods of a revision that run now got their model from, on a runtime whose pods share a volume."""

    claim_name: Annotated[str, Field(max_length=253)]
    """PersistentVolumeClaim of the volume."""
    found: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Pods that found the model there."""
    downloaded: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Pods that have downloaded it there, for others to find."""
    unused: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Pods that could not use the volume, and have downloaded the model to their own."""
    unused_since: Timestamp | None = None
    """When a pod of the revision could not use it for the first time; absent if all could."""
    message: Message = ""
    """Why one of the pods that run now could not use it."""


class RevisionStatus(WireModel):
    """One artifact, or several adapters, on one runtime configuration."""

    revision: Annotated[str, Field(max_length=16)]
    """Short hash of artifact and runtime; part of the Deployment's name."""
    state: RevisionState
    """Waiting (for its turn or its next try, without pods), Stopping (strategy InPlace: the pods of what serves are
    about to stop for it, or do), Starting, Verifying, Canary (strategy Canary: verified; it has a share of the traffic,
    or is about to), Promoting (verified; its network opens and its other pods start), Serving or Failed."""
    artifact_digest: Annotated[str, Field(max_length=64)]
    """Content address of the artifact that it serves; of several adapters, the address of all of them together."""
    artifact_uri: Annotated[str, Field(max_length=1024)] = ""
    """Folder of that artifact; absent for several adapters."""
    adapters: Annotated[list[AdapterStatus], Field(max_length=MAX_ADAPTERS), as_map("name")] = []
    """The adapters that it serves; none where the artifact is a whole model."""
    deployment: Annotated[str, Field(max_length=63)]
    """Name of its Deployment."""
    runtime: Annotated[str, Field(max_length=63)] = ""
    """Its model server."""
    storage: Storage | None = None
    """How its pods reach the artifact; known even after the FineTuneJob that published it is deleted."""
    model_cache: ModelCacheStatus | None = None
    """Where its pods got their model from; absent where they share no volume, or none has got it."""
    since: Timestamp
    """When it entered this state."""
    withdrawn: Annotated[str, Field(max_length=512)] = ""
    """By whom, when and why its artifact was withdrawn while it served, as the verification of the next revision found
    it."""
    gates: Annotated[str, Field(max_length=64)] = ""
    """Identity of the gates of spec.policy by which it was verified; absent: none were asked for."""
    verified_by: Verification | None = None
    """spec.verification by which it was verified; absent: an earlier version did not note it."""
    gap_starts_at: Timestamp | None = None
    """Strategy InPlace: when the pods of what serves stop for it. The gap in service ends when it serves, or what
    served before does again."""
    canary: CanaryStatus | None = None
    """Strategy Canary: the step under way, and what it waits for."""
    taken_back_at: Timestamp | None = None
    """Strategy Canary: when a canary that clients reached has failed, and all traffic was the serving revision's again.
    It is tried again for another spec or artifact only."""
    accuracy: Annotated[str, Field(max_length=16)] = ""
    """Accuracy measured through the server, on the sample; of texts the share of answers with exactly the expected
    words."""
    expected_accuracy: Annotated[str, Field(max_length=16)] = ""
    """Accuracy that the evaluation measured on the same examples; of texts likewise."""
    verification: Annotated[list[VerificationCheck], Field(max_length=16), as_map("name")] = []
    """What its newest verification compared, and the outcome."""
    verification_retries: Annotated[int, Field(ge=0)] = 0
    """How often its verification was started again because a cause outside of the revision had ended it, such as a
    store that did not answer."""
    spec_hash: Annotated[str, Field(max_length=64)] = ""
    """Identity of the spec (without replicas) that it was tried for; a failed revision is retried when this changes."""
    reason: Word = ""
    """Root cause of the state, as one word for programs."""
    message: Message = ""
    """What it waits for, or why it failed."""


HISTORY: Final = 10
"""So many revisions are kept."""


class RevisionSummary(WireModel):
    """One line of the history. What its pods are made of is kept in the ControllerRevision <name>-<revision>."""

    revision: Annotated[str, Field(max_length=16)]
    """Short hash of artifact and runtime."""
    state: RevisionState
    """That of the revision while it serves or is to serve; afterwards Kept (its pods stay for spec.keepLastGood),
    Superseded (another one took over, or was asked for before this one had served), Failed, or RolledBack (it served,
    and the traffic went back to the revision before)."""
    artifact_digest: Annotated[str, Field(max_length=64)]
    """Content address of the artifact that it serves."""
    runtime: Annotated[str, Field(max_length=63)] = ""
    """Its model server."""
    image: Annotated[str, Field(max_length=512)] = ""
    """Image of its model server."""
    started_at: Timestamp | None = None
    """When its first pod was asked for, or the gap in service in which it is to start was announced."""
    promoted_at: Timestamp | None = None
    """When it last got the traffic; absent: it never did."""
    ended_at: Timestamp | None = None
    """When it stopped serving, failed, or was given up; absent while it serves or is to serve."""
    reason: Word = ""
    """Why it is in this state, as one word for programs."""
    message: Annotated[str, Field(max_length=256)] = ""
    """Why it ended, or what it waits for."""


class ChannelStatus(WireModel):
    """Where a channel that the source follows points, as a Job has seen it."""

    name: Annotated[str, Field(max_length=63)]
    """The output name."""
    channel: Annotated[str, Field(max_length=63)] = Channel.STABLE.value
    """stable or candidate."""
    artifact_digest: Annotated[str, Field(max_length=64)] = ""
    """Content address of the artifact that it points to; that of the last one that may be served, if the newest look
    found none. Absent: none has been found yet."""
    artifact: ArtifactStatus | None = None
    """What the Job has read of that artifact; absent if it could not."""
    published_at: Timestamp | None = None
    """When the channel was moved there."""
    looked_at: Timestamp | None = None
    """When a Job has last looked, from which the interval counts; absent: none has come to an end yet."""
    reason: Word = ""
    """Why there is no other artifact to serve, as one word for programs; empty: the last look has found one."""
    message: Message = ""
    """The same for people."""
    source: Annotated[str, Field(max_length=64)] = ""
    """Identity of the channel and of how it is reached, without its interval, for which it was looked."""
    asked: Annotated[str, Field(max_length=64)] = ""
    """Identity of the annotation finetune.dev/look, spec.rerun and spec.policy.withdrawn, of which each change has it
    looked again at once."""


class AdapterChannelStatus(ChannelStatus):
    """The same for the channel of an adapter."""

    adapter: Annotated[str, Field(max_length=LONGEST_ADAPTER)]
    """Name of the adapter."""


class AdapterDeploymentStatus(WireModel):
    """The serving revision, and the next one."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = -1
    """Generation of the spec that this status describes."""
    phase: ServingPhase | None = None
    """Pending, Progressing, Ready, Degraded or Failed."""
    conditions: Annotated[list[Condition], Field(max_length=16), as_map("type")] = []
    """Ready, Reconciling and Stalled (kstatus); Discouraged if clients may send longer requests than the runtime
    accepts, if answers may differ from the evaluated ones, if pods ask for too little memory, if the artifact was
    withdrawn, or if the PodDisruptionBudget was refused; Degraded if pods of what serves fail their self-check, and so
    get no new connections; RolledBack if an earlier revision serves instead of the one that the source asks for;
    ServiceGap, with strategy InPlace, from the announcement of a gap in service (False) to its end (True while it
    lasts);
    RouteAccepted, with spec.access.route, whether the gateway or the ingress controller takes the route."""
    endpoint: Annotated[str, Field(max_length=253)] = ""
    """URL inside the cluster, e.g. http://transactions.default.svc:80."""
    url: Annotated[str, Field(max_length=512)] = ""
    """URL outside of the cluster, by the first host of spec.access.route that no other AdapterDeployment has, once
    there is such a route; whether its gateway takes it says the condition RouteAccepted."""
    channel: ChannelStatus | None = None
    """Where the channel of spec.source.output points; absent for other sources."""
    adapter_channels: Annotated[list[AdapterChannelStatus], Field(max_length=MAX_ADAPTERS), as_map("adapter")] = []
    """Where the channels of spec.source.adapters point."""
    stable: RevisionStatus | None = None
    """The revision that the Service routes to."""
    candidate: RevisionStatus | None = None
    """The revision that waits, is starting, being verified, or has failed."""
    previous: RevisionStatus | None = None
    """The revision that served before, while its pods stay: traffic can go back to it at once."""
    last_good_revision: Annotated[str, Field(max_length=16)] = ""
    """The last revision that passed verification."""
    revisions: Annotated[list[RevisionSummary], Field(max_length=HISTORY), as_map("revision")] = []
    """The revisions that got pods, the one that started last first."""
    replicas: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Number of pods of the stable revision."""
    ready_replicas: Annotated[int, Field(json_schema_extra={"format": "int32"})] = 0
    """Number of pods of the stable revision that are ready."""
    selector: Annotated[str, Field(max_length=253)] = ""
    """Label selector of the serving pods, for autoscalers."""
