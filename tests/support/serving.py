"""A cluster in memory for AdapterDeployments: objects in dictionaries, and controllers that are a few lines each.

The plan is the real one; what stands in here is the API server (create, apply, patch, delete), the Deployment and Job
controllers, and pods whose fate depends on the artifact that they serve. Real API semantics are tested against a real
API server (tests/controlplane).
"""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.endpoint_stages import PUBLISHED_AT, REPLACED_WITHDRAWN, AnalyseParams, FollowParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import (
    AdapterDeploymentStatus,
    AnalysisOutcome,
    CheckOutcome,
    ServingPhase,
    VerificationCheck,
)
from finetune_api.stages import Outcome, Stage, StageInput, StageResult
from finetune_api.verification import WithdrawnPolicy
from finetune_operator.adapterdeployment.delivery import is_of_delivery
from finetune_operator.adapterdeployment.look import is_of_look
from finetune_operator.adapterdeployment.observe import ObservedDeployment, Source
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.adapterdeployment.turns import contenders_for
from finetune_operator.framework.actions import Action, Apply, Create, Delete, Event, Patch, Plan
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, SERVICES, Object, Resource
from finetune_operator.framework.ownership import controller_uid
from finetune_operator.resources.service import names_no_revision, serving_revision_of
from finetune_operator.settings import Settings
from tests.support.copies import copied
from tests.support.played_pods import (
    FATES,
    GOOD,
    UNSCHEDULABLE,
    adapter_checks,
    checks,
    is_ready,
    job_pod,
    outcome_of,
    pod_status,
    served,
    server_pod,
)
from tests.support.serving_specs import SETTINGS, pinned

START = datetime(2026, 1, 1, tzinfo=UTC)
_PLAYED = (DEPLOYMENTS, JOBS)
"""Kinds whose controllers are played."""


