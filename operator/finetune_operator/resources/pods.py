"""Pods under the restricted Pod Security Standard, and the stage Jobs and their inputs that both kinds run.

Everything here is created once and never changed: Job templates and these ConfigMaps are immutable.
https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Final

from finetune_api import meta
from finetune_api.dataset import ConfigMapKey
from finetune_api.hashing import canonical_json, short
from finetune_api.stages import Stage, StageInput
from finetune_api.storage import Storage
from finetune_api.tracking import MLFLOW_SECRET_KEYS, WANDB_KEY_VARIABLE
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.egress import ca_env, ca_mounts, ca_volumes, proxy_env
from finetune_operator.resources.shared_memory import shared_memory_mounts, shared_memory_volumes
from finetune_operator.settings import Images, PodShape, Proxy

USER: Final = 65532
"""Numeric, so that the kubelet can check runAsNonRoot; the group owns the writable volumes."""
STAGE_CONTAINER: Final = "stage"
RESULT_FILE: Final = "/dev/termination-log"
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
"""Kueue's label, passed from the custom resource to its stage Jobs."""
_INPUT: Final = PurePosixPath(meta.INPUT_FILE)
_READS_SOURCES: Final = frozenset({Stage.RESOLVE, Stage.PREPARE})
"""Stages that look at the sources of the data."""


@dataclass(frozen=True)
class StageRequest:
    """A stage to run as a Job."""

    owner: Owner
    input: StageInput
    image: str
    images: Images
    shape: PodShape
    service_account: str
    proxy: Proxy = field(default_factory=Proxy)
    labels: Mapping[str, str] = field(default_factory=dict)
    """On ConfigMap, Job and pod, besides the owner's and the stage's."""
    attempt: str = ""
    """Tells Jobs of one input apart; empty for the first."""
    queue: str = ""
    """Kueue's local queue for the Job; empty: none."""
    retries: int = 2
    deadline_seconds: int = 3600
    """How long one attempt may have a node."""
    nodes: int = 1
    """Pods that work together, as an Indexed Job."""
    processes: int = 1
    """Processes of each pod that work together."""

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.input.stage

    @property
    def together(self) -> bool:
        """Whether several processes do this stage's work."""
        return self.nodes * self.processes > 1

    @property
    def shared_memory(self) -> str:
        """Size of the pod's /dev/shm: ample for NCCL's buffers; empty leaves one process the runtime's own."""
        return f"{self.processes}Gi" if self.processes > 1 else ""

    @cached_property
    def name(self) -> str:
        """Name of both ConfigMap and Job: equal inputs have equal names."""
        identity = short([self.input, self.attempt]) if self.attempt else short(self.input)
        return f"{self.owner.name}-{self.stage}-{identity}"

    @property
    def all_labels(self) -> dict[str, str]:
        """Labels of everything that belongs to this stage's run."""
        return {**self.labels, meta.LABEL_STAGE: self.stage.value, meta.LABEL_ROLE: "stage"}


