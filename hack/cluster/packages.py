"""Programs from the operating system: container runtime tools, the kernel's firewalls, Python's venv."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from .console import ClusterError, run, step

NODE_PROGRAMS: Mapping[str, str] = {
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "mmdebstrap": "mmdebstrap",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
VENV_PROGRAMS: Mapping[str, str] = {  # Debian packages them apart from Python
    str(Path(os.__file__).with_name("ensurepip")): f"python3.{sys.version_info.minor}-venv",
}
BROWSER_PROGRAMS: Mapping[str, str] = {"chromium": "chromium"}
"""For tests of pages with a script."""
PROXY_PROGRAMS: Mapping[str, str] = {"haproxy": "haproxy"}
"""For tests of the proxy before a model server."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(programs: Mapping[str, str]) -> list[str]:
    """The Debian packages of the programs that are not installed."""
    return sorted({package for name, package in programs.items() if not _found(name)})


def install(programs: Mapping[str, str] = NODE_PROGRAMS) -> None:
    """Install missing packages.

    Raises:
        ClusterError: a package is missing, and this is not a Debian-based machine or not root.
    """
    wanted = missing(programs)
    if not wanted:
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise ClusterError(f"install these packages (Debian names) on this machine: {', '.join(wanted)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step(f"install {' '.join(wanted)} with apt-get"):
        run(["apt-get", "update", "-qq"], env=environment)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted], env=environment)


def make_environment(home: Path) -> Path:
    """Create a virtual environment with pip and the running Python's version; returns its ``bin``.

    Raises:
        ClusterError: as :func:`install`, or venv failed.
    """
    install(VENV_PROGRAMS)
    run([base_interpreter(), "-m", "venv", "--clear", home])
    return home / "bin"


def base_interpreter() -> Path:
    """The interpreter of this process, not of an active virtual environment."""
    return Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"


def _found(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else bool(shutil.which(program, path=SYSTEM_PATH))
