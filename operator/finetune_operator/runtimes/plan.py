"""What an engine's pod is made of, and what every engine's module must say.

The resource builders read a ``ServingPlan`` and never check which engine it is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from finetune_api.meta import SERVING_PORT
from finetune_operator.framework.objects import Object
from finetune_operator.settings import Runtime

LOOPBACK: Final = "127.0.0.1"
"""Where a server listens that has a proxy before it."""
_STARTUP_PERIOD_SECONDS: Final = 2
"""A server that has loaded is noticed at most so much later: a rollout waits for it, and so does a pod of a scale-up.
Each failure is an event of the pod, so not every second."""
_GPUS: Final = "nvidia.com/"


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter on a served model."""

    path: str
    """Folder in the pod; it holds the digest of the adapter's artifact."""
    name: str
    """The model's name in OpenAI's API."""


@dataclass(frozen=True)
class ServedModel:
    """What a server is to serve."""

    path: str
    """Folder in its pod; it holds the artifact's digest, so that a server that names it proves what it serves."""
    name: str
    """The model's name in OpenAI's API: that of the AdapterDeployment."""
    behind_proxy: bool = False
    """Whether clients reach it through the proxy in its pod only: then it listens on loopback."""
    adapters: tuple[ServedAdapter, ...] = ()
    """Served beside it."""
    rank: int = 0
    """None of them has a higher one."""


@dataclass(frozen=True)
class ServingPlan:
    """One server container, apart from its image, resources and security context."""

    env: Mapping[str, str]
    """Settings of the server."""
    startup: Object
    """Probe that delays the others until the model is loaded; its failure restarts the container."""
    readiness: Object
    """Probe that decides whether Services send requests."""
    liveness: Object
    """Probe that restarts a server which hangs."""
    drain_seconds: int
    """Wait between the pod's removal from its Services and SIGTERM, so that every node knows of the removal."""
    grace_seconds: int
    """From the start of the drain to SIGKILL."""
    read_paths: tuple[str, ...]
    """What clients may GET where a proxy is before the server."""
    write_paths: tuple[str, ...]
    """What they may POST to there: what answers, and nothing that changes what is served."""
    args: tuple[str, ...] = ()
    """Arguments of the image's entry point."""
    writable: tuple[str, ...] = ()
    """Folders that the server writes to, besides /tmp."""
    shared_memory: str = ""
    """Size of /dev/shm; empty leaves the container runtime's default (64 MiB)."""


class EngineModule(Protocol):
    """What the operator must know of an engine: one module beside this one for each.

    Its counterpart in the jobs, which talks to the server, is ``finetune_jobs.verification.engine``.
    """

    @property
    def NEEDS_PROXY(self) -> bool:  # noqa: N802 - a constant of the module
        """Whether clients have to meet the proxy even where they need no keys and speak no TLS."""

    def render(self, runtime: Runtime, model: ServedModel) -> ServingPlan:
        """How a runtime of this engine serves a model."""

    def dtype(self, runtime: Runtime) -> str:
        """What the runtime's settings force the server to compute in, e.g. float16; empty: the server decides."""

    def held_in_memory(self, runtime: Runtime, weights: int) -> int:
        """Bytes of its node's memory that the server needs at least, for weights of so many: those that no GPU holds,
        and what the settings take besides. What passes through it to a GPU needs no room: those are pages of files."""

    def highest_rank(self, runtime: Runtime) -> int:
        """That of the adapters that it can serve; 0: it serves none."""

    def run_time_rank(self, runtime: Runtime, rank: int) -> int:
        """That of the adapters that a server which was started for this rank takes while it runs; 0: it serves none.
        One that takes any needs the proxy, which closes the paths that load them, and loads none by itself: the
        self-check beside it does."""


def has_gpu(runtime: Runtime) -> bool:
    """Whether its pods get a GPU of NVIDIA's device plugin, whole (gpu) or a slice (mig-1g.5gb)."""
    return any(name.startswith(_GPUS) and amount != "0" for name, amount in runtime.pod.limits.items())


def health_probe(period: int, failures: int, timeout: int) -> Object:
    """A probe of ``/health``, which all engines have; times in seconds."""
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }


def asked_inside(probe: Object) -> Object:
    """The same probe made in the server's own container, over loopback, where the kubelet does not get. The images of
    all engines have bash, which needs no other program for it. Where one has none, the kubelet throws the result away
    (``pkg/kubelet/prober/worker.go``): nothing is restarted for it, and a server is never taken for started."""
    request = f"GET {probe['httpGet']['path']} HTTP/1.1\\r\\nHost: {LOOPBACK}\\r\\nConnection: close\\r\\n\\r\\n"
    script = (
        f'exec 3<>/dev/tcp/{LOOPBACK}/{SERVING_PORT} && printf "{request}" >&3 && mapfile -t -u 3 said && '
        '[[ ${said[0]} == HTTP/1.?" 200"* ]]'
    )
    times = {name: value for name, value in probe.items() if name != "httpGet"}
    return {"exec": {"command": ["bash", "-c", script]}, **times}


def startup_probe(runtime: Runtime) -> Object:
    """Gives the server the whole time that the runtime allows for loading."""
    failures = math.ceil(runtime.startup_timeout_seconds / _STARTUP_PERIOD_SECONDS)
    return health_probe(_STARTUP_PERIOD_SECONDS, failures, timeout=5)


def seconds_after_drain(runtime: Runtime, reserve: int) -> int:
    """What of the grace period is left for requests once the pod has drained; ``reserve``: for the server's own end."""
    return max(1, runtime.termination_grace_seconds - runtime.drain_seconds - reserve)
