"""The JobSet controller on a temporary control plane: the baseline of operator_latency.

JobSet is the Kubernetes project's own controller that turns one custom resource into Jobs. It is built here from its
own Go module. Its webhooks are served but not registered: they only default and validate, and these objects are
complete.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from hack.cluster import toolchain
from hack.cluster.console import ClusterError, run
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import free_port
from hack.platform.kubectl import wait_for

VERSION = "v0.10.1"
_TLS = ("tls.crt", "tls.key")
CONFIGURATION = {
    "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
    "kind": "Configuration",
    "health": {"healthProbeBindAddress": "127.0.0.1:0"},
    "metrics": {"bindAddress": "127.0.0.1:0"},
    "internalCertManagement": {"enable": False},
    "leaderElection": {"leaderElect": False},
    "clientConnection": {"qps": 500, "burst": 500},
}


def jobset(name: str, template: dict[str, Any]) -> dict[str, Any]:
    """A JobSet that creates one Job with this pod template."""
    job = {"parallelism": 1, "completions": 1, "completionMode": "Indexed", "backoffLimit": 0, "template": template}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {
            "suspend": False,
            "network": {"enableDNSHostnames": False, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All"},
            "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
            "replicatedJobs": [{"name": "stage", "replicas": 1, "groupName": "default", "template": {"spec": job}}],
        },
    }


@contextmanager
def controller(plane: ControlPlane) -> Iterator[subprocess.Popen[bytes]]:
    """Install JobSet's CRD and run its controller until the block ends."""
    toolchain.build(toolchain.PEERS)
    with tempfile.TemporaryDirectory(prefix="finetune-jobset-") as folder:
        directory = Path(folder)
        plane.kubectl("apply", "--server-side", "-f", str(_crd(directory)))
        wait_for_crd(plane, "jobsets.jobset.x-k8s.io")
        configuration = directory / "config.yaml"
        configuration.write_text(yaml.safe_dump(CONFIGURATION | {"webhook": _webhook(plane, directory)}))
        argv = [str(toolchain.program("jobset")), f"--config={configuration}", f"--kubeconfig={plane.kubeconfig}"]
        log = directory / "controller.log"
        with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as process:
            try:
                wait_for("the JobSet controller", lambda: _started(process, log), 60, interval=0.2)
                yield process
            finally:
                process.terminate()


def wait_for_crd(plane: ControlPlane, name: str) -> None:
    """Wait until the API server serves a CRD (`kubectl wait` fails while it has no conditions)."""

    def established() -> bool:
        conditions = json.loads(plane.kubectl("get", "crd", name, "-o", "json")).get("status", {}).get("conditions")
        return any(each["type"] == "Established" and each["status"] == "True" for each in conditions or [])

    wait_for(name, established, 30, interval=0.2)


def _webhook(plane: ControlPlane, directory: Path) -> dict[str, Any]:
    """Webhook configuration with a certificate, without which the controller exits."""
    for issued, name in zip(plane.authority.issue("jobset", "/CN=jobset", ("IP:127.0.0.1",)), _TLS, strict=True):
        shutil.copy(issued, directory / name)
    return {"host": "127.0.0.1", "port": free_port(), "certDir": str(directory)}


def _started(process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise ClusterError(f"the JobSet controller exited:\n{log.read_text()[-1500:]}")
    return "Starting workers" in log.read_text()


def _crd(directory: Path) -> Path:
    """The CRD from the module's sources."""
    environment = toolchain.go_environment() | {"GOMODCACHE": str(directory / "mod")}
    command = ["go", "mod", "download", "-json", f"sigs.k8s.io/jobset@{VERSION}"]
    sources = Path(json.loads(run(command, cwd=directory, env=environment))["Dir"])
    return sources / "config" / "components" / "crd" / "bases" / "jobset.x-k8s.io_jobsets.yaml"
