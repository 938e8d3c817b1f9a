"""AdapterDeployment: published artifact in, verified endpoint out."""

from collections.abc import Mapping
from enum import StrEnum
from math import ceil
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import (
    ApiModel,
    Condition,
    Message,
    Name,
    ObjectMeta,
    OpenEnum,
    Timestamp,
    WireModel,
    Word,
    as_map,
)
from finetune_api.hashing import digest
from finetune_api.meta import NAME_PATTERN
from finetune_api.references import SecretRef
from finetune_api.routes import Route
from finetune_api.rules import Rule, exactly_one_of
from finetune_api.storage import Storage

ARTIFACT_URI = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/([A-Za-z0-9!_.*'()=+@-]+/)*artifacts/[0-9a-f]{64}$"

PUBLIC_KEY = r"^-----BEGIN PUBLIC KEY-----\n([A-Za-z0-9+/=]{1,64}\n){1,4}-----END PUBLIC KEY-----\n?$"

PublicKey = Annotated[str, Field(pattern=PUBLIC_KEY, min_length=1, max_length=400)]


def artifact_digest(uri: str) -> str:
    """The digest in an artifact's URI, for URIs that people write and inputs of earlier versions; empty if there is
    none."""
    _, folder, digest = uri.rstrip("/").rpartition("/artifacts/")
    return digest if folder else ""


class FineTuneJobRef(ApiModel):
    """A FineTuneJob of the same namespace."""

    name: Name
    """Name of the FineTuneJob. Its newest published artifact is served, and replaced when it publishes a new one."""


class ArtifactRef(ApiModel):
    """A pinned, published artifact."""

    uri: Annotated[str, Field(pattern=ARTIFACT_URI, min_length=6, max_length=512)]
    """The artifact, as in a FineTuneJob's status.artifact.uri: s3://bucket/prefix/artifacts/<digest>."""
    storage: Storage = Storage()
    """How to reach S3."""

    @property
    def digest(self) -> str:
        """Content address of the artifact."""
        return artifact_digest(self.uri)


MAX_ADAPTERS: Final = 8
"""So many adapters share a server: the results of all of them fit the termination message of their verification."""

LONGEST_ADAPTER: Final = 32
"""Characters of an adapter's name."""

AdapterName = Annotated[str, Field(pattern=NAME_PATTERN, min_length=1, max_length=LONGEST_ADAPTER)]


def adapter_model(deployment: str, adapter: str) -> str:
    """The name by which clients ask for an adapter. That of its base is the AdapterDeployment's own."""
    return f"{deployment}:{adapter}"


def set_address(adapters: Mapping[str, str]) -> str:
    """One address for several artifacts, from their names and digests."""
    return digest(sorted(adapters.items()))


class AdapterSource(ApiModel):
    """One of several adapters: a name, and exactly one of fineTuneJob and artifact."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("fine_tune_job", "artifact"))

    name: AdapterName
    """Clients ask for the model <name of the AdapterDeployment>:<name>."""
    fine_tune_job: FineTuneJobRef | None = None
    """Follow a FineTuneJob that publishes in format Adapter."""
    artifact: ArtifactRef | None = None
    """Serve one pinned artifact of format Adapter."""

    @model_validator(mode="after")
    def _one(self) -> "AdapterSource":
        if (self.fine_tune_job is None) == (self.artifact is None):
            raise ValueError("exactly one of fineTuneJob and artifact must be set")
        return self


class ArtifactSource(ApiModel):
    """What to serve: exactly one of fineTuneJob, artifact and adapters."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("fine_tune_job", "artifact", "adapters"))

    fine_tune_job: FineTuneJobRef | None = None
    """Follow a FineTuneJob; its storage settings at the time of publishing are used."""
    artifact: ArtifactRef | None = None
    """Serve one pinned artifact."""
    adapters: Annotated[list[AdapterSource], Field(min_length=1, max_length=MAX_ADAPTERS), as_map("name")] | None = None
    """Serve several artifacts of format Adapter on one copy of the model that they were trained on, which all must
    share. Each is verified; a change of one of them is another revision of all. Their stores must be reached alike. The
    base itself is served under the AdapterDeployment's name."""

    @model_validator(mode="after")
    def _one(self) -> "ArtifactSource":
        if sum(each is not None for each in (self.fine_tune_job, self.artifact, self.adapters)) != 1:
            raise ValueError("exactly one of fineTuneJob, artifact and adapters must be set")
        names = [each.name for each in self.adapters or []]
        if len(set(names)) < len(names):
            raise ValueError("the names of adapters must differ")
        return self

    @property
    def followed(self) -> list[str]:
        """Names of the FineTuneJobs that it follows."""
        jobs = [self.fine_tune_job, *(each.fine_tune_job for each in self.adapters or [])]
        return list(dict.fromkeys(job.name for job in jobs if job))


DISTANCE: Final = r"^[0-9](\.[0-9]{1,3})?$"
"""Pattern of nats a token."""
DROP: Final = r"^0\.(0[1-9]|[1-9][0-9]?)$"
"""Pattern of a drop in accuracy: hundredths, above 0 and below 1."""
DEFAULT_SAMPLES: Final = 50
"""Test examples that are sent where nothing says how many."""
MAX_SAMPLES: Final = 1000
"""The most test examples that are sent to a server."""
_SQUARED: Final = 6
"""A sample that shows a drop has less than so many examples divided by its square, and a few: half of all answers may
change, and (1.96 + 1.28)² / 2 is 5.3 (Connor, "Sample size for testing differences in proportions for the
paired-sample design", 1987)."""
_BASE_SAMPLES: Final = 6
"""The few."""


DURATION: Final = r"^([1-9][0-9]{0,5}ms|[1-9][0-9]{0,2}s)$"
"""Pattern of a short time, above 0."""

Duration = Annotated[str, Field(pattern=DURATION, max_length=8)]


def duration_seconds(duration: str) -> float:
    """A Duration in seconds."""
    return int(duration[:-2]) / 1000 if duration.endswith("ms") else float(duration[:-1])


class Objectives(ApiModel):
    """How fast a server must answer, measured with four clients at once: 95 % of their streams are no slower."""

    time_to_first_token: Duration | None = None
    """Longest time from a request to the first part of its answer: milliseconds or seconds, e.g. "2s"."""
    time_per_output_token: Duration | None = None
    """Longest time between the tokens of an answer, on average over the answer, e.g. "50ms"."""


class Verification(ApiModel):
    """What a new revision must prove before it receives traffic."""

    samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)] = DEFAULT_SAMPLES
    """Number of test examples sent to the server; their accuracy must match the evaluation. Not looked at with
    detectDrop."""
    detect_drop: Annotated[str, Field(pattern=DROP, max_length=4)] | None = None
    """Send as many test examples as show, with 90 % probability, that the server's accuracy is lower by this much, e.g.
    "0.1" for 0.9 down to 0.8; at most 1000, and what the test split has. Then samples is not looked at. Where there are
    too few, the check says which drop they show; where they show none, 50 are sent. So it is with most texts: only
    answers with the very words count as right, and these are few."""
    min_agreement_percent: Annotated[int, Field(ge=1, le=100)] = 75
    """Share of the golden prompts that must get the same answers as from the evaluated artifact, where answers are
    labels, and of the answers that must end by themselves where the artifact's did."""
    max_distance: Annotated[str, Field(pattern=DISTANCE, max_length=16)] | None = None
    """How far the probabilities of recorded texts may be from the evaluated artifact's: nats a token, e.g. "0.7". By
    default what another precision was measured to change. Raise it only for a server that is known to be right."""
    objectives: Objectives = Objectives()
    """How fast the server must answer. What has no objective is measured and shown."""

    @property
    def most_samples(self) -> int:
        """No more test examples than these are sent, whatever the accuracy that was evaluated."""
        if self.detect_drop is None:
            return self.samples
        return min(MAX_SAMPLES, _BASE_SAMPLES + ceil(_SQUARED / float(self.detect_drop) ** 2))


