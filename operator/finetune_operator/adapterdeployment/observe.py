"""What is observed: one AdapterDeployment, its source, and its children."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from typing import Final

from pydantic import ValidationError

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeployment, AdapterDeploymentSpec
from finetune_api.artifact_source import AdapterSource, FineTuneJobRef
from finetune_api.base import ObjectMeta
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.job_status import ArtifactStatus
from finetune_api.reasons import Reason
from finetune_api.routes import Route
from finetune_api.serving_status import AdapterDeploymentStatus
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.route_claims import Holder, Host, address_on, addresses, has_address, holder
from finetune_operator.adapterdeployment.stored_record import Record, read_record
from finetune_operator.adapterdeployment.turns import Contender, Line, contenders_for
from finetune_operator.blockers import Choice
from finetune_operator.framework.cache import ROUTES, Cache
from finetune_operator.framework.client import KubeClient
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    ENDPOINT_SLICES,
    JOBS,
    NETWORK_POLICIES,
    PODS,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.framework.ownership import Owner, controller_of, controller_uid
from finetune_operator.framework.reading import ServiceAccounts, Unplanned, parse_spec, parse_status
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS
from finetune_operator.outcome.no_pod import creation_events
from finetune_operator.outcome.pod import is_disrupted, read_result
from finetune_operator.resources.deployment import deployment_name, server_labels
from finetune_operator.resources.service import serving_revision_of
from finetune_operator.settings import Settings

JOB_NAME_LABEL: Final = "batch.kubernetes.io/job-name"
_CHILDREN: Final = (
    *(DEPLOYMENTS, JOBS, SERVICES, NETWORK_POLICIES, CONFIG_MAPS, CONTROLLER_REVISIONS),
    DISRUPTION_BUDGETS,
)


@dataclass(frozen=True)
class Source:
    """The FineTuneJob whose artifact is served."""

    phase: str
    artifact: ArtifactStatus | None
    """What it has published, if anything."""
    storage: Storage
    """The storage in its current spec."""


@dataclass(frozen=True)
class ObservedDeployment:
    """Everything that the plan may depend on, as it was read in one reconciliation."""

    resource: AdapterDeployment
    """The custom resource."""
    settings: Settings
    """What the platform's admin decided."""
    source: Source | None = None
    """The FineTuneJob that the spec names, if it exists."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Those that the spec's adapters name, by their names, as far as they exist."""
    service_account: bool = True
    """Whether the runtime's ServiceAccount exists; True where the runtime is unknown."""
    children: Mapping[Resource, Mapping[str, Object]] = field(default_factory=dict)
    """Objects that the resource owns, by kind and name."""
    pods: tuple[Object, ...] = ()
    """Pods of its Deployments and Jobs."""
    job_events: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    """Events of its Jobs that should have a pod and have none, by the Job's name."""
    slices: tuple[Object, ...] = ()
    """EndpointSlices of its public Service."""
    contenders: tuple[Contender, ...] = ()
    """The AdapterDeployments, this one too, that are rolled out or wait for it; empty unless this one has to know."""
    conflicts: tuple[str, ...] = ()
    """Objects of another owner, as "Kind name", whose names the plan needs."""
    pending_deletion: tuple[str, ...] = ()
    """Objects of a deleted AdapterDeployment of this name that the garbage collector has not deleted yet."""
    refusal: str = ""
    """What the API server said when it refused an object of the plan (a quota, a policy)."""
    unmet: Mapping[str, str] = field(default_factory=dict)
    """Why optional objects could not be made, changed or deleted: the disruption budget, the route, the look at a
    channel."""
    lacking: frozenset[Resource] = frozenset()
    """Kinds of routes that the API server does not have."""
    holders: tuple[Holder, ...] = ()
    """Who has addresses of the spec's route before this one."""

    @cached_property
    def owner(self) -> Owner:
        """The custom resource as its children see it."""
        return Owner.of(ADAPTERDEPLOYMENTS, self.resource.metadata)

    @property
    def traffic(self) -> str:
        """Revision that the public Service points to, alone or beside a canary; empty without one."""
        service = self.child(SERVICES, self.owner.name)
        return serving_revision_of(service) if service else ""

    @property
    def choice(self) -> Choice:
        """The runtime that the spec asks for."""
        return Choice("runtime", self.resource.spec.runtime, self.settings.runtimes, Reason.RUNTIME_UNKNOWN)

    @cached_property
    def records(self) -> Mapping[str, Record]:
        """What the pods of its revisions are made of, by revision. One that this version cannot read counts as missing.
        A plan asks for them a dozen times."""
        found = map(read_record, self.children.get(CONTROLLER_REVISIONS, {}).values())
        return {record.revision: record for record in found if record is not None}

    def child(self, resource: Resource, name: str) -> Object | None:
        """One child, if it exists."""
        return self.children.get(resource, {}).get(name)

    def server_pods(self, revision: str, *, lost: bool = False) -> list[Object]:
        """Serving pods of a revision, without those that are being deleted.

        ``lost``: with those that are being deleted because they or their node had to go.
        """
        return [
            pod
            for pod in self._server_pods.get(revision, ())
            if "deletionTimestamp" not in pod["metadata"] or (lost and is_disrupted(pod))
        ]

    @cached_property
    def _server_pods(self) -> Mapping[str, list[Object]]:
        """All of them, by revision. A plan asks for them half a dozen times."""
        found: dict[str, list[Object]] = {}
        for pod in self.pods:
            labels = pod["metadata"].get("labels") or {}
            revision = labels.get(meta.LABEL_REVISION, "")
            wanted, name = server_labels(self.owner, revision), deployment_name(self.owner, revision)
            if wanted.items() <= labels.items() and _of_deployment(pod, name) and not self._is_left_over(pod, name):
                found.setdefault(revision, []).append(pod)
        return found

    def _is_left_over(self, pod: Object, deployment: str) -> bool:
        """Whether a pod is one of a deleted resource of this name, whose Deployments had the same names: what it has
        come to says nothing of this one's revisions.

        It is older than both the resource and the Deployment. Once a revision serves, such pods have gone; one that
        looks older then is of a clock that was set back, or of a Deployment that has adopted it.
        """
        if self.resource.status.stable is not None:
            return False
        born, live = self.resource.metadata.creation_timestamp, self.child(DEPLOYMENTS, deployment) or {}
        since = min(born, (live.get("metadata") or {}).get("creationTimestamp", born))
        return bool(pod["metadata"].get("creationTimestamp", since) < since)

    def job_pods(self, job: Object) -> list[Object]:
        """Pods of a Job, oldest first."""
        return sorted(pods_of(job, self.pods), key=lambda pod: str(pod["metadata"].get("creationTimestamp")))


