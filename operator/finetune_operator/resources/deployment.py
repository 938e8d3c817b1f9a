"""The Deployment of one revision: ``fetch`` fills a volume, and the model server reads it."""

from dataclasses import dataclass
from typing import Final

from finetune_api import meta
from finetune_api.stages import FetchParams, Params, RunRef, Stage, StageInput
from finetune_api.storage import Storage
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.access import access_of
from finetune_operator.resources.client_proxy import behind_proxy, proxy_container, proxy_volumes
from finetune_operator.resources.egress import ca_volumes
from finetune_operator.resources.environment import cpu_env
from finetune_operator.resources.pod import container, pod_spec
from finetune_operator.resources.self_check import self_check_container, self_check_volume
from finetune_operator.resources.shared_memory import shared_memory_mounts, shared_memory_volumes
from finetune_operator.resources.stage_job import stage_container
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.runtimes import serving_plan
from finetune_operator.runtimes.plan import ServedModel, ServingPlan
from finetune_operator.settings import Images, PodShape, Runtime, Settings

SERVER: Final = "server"
"""Name of the model server's container and role of its pods."""
FETCH: Final = Stage.FETCH.value
"""Name of the init container that downloads and verifies the artifact."""
FETCH_SECONDS: Final = 900
"""Seconds for pulling images, fetching and the self-check, on top of the runtime's startup timeout."""

ANNOTATION_ARTIFACT_URI: Final = f"{meta.GROUP}/artifact-uri"
ANNOTATION_ARTIFACT_DIGEST: Final = f"{meta.GROUP}/artifact-digest"
"""What a Deployment serves: for people, and for a resource that has lost its status."""

_FETCH_SHAPE: Final = PodShape(
    requests={"cpu": "250m", "memory": "512Mi"}, limits={"cpu": "2", "memory": "2Gi"}, scratch_size="1Gi"
)


@dataclass(frozen=True)
class Serving:
    """What a revision serves and on which server."""

    artifact_uri: str
    artifact_digest: str
    """Content address of the artifact."""
    storage: Storage
    runtime_name: str
    runtime: Runtime
    public_keys: tuple[str, ...] = ()
    """Of these, in PEM, one must have signed the artifact; empty: signatures are not looked at."""
    api_keys_secret: str = ""
    """Secret with the keys of its clients; empty: they need none."""

    @property
    def model_path(self) -> str:
        """Where the server finds the model. It contains the digest, so it shows what a pod serves."""
        return f"{meta.MODELS_DIR}/{self.artifact_digest}/model"

    @property
    def record_path(self) -> str:
        """Where ``fetch`` leaves the artifact's own files, with what was recorded of its answers."""
        return f"{meta.MODELS_DIR}/{self.artifact_digest}/artifact"


def start_seconds(runtime: Runtime) -> int:
    """For how long a pod may have a node before it is ready."""
    return runtime.startup_timeout_seconds + FETCH_SECONDS


def deployment_name(owner: Owner, revision: str) -> str:
    """At most 49 characters: the Deployment controller adds a hash for the ReplicaSet."""
    return f"{owner.name}-{revision}"


def server_labels(owner: Owner, revision: str) -> dict[str, str]:
    """Labels that select the serving pods of one revision and no other pods of this resource."""
    return {**owner.labels, meta.LABEL_ROLE: SERVER, meta.LABEL_REVISION: revision}


def fetch_request(owner: Owner, serving: Serving, settings: Settings, revision: str) -> StageRequest:
    """The stage that fills the model volume; runs as an init container, not as a Job."""
    run = RunRef(kind=owner.resource.kind, namespace=owner.namespace, name=owner.name, uid=owner.uid, id=revision)
    return StageRequest(
        owner=owner,
        input=StageInput(
            stage=Stage.FETCH,
            run=run,
            storage=serving.storage,
            artifact_uri=serving.artifact_uri,
            artifact_digest=serving.artifact_digest,
            params=Params(fetch=FetchParams(public_keys=list(serving.public_keys)) if serving.public_keys else None),
        ),
        image=settings.images.of(Stage.FETCH),
        images=settings.images,
        proxy=settings.proxy,
        shape=_FETCH_SHAPE,
        service_account=serving.runtime.service_account_name,
        labels={meta.LABEL_REVISION: revision},
    )


