"""``python -m finetune_operator --config FILE``: the operator as one process, without a shell around it."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Any, Final

import kopf

from finetune_operator import handlers
from finetune_operator.adapterdeployment.kind import adapter_deployment_kind
from finetune_operator.controller import INDEXES, Controller
from finetune_operator.finetunejob.kind import fine_tune_job_kind
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import HttpKubeClient, StreamClient, load_configuration
from finetune_operator.framework.reconcile import Kind, Reconciler
from finetune_operator.kinds import WATCHED_OWNERS
from finetune_operator.settings import Settings, SettingsError, load_settings

logger = logging.getLogger(__name__)

_WARNINGS_ONLY: Final = ("kopf.objects", "kopf.activities.probe", "aiohttp.access")
"""Kopf and its web server log every watch event, every probe and every request at level info."""


def build(client: StreamClient, settings: Settings) -> Controller:
    """The controller with both kinds."""
    cache = Cache(INDEXES, WATCHED_OWNERS)
    kinds: list[Kind[Any, Any]] = [
        fine_tune_job_kind(client, cache, settings),
        adapter_deployment_kind(client, cache, settings),
    ]
    reconciler = Reconciler(client, cache, {kind.resource.kind: kind for kind in kinds})
    return Controller(client, cache, reconciler, settings)


def run(client: StreamClient, settings: Settings, health: str) -> None:
    """Watch and reconcile until a signal ends the process; raises ApiError if the first LISTs fail."""
    registry = kopf.OperatorRegistry()
    handlers.register(registry, build(client, settings))
    kopf_settings = kopf.OperatorSettings()
    handlers.configure(kopf_settings)
    asyncio.run(
        kopf.operator(
            registry=registry,
            settings=kopf_settings,
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            liveness_endpoint=f"http://{health}/healthz",
        )
    )


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
    parser.add_argument("--log-format", choices=[each.name.lower() for each in kopf.LogFormat], default="json")
    arguments = parser.parse_args()
    configure_logging(arguments.log_format)
    try:
        settings = load_settings(arguments.config)
    except SettingsError as error:
        logger.critical("%s", error)
        sys.exit(1)
    run(HttpKubeClient(load_configuration(), settings.workers + 2), settings, arguments.health)


if __name__ == "__main__":
    main()
