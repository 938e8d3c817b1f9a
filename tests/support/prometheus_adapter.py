"""A real prometheus-adapter beside a temporary control plane."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from hack.cluster import toolchain
from hack.cluster.controlplane import LOOPBACK, ControlPlane, answers
from hack.cluster.layout import free_port
from hack.cluster.processes import Daemon
from tests.support.external_metrics import Rules, certificate, registered
from tests.support.prometheus import Prometheus

NAME = "prometheus-adapter"


def is_built() -> bool:
    """Whether it is in the cache: ``make prometheus-adapter``."""
    return toolchain.TOOLS[NAME].built()


@contextmanager
def prometheus_adapter(plane: ControlPlane, server: Prometheus, rules: Rules, namespace: str) -> Iterator[None]:
    """Serves the API of external metrics."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump({"externalRules": rules}))  # as its chart writes them
        argv = _argv(plane, server, config, namespace, port)
        adapter = Daemon(NAME, argv, plane.directory, lambda: answers(f"https://{LOOPBACK}:{port}/readyz"))
        try:
            adapter.start()
            adapter.wait_ready()
            with registered(plane, namespace, port):
                yield
        finally:
            adapter.stop()


def _argv(plane: ControlPlane, server: Prometheus, config: Path, namespace: str, port: int) -> tuple[str, ...]:
    certificate_file, key_file = certificate(plane, namespace)
    kubeconfigs = ("lister-kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return (
        str(toolchain.program("adapter")),
        f"--prometheus-url={server.url}",
        f"--config={config}",
        "--metrics-relist-interval=1s",
        "--metrics-max-age=1m",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={port}",
        f"--tls-cert-file={certificate_file}",
        f"--tls-private-key-file={key_file}",
        *(f"--{each}={plane.kubeconfig}" for each in kubeconfigs),
    )
