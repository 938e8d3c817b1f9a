"""The Deployment of one revision: ``fetch`` fills a volume, its own or a shared one, and the server reads it."""

import math
from dataclasses import dataclass
from typing import Final

from finetune_api import meta
from finetune_api.artifact_source import adapter_model
from finetune_api.endpoint_stages import AdapterRef, FetchParams
from finetune_api.stages import Params, Stage, StageInput
from finetune_api.storage import Storage
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.access import access_of
from finetune_operator.resources.client_proxy import Door, behind_proxy, host_of, proxy_container, proxy_volumes
from finetune_operator.resources.egress import ca_volumes
from finetune_operator.resources.environment import cpu_env
from finetune_operator.resources.model_cache import model_cache_mounts, model_cache_volumes
from finetune_operator.resources.model_volume import ModelVolume, model_volume
from finetune_operator.resources.pod import EPHEMERAL_STORAGE, container, pod_spec
from finetune_operator.resources.self_check import (
    loading_container,
    self_check_container,
    self_check_mount,
    self_check_volume,
)
from finetune_operator.resources.shared_memory import shared_memory_mounts, shared_memory_volumes
from finetune_operator.resources.stage_job import stage_container
from finetune_operator.resources.stage_request import StageRequest, run_ref
from finetune_operator.runtimes import ENGINES, serving_plan
from finetune_operator.runtimes.plan import ServedAdapter, ServedModel, ServingPlan
from finetune_operator.settings import Images, PodShape, Runtime, Settings

SERVER: Final = "server"
"""Name of the model server's container and role of its pods."""
FETCH: Final = Stage.FETCH.value
"""Name of the init container that downloads and verifies the artifact."""
FETCH_SECONDS: Final = 900
"""Seconds for pulling images, fetching what is small, and the self-check, on top of the runtime's startup timeout."""
_FETCH_BYTES: Final = 50 << 20
"""Bytes that the slowest store gives in a second: less than half of what a network of a gigabit does."""
_ADAPTER_SECONDS: Final = 120
"""Seconds for the self-check of each further adapter."""


def fetch_and_prove_seconds(size: int, adapters: int) -> int:
    """What so many bytes, and so many adapters, take longer than what is small and alone."""
    return math.ceil(size / _FETCH_BYTES) + _ADAPTER_SECONDS * max(0, adapters - 1)


ANNOTATION_ARTIFACT_URI: Final = f"{meta.GROUP}/artifact-uri"
ANNOTATION_ARTIFACT_DIGEST: Final = f"{meta.GROUP}/artifact-digest"
"""What a Deployment serves: for people, and for a resource that has lost its status."""

_UNKNOWN_RANK: Final = 64
"""Room for a pinned adapter, whose rank only its download tells."""

_FETCH_SHAPE: Final = PodShape(
    requests={"cpu": "250m", "memory": "512Mi"}, limits={"cpu": "2", "memory": "2Gi"}, scratch_size="1Gi"
)


@dataclass(frozen=True)
class Adapter:
    """One of several adapters that a revision serves."""

    name: str
    """As the spec calls it."""
    uri: str
    """Folder of its artifact."""
    digest: str
    """Content address of that."""
    base: str = ""
    """Content address of the model that it was trained on; empty: unknown."""
    rank: int = 0
    """0: unknown."""


@dataclass(frozen=True)
class Serving:
    """What a revision serves and on which server."""

    artifact_uri: str
    """Empty for several adapters."""
    artifact_digest: str
    """Content address of the artifact; of several adapters, the address of all of them together."""
    storage: Storage
    runtime_name: str
    runtime: Runtime
    public_keys: tuple[str, ...] = ()
    """Of these, in PEM, one must have signed the artifact; empty: signatures are not looked at."""
    api_keys_secret: str = ""
    """Secret with the keys of its clients; empty: they need none."""
    adapters: tuple[Adapter, ...] = ()
    """Served on their base, by the order of their names; none: the artifact is a whole model."""
    fetched_bytes: int = 0
    """The most that a pod downloads: all that its volume may hold, if that is not known; 0: a release recorded it that
    did not know."""
    tls_secret: str = ""
    """Secret with the servers' certificate; empty: clients do not speak TLS."""

    @property
    def is_protected(self) -> bool:
        """Whether clients need keys or speak TLS."""
        return bool(self.api_keys_secret or self.tls_secret)

    @property
    def has_proxy(self) -> bool:
        """Whether clients of pods that this release makes meet a proxy."""
        return self.is_protected or ENGINES[self.runtime.engine].NEEDS_PROXY

    def door(self, owner: Owner) -> Door:
        """What is asked of clients, and shown to them."""
        host = host_of(owner, owner.name) if self.tls_secret else ""
        return Door(self.api_keys_secret, self.tls_secret, host)

    @property
    def start_seconds(self) -> int:
        """For how long a pod may have a node before it is ready. One that shares a cache may have to wait until another
        has downloaded the model, and reads it whole after that."""
        times = 2 if self.runtime.model_cache else 1
        more = fetch_and_prove_seconds(times * self.fetched_bytes, len(self.adapters))
        return self.runtime.startup_timeout_seconds + FETCH_SECONDS + more

    @property
    def model_volume(self) -> ModelVolume:
        """Into which its pods download it."""
        return model_volume(self.runtime, self.fetched_bytes, grows=self.run_time_rank > 0)

    @property
    def model_path(self) -> str:
        """Where the server finds the model. It contains the digest, so it shows what a pod serves."""
        return _model_path(self.artifact_digest)

    @property
    def refs(self) -> list[AdapterRef]:
        """The adapters as stages know them."""
        return [AdapterRef(name=each.name, uri=each.uri, digest=each.digest) for each in self.adapters]

    @property
    def first(self) -> tuple[str, str]:
        """URI and digest of the artifact, or of the first adapter's."""
        if self.adapters:
            return self.adapters[0].uri, self.adapters[0].digest
        return self.artifact_uri, self.artifact_digest

    @property
    def run_time_rank(self) -> int:
        """The highest rank of the adapters that its running pods take; 0: they take none."""
        return ENGINES[self.runtime.engine].run_time_rank(self.runtime, self.rank) if self.adapters else 0

    @property
    def rank(self) -> int:
        """For which the server makes room; 0 without adapters."""
        return max(map(self.rank_for, self.adapters), default=0)

    def rank_for(self, adapter: Adapter) -> int:
        """The rank that an adapter needs room for."""
        return min(adapter.rank or _UNKNOWN_RANK, ENGINES[self.runtime.engine].highest_rank(self.runtime))

    def served_model(self, name: str) -> ServedModel:
        """The same for the server's module; ``name``: that of the AdapterDeployment."""
        adapters = (ServedAdapter(_model_path(each.digest), adapter_model(name, each.name)) for each in self.adapters)
        return ServedModel(self.model_path, name, self.has_proxy, tuple(adapters), self.rank)


