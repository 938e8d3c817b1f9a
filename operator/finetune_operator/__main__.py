"""``python -m finetune_operator --config FILE``: the operator as one process, without a shell around it."""

import argparse
import asyncio
import logging
import socket
import sys
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import kopf
from kubernetes.client import Configuration

from finetune_api import __version__
from finetune_operator import handlers
from finetune_operator.adapterdeployment.kind import adapter_deployment_kind
from finetune_operator.controller import INDEXES, Controller, connections
from finetune_operator.finetunejob.kind import fine_tune_job_kind
from finetune_operator.framework import lease
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import HttpKubeClient, StreamClient, load_configuration
from finetune_operator.framework.lease import Elector, LeaseName
from finetune_operator.framework.metrics import Snapshot, serve
from finetune_operator.framework.reconcile import Kind, Reconciler
from finetune_operator.kinds import WATCHED_OWNERS
from finetune_operator.settings import Settings
from finetune_operator.settings_file import SettingsError, load_settings

logger = logging.getLogger(__name__)

_KOPF_SECONDS: Final = 0.5
"""For how long Kopf may tidy up when everything else has ended."""
_WARNINGS_ONLY: Final = ("kopf.objects", "kopf.activities.probe", "aiohttp.access")
"""Kopf and its web server log every watch event, every probe and every request at level info."""


@dataclass(frozen=True)
class Ports:
    """Where the process listens, each as ``host:port``."""

    health: str
    """/healthz, for the kubelet."""
    metrics: str
    """/metrics, for Prometheus."""


def build(client: StreamClient, settings: Settings) -> Controller:
    """The controller with both kinds."""
    cache = Cache(INDEXES, WATCHED_OWNERS)
    kinds: list[Kind[Any, Any]] = [
        fine_tune_job_kind(client, cache, settings),
        adapter_deployment_kind(client, cache, settings),
    ]
    reconciler = Reconciler(client, cache, {kind.resource.kind: kind for kind in kinds})
    return Controller(client, cache, reconciler, settings)


def elector_of(configuration: Configuration, settings: Settings) -> Elector | None:
    """Who decides whether this replica works; None if it is the only one."""
    if settings.lease is None:
        return None
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    client = HttpKubeClient(configuration, 1, timeout=lease.TIMEOUT)
    return Elector(client, LeaseName(settings.lease.namespace, settings.lease.name, identity))


def client_of(configuration: Configuration, settings: Settings, elector: Elector | None) -> HttpKubeClient:
    """The client of everything but the Lease. It writes only while this replica leads."""
    return HttpKubeClient(configuration, connections(settings), elector.check if elector else None)


def run(client: StreamClient, settings: Settings, elector: Elector | None, ports: Ports) -> bool:
    """Watch, and reconcile while this replica leads, until a signal ends the process; raises ApiError if the
    first LISTs fail. Returns whether it ends because the Lease was lost."""
    controller = build(client, settings)
    leads = elector.leads if elector else lambda: True
    serve(ports.metrics, Snapshot(__version__, controller.queue.state, controller.by_phase, controller.degraded, leads))
    return asyncio.run(_operate(controller, settings, elector, ports.health))


async def _operate(controller: Controller, settings: Settings, elector: Elector | None, health: str) -> bool:
    stop, all_ended, lost, loop = asyncio.Event(), asyncio.Event(), threading.Event(), asyncio.get_running_loop()
    registry = kopf.OperatorRegistry()

    def end() -> None:
        loop.call_soon_threadsafe(stop.set)
        loop.call_soon_threadsafe(all_ended.set)

    def lose() -> None:
        lost.set()
        loop.call_soon_threadsafe(stop.set)

    handlers.register(registry, controller, elector, lost=lose, ended=end)
    kopf_settings = kopf.OperatorSettings()
    handlers.configure(kopf_settings)
    over = asyncio.create_task(all_ended.wait())
    kopf_runs = asyncio.create_task(
        kopf.operator(
            registry=registry,
            settings=kopf_settings,
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            liveness_endpoint=f"http://{health}/healthz",
            stop_flag=stop,
        )
    )
    await asyncio.wait({over, kopf_runs}, return_when=asyncio.FIRST_COMPLETED)
    # All that is ours has ended then. Told to stop while it asks what the cluster offers, Kopf would wait five seconds
    # for the answer, or for the login that comes before it.
    await asyncio.wait({kopf_runs}, timeout=_KOPF_SECONDS if over.done() else None)
    kopf_runs.cancel()
    with suppress(asyncio.CancelledError):
        await kopf_runs
    return lost.is_set()


def configure_logging(log_format: str) -> None:
    """Log to stderr in one of Kopf's formats (json, full or plain), without a line per watch event and per probe."""
    kopf.configure(log_format=kopf.LogFormat[log_format.upper()])
    logging.captureWarnings(True)
    for name in _WARNINGS_ONLY:
        logging.getLogger(name).setLevel(logging.WARNING)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="finetune-operator", description="Fine-tunes and serves language models.")
    parser.add_argument("--config", type=Path, default=Path("/etc/finetune-operator/config.yaml"))
    parser.add_argument("--health", default="0.0.0.0:8080", help="host and port where /healthz answers")
    parser.add_argument("--metrics", default="0.0.0.0:8081", help="host and port where /metrics answers")
    parser.add_argument("--log-format", choices=[each.name.lower() for each in kopf.LogFormat], default="json")
    arguments = parser.parse_args()
    configure_logging(arguments.log_format)
    try:
        settings = load_settings(arguments.config)
    except SettingsError as error:
        logger.critical("%s", error)
        sys.exit(1)
    configuration = load_configuration()
    elector = elector_of(configuration, settings)
    client = client_of(configuration, settings, elector)
    if run(client, settings, elector, Ports(arguments.health, arguments.metrics)):
        sys.exit(1)  # started anew, it stands by


if __name__ == "__main__":
    main()