UnplannedDeployment = Unplanned[AdapterDeploymentSpec, AdapterDeploymentStatus]


class DeploymentObserver:
    """Reads what a plan needs, almost all of it from the cache."""

    def __init__(self, client: KubeClient, cache: Cache, settings: Settings) -> None:
        self._client = client
        self._cache = cache
        self._settings = settings
        self._accounts = ServiceAccounts(client, cache)

    def observe(self, raw: Object, now: datetime) -> ObservedDeployment | UnplannedDeployment:
        """One AdapterDeployment as it is now. Raises ApiError."""
        metadata = ObjectMeta.model_validate(raw["metadata"])
        status = parse_status(AdapterDeploymentStatus, raw.get("status") or {})
        spec, problem = parse_spec(AdapterDeploymentSpec, raw.get("spec") or {})
        if spec is None:
            return Unplanned(metadata, status, Reason.SPEC_INVALID, problem)
        owner = Owner.of(ADAPTERDEPLOYMENTS, metadata)
        children = {resource: self._children(owner, resource) for resource in (*_CHILDREN, *ROUTES)}
        jobs = children[JOBS]
        lacking = frozenset(each for each in ROUTES if self._cache.lacks(each))
        pods = self._pods(owner, jobs.values())
        theirs, outlived = ((), False) if owner.name in children[SERVICES] else self._service_of_others(owner)
        return ObservedDeployment(
            resource=AdapterDeployment(metadata=metadata, spec=spec, status=status),
            settings=self._settings,
            source=self._source(owner.namespace, spec.source.fine_tune_job),
            sources=self._sources(owner.namespace, spec.source.adapters or []),
            service_account=self._has_account(owner.namespace, spec.runtime),
            children=children,
            pods=pods,
            job_events={
                name: creation_events(self._client, job, pods_of(job, pods), now) for name, job in jobs.items()
            },
            slices=self._slices(owner, children[SERVICES].get(owner.name)),
            contenders=contenders_for(status.candidate, self._cache.indexed(Line.ROLLOUTS)),
            lacking=lacking,
            holders=tuple(self._holders(raw, spec.access.route, lacking)),
            conflicts=() if outlived else theirs,
            pending_deletion=theirs if outlived else (),
        )

    def without_api(self, resource: Object, said: str) -> UnplannedDeployment:
        """What the resource itself shows, while calls to the API fail with this error."""
        status = parse_status(AdapterDeploymentStatus, resource.get("status") or {})
        return Unplanned(ObjectMeta.model_validate(resource["metadata"]), status, Reason.API_CALLS_FAIL, said)

    def _children(self, owner: Owner, resource: Resource) -> dict[str, Object]:
        """The owner's children of a kind; objects of others may carry its labels."""
        found = self._cache.children(owner.key, resource)
        return {child["metadata"]["name"]: child for child in found if owner.owns(child)}

    def _pods(self, owner: Owner, jobs: Iterable[Object]) -> tuple[Object, ...]:
        """Pods from the cache; those of a finished Job from the API, as the pod's result may arrive after the Job's."""
        pods = {pod["metadata"]["name"]: pod for pod in self._cache.children(owner.key, PODS)}
        for job in jobs:
            if is_finished(job) and not any(map(read_result, pods_of(job, pods.values()))):
                labels = f"{JOB_NAME_LABEL}={job['metadata']['name']}"
                pods |= {pod["metadata"]["name"]: pod for pod in self._client.select(PODS, owner.namespace, labels)}
        return tuple(pods.values())

    def _slices(self, owner: Owner, service: Object | None) -> tuple[Object, ...]:
        """EndpointSlices of this Service; those of a deleted Service of its name are about to be deleted."""
        if service is None:
            return ()
        found = self._cache.children(owner.key, ENDPOINT_SLICES)
        return tuple(each for each in found if controller_uid(each) == service["metadata"]["uid"])

    def _holders(self, raw: Object, route: Route | None, lacking: frozenset[Resource]) -> Iterator[Holder]:
        """Who has those of the addresses that somebody has before this one."""
        for address in addresses(route) if route else ():
            asking, has = self._cache.indexed(Host(address.host)), partial(self._has, address.host)
            if found := holder(raw, asking, address, self._settings, has, lacking):
                yield found

    def _has(self, host: str, raw: Object) -> bool:
        address = address_on(raw, host)
        if address is None:
            return False
        owner = Owner.of(ADAPTERDEPLOYMENTS, ObjectMeta.model_validate(raw["metadata"]))
        routes = [each for resource in ROUTES for each in self._children(owner, resource).values()]
        return has_address(raw, routes, address)

    def _sources(self, namespace: str, adapters: Sequence[AdapterSource]) -> dict[str, Source]:
        asked = [each.fine_tune_job for each in adapters if each.fine_tune_job is not None]
        return {job.name: found for job in asked if (found := self._source(namespace, job)) is not None}

    def _source(self, namespace: str, asked: FineTuneJobRef | None) -> Source | None:
        if asked is None:
            return None
        raw = self._cache.get(FINETUNEJOBS, namespace, asked.name)
        if raw is None:
            return None
        job, _ = parse_spec(FineTuneJobSpec, raw.get("spec") or {})
        status = raw.get("status") or {}
        artifact = published_artifact(status) if job else None
        return Source(str(status.get("phase") or ""), artifact, job.output_storage if job else Storage())

    def _service_of_others(self, owner: Owner) -> tuple[tuple[str, ...], bool]:
        """A Service of another owner with the public name, and whether that owner is deleted."""
        service = self._client.get(SERVICES, owner.namespace, owner.name)
        if service is None or owner.owns(service):
            return (), False
        return (f"{SERVICES.kind} {owner.name}",), owner.outlived(service)

    def _has_account(self, namespace: str, runtime: str) -> bool:
        known = self._settings.runtimes.get(runtime)
        return known is None or self._accounts.exists(namespace, known.service_account_name)


def published_artifact(status: Object) -> ArtifactStatus | None:
    """What a FineTuneJob has published, from its stored status, whether or not the rest of that can be read."""
    try:
        return ArtifactStatus.model_validate(status.get("artifact"), extra="ignore")
    except ValidationError:
        return None


def pods_of(job: Object, pods: Iterable[Object]) -> list[Object]:
    """Those of the pods that a Job made."""
    return [pod for pod in pods if controller_uid(pod) == job["metadata"]["uid"]]


def _of_deployment(pod: Object, name: str) -> bool:
    """Whether a ReplicaSet of this Deployment made the pod. Labels alone say nothing."""
    controller = controller_of(pod)
    return controller.get("kind") == "ReplicaSet" and str(controller.get("name")).startswith(f"{name}-")


def is_finished(job: Object) -> bool:
    """Whether a Job completed or failed."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)