class SignaturePolicy(ApiModel):
    """Whose signature an artifact must bear."""

    public_keys: Annotated[list[PublicKey], Field(min_length=1, max_length=4)]
    """Public keys in PEM (Ed25519, or ECDSA on the curve P-256). One of them must have signed the artifact; a second is
    for the time in which a key is replaced."""


class WithdrawnPolicy(StrEnum):
    """What becomes of an artifact that was withdrawn."""

    REFUSE = "Refuse"
    WARN = "Warn"


class Policy(ApiModel):
    """Which artifacts may be served."""

    signature: SignaturePolicy | None = None
    """Serve signed artifacts only (a FineTuneJob's spec.output.signing). Without it, signatures are not looked at."""
    withdrawn: WithdrawnPolicy = WithdrawnPolicy.REFUSE
    """Refuse: no new revision serves a withdrawn artifact. Warn: it does, with the condition Discouraged. What serves
    already keeps serving in both cases, and gets that condition when one of its pods starts."""


class RequiredKeys(ApiModel):
    """Keys without which clients get no answers."""

    secret_ref: SecretRef
    """Secret of the same namespace of which each value is a key, with any name: 20 to 512 characters of ASCII without
    spaces, commas and line breaks. Clients send one as "Authorization: Bearer KEY". What is added or removed counts
    within about two minutes, without a restart; without any key nobody gets in."""


