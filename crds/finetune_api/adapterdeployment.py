"""AdapterDeployment: published artifact in, verified endpoint out."""

from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.artifact_source import ArtifactSource
from finetune_api.base import ApiModel, Name, ObjectMeta, RerunToken, WireModel
from finetune_api.references import SecretRef
from finetune_api.routes import Route
from finetune_api.rules import Rule
from finetune_api.serving_status import AdapterDeploymentStatus
from finetune_api.spelled import spelled
from finetune_api.strategy import (
    KEPT_BY_DEFAULT,
    MOST_SHARE,
    QualityWatch,
    Strategy,
    StrategyType,
    TimeSpan,
    seconds_of,
)
from finetune_api.verification import Policy, Verification


class RequiredKeys(ApiModel):
    """Keys without which clients get no answers."""

    secret_ref: SecretRef
    """Secret of the same namespace of which each value is a key, with any name: 20 to 512 characters of ASCII without
    spaces, commas and line breaks. Clients send one as "Authorization: Bearer KEY". Added and removed keys take
    effect within about two minutes, without a restart; without any key, all requests are rejected."""


class ServerCertificate(ApiModel):
    """TLS between clients and the pods."""

    secret_ref: SecretRef
    """Secret of the same namespace, of the type kubernetes.io/tls: tls.crt and tls.key, and ca.crt if clients are to
    trust another certificate than this very one. It must be for the name NAME.NAMESPACE.svc of the Service. A renewed
    one counts within about two minutes, without a restart."""


class ClientAccess(ApiModel):
    """How clients reach the endpoint."""

    api_keys: RequiredKeys | None = None
    """Require a key. Another Secret, or none, makes another revision; until it is verified, what serves stays as open
    as it is. Without this field, every client that the network policies admit gets answers."""
    tls: ServerCertificate | None = None
    """Have the pods speak TLS, 1.2 or newer, and nothing else: the Service's port is 443 then, in place of 80. Another
    Secret, or none, makes another revision."""
    route: Route | None = None
    """A way in from outside of the cluster, to whatever revision serves. A change of it makes no other revision."""


REVISION: Final = r"^([0-9a-f]{8})?$"
"""Pattern of a revision's name, or none."""


# An earlier CRD had a default, which is stored in what was applied then: it is no wish of anybody's.
_NOTHING_KEPT: Final = Rule(
    "self.strategy.type != 'InPlace' || !has(self.keepLastGood) || "
    f"self.keepLastGood.matches('^(0+[smh]|{KEPT_BY_DEFAULT})$')",
    "strategy InPlace stops the pods of the revision before first, and can keep none: remove keepLastGood, or set it "
    "to 0s",
)

# All pods of the revision that serves stay, and gateways learn by a Service's name whether its pods speak TLS.
_DIVIDED_EXACTLY: Final = Rule(
    f"self.strategy.canary.steps.all(step, step.weight <= {MOST_SHARE}) || "
    "(has(self.access.route) && has(self.access.route.httpRoute) && !has(self.access.tls))",
    f"a weight above {MOST_SHARE} of strategy.canary.steps needs an HTTPRoute that divides requests "
    f"(access.route.httpRoute, without access.tls): without one the share is that of the pods, {MOST_SHARE} at most",
)


class AdapterDeploymentSpec(ApiModel):
    """What to serve and how."""

    model_config = ConfigDict(
        json_schema_extra={"x-kubernetes-validations": [_NOTHING_KEPT.as_schema(), _DIVIDED_EXACTLY.as_schema()]}
    )

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
    rerun: RerunToken = ""
    """Any new value retries a failed revision, e.g. with new credentials; a serving one stays as it is."""
    strategy: Strategy = Strategy()
    """How another revision takes over. Until one has served, there is nothing to take over from."""
    keep_last_good: TimeSpan | None = None
    """How long the pods of the previous revision are kept after another one has taken over: seconds, minutes or hours;
    10m by default. During this time the new revision is watched, and traffic goes back at once if it crashes or stops
    answering. The pods are removed earlier if others need their room. "0s": no pods are kept, and there is no automatic
    rollback. With strategy InPlace none are kept either: 10m means the same there, and no other value is accepted."""
    quality_watch: QualityWatch = QualityWatch()
    """The pods are asked again while they serve. A change of it starts no pod."""
    rollback_to: Annotated[
        str, spelled(REVISION, "write the name of a revision in status.revisions: 8 hexadecimal digits", max_length=8)
    ] = ""
    """Serve this revision of status.revisions, whatever the source says, until it is removed or changed."""

    @model_validator(mode="after")
    def _keeps_nothing_in_place(self) -> "AdapterDeploymentSpec":
        kept = self.keep_last_good or KEPT_BY_DEFAULT
        if self.in_place and kept != KEPT_BY_DEFAULT and seconds_of(kept):
            raise ValueError(_NOTHING_KEPT.message)
        return self

    @model_validator(mode="after")
    def _divides_what_it_can(self) -> "AdapterDeploymentSpec":
        route = self.access.route
        divided = route is not None and route.http_route is not None and self.access.tls is None
        if not divided and any(step.weight > MOST_SHARE for step in self.strategy.canary.steps):
            raise ValueError(_DIVIDED_EXACTLY.message)
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
        return 0 if self.in_place else seconds_of(self.keep_last_good or KEPT_BY_DEFAULT)


class AdapterDeployment(WireModel):
    """An AdapterDeployment serves a published artifact and verifies it before it receives traffic."""

    api_version: str = "finetune.dev/v1alpha1"
    kind: str = "AdapterDeployment"
    metadata: ObjectMeta
    spec: AdapterDeploymentSpec
    status: AdapterDeploymentStatus = AdapterDeploymentStatus()
