"""What the stages of an AdapterDeployment need (follow, fetch, verify, analyse), and a serving pod's self-check."""

from enum import StrEnum
from typing import Final

from finetune_api.artifact_source import Channel
from finetune_api.base import Timestamp, WireModel
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState
from finetune_api.verification import GatesPolicy, WithdrawnPolicy


class AdapterRef(WireModel):
    """One of several adapters on a server."""

    name: str
    """As the AdapterDeployment calls it."""
    uri: str
    """Folder of its artifact."""
    digest: str
    """Content address of that."""


class FetchParams(WireModel):
    """What an artifact must bear before it is downloaded."""

    public_keys: list[str] = []
    """In PEM: one of them must have signed it; empty: signatures are not looked at."""
    adapters: list[AdapterRef] = []
    """Several artifacts of format Adapter on one base, in place of the input's artifact; empty: that one."""
    max_rank: int = 0
    """Of adapters: the highest rank that the server is told to make room for."""
    wanted: str = ""
    """File with WantedAdapters, of which the required ones are downloaded in place of ``adapters``: the server loads
    adapters while it runs, and what it serves by now is another set. Empty: ``adapters`` are."""


MODEL_CACHE: Final = "modelCache"
"""Scalar of fetch: what the volume that pods share was good for, as CacheUse has it. Absent: the pod has none."""
MODEL_CACHE_PROBLEM: Final = "modelCacheProblem"
"""Scalar of fetch: why it was good for nothing."""


class CacheUse(StrEnum):
    """Where a pod got its model from."""

    FOUND = "Found"
    """It was on the volume."""
    DOWNLOADED = "Downloaded"
    """The pod has downloaded it to the volume."""
    UNUSED = "Unused"
    """The pod has downloaded it to its own volume."""


class WantedAdapter(AdapterRef):
    """One of the adapters that a running server is to serve."""

    required: bool = False
    """It has been proved on all pods: no pod is ready without it. Otherwise a pod that cannot serve it goes on without
    it."""
    attempt: str = ""
    """Identity of the spec for which it is to be proved: what has failed for another one is tried again. Empty: it has
    been proved."""


class WantedAdapters(WireModel):
    """What a server that loads adapters while it runs is to serve. It changes with the spec."""

    adapters: list[WantedAdapter] = []
    withdrawn: WithdrawnPolicy = WithdrawnPolicy.REFUSE
    """What becomes of one that was withdrawn before it was proved."""
    gates: GatesPolicy = GatesPolicy.ANY
    """What the gates must have said of one before it is proved."""
    required_gates: list[str] = []
    """Metrics of which a goal must have been met, likewise."""


class AdapterReport(WireModel):
    """Where one of them stands on one pod."""

    name: str
    digest: str
    state: AdapterState
    reason: Reason = Reason.WAITING
    """Why it is not loaded."""
    message: str = ""
    """The same for people."""
    attempt: str | None = None
    """That of the set in which the pod has read of it; None: an earlier version does not say."""


class AdapterReports(WireModel):
    """What the self-check of a pod tells of its adapters at ``/adapters``."""

    adapters: list[AdapterReport] = []


class LatencyObjectives(WireModel):
    """Seconds in which 95 % of the streams of several clients must come; None: whatever they take."""

    first_token: float | None = None
    """From the request to the first part of the answer."""
    output_token: float | None = None
    """Between two tokens, on average over an answer."""

    @property
    def are_set(self) -> bool:
        """Whether anything has to be fast."""
        return self.first_token is not None or self.output_token is not None


ANSWER_SECONDS: Final = 10
"""What a verification gives a server for one answer, on average: about 20 tokens on a CPU."""
TOKEN_SECONDS: Final = 0.5
"""What each token of a longer one may take."""


def long_answer_seconds(tokens: int) -> float:
    """What an answer of at most so many tokens gets on top."""
    return max(0.0, TOKEN_SECONDS * tokens - ANSWER_SECONDS)


