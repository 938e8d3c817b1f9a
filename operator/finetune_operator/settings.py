"""What the platform's admin decides: images, hardware profiles, model servers."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from finetune_api.base import ApiModel, Name
from finetune_api.custom_metrics import FigureName, FigureRule
from finetune_api.stages import Stage
from finetune_api.strategy import WatchInterval
from finetune_operator.framework.objects import HTTP_ROUTES, INGRESSES, Resource
from finetune_operator.tenancy.floor import VerificationFloor
from finetune_operator.tenancy.rules import Tenancy


class PodShape(ApiModel):
    """Size and placement of a pod."""

    requests: dict[str, str] = {}
    """Resource requests, e.g. cpu, memory, ephemeral-storage."""
    limits: dict[str, str] = {}
    """Resource limits, e.g. nvidia.com/gpu."""
    scratch_size: str = "20Gi"
    """Size limit of the pod's scratch volume."""
    node_selector: dict[str, str] = {}
    """Node labels that the pod requires."""
    tolerations: list[dict[str, Any]] = []
    """Taints that the pod tolerates."""
    priority_class_name: str = ""
    """Priority class of the pod."""
    runtime_class_name: str = ""
    """RuntimeClass of the pod, e.g. nvidia."""


class Gpu(ApiModel):
    """Capacity and price of a profile's GPU: the basis of fit, time and cost estimates."""

    name: str
    """Product name, e.g. NVIDIA L4."""
    count: Annotated[int, Field(ge=1)] = 1
    """GPUs per pod: the same as nvidia.com/gpu in the limits of accelerator. Processes, time and cost follow from this
    number."""
    memory_gib: Annotated[float, Field(gt=0)]
    """Memory of one GPU in GiB."""
    peak_tflops: Annotated[float, Field(gt=0)]
    """Dense bfloat16 peak of one GPU in TFLOP/s."""
    usd_per_hour: Annotated[float, Field(ge=0)]
    """Price of one GPU for one hour; 0: it costs nothing, and no budget counts it."""


_SIZE: Final = r"^([1-9][0-9]*(k|M|G|T|Ki|Mi|Gi|Ti)?)?$"


class ModelCache(ApiModel):
    """A volume that keeps models, so that they are downloaded once and not by every stage, or every serving pod."""

    claim_name: Name
    """PersistentVolumeClaim in the namespace of the pods; without it there, they wait for it."""
    size_limit: Annotated[str, Field(pattern=_SIZE)] = ""
    """The most that the models on it may have together, e.g. 200Gi; those that were used longest ago make room. Empty:
    as much as its file system says is free, which on a network file system without a size of its own is no limit."""


class Profile(ApiModel):
    """Hardware that FineTuneJobs may request by name."""

    description: str = ""
    """Short description, for users who choose a profile."""
    service_account_name: Name = "finetune-runner"
    """ServiceAccount of stage pods; the admin creates it in every namespace with jobs."""
    deadline_seconds: Annotated[int, Field(ge=60, lt=1 << 31)] = 86400
    """Maximum time of one attempt at a stage, from when its pod is scheduled; after it, the stage is not retried."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a stage is retried after a temporary failure."""
    cpu: PodShape = PodShape()
    """Shape of the stages without a model: resolve, prepare, publish."""
    accelerator: PodShape = PodShape()
    """Shape of the stages with a model: of train, and of export and evaluate with one of its GPUs."""
    gpu: Gpu | None = None
    """The GPU, if there is one."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of accelerator pods that train together; every other stage runs in one pod."""
    model_cache: ModelCache | None = None
    """Where train, export and evaluate keep the base model; None: each downloads it to its scratch volume."""

    @property
    def has_price(self) -> bool:
        """Whether its GPUs cost money."""
        return self.gpu is not None and self.gpu.count * self.gpu.usd_per_hour > 0


class Engine(StrEnum):
    """API of a model server."""

    TGI = "tgi"
    VLLM = "vllm"


NOT_OF_ENGINE: Final[Mapping[Engine, Mapping[str, str]]] = {
    Engine.TGI: {"args": "takes its options from the environment: use env"},
    Engine.VLLM: {"max_input_tokens": "has one limit, for prompt and answer together: use maxTotalTokens"},
}
"""Fields of a runtime that an engine has no use for, and why."""
_ARGUMENT: Final = r"^--[a-z0-9][a-z0-9.-]*(=.*)?$"
"""One option in one text, ``--name=value`` or ``--flag``, so that each argument stands for itself."""


