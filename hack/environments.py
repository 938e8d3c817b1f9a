"""Virtual environments of a checkout: ``python3 -m hack.environments dev`` makes ``.venv`` from ``uv.lock``.

Standard library only: this runs before any environment exists. uv itself is installed by pip into the cache.
``quantize`` has pins of its own (llm-compressor wants another transformers) and lives in the cache, for tests that run
the export outside its image.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hack.cluster import packages
from hack.cluster.console import ClusterError, run, say, step
from hack.cluster.layout import REPOSITORY, cache_directory

UV = "uv==0.13.9"


def uv() -> Path:
    """The pinned uv, installed into the cache where it is missing."""
    home = cache_directory() / "tools" / UV.replace("==", "-")
    program = home / "bin" / "uv"
    if not program.exists():
        with step(f"install {UV}"):
            _make_environment(home)
            run([home / "bin" / "python", "-m", "pip", "install", "--quiet", UV])
    return program


def sync(environment: Path, extras: Sequence[str]) -> Path:
    """Make or update an environment to exactly what ``uv.lock`` says; returns its Python."""
    chosen = [argument for extra in extras for argument in ("--extra", extra)]
    settings = {"UV_PROJECT_ENVIRONMENT": str(environment), "UV_PYTHON": _python(), "UV_PYTHON_DOWNLOADS": "never"}
    with step(f"environment {environment.name} ({', '.join(extras)})"):
        run([uv(), "sync", "--frozen", "--quiet", *chosen], cwd=REPOSITORY, env={**os.environ, **settings})
    return environment / "bin" / "python"


def dev() -> Path:
    """``.venv``: everything but the quantizer, for people, tests and tools."""
    return sync(REPOSITORY / ".venv", ["dev"])


def quantize() -> Path:
    """The export stage's environment, without an image around it."""
    return sync(cache_directory() / "venvs" / "quantize", ["quantize"])


def _python() -> str:
    """The interpreter behind this process, not a virtual environment that happens to be active."""
    return str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")


def _make_environment(home: Path) -> None:
    try:
        subprocess.run([_python(), "-m", "venv", "--clear", str(home)], check=True, capture_output=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        # Debian splits venv from Python.
        packages.install({"/nonexistent/python3-venv": "python3-venv"})
        run([_python(), "-m", "venv", "--clear", home])


def main(arguments: Sequence[str]) -> int:
    """Make the environments that are named."""
    try:
        for name in arguments or ["dev"]:
            {"dev": dev, "quantize": quantize}[name]()
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
