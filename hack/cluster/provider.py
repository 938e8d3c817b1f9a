"""Which cluster this machine gets."""

from __future__ import annotations

import os

from .console import ClusterError
from .kind import KindCluster, docker_answers
from .native import NativeCluster

PROVIDER_VARIABLE = "FINETUNE_CLUSTER_PROVIDER"


def provider() -> KindCluster | NativeCluster:
    """kind where a Docker engine answers, else the native cluster; an environment variable decides otherwise.

    Raises:
        ClusterError: the variable names no provider.
    """
    match os.environ.get(PROVIDER_VARIABLE, ""):
        case "kind":
            return KindCluster.default()
        case "native":
            return NativeCluster.default()
        case "":
            return KindCluster.default() if docker_answers() else NativeCluster.default()
        case other:
            raise ClusterError(f"{PROVIDER_VARIABLE}={other}: no such provider; use kind or native")
