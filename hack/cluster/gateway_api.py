"""The CRDs of the Gateway API, for tests: files of a pinned Go module, kept in the cache.

A version is chosen, and its checksum kept, in ``tools/gateway-api``, as for programs that are built from modules.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from . import toolchain
from .console import run, step
from .layout import TOOL_SOURCES, cache_directory

MODULE = "sigs.k8s.io/gateway-api"
_SOURCE = TOOL_SOURCES / "gateway-api"
_FILE = "gateway.networking.k8s.io_httproutes.yaml"
"""Of the standard channel."""


def http_route_crd() -> Path:
    """The CRD of HTTPRoutes, downloaded unless the cache has it. Go refuses a module with another checksum.

    Raises:
        ClusterError: the module cannot be downloaded.
    """
    digest = hashlib.sha256((_SOURCE / "go.sum").read_bytes()).hexdigest()[:10]
    kept = cache_directory() / "bin" / f"gateway-api-{digest}" / _FILE
    if kept.exists():
        return kept
    with step(f"download {MODULE}"), tempfile.TemporaryDirectory(prefix="finetune-gateway-api-") as folder:
        environment = toolchain.go_environment() | {"GOMODCACHE": folder}
        found = json.loads(run(["go", "mod", "download", "-json", MODULE], cwd=_SOURCE, env=environment))
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")
        shutil.copy(Path(found["Dir"]) / "config" / "crd" / "standard" / _FILE, draft)
        draft.rename(kept)
    return kept
