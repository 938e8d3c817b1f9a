"""The Job of a stage and the ConfigMap with its input, as both kinds run them.

Both are created once and never changed: Job templates and these ConfigMaps are immutable.
"""

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

from finetune_api import meta
from finetune_api.hashing import canonical_json
from finetune_api.references import ConfigMapKeyRef
from finetune_api.stages import Stage, StageInput
from finetune_operator.framework.objects import Object
from finetune_operator.resources.access import access_of, dataset_read
from finetune_operator.resources.client_proxy import api_keys_mount, api_keys_volume, tls_mount, trust_volume
from finetune_operator.resources.egress import ca_mounts, ca_volumes, proxy_env
from finetune_operator.resources.environment import (
    access_env,
    cpu_env,
    input_env,
    name_env,
    scratch_env,
    teacher_env,
    tracking_env,
)
from finetune_operator.resources.metric_containers import (
    ANSWERS_CONTAINER,
    metric_containers,
    metric_failures,
    metric_seconds,
    metrics_mount,
    metrics_volumes,
)
from finetune_operator.resources.model_cache import model_cache_arguments, model_cache_mounts, model_cache_volumes
from finetune_operator.resources.pod import container, pod_spec
from finetune_operator.resources.shared_memory import shared_memory_mounts, shared_memory_volumes
from finetune_operator.resources.stage_request import StageRequest

STAGE_CONTAINER: Final = "stage"
RESULT_FILE: Final = "/dev/termination-log"
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
"""Kueue's label, passed from the custom resource to its stage Jobs."""
_INPUT: Final = PurePosixPath(meta.INPUT_FILE)
_ANSWERS_INPUT: Final = _INPUT.with_name("answers.json")


def input_config_map(request: StageRequest) -> Object:
    """The ConfigMap with the stage's input, and with that of its first part where it has two; immutable."""
    inputs = {_INPUT.name: request.input} | ({_ANSWERS_INPUT.name: request.answers} if request.answers else {})
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": request.owner.metadata(request.name, request.all_labels),
        "immutable": True,
        "data": {name: canonical_json(given).decode() for name, given in inputs.items()},
    }


def stage_job(request: StageRequest) -> Object:
    """The Job of a stage: its exit codes decide about retries (docs/reference/stages.md)."""
    containers = [_measuring_container(request) if request.answers else stage_container(request)]
    pod = pod_spec(containers, request.shape, request.images, request.service_account)
    if request.answers:
        pod["initContainers"] = [_answers_container(request, request.answers), *metric_containers(request)]
    pod["restartPolicy"] = "Never"
    pod["terminationGracePeriodSeconds"] = 60
    # The pod's deadline counts from when it has a node. A Job's would also end a stage that waits for a quota or node.
    pod["activeDeadlineSeconds"] = request.deadline_seconds
    pod["volumes"] += [{"name": "input", "configMap": {"name": request.name}}, *_source_volumes(request)]
    pod["volumes"] += [*ca_volumes(_authorities(request)), *shared_memory_volumes(request.shared_memory)]
    pod["volumes"] += model_cache_volumes(request.model_cache)
    pod["volumes"] += [api_keys_volume(secret) for secret in _api_keys(request)]
    pod["volumes"] += [trust_volume(secret) for secret in _trusted(request)]
    pod["volumes"] += metrics_volumes(request)
    if request.nodes > 1:
        pod["subdomain"] = request.name
    template_labels = request.owner.labels | request.all_labels
    queue = {QUEUE_LABEL: request.queue} if request.queue else {}
    asked = {"annotations": {meta.ANNOTATION_REVIEW: request.asked}} if request.asked else {}
    timed = {"annotations": metric_seconds(request)} if request.answers else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": request.owner.metadata(request.name, request.all_labels | queue) | asked,
        "spec": {
            **_indexed(request),
            "backoffLimit": request.retries * request.nodes,
            # A pod that still saves its checkpoint must not run at the same time as its replacement.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    _fatal_exit(STAGE_CONTAINER),
                    *([_fatal_exit(ANSWERS_CONTAINER)] if request.answers else []),
                    *metric_failures(request),
                    *_peer_exits(request),
                ]
            },
            "template": {"metadata": {"labels": template_labels} | timed, "spec": pod},
        },
    }


def _authorities(request: StageRequest) -> tuple[ConfigMapKeyRef, ...]:
    """Those of all containers: the answers may read from more stores than the last part."""
    inputs = [request.input, *([request.answers] if request.answers else [])]
    return tuple(dict.fromkeys(each for given in inputs for each in access_of(given).authorities))


def _indexed(request: StageRequest) -> Object:
    """Several pods, each with a number. Once pod 0 has succeeded, so has the Job."""
    if request.nodes == 1:
        return {}
    return {
        "completionMode": "Indexed",
        "completions": request.nodes,
        "parallelism": request.nodes,
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    }


