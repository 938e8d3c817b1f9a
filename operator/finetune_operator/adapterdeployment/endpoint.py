"""Which pods clients of the public Service reach: its EndpointSlices say so, and nodes follow them a moment later."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from finetune_api.adapterdeployment import RevisionStatus
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.framework.conditions import ConditionType, parse_timestamp
from finetune_operator.framework.objects import Object

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
    elsewhere: bool = False
    """Clients may still be sent to pods of another revision."""
    due_after: float | None = None
    """Seconds until it is settled, if nothing else happens."""


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
    return EndpointState(
        answers=left == 0 or (answered and bool(ready)),
        settled=left == 0,
        elsewhere=any(name not in pods for name, _ in ready),
        due_after=left or None,
    )


def _ready_pods(endpoints: Object) -> Iterator[str]:
    """Names of the pods that accept connections. By the API's definition, unknown readiness counts as ready."""
    for endpoint in endpoints.get("endpoints") or []:
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