def input_config_map(request: StageRequest) -> Object:
    """The stage's input, immutable."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": request.owner.metadata(request.name, request.all_labels),
        "immutable": True,
        "data": {_INPUT.name: canonical_json(request.input).decode()},
    }


def stage_job(request: StageRequest) -> Object:
    """The Job of a stage: its exit codes decide about retries (docs/reference/stages.md)."""
    pod = pod_spec([stage_container(request)], request.shape, request.images, request.service_account)
    pod["restartPolicy"] = "Never"
    pod["terminationGracePeriodSeconds"] = 60
    # The pod's, which counts from when it has a node: a Job's own would end a stage that waits for a quota or for room.
    pod["activeDeadlineSeconds"] = request.deadline_seconds
    pod["volumes"] += [{"name": "input", "configMap": {"name": request.name}}, *_source_volumes(request)]
    pod["volumes"] += [*ca_volumes(request.input.storage), *shared_memory_volumes(request.shared_memory)]
    if request.nodes > 1:
        pod["subdomain"] = request.name
    template_labels = request.owner.labels | request.all_labels
    queue = {QUEUE_LABEL: request.queue} if request.queue else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": request.owner.metadata(request.name, request.all_labels | queue),
        "spec": {
            **_indexed(request),
            "backoffLimit": request.retries * request.nodes,
            # A pod that is still saving its checkpoint and its replacement must not run at the same time.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": STAGE_CONTAINER,
                            "operator": "In",
                            "values": [meta.ExitCode.FATAL.value],
                        },
                    },
                    *_blameless_exits(request),
                ]
            },
            "template": {"metadata": {"labels": template_labels}, "spec": pod},
        },
    }


def _indexed(request: StageRequest) -> Object:
    """Several pods, each with a number. The first answers for all: once it has succeeded, so has the Job."""
    if request.nodes == 1:
        return {}
    return {
        "completionMode": "Indexed",
        "completions": request.nodes,
        "parallelism": request.nodes,
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    }


def _blameless_exits(request: StageRequest) -> list[Object]:
    """When one pod is lost, the others end too, to begin again with it: only its own end may count as a failure."""
    if not request.together:
        return []
    exits = {"containerName": STAGE_CONTAINER, "operator": "In", "values": [meta.ExitCode.RESTART_GROUP.value]}
    return [{"action": "Ignore", "onExitCodes": exits}]


def stage_container(request: StageRequest) -> Object:
    """The container of a stage; also an init container where a stage prepares a server's volume (fetch)."""
    argv = ["python", "-m", f"finetune_jobs.{request.stage}", "--input", meta.INPUT_FILE, "--result", RESULT_FILE]
    body = container(
        STAGE_CONTAINER,
        request.image,
        request.images,
        request.shape,
        env=[
            *credentials_env(request.input.storage),
            *ca_env(request.input.storage),
            *proxy_env(request.proxy),
            *_teacher_env(request),
            *_tracking_env(request),
            *scratch_env(),
            *cpu_env(request.shape),
            *_name_env(request),
        ],
        mounts=[
            {"name": "input", "mountPath": str(_INPUT.parent), "readOnly": True},
            *_source_mounts(request),
            *ca_mounts(request.input.storage),
            *shared_memory_mounts(request.shared_memory),
        ],
    )
    body["command"] = [*argv, *_together_arguments(request)]
    body["ports"] = [{"name": "metrics", "containerPort": meta.METRICS_PORT}]
    return body


def _together_arguments(request: StageRequest) -> list[str]:
    """How many share the work, and where the first pod is found; a pod's number is in its environment."""
    arguments = ["--processes", str(request.processes)] if request.together else []
    if request.nodes > 1:
        arguments += ["--nodes", str(request.nodes), "--coordinator", f"{request.name}-0.{request.name}"]
    return arguments


def _config_maps(request: StageRequest) -> dict[int, ConfigMapKey]:
    """The sources of a stage's input that are keys of ConfigMaps, by their numbers."""
    prepare = request.input.params.prepare if request.stage in _READS_SOURCES else None
    sources = prepare.all_sources if prepare else []
    return {number: source.config_map for number, source in enumerate(sources) if source.config_map}


def _source_volumes(request: StageRequest) -> list[Object]:
    """Optional, so that a ConfigMap that is missing does not keep the pod waiting: the stage then says which one."""
    return [
        {"name": f"source-{number}", "configMap": {"name": found.name, "optional": True}}
        for number, found in _config_maps(request).items()
    ]


def _source_mounts(request: StageRequest) -> list[Object]:
    return [
        {"name": f"source-{number}", "mountPath": f"{meta.SOURCES_DIR}/{number}", "readOnly": True}
        for number in _config_maps(request)
    ]


