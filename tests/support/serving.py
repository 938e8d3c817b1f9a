"""The operator with one AdapterDeployment, in a cluster in memory: objects in dictionaries, and controllers that are a
few lines each.

The plan is the real one; what stands in is the API server (create, apply, patch, delete) and the Deployment controller
(``played_cluster.py``), Jobs (``played_jobs.py``), and pods whose fate depends on the artifact that they serve
(``played_pods.py``). Real API semantics are tested against a real API server (tests/controlplane).
"""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from typing import Any

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.serving_status import AdapterDeploymentStatus, ServingPhase
from finetune_operator.adapterdeployment.observe import ObservedDeployment, Source
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.adapterdeployment.turns import contenders_for
from finetune_operator.framework.actions import Action, Create, Event, Plan
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, SERVICES, Object, Resource
from finetune_operator.framework.ownership import controller_uid
from finetune_operator.framework.stripped import strip
from finetune_operator.resources.service import names_no_revision, serving_revision_of
from finetune_operator.settings import Settings
from tests.support.copies import copied
from tests.support.played_jobs import PlayedJobs
from tests.support.played_pods import GOOD
from tests.support.serving_specs import SETTINGS, pinned

_PLAYED = (DEPLOYMENTS, JOBS)
"""Kinds whose controllers are played."""