class Runtime(ApiModel):
    """A model server that AdapterDeployments may request by name."""

    description: str = ""
    """Short description, for users who choose a runtime."""
    engine: Engine
    """API of the server."""
    image: str
    """Image of the server."""
    service_account_name: Name = "finetune-runner"
    """ServiceAccount of the serving pods."""
    pod: PodShape = PodShape()
    """Shape of a serving pod."""
    env: dict[str, str] = {}
    """Additional environment variables of the server, e.g. CUDA_GRAPHS."""
    args: list[Annotated[str, Field(pattern=_ARGUMENT)]] = []
    """Additional arguments of a vLLM server, each an option with its value, e.g. --gpu-memory-utilization=0.85."""
    max_input_tokens: Annotated[int, Field(ge=1)] = 1024
    """Maximum tokens of a prompt on TGI; a longer one is refused (422). vLLM has maxTotalTokens only."""
    max_total_tokens: Annotated[int, Field(ge=2)] = 2048
    """Maximum tokens of prompt and answer together: more than maxInputTokens."""
    num_shard: Annotated[int, Field(ge=1)] = 1
    """GPUs that one pod uses."""
    model_cache: ModelCache | None = None
    """Where serving pods keep the model, or the base of adapters; None: each downloads it to a volume of its own."""
    startup_timeout_seconds: Annotated[int, Field(ge=1, lt=1 << 31)] = 1800
    """Seconds that loading may take before the candidate fails."""
    drain_seconds: Annotated[int, Field(ge=0, lt=1 << 31)] = 15
    """Seconds that a stopping pod waits until the Service no longer routes to it; at most terminationGraceSeconds, of
    which they are a part."""
    termination_grace_seconds: Annotated[int, Field(ge=1, lt=1 << 31)] = 225
    """Seconds that a stopping pod has to finish its requests."""

    @property
    def limits_prompts(self) -> bool:
        """Whether the server has a limit for the prompt alone, beside that for prompt and answer together."""
        return "max_input_tokens" not in NOT_OF_ENGINE[self.engine]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that the server takes."""
        return self.max_input_tokens if self.limits_prompts else self.max_total_tokens - 1

    @model_validator(mode="after")
    def _only_what_the_engine_knows(self) -> "Runtime":
        """A field without any effect would be taken for one that works."""
        for name, why in NOT_OF_ENGINE[self.engine].items():
            if name in self.model_fields_set:
                raise ValueError(f"{to_camel(name)} is not for engine {self.engine}, which {why}")
        return self

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> "Runtime":
        if self.limits_prompts and self.max_input_tokens >= self.max_total_tokens:
            raise ValueError(
                f"maxInputTokens {self.max_input_tokens} leaves no room for an answer: it must be less than "
                f"maxTotalTokens {self.max_total_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _time_to_drain(self) -> "Runtime":
        """The API server refuses a pod whose preStop hook sleeps for longer than the pod has."""
        if self.drain_seconds > self.termination_grace_seconds:
            raise ValueError(
                f"drainSeconds {self.drain_seconds} is longer than a stopping pod has: it must be at most "
                f"terminationGraceSeconds {self.termination_grace_seconds}"
            )
        return self


class MetricContainer(ApiModel):
    """A container that evaluations may run by name, to measure answers or models in ways of its own."""

    description: str = ""
    """Short description, for users who choose a metric."""
    image: str
    """Its image, by digest: it is part of what identifies an evaluation."""
    command: list[str] = []
    """Its command, in place of the image's entry point."""
    args: list[str] = []
    """Its arguments."""
    env: dict[str, str] = {}
    """Environment variables."""
    figures: Annotated[dict[FigureName, FigureRule], Field(min_length=1, max_length=32)]
    """What it reports, by name, e.g. score: {minimum: 0, maximum: 1}."""
    needs_models: bool = False
    """Whether it reads the models beside the answers, read-only."""
    requests: dict[str, str] = {"cpu": "100m", "memory": "256Mi"}
    """Resource requests."""
    limits: dict[str, str] = {"cpu": "1", "memory": "2Gi"}
    """Resource limits, with nvidia.com/gpu if it computes on a GPU; it runs on the node of the profile's accelerator
    pods."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86400)] = 3600
    """Longest that it may run; the profile's deadlineSeconds bounds the evaluation as a whole."""


class Images(ApiModel):
    """Images of the stages. By digest in production."""

    data: str
    """CPU stages: resolve, publish, fetch, verify, analyse, follow."""
    prepare: str
    """Prepare, with readers, tokenizers and PII recognisers."""
    jobs: str
    """Stages with torch: train, evaluate."""
    quantize: str
    """Export, with llm-compressor."""
    proxy: str
    """The proxy in serving pods with vLLM, and in those whose clients need keys or speak TLS."""
    evaluate_vllm: str = ""
    """Evaluate with vLLM, for FineTuneJobs that ask for it; empty: they may not."""
    pull_policy: str = "IfNotPresent"
    """When the kubelet pulls."""
    pull_secrets: list[str] = []
    """Secrets of the job's namespace for private registries."""

    def of(self, stage: Stage) -> str:
        """Image in which a stage runs."""
        own = {
            Stage.PREPARE: self.prepare,
            Stage.TRAIN: self.jobs,
            Stage.EXPORT: self.quantize,
            Stage.EVALUATE: self.jobs,
        }
        return own.get(stage, self.data)


_PROXY_URL: Final = r"^(https?://[^\s@]+)?$"


class Proxy(ApiModel):
    """Proxy for stages and downloads. Without credentials: a pod's environment is not secret."""

    http_proxy: Annotated[str, Field(pattern=_PROXY_URL)] = ""
    """Proxy for http URLs; empty: none."""
    https_proxy: Annotated[str, Field(pattern=_PROXY_URL)] = ""
    """Proxy for https URLs; empty: none."""
    no_proxy: str = ""
    """Hosts, domains and addresses that bypass the proxy, separated by commas."""