class ClientAccess(ApiModel):
    """How clients reach the endpoint."""

    api_keys: RequiredKeys | None = None
    """Require a key. Another Secret, or none, makes another revision; until it is verified, what serves stays as open
    as it is. Without this field, whoever the network policies let in gets answers."""
    route: Route | None = None
    """A way in from outside of the cluster, to whatever revision serves. A change of it makes no other revision."""


KEEP: Final = r"^([0-9]{1,5}s|[0-9]{1,4}m|[0-9]{1,2}h)$"
"""Pattern of a time with one unit."""
KEPT_BY_DEFAULT: Final = "10m"
"""For how long the pods of the revision before stay where the spec does not say."""
REVISION: Final = r"^([0-9a-f]{8})?$"
"""Pattern of a revision's name, or none."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}


def _seconds(text: str) -> int:
    """Seconds of a time that matches ``KEEP``."""
    return int(text[:-1]) * _UNITS[text[-1]]


MOST_WEIGHT: Final = 50
"""Percent: as many pods of another revision as of the one that serves."""


class StrategyType(StrEnum):
    """Which pods go first when another revision takes over."""

    BLUE_GREEN = "BlueGreen"
    CANARY = "Canary"
    IN_PLACE = "InPlace"


class CanaryStep(ApiModel):
    """A share of the traffic, and for how long."""

    weight: Annotated[int, Field(ge=1, le=MOST_WEIGHT, json_schema_extra={"format": "int32"})]
    """Percent of new connections that another revision is to get. Its share is that of its pods, so that few pods give
    coarse shares: it gets as many as come closest without being more than the weight, and at least one. At most 50, as
    all pods of the revision that serves stay beside."""
    pause: Annotated[str, Field(pattern=KEEP, max_length=6)] = "10m"
    """For how long it has to stand this share before the next step, counted from when it has it: seconds, minutes or
    hours."""

    @property
    def pause_seconds(self) -> int:
        """The pause in seconds."""
        return _seconds(self.pause)


class WithoutVerdict(StrEnum):
    """What becomes of a step whose analysis has no verdict."""

    HOLD = "Hold"
    CONTINUE = "Continue"


ERROR_INCREASE: Final = r"^0(\.[0-9]{1,3})?$"
"""Pattern of a difference between two shares of requests: thousandths, below 1."""
LATENCY_INCREASE: Final = r"^[0-9](\.[0-9]{1,2})?$"
"""Pattern of a part of a time: hundredths, below 10."""


class CanaryAnalysis(ApiModel):
    """What another revision must not do worse than the one that serves, by the metrics of their own servers. It fails
    for what is no chance: for a revision that is as good, once in a hundred steps at most."""

    max_error_increase: Annotated[str, Field(pattern=ERROR_INCREASE, max_length=16)] = "0.01"
    """By how much more of its requests may fail: of all its requests, e.g. "0.01" for one in a hundred more than of the
    revision that serves. What a client asks wrongly is no failure."""
    max_latency_increase: Annotated[str, Field(pattern=LATENCY_INCREASE, max_length=16)] = "0.5"
    """By how much longer the slowest 5 % of its requests may take, whole and, where the server measures it, until their
    first token: e.g. "0.5" for half as long again. Servers count times in ranges, so a small increase is not seen."""
    min_requests: Annotated[int, Field(ge=10, le=1_000_000, json_schema_extra={"format": "int32"})] = 100
    """So many requests must each of the two revisions have had in a step to pass it; with fewer it is inconclusive. It
    may fail with fewer."""
    on_inconclusive: WithoutVerdict = WithoutVerdict.HOLD
    """Hold: a step without a verdict (too few requests, or metrics that could not be read) lasts until there is one, or
    until this changes. Continue: it ends with its pause, and the status says what was lacking."""


class Canary(ApiModel):
    """How another revision gets its share of the traffic."""

    steps: Annotated[list[CanaryStep], Field(min_length=1, max_length=10)] = [
        CanaryStep(weight=10),
        CanaryStep(weight=MOST_WEIGHT),
    ]
    """One after the other. After the last one it takes over."""
    analysis: CanaryAnalysis | None = None
    """Compare errors and times of both revisions in each step, and give all traffic back if the new one is worse. {}:
    with the defaults. Without it, only crashes and silence end a canary."""


class Strategy(ApiModel):
    """How another revision takes over from the one that serves."""

    type: StrategyType = StrategyType.BLUE_GREEN
    """BlueGreen: another revision starts beside the one that serves, which takes hardware for both. Canary: the same,
    and once it is verified it gets a share of the traffic, step by step, before it takes over. InPlace: the pods of the
    one that serves stop first, and nobody gets answers until the other one is verified. If it fails, the one before
    comes back by itself."""
    canary: Canary = Canary()
    """Canary: the steps."""
    notice: Annotated[str, Field(pattern=KEEP, max_length=6)] = "30s"
    """InPlace: for how long the status announces the gap in service before it begins: seconds, minutes or hours."""

    @property
    def notice_seconds(self) -> int:
        """The notice in seconds."""
        return _seconds(self.notice)


WATCH_INTERVAL: Final = r"^(0s|[1-9][0-9]{1,4}s|[1-9][0-9]{0,3}m|[1-9][0-9]?h)$"
"""Pattern of the time between two questions: none, or 10 s and more."""
WatchInterval = Annotated[str, Field(pattern=WATCH_INTERVAL, max_length=6)]


def watch_seconds(interval: str) -> int:
    """A WatchInterval in seconds; 0: no question."""
    return _seconds(interval)


class QualityWatch(ApiModel):
    """Whether what serves is still what was verified."""

    interval: WatchInterval = "5m"
    """Every so often each pod is asked one of the recorded texts or golden prompts again, unless requests wait at its
    server: seconds (10 or more), minutes or hours. If it answers otherwise than when it proved itself, it has to prove
    itself again. If it fails, it gets no more requests, and the condition Degraded says why. For traffic to go back by
    itself to the revision before, keepLastGood has to be longer than this. "0s": pods are asked only when they start.
    The platform may set a longest interval."""


# An earlier CRD had a default, which is stored in what was applied then: it is no wish of anybody's.
_NOTHING_KEPT: Final = Rule(
    "self.strategy.type != 'InPlace' || !has(self.keepLastGood) || "
    f"self.keepLastGood.matches('^(0+[smh]|{KEPT_BY_DEFAULT})$')",
    "strategy InPlace stops the pods of the revision before first, and can keep none: remove keepLastGood, or set it "
    "to 0s",
)


class AdapterDeploymentSpec(ApiModel):
    """What to serve and how."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_NOTHING_KEPT.as_schema()]})

    source: ArtifactSource
    """The artifact to serve."""
    runtime: Name
    """Model server from the platform's values, e.g. vllm or tgi-cpu."""
    replicas: Annotated[int, Field(ge=0, le=100, json_schema_extra={"format": "int32"})] = 1
    """Number of pods of the serving revision."""
    verification: Verification = Verification()
    """Verification of a new revision."""
    policy: Policy = Policy()
    """Which artifacts may be served."""
    access: ClientAccess = ClientAccess()
    """How clients reach the endpoint."""
    rerun: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9._:-]*$")] = ""
    """Any new value retries a failed revision, e.g. with new credentials; a serving one stays as it is."""
    strategy: Strategy = Strategy()
    """How another revision takes over. Until one has served, there is nothing to take over from."""
    keep_last_good: Annotated[str, Field(pattern=KEEP, max_length=6)] | None = None
    """How long the pods of the revision before stay after another one has taken over: seconds, minutes or hours; 10m by
    default. For so long, the new revision is watched, and traffic goes back at once if it crashes or stops answering.
    They make room for whatever finds none. "0s": no pod stays, and nothing goes back by itself. With strategy InPlace
    none stays either: 10m means the same there, and no other value is taken."""
    quality_watch: QualityWatch = QualityWatch()
    """The pods are asked again while they serve. A change of it starts no pod."""
    rollback_to: Annotated[str, Field(max_length=8, pattern=REVISION)] = ""
    """Serve this revision of status.revisions, whatever the source says, until it is removed or changed."""

    @model_validator(mode="after")
    def _keeps_nothing_in_place(self) -> "AdapterDeploymentSpec":
        kept = self.keep_last_good or KEPT_BY_DEFAULT
        if self.in_place and kept != KEPT_BY_DEFAULT and _seconds(kept):
            raise ValueError(_NOTHING_KEPT.message)
        return self

    @property
    def in_place(self) -> bool:
        """Whether the pods of what serves stop before those of another revision start."""
        return self.strategy.type is StrategyType.IN_PLACE

    @property
    def by_steps(self) -> bool:
        """Whether another revision gets a share of the traffic before it takes over."""
        return self.strategy.type is StrategyType.CANARY

    @property
    def keep_seconds(self) -> int:
        """keepLastGood in seconds."""
        return 0 if self.in_place else _seconds(self.keep_last_good or KEPT_BY_DEFAULT)


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


