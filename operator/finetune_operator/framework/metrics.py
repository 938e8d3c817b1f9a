"""What the operator tells Prometheus about itself. One registry for the process, as Prometheus' own libraries have it.

What happens is counted where it happens. What holds at the moment (``Snapshot``) is computed when somebody asks. No
label holds the name of an object or a namespace: there are thousands, and a metric for each costs Prometheus more than
the operator. docs/how-to/operate.md explains each.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_operator.framework.objects import Object
from finetune_operator.framework.workqueue import QueueState

REGISTRY: Final = CollectorRegistry()
"""All metrics of the process."""
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for

RECONCILE_SECONDS: Final = Histogram(
    "finetune_operator_reconcile_duration_seconds",
    "Reconciliations by kind and result (ok, api_error, defect), and how long they took",
    ["kind", "result"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
API_SECONDS: Final = Histogram(
    "finetune_operator_api_request_duration_seconds",
    "Seconds until the API server answered, by verb; watches are not included",
    ["verb"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
API_REQUESTS: Final = Counter(
    "finetune_operator_api_requests",
    "Requests to the API server by verb, resource and code; code 0 means no answer",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
PROGRESS_READINGS: Final = Counter(
    "finetune_operator_progress_readings",
    "Readings of running pods' progress by result (ok, failed)",
    ["result"],
    registry=REGISTRY,
)


class PhaseAndReason(NamedTuple):
    """What a custom resource says of itself in a word each."""

    kind: str
    phase: str
    reason: str


class Degraded(NamedTuple):
    """A custom resource whose condition Degraded is True."""

    kind: str


@dataclass(frozen=True)
class Snapshot(Collector):
    """What holds at the moment of a scrape."""

    version: str
    """Version of the operator."""
    queue: Callable[[], QueueState]
    """The work queue."""
    resources: Callable[[], Mapping[PhaseAndReason, int]]
    """How many custom resources there are."""
    degraded: Callable[[], int]
    """How many AdapterDeployments are degraded."""
    leads: Callable[[], bool]
    """Whether this replica is the one that works."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the registry."""
        info = GaugeMetricFamily("finetune_operator_info", "Always 1; the version is a label", labels=["version"])
        info.add_metric([self.version], 1)
        yield info
        yield _gauge("leader", "1 on the active replica, 0 on those in standby", self.leads())
        state = self.queue()
        yield _gauge("queue_depth", "Resources waiting to be reconciled", state.waiting)
        yield _gauge("queue_working", "Resources being reconciled", state.working)
        yield _gauge("queue_wait_seconds", "Time that the first resource in the queue has waited", state.longest_wait)
        yield _gauge(
            "unreconciled_seconds",
            "Age of the oldest due reconciliation that has not succeeded: queued, failing or in progress",
            state.longest_unreconciled,
        )
        yield _gauge(
            "degraded_endpoints",
            "AdapterDeployments with pods that no longer answer as evaluated",
            self.degraded(),
        )
        resources = GaugeMetricFamily(
            "finetune_operator_resources",
            "Custom resources by kind, phase and reason of the condition Ready",
            labels=["kind", "phase", "reason"],
        )
        for each, count in sorted(self.resources().items()):
            resources.add_metric(each, count)
        yield resources


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"finetune_operator_{name}", text, value=float(value))


def phase_and_reason(kind: str) -> Callable[[Object], PhaseAndReason]:
    """What a custom resource of this kind says; phase and reason are empty as long as it has no status."""

    def of(resource: Object) -> PhaseAndReason:
        reasons = [each.get("reason", "") for each in _conditions(resource) if each.get("type") == "Ready"]
        phase = (resource.get("status") or {}).get("phase")
        return PhaseAndReason(kind, _word(phase), _word(reasons[0]) if reasons else "")

    return of


def degraded(kind: str) -> Callable[[Object], Degraded | None]:
    """Whether a custom resource of this kind is degraded."""

    def of(resource: Object) -> Degraded | None:
        shown = any((each.get("type"), each.get("status")) == ("Degraded", "True") for each in _conditions(resource))
        return Degraded(kind) if shown else None

    return of


def _word(found: object) -> str:
    """Empty where another version of the CRD made something else of it."""
    return found if isinstance(found, str) else ""


def _conditions(resource: Object) -> list[Object]:
    """Those of a status; none where another version of the CRD made something else of them."""
    conditions = (resource.get("status") or {}).get("conditions")
    return [each for each in conditions if isinstance(each, dict)] if isinstance(conditions, list) else []


class Request(NamedTuple):
    """What a request asks of the API server, in the words of RBAC; server-side apply, a patch there, is ``apply``."""

    verb: str
    resource: str
    """The plural, with the subresource if there is one."""


_VERBS: Final = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


def request_of(method: str, url: str) -> Request:
    """The verb and the resource of a request, which follow from its path as they do in the API server."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    place = parts.path.strip("/").split("/")
    place = place[2:] if place[0] == "api" else place[3:]
    if place[:1] == ["namespaces"] and len(place) > 2:
        place = place[2:]
    plural, name, subresource = (*place, "", "", "")[:3]
    if method == "GET":
        verb = "get" if name else "watch" if "watch" in query else "list"
    else:
        verb = "apply" if "fieldManager" in query else _VERBS.get(method, method.lower())
    return Request(verb, f"{plural}/{subresource}" if subresource else plural)


class _Call:
    """A request under way."""

    code = 0
    """The status that the server answered; 0: it has not answered."""


@contextmanager
def api_call(method: str, url: str) -> Iterator[_Call]:
    """Count one request to the API server and measure it; who sends it sets the code."""
    request, call, began = request_of(method, url), _Call(), time.monotonic()
    try:
        yield call
    finally:
        API_REQUESTS.labels(request.verb, request.resource, call.code).inc()
        if request.verb != "watch":
            API_SECONDS.labels(request.verb).observe(time.monotonic() - began)


def serve(address: str, snapshot: Snapshot) -> None:
    """Answer scrapes on ``host:port`` from now on, on threads of their own. Raises OSError if the port is taken."""
    REGISTRY.register(snapshot)
    host, _, port = address.rpartition(":")
    start_http_server(int(port), host, REGISTRY)