@dataclass
class ServingCluster(PlayedJobs):
    """One AdapterDeployment called ``demo``, its children and the time."""

    spec: dict[str, Any] = field(default_factory=lambda: pinned(GOOD))
    source: Source | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Those of adapters, by the names of their FineTuneJobs."""
    namespace: str = "team"
    uid: str = "uid-of-demo"
    created: str = ""
    """When the resource was; empty: that is not known."""
    generation: int = 1
    others: Sequence[Object] = ()
    """Other AdapterDeployments."""
    settings: Settings = SETTINGS
    service_account: bool = True
    status: AdapterDeploymentStatus = field(default_factory=AdapterDeploymentStatus)
    job_events: dict[str, list[Object]] = field(default_factory=dict)
    """Events by the name of their Job."""
    events: list[Event] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)
    watch: Callable[["ServingCluster"], None] = lambda _: None
    """Called after every change of an object: the place for what must always hold."""
    refuse: Callable[["ServingCluster", Action], str] = lambda _cluster, _action: ""
    """What the API server says of an action that it does not take (a quota, a policy); empty: it takes it."""

    def __deepcopy__(self, memo: object) -> "ServingCluster":
        """The same, which goes its own way. What nothing changes is shared; a watch may remember what it saw."""
        shared = ("source", "sources", "settings", "status", "watch", "refuse")
        own = copied({name: value for name, value in vars(self).items() if name not in shared})
        return replace(self, watch=copy.deepcopy(self.watch), **own)

    # What the operator does

    def raw(self) -> Object:
        """The resource as the API server has it."""
        metadata: Object = {"name": "demo", "namespace": self.namespace, "uid": self.uid}
        metadata |= {"creationTimestamp": self.created} if self.created else {}
        metadata |= {"generation": self.generation, "annotations": self.annotations}
        return {"metadata": metadata, "spec": self.spec, "status": self.status.model_dump(by_alias=True)}

    def observe(self) -> ObservedDeployment:
        """What the operator sees."""
        raw = self.raw()
        return ObservedDeployment(
            resource=AdapterDeployment.model_validate(raw),
            settings=self.settings,
            source=self.source,
            sources=self.sources,
            service_account=self.service_account,
            children={
                kind: {name: strip(kind, each) if kind == CONFIG_MAPS else each for name, each in found.items()}
                for kind, found in self.objects.items()
            },
            pods=tuple(pod for pods in self.pods.values() for pod in pods),
            job_events=self.job_events,
            contenders=contenders_for(self.status.candidate, (raw, *self.others)),
            slices=self._endpoints_of(self.objects.get(SERVICES, {}).get("demo")),
        )

    def _endpoints_of(self, service: Object | None) -> tuple[Object, ...]:
        known = self.slices.get("demo")
        return (known,) if service and known and controller_uid(known) == service["metadata"]["uid"] else ()

    def plan(self) -> Plan[AdapterDeploymentStatus]:
        """What the operator would do now."""
        return plan(self.observe(), self.now)

    def reconcile(self, crash_after: int | None = None) -> Plan[AdapterDeploymentStatus]:
        """One pass of the operator, which may die after some of its writes."""
        observed = self.observe()
        made, writes = plan(observed, self.now), 0
        for action in made.actions:
            if writes == crash_after:
                return made
            if said := self.refuse(self, action):
                observed = replace(observed, refusal=said)
                made = replace(plan(observed, self.now), actions=())
                break
            self.apply_action(action)
            writes += 1
        unmet: dict[str, str] = {}
        for word, actions in made.optional.items():
            for action in actions:
                if writes == crash_after:
                    return made
                if said := self.refuse(self, action):
                    unmet[word] = said
                    break
                self.apply_action(action)
                writes += 1
        if unmet:
            made = replace(plan(replace(observed, unmet=unmet), self.now), actions=made.actions)
        if crash_after is None or crash_after > writes:
            self.status = made.status
            self.events += made.events
        return made

    def goes_on(self) -> bool:
        """One pass of operator and controllers, in which no time goes by. Whether it has changed anything: if not, the
        next one would not either."""
        before = self._state()
        made = self.reconcile()
        self.run_controllers()
        return bool(made.actions) or before != self._state()

    def settle(self, passes: int = 40, within: float = math.inf) -> None:
        """Let operator, controllers and time go on until three passes in a row change nothing: an endpoint in line
        starts in the third pass after it has been recorded, a second after the one before. Where not even time goes on,
        the next pass would be the same. What is due in more than ``within`` seconds, such as the next look at a
        channel, is not waited for."""
        quiet = 0
        for _ in range(passes):
            before, then = self._state(), self.now
            made = self.reconcile()
            self.run_controllers()
            wait = math.ceil(made.requeue_after or 0)
            self.now += timedelta(seconds=wait if wait <= within else 0)
            quiet = quiet + 1 if before == self._state() and not made.actions else 0
            if quiet == 3 or (quiet and self.now == then and not made.events):
                return
        raise AssertionError(f"not quiescent after {passes} passes: {self.plan().actions}")

    def _state(self) -> list[Any]:
        """What there is now, and changes with the cluster. An object changes by writes, or gets another status as a
        whole, so that none has to be copied to be compared."""
        own = [{name: found.get("status") for name, found in self.objects.get(kind, {}).items()} for kind in _PLAYED]
        pods = {name: [pod["status"] for pod in found] for name, found in self.pods.items()}
        return [self._writes, own, pods, self.slices, self.status]

    def apply_action(self, action: Action) -> None:
        """What the API server does with an action."""
        super().apply_action(action)
        self.watch(self)

    # What the cluster does

    def run_controllers(self) -> None:
        """The controllers of Deployments, endpoints and Jobs, and the kubelet, until they have nothing to do."""
        self.run_deployments()
        self.run_endpoints()
        self.run_jobs()

    # What tests ask

    def revisions(self, resource: Resource) -> set[str]:
        """Revisions that have an object of a kind."""
        return {child["metadata"]["labels"][meta.LABEL_REVISION] for child in self.objects.get(resource, {}).values()}

    def traffic(self) -> str:
        """Revision that the public Service points to, alone or beside a canary; empty without a Service."""
        service = self.objects.get(SERVICES, {}).get("demo")
        return serving_revision_of(service) if service else ""

    def shared(self) -> bool:
        """Whether the public Service sends clients to the serving pods of all revisions."""
        service = self.objects.get(SERVICES, {}).get("demo")
        return service is not None and names_no_revision(service)


@dataclass
class Quota:
    """Takes only so many objects of a kind: for ``ServingCluster.refuse``."""

    resource: Resource
    most: int

    def __call__(self, cluster: ServingCluster, action: Action) -> str:
        full = len(cluster.objects.get(self.resource, {})) >= self.most
        refused = isinstance(action, Create) and action.resource == self.resource and full
        return f'{self.resource.plural} "x" is forbidden: exceeded quota: few' if refused else ""


def serving(digest: str = GOOD, **spec: Any) -> ServingCluster:
    """A cluster whose resource serves an artifact, at rest. The way there is gone once for each spec: hundreds of tests
    begin with the same."""
    return copy.deepcopy(_at_rest(json.dumps(pinned(digest, **spec))))


@cache
def _at_rest(spec: str) -> ServingCluster:
    cluster = ServingCluster(spec=json.loads(spec))
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    return cluster


def condition(status: AdapterDeploymentStatus, kind: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    found = next(each for each in status.conditions if each.type == kind)
    return found.status, found.reason


def shown(status: AdapterDeploymentStatus) -> dict[str, str]:
    """Conditions as they stand in a row: True, False."""
    return {each.type: each.status for each in status.conditions}


def assert_looked_at_ever_more_rarely(cluster: ServingCluster) -> None:
    """While nothing happens: after ten seconds, and in the end every two minutes."""
    looks: list[float] = []
    while len(looks) < 10:
        looks.append(cluster.reconcile().requeue_after or 0)
        cluster.now += timedelta(seconds=looks[-1])
    assert looks[0] == 10
    assert looks == sorted(looks)
    assert looks[-1] == 120
