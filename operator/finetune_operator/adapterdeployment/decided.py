"""Whether running pods are as the platform's values decide, whatever release made them. Pure.

For revisions without a record: nothing tells which values they were made from, only the pods do. What a release decides
(probes' paths, security contexts, the version of its own image) may differ. One thing cannot be told: a variable of the
server that the values no longer name looks like one of the older release. It stays until the next revision.
"""

import math
from typing import Any, Final

from finetune_operator.framework.objects import Object
from finetune_operator.resources.deployment import FETCH, SERVER, drain_seconds_of
from finetune_operator.resources.drift import holds
from finetune_operator.resources.egress import PROXY_VARIABLES
from finetune_operator.resources.pod import repository
from finetune_operator.settings import Runtime

_OF_POD: Final = (
    *("serviceAccountName", "nodeSelector", "tolerations", "priorityClassName", "runtimeClassName"),
    *("imagePullSecrets", "terminationGracePeriodSeconds"),
)
_OF_SERVER: Final = ("image", "imagePullPolicy", "resources")
_SIZED: Final = ("scratch",)
"""Volumes whose size the values decide. That of the models follows from the same value, and from the artifact, which
earlier releases did not look at."""


def is_as_decided(live: Object, fresh: Object, runtime: Runtime) -> bool:
    """Whether two pods, a running one and one that this release would make, agree in what the values decide. Variables
    of the server that one of them lacks are the release's, unless the values name them."""
    old, new = _decided(live), _decided(fresh)
    has, wants = _env(_container(live, SERVER)), _env(_container(fresh, SERVER))
    shared = {name: value for name, value in wants.items() if name in has or name in runtime.env}
    same = holds(old, new) and holds(new, old) and shared.items() <= has.items()
    return same and _has_time_to_start(live, runtime)


def _decided(pod: Object) -> Object:
    """What the values decide of a pod: fields that are unset are left out."""
    server = _container(pod, SERVER)
    fetch = _container(pod, FETCH)
    variables = _env(fetch)
    volumes = {each["name"]: each.get("emptyDir") or {} for each in pod.get("volumes") or []}
    decided: dict[str, dict[str, Any]] = {
        "pod": {field: pod.get(field) for field in _OF_POD},
        "server": {field: server.get(field) for field in _OF_SERVER},
        "drain": {"seconds": drain_seconds_of(server)},
        "sizes": {name: volumes.get(name, {}).get("sizeLimit") for name in _SIZED},
        "fetch": {"repository": repository(fetch.get("image", ""))},
        "proxy": {name: variables.get(name) for name in PROXY_VARIABLES},
    }
    return {part: {name: value for name, value in found.items() if value} for part, found in decided.items()}


def _has_time_to_start(pod: Object, runtime: Runtime) -> bool:
    """Whether the server has the time to load that the values give it. How often it is asked is the release's."""
    probe = _container(pod, SERVER).get("startupProbe") or {}
    times = math.ceil(runtime.startup_timeout_seconds / max(1, probe.get("periodSeconds") or 0))
    return bool(probe.get("failureThreshold") == times)


def _container(pod: Object, name: str) -> Object:
    containers = [*(pod.get("initContainers") or []), *pod["containers"]]
    return next((each for each in containers if each["name"] == name), {})


def _env(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value") or "" for each in container.get("env") or []}