DOOR_SECONDS: Final = "doorSeconds"
"""Scalar of a verification that saw the network open to clients: the seconds for which it waited for that."""
REPLACED_WITHDRAWN: Final = "replacedWithdrawn"
"""Scalar of a verification: by whom, when and why the artifact was withdrawn that serves until now; empty: it was not.
Absent: that is not known."""


class VerifyParams(WireModel):
    """What verify needs to test a candidate's server."""

    endpoint: str
    """URL of the candidate's Service."""
    engine: str = "tgi"
    """API of the server, e.g. vllm."""
    samples: int
    """Number of test examples; with ``detect_drop`` the most of them."""
    min_agreement_percent: int
    timeout_seconds: int = 600
    withdrawn: WithdrawnPolicy = WithdrawnPolicy.REFUSE
    """What becomes of an artifact that was withdrawn."""
    gates: GatesPolicy = GatesPolicy.ANY
    """What the gates must have said of the artifact."""
    required_gates: list[str] = []
    """Metrics of which a goal must have been met."""
    replaced: list[AdapterRef] = []
    """The artifacts of the revision that serves, in the same store: whether they are withdrawn is told, as the traffic
    may go back to them. Their names are those of its adapters, or empty."""
    api_keys_secret: str = ""
    """Secret whose keys the server's clients need, mounted at meta.API_KEYS_DIR: one is sent. Empty: none is needed."""
    tls_secret: str = ""
    """Secret with the server's certificate, mounted at meta.TLS_DIR: the server is asked by TLS. Empty: it is not."""
    tls_host: str = ""
    """The name that the certificate has to be for: that of the Service which clients use."""
    max_distance: float | None = None
    """Nats a token that the server may be from the evaluated artifact; None: as measured for its engine and format."""
    require_probabilities: bool = False
    """Whether recorded probabilities must prove the weights."""
    detect_drop: float | None = None
    """The drop in accuracy that the test examples are to show."""
    objectives: LatencyObjectives = LatencyObjectives()
    model: str = ""
    """Of adapters: the name of the base in the server's API."""
    adapters: list[AdapterRef] = []
    """Each is verified under its own name; empty: the input's artifact."""
    door: str = ""
    """URL of a port that opens to verify in the moment in which the network opens to clients: once all checks have
    passed, verify waits for it. Empty: it does not."""
    pods: list[str] = []
    """URLs of the self-checks of pods that load adapters while they run: wait until each says that it has proved these
    ``adapters``, or that it cannot. Empty: the endpoint is asked."""
    removed: list[AdapterRef] = []
    """Of ``pods``: wait until none has any of them any more."""
    attempt: str = ""
    """Of ``pods``: that of the adapters. What a pod says of an earlier one does not count."""


class AnalyseParams(WireModel):
    """What analyse needs to compare a canary with the revision that serves."""

    engine: str
    """API of the canary's servers, e.g. vllm."""
    stable_engine: str
    """API of the other servers."""
    canary: list[str]
    """URLs of the canary's pods."""
    stable: list[str]
    """URLs of the pods of the revision that serves."""
    until: Timestamp
    """When it has to give its verdict."""
    min_requests: int
    """Of each revision, to pass."""
    max_error_increase: float
    """Difference of the shares of requests that failed."""
    max_latency_increase: float
    """Part of the other revision's time."""


class FollowParams(WireModel):
    """Whose channel follow looks at."""

    uri: str
    """The output URI."""
    name: str
    """The output name."""
    channel: Channel = Channel.STABLE
    withdrawn: WithdrawnPolicy = WithdrawnPolicy.REFUSE
    """What becomes of an artifact that was withdrawn."""


PUBLISHED_AT: Final = "publishedAt"
"""Scalar of follow: when the channel was moved to the artifact."""


class SelfCheckLimits(WireModel):
    """What a serving pod proves itself by, and how often: from the spec, which may change while the pod runs."""

    min_agreement_percent: int = 75
    """As in VerifyParams."""
    max_distance: float | None = None
    """As in VerifyParams."""
    require_probabilities: bool = False
    """As in VerifyParams."""
    watch_seconds: int = 0
    """Seconds between two questions to a server that has proved itself; 0: it is asked nothing more."""
