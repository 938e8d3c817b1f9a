"""Files of pinned Go modules, for tests: CRDs of other projects and what comes with them, kept in the cache.

A version is chosen, and its checksum kept, in a folder of ``tools``, as for programs that are built from modules.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import toolchain
from .console import run, step
from .layout import TOOL_SOURCES, cache_directory


@dataclass(frozen=True)
class ModuleFiles:
    """Some files of a module. ``name`` is its folder in ``tools``."""

    name: str
    module: str
    files: tuple[str, ...]

    def paths(self) -> list[Path]:
        """Where the files are, downloaded unless the cache has them. Go refuses a module with another checksum.

        Raises:
            ClusterError: the module cannot be downloaded.
        """
        source = TOOL_SOURCES / self.name
        digest = hashlib.sha256((source / "go.sum").read_bytes()).hexdigest()[:10]
        folder = cache_directory() / "bin" / f"{self.name}-{digest}"
        kept = [folder / Path(file).name for file in self.files]
        if not all(path.exists() for path in kept):
            self._download(source, folder)
        return kept

    def _download(self, source: Path, folder: Path) -> None:
        with step(f"download {self.module}"), tempfile.TemporaryDirectory(prefix=f"finetune-{self.name}-") as modules:
            environment = toolchain.go_environment() | {"GOMODCACHE": modules}
            found = json.loads(run(["go", "mod", "download", "-json", self.module], cwd=source, env=environment))
            folder.mkdir(parents=True, exist_ok=True)
            for file in self.files:
                path = folder / Path(file).name
                draft = path.with_suffix(f".{os.getpid()}")
                shutil.copy(Path(found["Dir"]) / file, draft)
                draft.rename(path)


GATEWAY_API: Final = ModuleFiles(
    "gateway-api", "sigs.k8s.io/gateway-api", ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",)
)
"""The CRD of HTTPRoutes, of the standard channel."""

KEDA: Final = ModuleFiles(
    "keda",
    "github.com/kedacore/keda/v2",
    (
        "config/crd/bases/keda.sh_scaledobjects.yaml",
        "config/crd/bases/keda.sh_triggerauthentications.yaml",
        "schema/generated/scalers-schema.json",
    ),
)
"""KEDA's CRDs, and its list of every trigger's parameters, which the CRDs leave open."""