def _fatal_exit(name: str) -> Object:
    """A container of ours says that the same input cannot succeed."""
    exits = {"containerName": name, "operator": "In", "values": [meta.ExitCode.FATAL.value]}
    return {"action": "FailJob", "onExitCodes": exits}


def _peer_exits(request: StageRequest) -> list[Object]:
    """When one pod is lost, its peers exit too, to restart as a group: only the first exit counts as a failure."""
    if not request.together:
        return []
    exits = {"containerName": STAGE_CONTAINER, "operator": "In", "values": [meta.ExitCode.RESTART_GROUP.value]}
    return [{"action": "Ignore", "onExitCodes": exits}]


def stage_container(request: StageRequest) -> Object:
    """The container of a stage; an init container where a stage fills a server's volume (fetch)."""
    access = access_of(request.input)
    argv = ["python", "-m", f"finetune_jobs.{request.stage}", "--input", meta.INPUT_FILE, "--result", RESULT_FILE]
    body = container(
        STAGE_CONTAINER,
        request.image,
        request.images,
        request.shape,
        env=[
            *access_env(access),
            *proxy_env(request.proxy),
            *teacher_env(request),
            *tracking_env(request),
            *input_env(request.input),
            *scratch_env(),
            *cpu_env(request.shape),
            *name_env(request),
        ],
        mounts=[
            {"name": "input", "mountPath": str(_INPUT.parent), "readOnly": True},
            *_source_mounts(request),
            *ca_mounts(access.authorities),
            *shared_memory_mounts(request.shared_memory),
            *model_cache_mounts(request.model_cache),
            *(api_keys_mount() for _ in _api_keys(request)),
            *(tls_mount() for _ in _trusted(request)),
        ],
    )
    body["command"] = [*argv, *model_cache_arguments(request.model_cache), *_together_arguments(request)]
    body["ports"] = [{"name": "metrics", "containerPort": meta.METRICS_PORT}]
    if says_proved(request):
        body["readinessProbe"] = {"exec": {"command": ["test", "-e", meta.PROVED_FILE]}, "periodSeconds": 1}
    return body


def says_proved(request: StageRequest) -> bool:
    """Whether the pod of a verification becomes ready when all checks have passed, before it ends."""
    verify = request.input.params.verify if request.stage is Stage.VERIFY else None
    return verify is not None and bool(verify.door)


def _answers_container(request: StageRequest, given: StageInput) -> Object:
    """The first part of an evaluation with metric containers: the stage as it is without them."""
    body = stage_container(replace(request, input=given))
    body["name"] = ANSWERS_CONTAINER
    body["command"][body["command"].index(meta.INPUT_FILE)] = str(_ANSWERS_INPUT)
    body["command"] += ["--metrics", meta.METRICS_DIR]
    body["volumeMounts"].append(metrics_mount())
    return body


def _measuring_container(request: StageRequest) -> Object:
    """The last part, which takes in what the metric containers wrote."""
    body = stage_container(replace(request, shape=request.measuring_shape, model_cache=None))
    body["command"][2] = "finetune_jobs.measure"
    body["command"] += ["--metrics", meta.METRICS_DIR]
    body["volumeMounts"].append(metrics_mount())
    return body


def _together_arguments(request: StageRequest) -> list[str]:
    """How many processes and pods share the work, and the address of pod 0. A pod's number is in its environment."""
    arguments = ["--processes", str(request.processes)] if request.together else []
    if request.nodes > 1:
        arguments += ["--nodes", str(request.nodes), "--coordinator", f"{request.name}-0.{request.name}"]
    return arguments


def _api_keys(request: StageRequest) -> list[str]:
    """The Secret with the keys that a verification needs, if it does."""
    params = request.input.params.verify if request.stage is Stage.VERIFY else None
    return [params.api_keys_secret] if params and params.api_keys_secret else []


def _trusted(request: StageRequest) -> list[str]:
    """The Secret with the certificate of the servers that a verification asks, if they have one."""
    params = request.input.params.verify if request.stage is Stage.VERIFY else None
    return [params.tls_secret] if params and params.tls_secret else []


def _config_maps(request: StageRequest) -> dict[int, ConfigMapKeyRef]:
    """The sources that are keys of ConfigMaps, by their position in the stage's input."""
    data = dataset_read(request.input)
    sources = data.all_sources if data else []
    found = {number: each.source.config_map_key_ref for number, each in enumerate(sources)}
    return {number: reference for number, reference in found.items() if reference}


def _source_volumes(request: StageRequest) -> list[Object]:
    """Optional, so that a missing ConfigMap does not keep the pod waiting: the stage then reports which one."""
    return [
        {"name": f"source-{number}", "configMap": {"name": found.name, "optional": True}}
        for number, found in _config_maps(request).items()
    ]


def _source_mounts(request: StageRequest) -> list[Object]:
    return [
        {"name": f"source-{number}", "mountPath": f"{meta.SOURCES_DIR}/{number}", "readOnly": True}
        for number in _config_maps(request)
    ]
