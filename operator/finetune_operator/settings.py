"""What the platform's admin decides: images, hardware profiles, model servers. Read once from the chart's ConfigMap."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, ValidationError, model_validator

from finetune_api import __version__
from finetune_api.base import ApiModel, Name
from finetune_api.stages import Stage
from finetune_operator.tenancy import Tenancy


class PodShape(ApiModel):
    """Size and placement of a pod."""

    requests: dict[str, str] = {}
    """Resource requests, e.g. cpu, memory, ephemeral-storage."""
    limits: dict[str, str] = {}
    """Resource limits, e.g. nvidia.com/gpu."""
    scratch_size: str = "20Gi"
    """Size limit of the pod's writable volume."""
    node_selector: dict[str, str] = {}
    """Labels that a node must have."""
    tolerations: list[dict[str, Any]] = []
    """Taints that the pod tolerates."""
    priority_class_name: str = ""
    """Priority of the pod."""
    runtime_class_name: str = ""
    """Container runtime, e.g. nvidia."""


class Gpu(ApiModel):
    """What a GPU of a profile can do and costs; the basis of fit, time and cost estimates."""

    name: str
    """Product, e.g. NVIDIA L4."""
    count: int = 1
    """GPUs per pod."""
    memory_gib: float
    """Memory of one GPU in GiB."""
    peak_tflops: float
    """Dense bfloat16 peak of one GPU in TFLOP/s."""
    usd_per_hour: float
    """Price of one GPU for one hour."""


class Profile(ApiModel):
    """A kind of hardware that FineTuneJobs may ask for by name."""

    description: str = ""
    """What it is, for people who choose."""
    service_account_name: Name = "finetune-runner"
    """ServiceAccount of stage pods; the admin creates it in every namespace that may run jobs."""
    deadline_seconds: Annotated[int, Field(ge=60, lt=1 << 31)] = 86400
    """Longest time that one attempt at a stage may take, from when its pod has a node; there is none after it."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a stage is tried again after a failure that may pass."""
    cpu: PodShape = PodShape()
    """Shape of the stages without a model: resolve, prepare, publish."""
    accelerator: PodShape = PodShape()
    """Shape of the stages with a model: train, export, evaluate."""
    gpu: Gpu | None = None
    """The GPU, where there is one."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods of the accelerator's shape that train together; the other stages run in one."""


class Engine(StrEnum):
    """Contract that a model server speaks."""

    TGI = "tgi"


class Runtime(ApiModel):
    """A model server that AdapterDeployments may ask for by name."""

    description: str = ""
    """What it is, for people who choose."""
    engine: Engine
    """Contract of the server."""
    image: str
    """Image of the server."""
    service_account_name: Name = "finetune-runner"
    """ServiceAccount of the serving pods."""
    pod: PodShape = PodShape()
    """Shape of a serving pod."""
    env: dict[str, str] = {}
    """Further settings of the server, e.g. CUDA_GRAPHS."""
    max_input_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longest prompt in tokens; requests with a longer one are refused (422)."""
    max_total_tokens: Annotated[int, Field(ge=2)] = 2048
    """Longest prompt and answer together in tokens: more than maxInputTokens."""
    num_shard: Annotated[int, Field(ge=1)] = 1
    """GPUs that one pod uses."""
    startup_timeout_seconds: int = 1800
    """How long loading may take before the candidate has failed."""
    drain_seconds: int = 15
    """How long a stopping pod waits for the Service to forget it."""
    termination_grace_seconds: int = 225
    """How long a stopping pod may finish its requests."""

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> "Runtime":
        if self.max_input_tokens >= self.max_total_tokens:
            raise ValueError(
                f"maxInputTokens {self.max_input_tokens} leaves no room for an answer: it must be less than "
                f"maxTotalTokens {self.max_total_tokens}"
            )
        return self


class Images(ApiModel):
    """Images of the stages. By digest in production."""

    data: str
    """CPU stages: resolve, publish, fetch, verify."""
    prepare: str
    """Prepare, with readers, tokenizers and PII recognisers."""
    jobs: str
    """Stages with torch: train, evaluate."""
    quantize: str
    """Export, with llm-compressor."""
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


_UNKNOWN: Final = "extra_forbidden"
"""Pydantic's word for a field that the model does not have."""
_PROXY_URL: Final = r"^(https?://[^\s@]+)?$"


class Proxy(ApiModel):
    """The way out of the cluster, for stages and downloads. Without login: a pod's environment is no secret."""

    http_proxy: Annotated[str, Field(pattern=_PROXY_URL)] = ""
    """Proxy for http URLs; empty: none."""
    https_proxy: Annotated[str, Field(pattern=_PROXY_URL)] = ""
    """Proxy for https URLs; empty: none."""
    no_proxy: str = ""
    """Hosts, domains and addresses that are reached directly, separated by commas."""


class Settings(ApiModel):
    """The operator's configuration (``/etc/finetune-operator/config.yaml``)."""

    images: Images
    """Images of the stages."""
    profiles: dict[str, Profile]
    """Hardware by name."""
    runtimes: dict[str, Runtime] = {}
    """Model servers by name."""
    proxy: Proxy = Proxy()
    """The way out of the cluster."""
    tenancy: Tenancy = Tenancy()
    """Which namespaces may use what."""
    namespaces: list[str] = []
    """Namespaces to watch; empty means all."""
    workers: Annotated[int, Field(ge=1, le=64)] = 32
    """Resources that are reconciled at the same time. A worker does little but wait for the API server, so that many
    cost little, and in a burst no resource waits for a worker."""
    resync_seconds: Annotated[int, Field(ge=10)] = 600
    """Every resource is looked at again after this time, event or not."""
    keep_ended_seconds: Annotated[int, Field(ge=0)] = 604800
    """How long Jobs, pods and inputs of a FineTuneJob's run stay when it has ended, for people who read their logs."""
    progress_seconds: Annotated[int, Field(ge=1)] = 10
    """How often the progress of a running stage is read."""
    policy_seconds: Annotated[int, Field(ge=0, le=300)] = 10
    """How long the cluster's network plugin is given to follow a NetworkPolicy before a Service relies on it."""


class SettingsError(Exception):
    """The configuration cannot be used; says what is wrong where, and what to do."""


def load_settings(path: Path) -> Settings:
    """Read the configuration. Raises SettingsError."""
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{path}: {_problems(error)}") from error


def _problems(error: ValidationError) -> str:
    """What is wrong. The chart's schema lets through what its own version knows: unknown is what a newer one says."""
    found = [(".".join(map(str, each["loc"])), each["type"], each["msg"]) for each in error.errors()]
    text = "; ".join(f"{place}: {message}" for place, kind, message in found if kind != _UNKNOWN)
    unknown = [place for place, kind, _ in found if kind == _UNKNOWN]
    if not unknown:
        return f"{text}."
    advice = (
        f"this operator ({__version__}) does not know {', '.join(unknown)}. Its image is older than its chart: set "
        "images.tag, or images.operator.digest, of the chart's values to the image that was built with the chart."
    )
    return f"{text}; {advice}" if text else advice
