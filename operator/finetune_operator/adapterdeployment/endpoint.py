"""Which pods clients of the public Service reach: its EndpointSlices say so, and nodes follow them a moment later."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from finetune_api.serving_status import RevisionStatus
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.framework.conditions import ConditionType, parse_timestamp
from finetune_operator.framework.objects import Object
from finetune_operator.outcome.pod import find_condition

SETTLING_SECONDS: Final = 2.5
"""How long nodes are given to follow an EndpointSlice. kube-proxy does so once a second (``minSyncPeriod``); until then
it refuses connections to a Service without endpoints. Timestamps have whole seconds, so 1.5 to 2.5 s really pass."""


@dataclass(frozen=True)
class EndpointState:
    """Where connections to the public Service end."""

    answers: bool = False
    """Clients get answers, from any revision."""
    settled: bool = False
    """Clients get answers from the stable revision: every node can be expected to know its pods."""
    elsewhere: frozenset[str] = frozenset()
    """Pods of other revisions to which clients may still be sent."""
    due_after: float | None = None
    """Seconds until it is settled, if nothing else happens."""
    gap: str = ""
    """Which pods of the stable revision are no endpoints and why, while none is one."""


def endpoint_state(observed: ObservedDeployment, stable: RevisionStatus | None, now: datetime) -> EndpointState:
    """Where connections end, according to the endpoints that are ready.

    Clients that got answers before keep getting them while any endpoint is ready: nodes that do not know it yet send
    them to the previous pods, which are stopped only later and drain first.
    """
    if stable is None:
        return EndpointState()
    pods = {pod["metadata"]["name"]: pod for pod in observed.server_pods(stable.revision)}
    ready = [(name, endpoints) for endpoints in observed.slices for name in _ready_pods(endpoints)]
    conditions = observed.resource.status.conditions
    answered = any(each.type == ConditionType.READY and each.status == "True" for each in conditions)
    waits = [
        _settling([stable.since] if answered else [stable.since, *_known_since(endpoints, pods[name])], now)
        for name, endpoints in ready
        if name in pods
    ]
    left = min(waits, default=None)
    listed = {(each.get("targetRef") or {}).get("name", "") for found in observed.slices for each in _endpoints(found)}
    return EndpointState(
        answers=left == 0 or (answered and bool(ready)),
        settled=left == 0,
        elsewhere=frozenset(name for name, _ in ready if name not in pods),
        due_after=left or None,
        gap=_gap(pods.values(), listed) if left is None else "",
    )


def _gap(pods: Iterable[Object], listed: Collection[str]) -> str:
    """Why no pod of a revision is an endpoint."""
    found = [_not_reached(pod, pod["metadata"]["name"] in listed) for pod in pods]
    return f"{'; '.join(found[:3])}." if found else "no pod has the labels that the Service selects."


def _not_reached(pod: Object, listed: bool) -> str:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if find_condition(status, "Ready") is None:
        return f"pod {name} is not ready"
    how = "is ready, and its EndpointSlice does not say so yet" if listed else "is ready, but in no EndpointSlice yet"
    return f"pod {name} {how}"


def _endpoints(found: Object) -> list[Object]:
    return found.get("endpoints") or []


def _ready_pods(endpoints: Object) -> Iterator[str]:
    """Names of the pods that accept connections. By the API's definition, unknown readiness counts as ready."""
    for endpoint in _endpoints(endpoints):
        if (endpoint.get("conditions") or {}).get("ready") is not False:
            yield (endpoint.get("targetRef") or {}).get("name", "")


def _known_since(endpoints: Object, pod: Object) -> Iterator[str]:
    """Times before which no node can have known the pod as an endpoint."""
    yield endpoints["metadata"]["creationTimestamp"]
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Ready" and condition.get("lastTransitionTime"):
            yield condition["lastTransitionTime"]


def _settling(times: list[str], now: datetime) -> float:
    """Seconds left to settle since the latest of the times. A time in the future comes from a wrong clock: ignored."""
    ages = [(now - parse_timestamp(time)).total_seconds() for time in times]
    return max(0.0, SETTLING_SECONDS - min((age for age in ages if age >= 0), default=SETTLING_SECONDS))