def container(
    name: str,
    image: str,
    images: Images,
    shape: PodShape,
    env: Sequence[Mapping[str, Any]] = (),
    mounts: Sequence[Mapping[str, Any]] = (),
) -> Object:
    """A container that can write to nothing but the scratch volume."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": images.pull_policy,
        "env": [dict(variable) for variable in env],
        "resources": {"requests": dict(shape.requests), "limits": dict(shape.limits)},
        "volumeMounts": [{"name": "scratch", "mountPath": meta.SCRATCH_DIR}, *map(dict, mounts)],
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def pod_spec(containers: Sequence[Object], shape: PodShape, images: Images, service_account: str) -> Object:
    """A restricted pod with one writable volume, no API token and no variables for the namespace's Services."""
    spec: Object = {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": list(containers),
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": shape.scratch_size}}],
    }
    optional: dict[str, Any] = {
        "imagePullSecrets": [{"name": name} for name in images.pull_secrets],
        "nodeSelector": dict(shape.node_selector),
        "tolerations": [dict(toleration) for toleration in shape.tolerations],
        "priorityClassName": shape.priority_class_name,
        "runtimeClassName": shape.runtime_class_name,
    }
    return spec | {name: value for name, value in optional.items() if value}


def credentials_env(storage: Storage) -> list[Object]:
    """The keys of the Secret that the resource names; the kubelet reads it, the operator never does."""
    if storage.credentials is None:
        return []
    secret = storage.credentials
    keys = {
        "AWS_ACCESS_KEY_ID": secret.access_key_id_key,
        "AWS_SECRET_ACCESS_KEY": secret.secret_access_key_key,
    }
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.secret_name, "key": key}}}
        for name, key in keys.items()
    ]


def _teacher_env(request: StageRequest) -> list[Object]:
    """The API key of the teacher that answers prompts, for the one stage that asks it."""
    prepare = request.input.params.prepare if request.stage is Stage.PREPARE else None
    credentials = prepare.distillation.teacher.credentials if prepare and prepare.distillation else None
    if credentials is None:
        return []
    reference = {"name": credentials.secret_name, "key": credentials.key}
    return [{"name": meta.TEACHER_KEY_VARIABLE, "valueFrom": {"secretKeyRef": reference}}]


def _tracking_env(request: StageRequest) -> list[Object]:
    """How the training logs in to its trackers. A key that a Secret lacks costs the tracking only, hence optional."""
    if request.stage is not Stage.TRAIN:
        return []
    mlflow, wandb = request.input.tracking.mlflow, request.input.tracking.wandb
    references: dict[str, Object] = {}
    if mlflow and mlflow.credentials:
        references |= {name: {"name": mlflow.credentials.secret_name, "key": name} for name in MLFLOW_SECRET_KEYS}
    if wandb:
        references[WANDB_KEY_VARIABLE] = {"name": wandb.credentials.secret_name, "key": wandb.credentials.api_key_key}
    return [
        {"name": name, "valueFrom": {"secretKeyRef": reference | {"optional": True}}}
        for name, reference in references.items()
    ]


def _name_env(request: StageRequest) -> list[Object]:
    """The name by which the attempts of one number stay apart."""
    if request.nodes == 1:
        return []
    return [{"name": meta.POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


def scratch_env() -> list[Object]:
    """Everything that libraries like to write goes to the writable volume; TMPDIR must exist, so it is the volume."""
    scratch = meta.SCRATCH_DIR
    folders = {"HOME": scratch, "TMPDIR": scratch, "HF_HOME": f"{scratch}/huggingface"}
    return [{"name": name, "value": folder} for name, folder in folders.items()]


def cpu_env(shape: PodShape) -> list[Object]:
    """As many threads as the CPU limit allows (rounded up by the kubelet); libraries would count the node's cores.

    Waiting threads sleep: where cores are shared, spinning made a training step five times slower.
    """
    if "cpu" not in shape.limits:
        return []
    reference = {"resource": "limits.cpu", "divisor": "1"}
    return [
        {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": reference}},
        {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
    ]