@dataclass
class ServingCluster:
    """One AdapterDeployment called ``demo``, its children and the time."""

    spec: dict[str, Any] = field(default_factory=lambda: pinned(GOOD))
    source: Source | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Those of adapters, by the names of their FineTuneJobs."""
    namespace: str = "team"
    uid: str = "uid-of-demo"
    generation: int = 1
    others: Sequence[Object] = ()
    """Other AdapterDeployments."""
    settings: Settings = SETTINGS
    service_account: bool = True
    status: AdapterDeploymentStatus = field(default_factory=AdapterDeploymentStatus)
    now: datetime = START
    objects: dict[Resource, dict[str, Object]] = field(default_factory=dict)
    pods: dict[str, list[Object]] = field(default_factory=dict)
    """Pods by the name of their Deployment or Job."""
    job_events: dict[str, list[Object]] = field(default_factory=dict)
    """Events by the name of their Job."""
    slices: dict[str, Object] = field(default_factory=dict)
    """EndpointSlices by the name of their Service."""
    events: list[Event] = field(default_factory=list)
    room: int = 1000
    """So many pods find a node."""
    analysis: AnalysisOutcome = AnalysisOutcome.PASSED
    """What the servers' metrics say of a canary. Running: its analysis does not end."""
    analysed: list[AnalyseParams] = field(default_factory=list)
    """What the analyses that ended were told."""
    loading: set[str] = field(default_factory=set)
    """Digests of artifacts whose servers never finish loading."""
    setbacks: list[Reason] = field(default_factory=list)
    """Why the next verifications fail for a cause outside of the revision, one after the other."""
    withdrawn: dict[str, str] = field(default_factory=dict)
    """By whom artifacts are marked as withdrawn in the store, by digest."""
    channel: str | Reason = ""
    """The digest to which the followed channel points, or why a look at it fails; empty: its Job does not end."""
    looks: list[FollowParams] = field(default_factory=list)
    """What the looks at the channel that ended were told."""
    annotations: dict[str, str] = field(default_factory=dict)
    asked_of: list[tuple[list[str], list[str]]] = field(default_factory=list)
    """Which pods the Jobs asked that wait for adapters on running pods, and for which adapters."""
    watch: Callable[["ServingCluster"], None] = lambda _: None
    """Called after every change of an object: the place for what must always hold."""
    refuse: Callable[["ServingCluster", Action], str] = lambda _cluster, _action: ""
    """What the API server says of an action that it does not take (a quota, a policy); empty: it takes it."""
    _sequence: int = 0
    _writes: int = 0
    """Actions that have changed an object."""

    def __deepcopy__(self, memo: object) -> "ServingCluster":
        """The same, which goes its own way. What nothing changes is shared; a watch may remember what it saw."""
        shared = ("source", "sources", "settings", "status", "watch", "refuse")
        own = copied({name: value for name, value in vars(self).items() if name not in shared})
        return replace(self, watch=copy.deepcopy(self.watch), **own)

    # What the operator does

    def raw(self) -> Object:
        """The resource as the API server has it."""
        metadata: Object = {"name": "demo", "namespace": self.namespace, "uid": self.uid}
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
            children={resource: dict(found) for resource, found in self.objects.items()},
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
        kind = self.objects.setdefault(action.resource, {})
        before = dict(kind)
        match action:
            case Create(_, body):
                name = body["metadata"]["name"]
                assert name not in kind, f"{name} is created twice"
                kind[name] = self._stored(body)
            case Apply(_, body):
                name = body["metadata"]["name"]
                kind[name] = self._updated(kind[name], body)
            case Patch(_, name, body):
                kind[name] = self._updated(kind[name], body)
            case Delete(_, name, uid):
                assert kind[name]["metadata"]["uid"] == uid
                del kind[name]
                self.pods.pop(name, None)
        self._writes += kind != before
        self.watch(self)

    # What the cluster does

    def run_controllers(self) -> None:
        """The controllers of Deployments, endpoints and Jobs, and the kubelet, until they have nothing to do."""
        self.run_deployments()
        self.run_endpoints()
        for name, job in self.objects.get(JOBS, {}).items():
            if not job.get("status"):
                self._run_job(name, job)

    def run_deployments(self) -> None:
        """Deployments alone: a verification takes its time."""
        for name, deployment in self.objects.get(DEPLOYMENTS, {}).items():
            self._run_deployment(name, deployment)

    def run_endpoints(self) -> None:
        """The controller of endpoints: each Service's are the pods that it selects."""
        pods = [pod for name in self.objects.get(DEPLOYMENTS, {}) for pod in self.pods.get(name, [])]
        services = self.objects.get(SERVICES, {})
        self.slices = {name: self._endpoints(name, service, pods) for name, service in services.items()}

    def _endpoints(self, name: str, service: Object, pods: list[Object]) -> Object:
        known, owner = self.slices.get(name), {"uid": service["metadata"]["uid"], "controller": True}
        metadata = {"creationTimestamp": timestamp(self.now), "ownerReferences": [owner]}
        if known is not None and controller_uid(known) == owner["uid"]:
            metadata = known["metadata"]
        selected = [pod for pod in pods if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()]
        endpoints = [
            {"targetRef": {"kind": "Pod", "name": pod["metadata"]["name"]}, "conditions": {"ready": is_ready(pod)}}
            for pod in selected
        ]
        return {"metadata": metadata, "endpoints": endpoints}

    def _run_deployment(self, name: str, deployment: Object) -> None:
        digest, wanted = served(deployment["spec"]["template"]["spec"]), deployment["spec"]["replicas"]
        labels, pods = deployment["spec"]["template"]["metadata"]["labels"], self.pods.get(name, [])[:wanted]
        self.pods[name] = pods
        for number in range(len(pods), wanted):
            pods.append(server_pod(name, f"{name}-{number}", labels, copied(UNSCHEDULABLE)))
            pods[-1]["metadata"]["creationTimestamp"] = timestamp(self.now)
        for pod in pods:
            waits = "startTime" not in pod["status"] and self.held() < self.room
            if waits or (pod["metadata"].pop("loads", False) and digest not in self.loading):
                pod["status"] = self._started(digest)
            if "startTime" in pod["status"] and digest in self.loading and not is_ready(pod):
                pod["metadata"]["loads"] = True
        ready = sum(map(is_ready, pods))
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": wanted,
            "updatedReplicas": wanted,
            "readyReplicas": ready,
            "availableReplicas": ready,
        }

    def _started(self, digest: str) -> Object:
        """The status of a pod that has a node."""
        fate = FATES[digest]
        ready = fate not in (Reason.ARTIFACT_CORRUPT, Reason.CANDIDATE_FAILED) and digest not in self.loading
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": timestamp(self.now)}
        self._sequence += 1
        running = {"phase": "Running", "podIP": f"10.0.0.{self._sequence}", "startTime": timestamp(self.now)}
        return pod_status(fate) | running | {"conditions": [condition]}

    def _run_job(self, name: str, job: Object) -> None:
        if job["metadata"]["labels"][meta.LABEL_STAGE] == Stage.ANALYSE:
            self._analyse(name, job)
            return
        if is_of_look(job):
            self._look(name, job)
            return
        if is_of_delivery(job):
            self._deliver(name, job)
            return
        revision = job["metadata"]["labels"][meta.LABEL_REVISION]
        deployment = self.objects[DEPLOYMENTS].get(f"demo-{revision}")
        if deployment is None or not deployment.get("status", {}).get("readyReplicas"):
            return
        digest = served(deployment["spec"]["template"]["spec"])
        fate = Reason.ARTIFACT_WITHDRAWN if self._is_refused(name, digest) else FATES[digest]
        setback = self.setbacks.pop(0) if self.setbacks else None
        if setback is not None:
            self._set_back(name, job, setback)
            return
        ended = "Complete" if fate is None else "Failed"
        job["status"] = {"conditions": [{"type": ended, "status": "True"}]}
        if fate is None:
            job["status"]["completionTime"] = timestamp(self.now)
        result = StageResult(
            stage=Stage.VERIFY,
            outcome=Outcome.SUCCEEDED if fate is None else Outcome.FAILED,
            reason=fate or Reason.VERIFIED,
            message="The answers agree." if fate is None else "The answers are those of the base model.",
            scalars={"accuracy": "0.9000", "expectedAccuracy": "0.9100", **self._told(name)} if fate is None else {},
            checks=adapter_checks(deployment["spec"]["template"]["spec"]) or checks(fate),
        )
        self.pods[name] = [job_pod(job, result)]

    def _set_back(self, name: str, job: Object, setback: Reason) -> None:
        """A verification that could not be done, in all of its Job's attempts."""
        ended = {"type": "Failed", "status": "True", "lastTransitionTime": timestamp(self.now)}
        job["status"] = {"conditions": [ended | {"reason": "BackoffLimitExceeded"}]}
        said = f"{setback}: it does not answer."
        result = StageResult(stage=Stage.VERIFY, outcome=Outcome.FAILED, reason=setback, message=said)
        self.pods[name] = [job_pod(job, result, meta.ExitCode.RETRIABLE)]

    def _is_refused(self, name: str, digest: str) -> bool:
        """Whether the policy that a verification is told of refuses the artifact."""
        asked = StageInput.model_validate_json(self.objects[CONFIG_MAPS][name]["data"]["input.json"]).params.verify
        return digest in self.withdrawn and asked is not None and asked.withdrawn is WithdrawnPolicy.REFUSE

    def _told(self, name: str) -> dict[str, str]:
        """What a verification finds of the withdrawal of what serves until then."""
        asked = StageInput.model_validate_json(self.objects[CONFIG_MAPS][name]["data"]["input.json"]).params.verify
        replaced = asked.replaced if asked else []
        said = [self.withdrawn[each.digest] for each in replaced if each.digest in self.withdrawn]
        return {REPLACED_WITHDRAWN: "; ".join(said)} if replaced else {}

    def _deliver(self, name: str, job: Object) -> None:
        """What running pods say of adapters that they are told of, by the fates of these."""
        asked = StageInput.model_validate_json(self.objects[CONFIG_MAPS][name]["data"]["input.json"]).params.verify
        assert asked is not None
        self.asked_of.append((list(asked.pods), [each.name for each in asked.adapters]))
        if any(each.digest in self.loading for each in asked.adapters):
            return
        fates = {each.name: FATES[each.digest] for each in asked.adapters}
        made = [VerificationCheck(name=each, outcome=outcome_of(fate)) for each, fate in fates.items()]
        reasons = [fate for fate in fates.values() if fate]
        job["status"] = {"conditions": [{"type": "Failed" if reasons else "Complete", "status": "True"}]}
        result = StageResult(
            stage=Stage.VERIFY,
            outcome=Outcome.FAILED if reasons else Outcome.SUCCEEDED,
            reason=reasons[0] if reasons else Reason.VERIFIED,
            message="It answers like the base." if reasons else "All of them have proved it.",
            checks=made,
        )
        self.pods[name] = [job_pod(job, result)]

    def _look(self, name: str, job: Object) -> None:
        """What a Job finds in the store."""
        asked = StageInput.model_validate_json(self.objects[CONFIG_MAPS][name]["data"]["input.json"]).params.follow
        assert asked is not None
        if not self.channel:
            return
        self.looks.append(asked)
        fails = self.channel if isinstance(self.channel, Reason) else None
        ended = {"type": "Failed" if fails else "Complete", "status": "True", "lastTransitionTime": timestamp(self.now)}
        job["status"] = {"conditions": [ended], **({} if fails else {"completionTime": timestamp(self.now)})}
        result = StageResult(
            stage=Stage.FOLLOW,
            outcome=Outcome.FAILED if fails else Outcome.SUCCEEDED,
            reason=fails or Reason.STAGE_SUCCEEDED,
            message="s3://m/team/channels/demo/stable.json: nothing there." if fails else "It points there.",
            output_digest="" if fails else self.channel,
            scalars={} if fails else {PUBLISHED_AT: timestamp(START)},
        )
        self.pods[name] = [job_pod(job, result)]

    def _analyse(self, name: str, job: Object) -> None:
        """A canary fails its analysis at once; anything else shows at its end."""
        asked = StageInput.model_validate_json(self.objects[CONFIG_MAPS][name]["data"]["input.json"]).params.analyse
        assert asked is not None
        failed = self.analysis is AnalysisOutcome.FAILED
        if self.analysis is AnalysisOutcome.RUNNING or (not failed and timestamp(self.now) < asked.until):
            return
        self.analysed.append(asked)
        job["status"] = {"conditions": [{"type": "Failed" if failed else "Complete", "status": "True"}]}
        outcomes = {AnalysisOutcome.FAILED: CheckOutcome.FAILED, AnalysisOutcome.PASSED: CheckOutcome.PASSED}
        outcome = outcomes.get(self.analysis, CheckOutcome.SKIPPED)
        result = StageResult(
            stage=Stage.ANALYSE,
            outcome=Outcome.FAILED if failed else Outcome.SUCCEEDED,
            reason=Reason.ANALYSIS_FAILED if failed else Reason.STAGE_SUCCEEDED,
            message=f"31 of 120 requests failed: {self.analysis}.",
            scalars={} if failed else {"analysis": self.analysis.value},
            checks=[VerificationCheck(name="failedRequests", expected="4 of 362", seen="31 of 120", outcome=outcome)],
        )
        self.pods[name] = [job_pod(job, result)]

    def _stored(self, body: Object) -> Object:
        self._sequence += 1
        stored = copied(body)
        stored["metadata"] |= {
            "uid": f"uid-{self._sequence}",
            "generation": 1,
            "creationTimestamp": timestamp(self.now),
        }
        return stored

    def _updated(self, live: Object, body: Object) -> Object:
        merged: Object = _merge(live, body)
        if merged.get("spec") != live.get("spec"):
            merged["metadata"]["generation"] = live["metadata"]["generation"] + 1
        return merged

    # What tests ask

    def held(self) -> int:
        """Serving pods that have a node."""
        return sum(map(self.held_by, self.objects.get(DEPLOYMENTS, {})))

    def held_by(self, deployment: str) -> int:
        """Pods of a Deployment that have a node."""
        return sum("startTime" in pod["status"] for pod in self.pods.get(deployment, []))

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


def _merge(live: Any, body: Any) -> Any:
    if isinstance(live, dict) and isinstance(body, dict):
        # Selectors are replaced as a whole.
        return live | {k: copied(v) if k == "selector" else _merge(live.get(k), v) for k, v in body.items()}
    return copied(body)
