"""The proxy of a serving pod: a sidecar between clients and the model server, where they need keys or speak TLS, or the
engine needs it.

The server listens on loopback then, so that nothing else lets anybody in: neither a policy of the namespace nor a
network plugin that knows none. Like the self-check, the sidecar is an init container that is restarted always, so that
it ends after the server. What it does is in ``images/proxy``.
"""

from dataclasses import dataclass
from typing import Final

from finetune_api import meta
from finetune_api.server_tls import AUTHORITY, CERTIFICATE
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.pod import container
from finetune_operator.runtimes.plan import ServingPlan, asked_inside
from finetune_operator.settings import Images, PodShape

PROXY: Final = "proxy"
"""Name of the container, and of the volume with its files, which the server beside it cannot read."""
API_KEYS: Final = "api-keys"
"""Name of the volume with clients' keys."""
TLS: Final = "tls"
"""Name of the volume with the servers' certificate."""
_KEYS_OPTION: Final = "--keys"
_TLS_OPTION: Final = "--tls"
_FOLDER: Final = "/run/proxy"
_SHAPE: Final = PodShape(requests={"cpu": "50m", "memory": "64Mi"}, limits={"cpu": "1", "memory": "256Mi"})
"""HAProxy's own memory with as many clients as it lets in, 1,900: 27 MiB, and with TLS about 52 (docs/benchmarks.md);
its program has 10. The rest of the limit is for the kernel's buffers of clients that do not read."""
_READY: Final = {"path": "/ready", "port": meta.INNER_PORT}
_OWN: Final = {"path": "/proxy/metrics", "port": meta.INNER_PORT}


@dataclass(frozen=True)
class Door:
    """What is asked of clients, and shown to them."""

    api_keys: str = ""
    """Secret with their keys; empty: they need none."""
    certificate: str = ""
    """Secret with the servers' certificate; empty: they do not speak TLS."""
    host: str = ""
    """The name that the certificate has to be for."""


def proxy_container(door: Door, plan: ServingPlan, images: Images) -> Object:
    """The sidecar."""
    mounts: list[Object] = [{"name": PROXY, "mountPath": _FOLDER}]
    options: list[tuple[str, str]] = []
    if door.api_keys:
        mounts.append(api_keys_mount())
        options += [(_KEYS_OPTION, meta.API_KEYS_DIR), ("--secret", door.api_keys)]
    if door.certificate:
        mounts.append(tls_mount())
        options += [(_TLS_OPTION, meta.TLS_DIR), ("--tls-secret", door.certificate), ("--tls-host", door.host)]
    options += [("--folder", _FOLDER), ("--drain-seconds", str(plan.drain_seconds))]
    options += [("--self-check", str(meta.SELF_CHECK_PORT))]
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


def behind_proxy(server: Object, door: Door) -> Object:
    """The model server's container with a proxy before it. A pod's containers share their ports: the names of the
    proxy's stand here, because not every Kubernetes looks for a Service's port name at sidecars.

    Whether it is ready is asked through the proxy, as clients ask. Whether it is to be restarted is asked behind it:
    the proxy's fault is none of the server's, which would load its model anew."""
    ready = server["readinessProbe"]
    inner = {
        "readinessProbe": ready | {"httpGet": ready["httpGet"] | {"port": meta.INNER_PORT}},
        **{name: asked_inside(server[name]) for name in ("startupProbe", "livenessProbe")},
    }
    ports = {client_port_name(tls=bool(door.certificate)): meta.CLIENT_PORT, "server-metrics": meta.INNER_PORT}
    named = [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()]
    return server | inner | {"ports": named}


def host_of(owner: Owner, service: str) -> str:
    """The name by which pods in the cluster reach a Service."""
    return f"{service}.{owner.namespace}.svc"


def client_port_name(*, tls: bool) -> str:
    """Name of the pods' port for clients. One for each protocol: so a Service for one never sends anybody to pods that
    speak the other."""
    return "https" if tls else "http"


def proxy_volumes(door: Door) -> list[Object]:
    """The keys, the certificate, and room for the proxy's own files; in memory, where the private key is among them."""
    keys = [api_keys_volume(door.api_keys)] if door.api_keys else []
    shown = [{"name": TLS, "secret": {"secretName": door.certificate, "optional": True}}] if door.certificate else []
    room: Object = {"sizeLimit": "16Mi"} | ({"medium": "Memory"} if door.certificate else {})
    return [*keys, *shown, {"name": PROXY, "emptyDir": room}]


def trust_volume(secret: str) -> Object:
    """What a client needs to check the servers' certificate, and not its key."""
    items = [{"key": name, "path": name} for name in (CERTIFICATE, AUTHORITY)]
    return {"name": TLS, "secret": {"secretName": secret, "optional": True, "items": items}}


def tls_mount() -> Object:
    """Where a container finds the certificate."""
    return {"name": TLS, "mountPath": meta.TLS_DIR, "readOnly": True}


def api_keys_volume(secret: str) -> Object:
    """Optional, so that a missing Secret does not keep the pod waiting for a mount: who reads it says what is missing.

    Each value is one file. The kubelet brings changes to running pods.
    """
    return {"name": API_KEYS, "secret": {"secretName": secret, "optional": True}}


def api_keys_mount() -> Object:
    """Where a container finds the keys."""
    return {"name": API_KEYS, "mountPath": meta.API_KEYS_DIR, "readOnly": True}


def has_proxy(template: Object) -> bool:
    """Whether clients of pods made from a template meet a proxy."""
    return bool(_proxies(template))


def is_protected(template: Object) -> bool:
    """Whether clients of pods made from a template need keys or connect by TLS."""
    return speaks_tls(template) or _is_given(template, _KEYS_OPTION)


def speaks_tls(template: Object) -> bool:
    """Whether clients of pods made from a template connect by TLS."""
    return _is_given(template, _TLS_OPTION)


def _is_given(template: Object, option: str) -> bool:
    arguments = (argument for each in _proxies(template) for argument in each.get("args", ()))
    return any(argument.startswith(f"{option}=") for argument in arguments)


def _proxies(template: Object) -> list[Object]:
    return [each for each in template["spec"].get("initContainers") or [] if each["name"] == PROXY]