class AdapterState(OpenEnum):
    """Where one of several adapters stands on the pods that serve."""

    LOADING = "Loading"
    LOADED = "Loaded"
    FAILED = "Failed"


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
    """Of what serves: Loading (running pods fetch it, prove it and load it), Loaded (the pods that are ready answer to
    its name) or Failed (no pod answers to its name; the other adapters are not touched)."""
    pods: Annotated[str, Field(max_length=32)] = ""
    """Of a loaded one: pods that answer to its name, e.g. "2/2"."""
    reason: Word = ""
    """Of one that is not loaded: why, as one word for programs."""
    message: Annotated[str, Field(max_length=256)] = ""
    """The same for people."""


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
    since: Timestamp
    """When it entered this state."""
    gap_starts_at: Timestamp | None = None
    """Strategy InPlace: when the pods of what serves stop for it. The gap in service ends when it serves, or what
    served before does again."""
    canary: CanaryStatus | None = None
    """Strategy Canary: the step under way, and what it waits for."""
    accuracy: Annotated[str, Field(max_length=16)] = ""
    """Accuracy measured through the server, on the sample; of texts the share of answers with the very words."""
    expected_accuracy: Annotated[str, Field(max_length=16)] = ""
    """Accuracy that the evaluation measured on the same examples; of texts likewise."""
    verification: Annotated[list[VerificationCheck], Field(max_length=16), as_map("name")] = []
    """What its newest verification compared, and what came of it."""
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


