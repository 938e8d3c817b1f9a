"""Selects the kind of cluster for this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .console import ClusterError
from .kind import KindCluster, docker_answers, kind_installed
from .native import NativeCluster

PROVIDER_VARIABLE = "FINETUNE_CLUSTER_PROVIDER"
PROVIDERS: Mapping[str, type[KindCluster | NativeCluster]] = {"kind": KindCluster, "native": NativeCluster}


def provider() -> KindCluster | NativeCluster:
    """The machine's cluster, as :func:`choice` selects it.

    Raises:
        ClusterError: the environment variable names no provider.
    """
    name, _ = choice()
    return PROVIDERS[name].default()


def choice() -> tuple[str, str]:
    """kind if Docker is running and kind is installed, otherwise native; an environment variable overrides this.

    Returns:
        The provider's name, and the reason for it.

    Raises:
        ClusterError: the variable names no provider.
    """
    if wanted := os.environ.get(PROVIDER_VARIABLE, ""):
        if wanted not in PROVIDERS:
            raise ClusterError(f"{PROVIDER_VARIABLE}={wanted}: unknown provider; use kind or native")
        return wanted, f"{PROVIDER_VARIABLE}={wanted}"
    if not docker_answers():
        return "native", "no Docker engine is running"
    if not kind_installed():
        return "native", "a Docker engine is running, but kind is not on the PATH"
    return "kind", "a Docker engine is running, and kind is on the PATH"
