"""Build images straight into the node's image store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from . import toolchain
from .console import run

PROXIES = ("http_proxy", "https_proxy", "no_proxy")  # predefined in every Dockerfile, and not stored in the image
CACHE_LIMIT = 4 * 10**9  # bytes that BuildKit may keep beside the layers of images
LAYERS = "oci-mediatypes=true,compression=zstd"  # half their unpacked size, and the store holds both forms
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

    A ``FROM`` image that the node has is used from there: no registry is asked.

    Raises:
        ClusterError: the build failed; includes the end of its output.
    """
    argv: list[str | Path] = [toolchain.program("buildctl"), "--addr", address, "build", "--progress=plain"]
    argv += ["--frontend=dockerfile.v0", f"--local=context={context}", f"--local=dockerfile={dockerfile.parent}"]
    argv += [f"--opt=filename={dockerfile.name}", "--opt=image-resolve-mode=local"]
    argv += [f"--opt=build-arg:{name}={value}" for name, value in {**proxies(), **(arguments or {})}.items()]
    argv += ca_secret()
    argv.append(f'--output=type=image,"name={reference}",unpack=true,{LAYERS}')
    run(argv, timeout=timeout)


def prune(address: str) -> None:
    """Drop BuildKit's copies of layers that no image has any more, and the wheels that builds share while they run.

    Past builds are forgotten first: their records hold on to the images that they made.
    """
    for command in ("prune-histories", "prune"):
        run([toolchain.program("buildctl"), "--addr", address, command], timeout=600)


def ca_secret() -> list[str]:
    """The build option that passes the machine's CA bundle, because a proxy may re-sign TLS; none without a bundle.

    It is a secret, so it is never stored in an image.
    """
    bundle = Path(os.environ.get("SSL_CERT_FILE") or CA_BUNDLE)
    return [f"--secret=id=ca,src={bundle}"] if bundle.exists() else []


def proxies() -> dict[str, str]:
    """The machine's proxies, as build arguments."""
    return {name: os.environ[name] for name in PROXIES if name in os.environ}
