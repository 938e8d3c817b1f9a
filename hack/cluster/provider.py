"""Which cluster this machine gets."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .console import ClusterError
from .kind import KindCluster, docker_answers, kind_installed
from .native import NativeCluster

PROVIDER_VARIABLE = "FINETUNE_CLUSTER_PROVIDER"
PROVIDERS: Mapping[str, type[KindCluster | NativeCluster]] = {"kind": KindCluster, "native": NativeCluster}


def provider() -> KindCluster | NativeCluster:
    """The machine's cluster, as :func:`choice` says.

    Raises:
        ClusterError: the environment variable names no provider.
    """
    name, _ = choice()
    return PROVIDERS[name].default()


def choice() -> tuple[str, str]:
    """kind where a Docker engine answers and kind is installed, else native; an environment variable decides otherwise.

    Returns:
        The provider's name, and why it is this one.

    Raises:
        ClusterError: the variable names no provider.
    """
    if wanted := os.environ.get(PROVIDER_VARIABLE, ""):
        if wanted not in PROVIDERS:
            raise ClusterError(f"{PROVIDER_VARIABLE}={wanted}: no such provider; use kind or native")
        return wanted, f"{PROVIDER_VARIABLE}={wanted}"
    if not docker_answers():
        return "native", "no Docker engine answers"
    if not kind_installed():
        return "native", "a Docker engine answers, but kind is not on the PATH"
    return "kind", "a Docker engine answers, and kind is on the PATH"
