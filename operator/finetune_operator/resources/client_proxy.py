"""The proxy of a serving pod, where clients need keys: a sidecar between them and the model server.

The server listens on loopback then, so that nothing else lets anybody in: neither a policy of the namespace nor a
network plugin that knows none. Like the self-check, the sidecar is an init container that is restarted always, so that
it ends after the server. What it does is in ``images/proxy``.
"""

from typing import Final

from finetune_api import meta
from finetune_operator.framework.objects import Object
from finetune_operator.resources.pod import container
from finetune_operator.runtimes.plan import ServingPlan, asked_inside
from finetune_operator.settings import Images, PodShape

PROXY: Final = "proxy"
"""Name of the container, and of the volume with its files, which the server beside it cannot read."""
API_KEYS: Final = "api-keys"
"""Name of the volume with clients' keys."""
_FOLDER: Final = "/run/proxy"
_SHAPE: Final = PodShape(requests={"cpu": "50m", "memory": "64Mi"}, limits={"cpu": "1", "memory": "256Mi"})
_READY: Final = {"path": "/ready", "port": meta.INNER_PORT}
_OWN: Final = {"path": "/proxy/metrics", "port": meta.INNER_PORT}


def proxy_container(secret: str, plan: ServingPlan, images: Images) -> Object:
    """The sidecar; ``secret``: the Secret with the keys."""
    mounts = [{"name": PROXY, "mountPath": _FOLDER}, api_keys_mount()]
    options = [("--keys", meta.API_KEYS_DIR), ("--secret", secret), ("--folder", _FOLDER)]
    options += [("--drain-seconds", str(plan.drain_seconds))]
    options += [("--read", path) for path in plan.read_paths] + [("--write", path) for path in plan.write_paths]
    return {
        **container(PROXY, images.proxy, images, _SHAPE, mounts=mounts),
        "args": [f"{name}={value}" for name, value in options],
        "restartPolicy": "Always",
        # The server starts once there is a key; without one, it would hold a GPU for nobody.
        "startupProbe": {"httpGet": _READY, "periodSeconds": 1, "failureThreshold": 60, "timeoutSeconds": 5},
        "readinessProbe": {"httpGet": _READY, "periodSeconds": 5, "failureThreshold": 2, "timeoutSeconds": 5},
        # What HAProxy answers by itself, with keys or without: one that hangs is restarted, and the server is not.
        "livenessProbe": {"httpGet": _OWN, "periodSeconds": 10, "failureThreshold": 3, "timeoutSeconds": 5},
        # The hooks of all containers run when the pod begins to stop; signals come to a sidecar after the others.
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "kill -USR1 1"]}}},
    }


def behind_proxy(server: Object) -> Object:
    """The model server's container with a proxy before it. A pod's containers share their ports: the names of the
    proxy's stand here, because not every Kubernetes looks for a Service's port name at sidecars.

    Whether it is ready is asked through the proxy, as clients ask. Whether it is to be restarted is asked behind it:
    the proxy's fault is none of the server's, which would load its model anew."""
    ready = server["readinessProbe"]
    inner = {
        "readinessProbe": ready | {"httpGet": ready["httpGet"] | {"port": meta.INNER_PORT}},
        **{name: asked_inside(server[name]) for name in ("startupProbe", "livenessProbe")},
    }
    ports = {"http": meta.CLIENT_PORT, "server-metrics": meta.INNER_PORT}
    named = [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()]
    return server | inner | {"ports": named}


def proxy_volumes(secret: str) -> list[Object]:
    """The keys, and room for the proxy's own files."""
    return [api_keys_volume(secret), {"name": PROXY, "emptyDir": {"sizeLimit": "16Mi"}}]


def api_keys_volume(secret: str) -> Object:
    """Optional, so that a missing Secret does not keep the pod waiting for a mount: who reads it says what is missing.

    Each value is one file. The kubelet brings changes to running pods.
    """
    return {"name": API_KEYS, "secret": {"secretName": secret, "optional": True}}


def api_keys_mount() -> Object:
    """Where a container finds the keys."""
    return {"name": API_KEYS, "mountPath": meta.API_KEYS_DIR, "readOnly": True}


def has_proxy(template: Object) -> bool:
    """Whether clients of pods made from a template need keys."""
    return any(each["name"] == PROXY for each in template["spec"].get("initContainers") or [])
