"""Programs that come from the operating system: the container runtime's last mile and the kernel's firewalls."""

from __future__ import annotations

import os
import shutil
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
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(programs: Mapping[str, str]) -> list[str]:
    """The Debian packages of those programs that are not installed."""
    return sorted({package for name, package in programs.items() if not _found(name)})


def install(programs: Mapping[str, str] = NODE_PROGRAMS) -> None:
    """Install what is missing.

    Raises:
        ClusterError: something is missing and this is not a Debian-like machine, or not root.
    """
    wanted = missing(programs)
    if not wanted:
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise ClusterError(f"missing on this machine: {', '.join(wanted)}; install them (Debian's package names)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step(f"apt-get install {' '.join(wanted)}"):
        run(["apt-get", "update", "-qq"], env=environment)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted], env=environment)


def _found(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else bool(shutil.which(program, path=SYSTEM_PATH))
