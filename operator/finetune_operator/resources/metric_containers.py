"""The containers of an evaluation's pod that measure more: the first writes answers, each metric reads them, the stage
itself takes in what they wrote.

All but the last are init containers, which run one after the other. They share one volume, of which a metric sees its
own folders only: no credentials, no token, no scratch of the stage, and the models only if the platform's admin says
so.
"""

from typing import Final

from finetune_api import custom_metrics as contract
from finetune_api import meta
from finetune_api.custom_metrics import MetricRun
from finetune_api.hashing import canonical_json
from finetune_operator.framework.objects import Object
from finetune_operator.resources.environment import cpu_env
from finetune_operator.resources.pod import container
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import MetricContainer, PodShape

ANSWERS_CONTAINER: Final = "answers"
"""Asks the models: the evaluation without metric containers, whose result is stored as such."""
METRIC_PREFIX: Final = "metric-"
"""Before the name of a metric, in the name of its container."""
_VOLUME: Final = "metrics"
_TRIED_AGAIN: Final = (meta.ExitCode.RETRIABLE.value, 137, 143)
"""Exit codes after which another pod is tried: a metric's own wish, and SIGKILL and SIGTERM, by which whoever suspends
a Job or deletes its pod (Kueue, a person) ends a program that does not handle them."""


def metrics_volumes(request: StageRequest) -> list[Object]:
    """What they share; nothing without metrics."""
    if request.answers is None:
        return []
    return [{"name": _VOLUME, "emptyDir": {"sizeLimit": request.shape.scratch_size}}]


def metrics_mount() -> Object:
    """All of it, for the stage."""
    return {"name": _VOLUME, "mountPath": meta.METRICS_DIR}


def metric_containers(request: StageRequest) -> list[Object]:
    """One for each metric, in the order of the spec."""
    return [_container(request, run, metric) for run, metric in _asked(request)]


def metric_seconds(request: StageRequest) -> Object:
    """Annotations of the pod: how long each metric may run, which the operator sees to."""
    limits = {run.name: metric.timeout_seconds for run, metric in _asked(request)}
    return {meta.ANNOTATION_METRIC_SECONDS: canonical_json(limits).decode()}


def metric_failures(request: StageRequest) -> list[Object]:
    """Rules of the Job: a metric that fails would fail again, unless it says that it may pass, or was stopped."""
    return [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": each["name"],
                "operator": "NotIn",
                "values": [meta.ExitCode.OK.value, *_TRIED_AGAIN],
            },
        }
        for each in metric_containers(request)
    ]


def _asked(request: StageRequest) -> list[tuple[MetricRun, MetricContainer]]:
    """The metrics that run, in the order of the spec."""
    params = request.input.params.evaluate if request.answers else None
    return [(run, request.metrics[run.name]) for run in params.metrics] if params else []


def _container(request: StageRequest, run: MetricRun, metric: MetricContainer) -> Object:
    """Restricted like all others; what it may write to are its own folder and /tmp."""
    name = run.name
    shape = PodShape(requests=metric.requests, limits=metric.limits)
    own = {"HOME": "/tmp", "TMPDIR": "/tmp", "HF_HOME": "/tmp/huggingface"} | metric.env  # noqa: S108 # a volume
    own |= {contract.DATA_VARIABLE: contract.DATA_DIR} if run.data else {}
    body = container(
        f"{METRIC_PREFIX}{name}",
        metric.image,
        request.images,
        shape,
        env=[*({"name": variable, "value": value} for variable, value in own.items()), *cpu_env(shape)],
    )
    folders = [
        (f"in/{name}", contract.IN_DIR, True),
        (f"out/{name}", contract.OUT_DIR, False),
        (f"tmp/{name}", "/tmp", False),  # noqa: S108 # a volume
        *([("models", contract.MODELS_DIR, True)] if metric.needs_models else []),
        *([(f"data/{name}", contract.DATA_DIR, True)] if run.data else []),
    ]
    body["volumeMounts"] = [
        {"name": _VOLUME, "subPath": path, "mountPath": place} | ({"readOnly": True} if read_only else {})
        for path, place, read_only in folders
    ]
    return body | {name: list(given) for name, given in (("command", metric.command), ("args", metric.args)) if given}
