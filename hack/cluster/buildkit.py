"""Build images straight into the node's image store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from . import toolchain
from .console import run

PROXIES = ("http_proxy", "https_proxy", "no_proxy")  # known to every Dockerfile, and kept out of the image
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def build_image(
    address: str,
    reference: str,
    context: Path,
    dockerfile: Path,
    arguments: Mapping[str, str] | None = None,
    timeout: float = 1800,
) -> None:
    """Build one Dockerfile into an image of the node (``reference``; several are separated by commas).

    The machine's CA bundle is the build secret ``ca``, because a proxy may re-sign TLS; it never stays in an image.
    A ``FROM`` that the node holds is taken from there: nothing asks a registry for it.

    Raises:
        ClusterError: the build failed; carries the end of its output.
    """
    bundle = Path(os.environ.get("SSL_CERT_FILE") or CA_BUNDLE)
    argv: list[str | Path] = [toolchain.program("buildctl"), "--addr", address, "build", "--progress=plain"]
    argv += ["--frontend=dockerfile.v0", f"--local=context={context}", f"--local=dockerfile={dockerfile.parent}"]
    argv += [f"--opt=filename={dockerfile.name}", "--opt=image-resolve-mode=local"]
    proxies = {name: os.environ[name] for name in PROXIES if name in os.environ}
    argv += [f"--opt=build-arg:{name}={value}" for name, value in {**proxies, **(arguments or {})}.items()]
    argv += [f"--secret=id=ca,src={bundle}"] if bundle.exists() else []
    argv.append(f'--output=type=image,"name={reference}",unpack=true,compression=uncompressed')
    run(argv, timeout=timeout)
