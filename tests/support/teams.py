"""A namespace of a team on the local cluster, as its admin prepares it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from hack.platform import local
from hack.platform.kubectl import Kubectl


@contextmanager
def team_namespace(cluster: Kubectl) -> Iterator[Kubectl]:
    """A restricted namespace with the runner ServiceAccount and a Secret for the store; deleted at the end."""
    name = f"team-{uuid.uuid4().hex[:8]}"
    local.prepare_namespace(cluster, name)
    yield cluster.within(name)
    cluster("delete", "namespace", name, "--wait=false")
