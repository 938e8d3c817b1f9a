"""The self-check of a serving pod: a sidecar that asks the server beside it, and without which the pod is not ready.

It is an init container that is restarted always (a native sidecar: Kubernetes 1.29 and newer), so that it ends after
the server and is no reason for the pod to go on. It asks over loopback, where no policy, Service or proxy is between.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from finetune_api import meta
from finetune_api.endpoint_stages import SelfCheckLimits, WantedAdapters
from finetune_api.hashing import canonical_json
from finetune_api.stages import Stage
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.access import access_of
from finetune_operator.resources.egress import ca_mounts, proxy_env
from finetune_operator.resources.environment import access_env, cpu_env, input_env, scratch_env
from finetune_operator.resources.model_cache import model_cache_mounts
from finetune_operator.resources.pod import container
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.runtimes.plan import LOOPBACK
from finetune_operator.settings import Engine, Images, ModelCache, PodShape, Proxy

SELF_CHECK: Final = "self-check"
"""Name of the container, and of the volume with its limits."""
_ANNOTATION_SOURCE: Final = f"{meta.GROUP}/source"
"""FineTuneJob of the spec that the limits are from; empty: it names an artifact."""
_SHAPE: Final = PodShape(requests={"cpu": "50m", "memory": "128Mi"}, limits={"cpu": "1", "memory": "512Mi"})
_LOADING_SHAPE: Final = _SHAPE.model_copy(update={"limits": {"cpu": "1", "memory": "1Gi"}})
"""Transfers take more than questions."""
_LIMITS_DIR, _, _LIMITS_KEY = meta.SELF_CHECK_FILE.rpartition("/")
_WANTED_KEY: Final = PurePosixPath(meta.WANTED_ADAPTERS_FILE).name


def self_check_container(digest: str, engine: Engine, images: Images, cache: ModelCache | None = None) -> Object:
    """The sidecar; ``digest``: content address of the artifact. While it runs, nobody removes from the cache what its
    server reads there: it holds a lock."""
    mounts = [
        {"name": "models", "mountPath": meta.MODELS_DIR, "readOnly": True},
        self_check_mount(),
        *model_cache_mounts(cache),
    ]
    env = [*scratch_env(), *cpu_env(_SHAPE)]
    artifact = f"{meta.MODELS_DIR}/{digest}/artifact"
    options = ["--artifact", artifact, "--digest", digest, "--engine", engine.value, *_held(cache)]
    return _sidecar(container(SELF_CHECK, images.of(Stage.VERIFY), images, _SHAPE, env, mounts), options)


def loading_container(fetch: StageRequest, engine: Engine, room: int) -> Object:
    """The same where the server loads adapters while it runs: the sidecar fetches them as ``fetch`` does, with the keys
    of the same store, proves each under a name that nobody knows, and then gives it its own. ``room``: bytes of the
    volume; a pod that writes more is evicted, however well it serves what it has."""
    access = access_of(fetch.input)
    mounts = [
        {"name": "models", "mountPath": meta.MODELS_DIR},
        self_check_mount(),
        {"name": "input", "mountPath": str(PurePosixPath(meta.INPUT_FILE).parent), "readOnly": True},
        *ca_mounts(access.authorities),
        *model_cache_mounts(fetch.model_cache),
    ]
    reach = [*access_env(access), *proxy_env(_past_loopback(fetch.proxy))]
    env = [*reach, *input_env(fetch.input), *scratch_env(), *cpu_env(_LOADING_SHAPE)]
    options = ["--wanted", meta.WANTED_ADAPTERS_FILE, "--model", fetch.owner.name, "--engine", engine.value]
    options += ["--models-room", str(room)]
    options += _held(fetch.model_cache)
    image = fetch.images.of(Stage.VERIFY)
    return _sidecar(container(SELF_CHECK, image, fetch.images, _LOADING_SHAPE, env, mounts), options)


def _held(cache: ModelCache | None) -> list[str]:
    return ["--model-cache", meta.MODEL_CACHE_DIR] if cache else []


def _past_loopback(proxy: Proxy) -> Proxy:
    """The platform's proxy for the store only: the server is asked on loopback."""
    return proxy.model_copy(update={"no_proxy": ",".join(filter(None, [proxy.no_proxy, LOOPBACK]))})


def _sidecar(body: Object, options: Sequence[str]) -> Object:
    return {
        **body,
        "command": ["python", "-m", "finetune_jobs.self_check", *options],
        "restartPolicy": "Always",
        "ports": [{"name": SELF_CHECK, "containerPort": meta.SELF_CHECK_PORT, "protocol": "TCP"}],
        # Whoever fails a check exits, which takes the readiness away at once.
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": SELF_CHECK},
            "periodSeconds": 2,
            "failureThreshold": 3,
            "timeoutSeconds": 5,
        },
    }


def self_check_mount() -> Object:
    """Where a container finds the limits, and the adapters that are wanted."""
    return {"name": SELF_CHECK, "mountPath": _LIMITS_DIR, "readOnly": True}


def self_check_volume(config_map: str) -> Object:
    """The limits; without them no pod starts."""
    return {"name": SELF_CHECK, "configMap": {"name": config_map}}


def self_check_config_map(
    owner: Owner,
    name: str,
    labels: dict[str, str],
    limits: SelfCheckLimits,
    source: str,
    wanted: WantedAdapters | None = None,
) -> Object:
    """The limits by which the pods of a revision prove themselves, and the adapters that they are to serve where they
    load them while they run. It changes with the spec, and the kubelet tells the running pods within about a minute:
    other limits are no reason for other pods. ``source``: FineTuneJobs or channel of the spec, if it names any."""
    marks = {_ANNOTATION_SOURCE: source}
    metadata = owner.metadata(name, labels) | {"annotations": marks}
    data = {_LIMITS_KEY: canonical_json(limits).decode()}
    data |= {} if wanted is None else {_WANTED_KEY: canonical_json(wanted).decode()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def source_of_limits(config_map: Object | None) -> str | None:
    """The FineTuneJob or channel of the spec that the limits are from; None if that is not known."""
    return ((config_map or {}).get("metadata", {}).get("annotations") or {}).get(_ANNOTATION_SOURCE)


def has_self_check(template: Object) -> bool:
    """Whether pods made from a template have one; those of earlier releases have not."""
    return any(each["name"] == SELF_CHECK for each in template["spec"].get("initContainers") or [])


def loads_adapters(template: Object) -> bool:
    """Whether pods made from a template take other adapters while they run."""
    found = [each for each in template["spec"].get("initContainers") or [] if each["name"] == SELF_CHECK]
    return any("--wanted" in each.get("command", ()) for each in found)
