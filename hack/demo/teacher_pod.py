"""The teacher as a pod of the cluster, with its Service and the Secret that the example names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from finetune_api.hashing import short
from hack.cluster.console import step
from hack.demo import teacher
from hack.platform import local
from hack.platform.kubectl import Kubectl, Object

TEACHER: Final = "teacher"
TEACHER_PORT: Final = 8000
TEACHER_URL: Final = f"http://{TEACHER}:{TEACHER_PORT}/v1"


def install_teacher(kubectl: Kubectl) -> None:
    """Create the teacher's pod, its Service, and the Secret that the example names."""
    with step(f"start the teacher at {TEACHER_URL} in namespace {kubectl.namespace} (a program that quotes a manual)"):
        kubectl.apply(*teacher_objects(local.images()["base"]))
        kubectl("rollout", "status", f"deployment/{TEACHER}", "--timeout=120s", timeout=140)


def teacher_objects(image: str) -> list[Object]:
    """ConfigMap with the program, Secret, Deployment and Service; ``image`` needs only Python."""
    program = Path(teacher.__file__).read_text()
    labels = {"app.kubernetes.io/name": TEACHER}
    container: Object = {
        "name": TEACHER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/teacher/teacher.py", str(TEACHER_PORT)],
        "ports": [{"name": "http", "containerPort": TEACHER_PORT}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "program", "mountPath": "/teacher", "readOnly": True}],
    }
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "program", "configMap": {"name": TEACHER}}],
    }
    template = {"metadata": {"labels": labels, "annotations": {"demo/program": short(program)}}, "spec": pod}
    return [
        _object("v1", "ConfigMap", data={"teacher.py": program}),
        _object("v1", "Secret", stringData={"OPENAI_API_KEY": "none-needed"}),
        _object("apps/v1", "Deployment", spec={"selector": {"matchLabels": labels}, "template": template}),
        _object("v1", "Service", spec={"selector": labels, "ports": [{"port": TEACHER_PORT, "targetPort": "http"}]}),
    ]


def _object(version: str, kind: str, **fields: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": TEACHER}, **fields}
