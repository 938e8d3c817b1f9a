"""Helm on the local cluster, also after a helm that was killed."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hack.cluster import toolchain
from hack.cluster.console import run, step
from hack.platform.kubectl import Kubectl, Object

OPERATION_SECONDS: Final = 180
"""For how long an operation may wait for pods."""
_SLACK: Final = 30
"""An operation also takes a moment to begin, and to write down how it ended."""
_PENDING: Final = "pending-install,pending-upgrade,pending-rollback"


def helm(*arguments: str, kubeconfig: Path) -> str:
    """Run helm against a cluster and return its output."""
    return run([toolchain.program("helm"), "--kubeconfig", kubeconfig, *arguments], timeout=300)


def forget_killed(kubectl: Kubectl, release: str, patience: float = OPERATION_SECONDS + _SLACK) -> None:
    """Make a release usable again if its last operation was killed.

    Helm takes such an operation for one that goes on, and refuses all others. Whether it goes on is not to be seen, so
    it gets ``patience`` seconds from its beginning. Then its record, a Secret in the namespace of ``kubectl``, is
    deleted; the next operation takes over what it has made.
    """
    if not (records := _pending(kubectl, release)):
        return
    with step(f"wait for the helm that installs or upgrades {release}, if it was not killed"):
        while records and min(map(_age, records)) < patience:
            time.sleep(2)
            records = _pending(kubectl, release)
    for record in records:
        kubectl("delete", "secret", record["metadata"]["name"], "--ignore-not-found")


def _pending(kubectl: Kubectl, release: str) -> list[Object]:
    return kubectl.items("secrets", f"owner=helm,name={release},status in ({_PENDING})")


def _age(record: Object) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(record["metadata"]["creationTimestamp"])).total_seconds()
