"""Every image starts as a restricted pod and holds what it is for, and nothing that it must not hold."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from hack.cluster import toolchain
from hack.cluster.console import ClusterError
from hack.cluster.provider import provider
from hack.platform import local
from hack.platform.kubectl import Kubectl, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

IMPORT = """
import importlib, importlib.util, os, pathlib, sys
wanted, unwanted = (names.split(',') for names in sys.argv[1:3])
for name in wanted:
    importlib.import_module(name)
found = [name for name in unwanted if name and importlib.util.find_spec(name)]
programs = [name for name in ('uv', 'pip') if any(os.path.exists(f'{d}/{name}') for d in os.environ['PATH'].split(':'))]
code = [str(path) for path in pathlib.Path('/opt/app').rglob('*.py') if not list(path.parent.glob('__pycache__/*.pyc'))]
print(found + programs + code)
"""

CONTENTS = [
    ("operator", "kopf,kubernetes,finetune_api,finetune_operator", "torch,boto3,finetune_jobs"),
    ("data", "boto3,finetune_api,finetune_jobs", "torch,kopf,finetune_operator"),
    ("jobs", "torch,transformers,peft,trl,bitsandbytes,datasets,finetune_jobs", "kopf,llmcompressor,finetune_operator"),
    ("quantize", "llmcompressor,torch,peft,finetune_jobs", "kopf,trl,finetune_operator"),
    ("tgi-cpu", "torch,transformers,uvicorn,tgi_cpu", "kopf,finetune_operator"),
]


@pytest.fixture(scope="module")
def namespace() -> Iterator[Kubectl]:
    kubectl = Kubectl(toolchain.program("kubectl"), provider().kubeconfig, f"images-{uuid.uuid4().hex[:8]}")
    kubectl("create", "namespace", kubectl.namespace)
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
    kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    yield kubectl
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


def run_restricted(kubectl: Kubectl, name: str, command: list[str]) -> str:
    """Run a command in an image as the restricted pod that the operator would make; returns what it printed."""
    container: dict[str, Any] = {
        "name": "main",
        "image": local.image(name),
        "command": command,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    }
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})

    def ended() -> str | None:
        phase = kubectl.get("pod", name)["status"].get("phase")
        return phase if phase in ("Succeeded", "Failed") else None

    phase = wait_for(f"pod {name} to end", ended, 300)
    output = kubectl("logs", name)
    if phase == "Failed":
        raise ClusterError(output)
    return output


@pytest.mark.parametrize(("name", "wanted", "unwanted"), CONTENTS, ids=[row[0] for row in CONTENTS])
def test_an_image_holds_what_it_is_for(namespace: Kubectl, name: str, wanted: str, unwanted: str) -> None:
    assert run_restricted(namespace, name, ["python", "-c", IMPORT, wanted, unwanted]).splitlines()[-1] == "[]"


def test_the_object_store_image_starts(namespace: Kubectl) -> None:
    assert run_restricted(namespace, "seaweedfs", ["weed", "version"]).startswith("version")