def deployment(
    owner: Owner, serving: Serving, revision: str, replicas: int, template: Object, *, has_room: bool = True
) -> Object:
    """The Deployment of a revision, with pods made from a template. ``has_room``: for one pod more than it asks for."""
    labels = server_labels(owner, revision)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            **owner.metadata(deployment_name(owner, revision), labels),
            "annotations": {
                ANNOTATION_ARTIFACT_URI: serving.artifact_uri,
                ANNOTATION_ARTIFACT_DIGEST: serving.artifact_digest,
            },
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "progressDeadlineSeconds": start_seconds(serving.runtime),
            "revisionHistoryLimit": 1,
            # Within a revision, only a repair (somebody changed the template) or `kubectl rollout restart` rolls.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": int(has_room), "maxUnavailable": int(not has_room)},
            },
            "template": template,
        },
    }


def pod_template(owner: Owner, serving: Serving, settings: Settings, revision: str) -> Object:
    """The pods of a revision, whatever their number."""
    runtime, images = serving.runtime, settings.images
    fetch = fetch_request(owner, serving, settings, revision)
    keys = serving.api_keys_secret
    plan = serving_plan(runtime, ServedModel(serving.model_path, owner.name, behind_proxy=bool(keys)))
    server = _server(runtime, plan, images)
    pod = pod_spec([behind_proxy(server) if keys else server], runtime.pod, images, runtime.service_account_name)
    check = self_check_container(serving.record_path, serving.artifact_digest, runtime.engine, images)
    pod["initContainers"] = [_fetch(fetch), check, *([proxy_container(keys, plan, images)] if keys else [])]
    pod["terminationGracePeriodSeconds"] = plan.grace_seconds
    pod["topologySpreadConstraints"] = _spread(server_labels(owner, revision))
    pod["volumes"] += [
        {"name": "input", "configMap": {"name": fetch.name}},
        self_check_volume(deployment_name(owner, revision)),
        *ca_volumes(access_of(fetch.input).authorities),
        {"name": "models", "emptyDir": {"sizeLimit": runtime.pod.scratch_size}},
        *({"name": name, "emptyDir": {"sizeLimit": "1Gi"}} for name in _writable(plan)),
        *shared_memory_volumes(plan.shared_memory),
        *(proxy_volumes(keys) if keys else ()),
    ]
    return {"metadata": {"labels": server_labels(owner, revision)}, "spec": pod}


def drain_seconds(live: Object) -> float:
    """How long the pods of a Deployment wait before they stop, whatever the runtime's settings say by now."""
    for each in live["spec"]["template"]["spec"]["containers"]:
        if each["name"] == SERVER:
            return drain_seconds_of(each)
    return 0.0


def drain_seconds_of(server: Object) -> float:
    """The same of the server's container."""
    sleep = ((server.get("lifecycle") or {}).get("preStop") or {}).get("sleep") or {}
    return float(sleep.get("seconds", 0))


def _spread(labels: dict[str, str]) -> list[Object]:
    """Pods of a revision apart, so that a lost node or zone takes few of them; together where there is no room."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels},
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]


def _fetch(request: StageRequest) -> Object:
    body = stage_container(request)
    body["name"] = FETCH
    body["volumeMounts"].append({"name": "models", "mountPath": meta.MODELS_DIR})
    return body


def _server(runtime: Runtime, plan: ServingPlan, images: Images) -> Object:
    mounts: list[Object] = [
        {"name": "models", "mountPath": meta.MODELS_DIR, "readOnly": True},
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - a path in the pod, not on this machine
        *({"name": name, "mountPath": path} for name, path in _writable(plan).items()),
        *shared_memory_mounts(plan.shared_memory),
    ]
    env = [*cpu_env(runtime.pod), *({"name": name, "value": value} for name, value in plan.env.items())]
    return {
        **container(SERVER, runtime.image, images, runtime.pod, env, mounts),
        **({"args": list(plan.args)} if plan.args else {}),
        "ports": [{"name": "http", "containerPort": meta.SERVING_PORT, "protocol": "TCP"}],
        "startupProbe": plan.startup,
        "readinessProbe": plan.readiness,
        "livenessProbe": plan.liveness,
        "lifecycle": {"preStop": {"sleep": {"seconds": plan.drain_seconds}}},
    }


def _writable(plan: ServingPlan) -> dict[str, str]:
    """Volume names of the folders that the server writes to."""
    return {f"writable-{number}": path for number, path in enumerate(plan.writable)}