def _model_path(digest: str) -> str:
    return f"{meta.MODELS_DIR}/{digest}/model"


def deployment_name(owner: Owner, revision: str) -> str:
    """At most 49 characters: the Deployment controller adds a hash for the ReplicaSet."""
    return f"{owner.name}-{revision}"


def server_labels(owner: Owner, revision: str) -> dict[str, str]:
    """Labels that select the serving pods of one revision and no other pods of this resource."""
    return {**owner.labels, meta.LABEL_ROLE: SERVER, meta.LABEL_REVISION: revision}


def fetch_request(owner: Owner, serving: Serving, settings: Settings, revision: str) -> StageRequest:
    """The stage that fills the model volume; runs as an init container, not as a Job."""
    run = run_ref(owner, revision)
    uri, digest = serving.first
    room = serving.run_time_rank
    asked = FetchParams(
        public_keys=list(serving.public_keys),
        adapters=serving.refs,
        max_rank=room or serving.rank,
        wanted=meta.WANTED_ADAPTERS_FILE if room else "",
    )
    return StageRequest(
        owner=owner,
        input=StageInput(
            stage=Stage.FETCH,
            run=run,
            storage=serving.storage,
            artifact_uri=uri,
            artifact_digest=digest,
            params=Params(fetch=asked if asked != FetchParams() else None),
        ),
        image=settings.images.of(Stage.FETCH),
        images=settings.images,
        proxy=settings.proxy,
        shape=_FETCH_SHAPE,
        service_account=serving.runtime.service_account_name,
        labels={meta.LABEL_REVISION: revision},
        model_cache=serving.runtime.model_cache,
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
            "progressDeadlineSeconds": serving.start_seconds,
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
    door = serving.door(owner)
    plan = serving_plan(runtime, serving.served_model(owner.name))
    server = _server(runtime, plan, images)
    pod = pod_spec(
        [behind_proxy(server, door) if serving.has_proxy else server], runtime.pod, images, runtime.service_account_name
    )
    if serving.run_time_rank:
        first = _fetch_wanted(fetch, serving.model_volume)
        check = loading_container(fetch, runtime.engine, serving.model_volume.room)
    else:
        first = _fetch(fetch, serving.model_volume)
        check = self_check_container(serving.artifact_digest, runtime.engine, images, runtime.model_cache)
    pod["initContainers"] = [first, check, *([proxy_container(door, plan, images)] if serving.has_proxy else [])]
    pod["terminationGracePeriodSeconds"] = plan.grace_seconds
    pod["topologySpreadConstraints"] = _spread(server_labels(owner, revision))
    pod["volumes"] += [
        {"name": "input", "configMap": {"name": fetch.name}},
        self_check_volume(deployment_name(owner, revision)),
        *ca_volumes(access_of(fetch.input).authorities),
        {"name": "models", "emptyDir": {"sizeLimit": serving.model_volume.limit}},
        *model_cache_volumes(runtime.model_cache),
        *({"name": name, "emptyDir": {"sizeLimit": "1Gi"}} for name in _writable(plan)),
        *shared_memory_volumes(plan.shared_memory),
        *(proxy_volumes(door) if serving.has_proxy else ()),
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


def _fetch(request: StageRequest, volume: ModelVolume) -> Object:
    """The container that fills the volume, and so asks for its room: what one of these asks for, its pod keeps."""
    body = stage_container(request)
    body["name"] = FETCH
    body["volumeMounts"].append({"name": "models", "mountPath": meta.MODELS_DIR})
    body["command"] += ["--models-room", str(volume.room)]
    if volume.request:
        body["resources"]["requests"][EPHEMERAL_STORAGE] = volume.request
    return body


def _fetch_wanted(request: StageRequest, volume: ModelVolume) -> Object:
    """The same, of what is wanted when the pod starts."""
    body = _fetch(request, volume)
    body["volumeMounts"].append(self_check_mount())
    return body


def _server(runtime: Runtime, plan: ServingPlan, images: Images) -> Object:
    mounts: list[Object] = [
        {"name": "models", "mountPath": meta.MODELS_DIR, "readOnly": True},
        *model_cache_mounts(runtime.model_cache, read_only=True),
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