class HttpRoutes(ApiModel):
    """Whether endpoints may have an HTTPRoute of the Gateway API."""

    enabled: bool = False
    """Whether the operator makes them, and may."""


class Ingresses(ApiModel):
    """Whether endpoints may have an Ingress."""

    enabled: bool = False
    """Whether the operator makes them, and may."""
    annotations: dict[str, str] = {}
    """Annotations of every Ingress. Users set none: what annotations do is the ingress controller's matter, and some
    give it any configuration."""


class FormerRoutes(StrEnum):
    """What becomes of ways in from outside of a kind that endpoints may not have any more."""

    DELETE = "Delete"
    KEEP = "Keep"


class ServingAccess(ApiModel):
    """What the admin decides about all endpoints."""

    ingress_from: list[dict[str, Any]] = [{"podSelector": {}}]
    """Who may reach a verified endpoint, as NetworkPolicy peers."""
    longest_watch_interval: WatchInterval = "0s"
    """At least so often pods are asked while they serve, whatever spec.qualityWatch says; "0s": as the spec says."""
    verification_floors: list[VerificationFloor] = []
    """The least that AdapterDeployments must ask of a revision; each that is for their namespace counts."""
    metrics_from: list[dict[str, Any]] = []
    """Who may read metrics of serving pods with a proxy, as NetworkPolicy peers. Where clients need no keys and speak
    no TLS, ``ingress_from`` may too, once the pods are verified."""
    http_routes: HttpRoutes = HttpRoutes()
    """Ways in through a gateway."""
    ingresses: Ingresses = Ingresses()
    """Ways in through an ingress controller."""
    former_routes: FormerRoutes = FormerRoutes.DELETE
    """Whether the operator deletes ways in of a kind that is not enabled any more, and may; or has no right on it."""

    @property
    def routes(self) -> tuple[Resource, ...]:
        """The kinds of ways in from outside that endpoints may have."""
        offered = ((HTTP_ROUTES, self.http_routes.enabled), (INGRESSES, self.ingresses.enabled))
        return tuple(resource for resource, enabled in offered if enabled)

    @property
    def watched_routes(self) -> tuple[Resource, ...]:
        """The kinds of ways in that the operator may see and delete."""
        return (HTTP_ROUTES, INGRESSES) if self.former_routes is FormerRoutes.DELETE else self.routes


_INSTANCE: Final = r"^([a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?)?$"
"""A label's value, and part of the names of the chart's roles."""


class Lease(ApiModel):
    """The Lease by which several replicas agree on the one that works."""

    namespace: str
    """Its namespace: that of the release."""
    name: str
    """Its name: that of the release's objects."""


class Settings(ApiModel):
    """The operator's configuration (``/etc/finetune-operator/config.yaml``)."""

    images: Images
    """Images of the stages."""
    profiles: dict[str, Profile]
    """Hardware by name."""
    runtimes: dict[str, Runtime] = {}
    """Model servers by name."""
    metric_containers: dict[Name, MetricContainer] = {}
    """Containers that evaluations may run, by name."""
    proxy: Proxy = Proxy()
    """The way out of the cluster."""
    tenancy: Tenancy = Tenancy()
    """Which namespaces may use what."""
    serving: ServingAccess = ServingAccess()
    """Who may reach endpoints."""
    namespaces: list[str] = []
    """Namespaces to watch; empty means all."""
    instance: Annotated[str, Field(pattern=_INSTANCE)] = ""
    """This operator handles only custom resources whose label ``finetune.dev/instance`` has this value; empty: those
    without the label."""
    lease: Lease | None = None
    """None: this process is the only one, and works at once."""
    workers: Annotated[int, Field(ge=1, le=64)] = 32
    """Number of resources that are reconciled at the same time. Workers mostly wait for the API server, so many of them
    cost little, and in a burst no resource waits for a worker."""
    resync_seconds: Annotated[int, Field(ge=10)] = 600
    """Seconds after which every resource is reconciled again, even without an event."""
    keep_ended_seconds: Annotated[int, Field(ge=0)] = 604800
    """Seconds for which the Jobs, pods and inputs of a run are kept after its end, for people who read their logs."""
    progress_seconds: Annotated[int, Field(ge=1)] = 10
    """Seconds between readings of a running stage's progress."""
    max_concurrent_rollouts: Annotated[int | None, Field(ge=1)] = 5
    """Number of endpoints that may be moved to another revision at the same time; None: no limit. Endpoints that serve
    nothing yet do not count."""
    disruption_budgets: bool = True
    """Whether endpoints of several replicas have a PodDisruptionBudget."""
    policy_seconds: Annotated[int, Field(ge=0, le=300)] = 10
    """Seconds that the network plugin gets to apply a NetworkPolicy before a Service relies on it, where the verifier
    does not see it in force sooner; 0: it needs no time."""

    @property
    def free_profiles(self) -> list[str]:
        """Names of the profiles without a price."""
        return [name for name, profile in self.profiles.items() if not profile.has_price]
