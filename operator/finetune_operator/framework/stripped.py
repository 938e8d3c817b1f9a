"""What the cache keeps of an object: the fields that an observation reads, as compressed JSON.

A finished FineTuneJob has six Jobs and six pods, which are 60 KiB of JSON and five times that as Python objects. Kept
like this they are 5 KiB. Custom resources, and children that are compared with what is wanted, stay whole.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

from finetune_api.hashing import digest
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    ENDPOINT_SLICES,
    JOBS,
    PODS,
    RESOURCE_QUOTAS,
    SERVICE_ACCOUNTS,
    Object,
    Resource,
)

Fields = Mapping[str, Any]
"""Names of the fields to keep, each with its own ``Fields``, or with WHOLE. Of a list, each item is treated alike."""
WHOLE: Final = None

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""kubectl's copy of the whole object."""
_METADATA: Final[Fields] = dict.fromkeys(
    (
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "labels",
        "annotations",
        "ownerReferences",
    ),
    WHOLE,
)
_CONDITION: Final[Fields] = dict.fromkeys(("type", "status", "reason", "message", "lastTransitionTime"), WHOLE)
_CONTAINER: Final[Fields] = dict.fromkeys(
    ("name", "image", "ready", "started", "restartCount", "state", "lastState"), WHOLE
)
_JOB: Final[Fields] = {
    "metadata": _METADATA,
    "spec": {
        "suspend": WHOLE,
        "completionMode": WHOLE,
        "template": {"metadata": {"labels": WHOLE}, "spec": {"subdomain": WHOLE}},
    },
    "status": {
        **dict.fromkeys(("active", "succeeded", "failed", "startTime", "completionTime"), WHOLE),
        "conditions": _CONDITION,
    },
}
_POD: Final[Fields] = {
    "metadata": _METADATA,
    "spec": {
        **dict.fromkeys(("nodeName", "terminationGracePeriodSeconds"), WHOLE),
        "containers": {
            "name": WHOLE,
            "startupProbe": dict.fromkeys(("periodSeconds", "failureThreshold", "timeoutSeconds"), WHOLE),
        },
    },
    "status": {
        **dict.fromkeys(("phase", "reason", "message", "startTime", "podIP"), WHOLE),
        "conditions": _CONDITION,
        "initContainerStatuses": _CONTAINER,
        "containerStatuses": _CONTAINER,
    },
}
_ENDPOINT_SLICE: Final[Fields] = {
    "metadata": _METADATA,
    "endpoints": {"conditions": WHOLE, "targetRef": {"name": WHOLE}},
}
_KEPT: Final[Mapping[Resource, Fields]] = {
    JOBS: _JOB,
    PODS: _POD,
    ENDPOINT_SLICES: _ENDPOINT_SLICE,
    SERVICE_ACCOUNTS: {"metadata": _METADATA},  # the same
    RESOURCE_QUOTAS: {"metadata": _METADATA},  # an event of one is all that matters
    CONFIG_MAPS: {"metadata": _METADATA, "immutable": WHOLE, "data": WHOLE, "binaryData": WHOLE},  # see ``strip``
}


def strip(resource: Resource, found: Object) -> Object:
    """The object without what nothing reads; it shares its parts with the given one, which stays as it is. Of what a
    ConfigMap holds there are hashes, which tell whether somebody has changed it."""
    kept = _kept(found, _KEPT[resource]) if resource in _KEPT else dict(found)
    if resource == CONFIG_MAPS:
        kept |= {
            part: {name: digest(text) for name, text in found[part].items()}
            for part in ("data", "binaryData")
            if found.get(part)
        }
    metadata: Object = _kept(kept["metadata"], _METADATA)
    if _LAST_APPLIED in (annotations := metadata.get("annotations") or {}):
        metadata["annotations"] = {name: value for name, value in annotations.items() if name != _LAST_APPLIED}
    return kept | {"metadata": metadata}


def pack(resource: Resource, found: Object) -> bytes:
    """What the cache stores of an object."""
    return zlib.compress(json.dumps(strip(resource, found), separators=(",", ":")).encode(), 1)


def unpack(packed: bytes) -> Object:
    """A new object from what the cache stores."""
    found: Object = json.loads(zlib.decompress(packed))
    return found


def _kept(value: Any, fields: Fields | None) -> Any:
    if fields is WHOLE:
        return value
    if isinstance(value, list):
        return [_kept(item, fields) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _kept(value[name], inner) for name, inner in fields.items() if name in value}