class AdapterDeploymentStatus(WireModel):
    """The serving revision, and the next one."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = -1
    """Generation of the spec that this status describes."""
    phase: ServingPhase | None = None
    """Pending, Progressing, Ready, Degraded or Failed."""
    conditions: Annotated[list[Condition], Field(max_length=16), as_map("type")] = []
    """Ready, Reconciling and Stalled (kstatus); Discouraged if clients may send longer requests than the runtime
    accepts, if answers may differ from the evaluated ones, or if the artifact was withdrawn; Degraded if pods of what
    serves fail their self-check, and so get no requests; RolledBack if an earlier
    revision serves than the source asks for; ServiceGap, with strategy InPlace, from the announcement of a gap in
    service (False) to its end (True while it lasts); RouteAccepted, with spec.access.route, whether the gateway or the
    ingress controller takes the route."""
    endpoint: Annotated[str, Field(max_length=253)] = ""
    """URL inside the cluster, e.g. http://transactions.default.svc:80."""
    url: Annotated[str, Field(max_length=512)] = ""
    """URL outside of the cluster, the first of spec.access.route, once there is such a route; whether its gateway takes
    it says the condition RouteAccepted."""
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


class AdapterDeployment(WireModel):
    """An AdapterDeployment serves a published artifact and verifies it before it receives traffic."""

    api_version: str = "finetune.dev/v1alpha1"
    kind: str = "AdapterDeployment"
    metadata: ObjectMeta
    spec: AdapterDeploymentSpec
    status: AdapterDeploymentStatus = AdapterDeploymentStatus()
