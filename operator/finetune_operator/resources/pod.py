"""Pods and containers under the restricted Pod Security Standard, for stages and model servers alike.

https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cache
from typing import Any, Final

from finetune_api import meta
from finetune_operator.framework.objects import Object
from finetune_operator.resources.drift import quantity
from finetune_operator.settings import Images, PodShape

EPHEMERAL_STORAGE: Final = "ephemeral-storage"
USER: Final = 65532
"""Numeric, so that the kubelet can check runAsNonRoot; the group owns the writable volumes."""


def repository(image: str) -> str:
    """Registry and path of an image, without tag and digest."""
    path, slash, name = image.partition("@")[0].rpartition("/")
    return f"{path}{slash}{name.partition(':')[0]}"


def scratch_limit(shape: PodShape) -> str:
    """The most that a pod may write: the size of its scratch volume, or its limit of ephemeral storage, if that is
    less: volumes count towards it."""
    sizes = [size for size in (shape.scratch_size, shape.limits.get(EPHEMERAL_STORAGE, "")) if _bytes(size)]
    return min(sizes, key=_bytes, default=shape.scratch_size)


def scratch_bytes(shape: PodShape) -> int:
    """The same in bytes; 0: not known."""
    return int(_bytes(scratch_limit(shape)))


@cache
def _bytes(size: str) -> Decimal:
    """A size of the platform's settings, of which there are few; 0: it is none."""
    return quantity(size) or Decimal(0)


def container(
    name: str,
    image: str,
    images: Images,
    shape: PodShape,
    env: Sequence[Mapping[str, Any]] = (),
    mounts: Sequence[Mapping[str, Any]] = (),
) -> Object:
    """A container that can write to nothing but the scratch volume."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": images.pull_policy,
        "env": [dict(variable) for variable in env],
        "resources": {"requests": dict(shape.requests), "limits": dict(shape.limits)},
        "volumeMounts": [{"name": "scratch", "mountPath": meta.SCRATCH_DIR}, *map(dict, mounts)],
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def pod_spec(containers: Sequence[Object], shape: PodShape, images: Images, service_account: str) -> Object:
    """A restricted pod with one writable volume, no API token and no variables for the namespace's Services."""
    spec: Object = {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": list(containers),
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": shape.scratch_size}}],
    }
    optional: dict[str, Any] = {
        "imagePullSecrets": [{"name": name} for name in images.pull_secrets],
        "nodeSelector": dict(shape.node_selector),
        "tolerations": [dict(toleration) for toleration in shape.tolerations],
        "priorityClassName": shape.priority_class_name,
        "runtimeClassName": shape.runtime_class_name,
    }
    return spec | {name: value for name, value in optional.items() if value}
