"""What is observed: one FineTuneJob, its Jobs and pods, and what its namespace offers."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from finetune_api import meta
from finetune_api.base import ObjectMeta
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.freeze import made, means
from finetune_api.hashing import digest
from finetune_api.job_status import FineTuneJobStatus, Phase
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_operator.blockers import Choice
from finetune_operator.finetunejob.claims import job_violation
from finetune_operator.finetunejob.expiry import ExpiredObject, has_expired
from finetune_operator.finetunejob.output import output_of
from finetune_operator.finetunejob.progress import ProgressReader, Sample
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import KubeClient
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, ENDPOINT_SLICES, JOBS, PODS, SERVICES, Object
from finetune_operator.framework.ownership import Owner, controller_of, controller_uid
from finetune_operator.framework.reading import ServiceAccounts, Unplanned, parse_spec, parse_status
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.outcome.job import UNFINISHED, State, Verdict, judge
from finetune_operator.outcome.metric import within_time
from finetune_operator.outcome.no_pod import creation_events
from finetune_operator.settings import Settings

LABEL_RECOVERS: Final = f"{meta.GROUP}/recovers"
"""On a Job that recovers the result of a stage whose pod is gone: the name of that stage. Of publish it is a second Job
of publish; of the others a resolve Job, which looks the result up."""
LABEL_SERVICE: Final = "kubernetes.io/service-name"
"""Names the Service of an EndpointSlice."""
STARTED_GRACE: Final = timedelta(seconds=60)
"""How long a pod may take to start before its ConfigMap is checked."""


@dataclass(frozen=True)
class StageJob:
    """One Job of a FineTuneJob."""

    name: str
    uid: str
    run: str
    stage: str
    recovers: str
    """Stage whose lost result this Job recovers; empty for the first Job of a stage."""
    suspended: bool
    queued: bool
    """Kueue decides when it runs."""
    verdict: Verdict
    suspended_by_us: bool = False
    """The operator has suspended it, and nobody may have resumed it since."""
    age: timedelta = timedelta()
    """Since it was created."""
    asked: str = ""
    """The value of the resource's annotation for which it counts votes."""
    input_missing: bool = False
    """Its ConfigMap is gone, so its pod cannot start."""
    peers_missing: bool = False
    """The Service by which its pods find each other is gone."""
    lost_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that somebody took off it or changed, as they should be."""

    @property
    def unfinished(self) -> bool:
        """Whether it may still start pods."""
        return self.verdict.state in UNFINISHED or self.verdict.tries_again


@dataclass(frozen=True)
class ObservedJob:
    """Everything that the plan may depend on, as it was read in one reconciliation."""

    owner: Owner
    metadata: ObjectMeta
    spec: FineTuneJobSpec
    status: FineTuneJobStatus
    settings: Settings
    jobs: tuple[StageJob, ...] = ()
    """All its Jobs, of any run."""
    orphan_pods: tuple[str, ...] = ()
    """Names of its running pods whose Job is gone."""
    service_account: bool = True
    """Whether the profile's ServiceAccount exists; True where the profile is unknown."""
    conflicting_job: str = ""
    """Name of the older FineTuneJob of this namespace that publishes to the same output; empty if there is none."""
    conflicts: tuple[str, ...] = ()
    """Objects of another owner, as "Kind name", whose names the plan needs."""
    refusal: str = ""
    """What the API server said when it refused a stage's objects."""
    sample: Sample | None = None
    """Progress of the running stage, if it was read in this pass."""
    expired: tuple[ExpiredObject, ...] = ()
    """Objects of ended runs that are due to be deleted."""

    @property
    def choice(self) -> Choice:
        """The profile that the spec asks for."""
        return Choice("profile", self.spec.profile, self.settings.profiles, Reason.PROFILE_UNKNOWN)


UnplannedJob = Unplanned[FineTuneJobSpec, FineTuneJobStatus]


class JobObserver:
    """Reads what a plan needs, mostly from the cache."""

    def __init__(self, client: KubeClient, cache: Cache, settings: Settings, progress: ProgressReader) -> None:
        self._client = client
        self._cache = cache
        self._settings = settings
        self._progress = progress
        self._accounts = ServiceAccounts(client, cache)

    def observe(self, resource: Object, now: datetime) -> ObservedJob | UnplannedJob:
        """One FineTuneJob as it is now. Raises ApiError."""
        metadata = ObjectMeta.model_validate(resource["metadata"])
        status = parse_status(FineTuneJobStatus, resource.get("status") or {})
        spec, problem = parse_spec(FineTuneJobSpec, resource.get("spec") or {})
        if spec is None:
            return Unplanned(metadata, status, Reason.SPEC_INVALID, problem)
        owner = Owner.of(FINETUNEJOBS, metadata)
        live = [job for job in self._cache.children(owner.key, JOBS) if owner.owns(job)]
        pods = [pod for pod in self._cache.children(owner.key, PODS) if _of_a_stage(owner, pod)]
        live += self._unlabelled(owner, live, pods)
        by_job = defaultdict[str, list[Object]](list)
        for pod in pods:
            by_job[controller_uid(pod)].append(pod)
        jobs = tuple(self._stage_job(owner, job, by_job[job["metadata"]["uid"]], now) for job in live)
        uids = {job["metadata"]["uid"] for job in live}
        return ObservedJob(
            owner=owner,
            metadata=metadata,
            spec=spec,
            status=status,
            settings=self._settings,
            jobs=jobs,
            orphan_pods=tuple(
                pod["metadata"]["name"] for pod in pods if _runs(pod) and controller_uid(pod) not in uids
            ),
            service_account=self._has_account(owner.namespace, spec.profile),
            conflicting_job=self._conflict(resource),
            sample=self._sample(jobs),
            expired=tuple(self._expired(owner, status, jobs, now)),
        )

    def without_api(self, resource: Object, said: str) -> UnplannedJob:
        """What the resource itself shows, while calls to the API fail with this error."""
        metadata = ObjectMeta.model_validate(resource["metadata"])
        status = parse_status(FineTuneJobStatus, resource.get("status") or {})
        spec, _ = parse_spec(FineTuneJobSpec, resource.get("spec") or {})
        return Unplanned(metadata, status, Reason.API_CALLS_FAIL, said, spec)

    def _unlabelled(self, owner: Owner, live: Sequence[Object], pods: Sequence[Object]) -> Iterator[Object]:
        """Jobs of running pods that exist but are not in the cache: they lost the label by which they are watched."""
        known = {job["metadata"]["name"] for job in live}
        for name in sorted({str(controller_of(pod)["name"]) for pod in pods if _runs(pod)} - known):
            job = self._client.get(JOBS, owner.namespace, name)
            if job is not None and owner.owns(job):
                yield job

    def _stage_job(self, owner: Owner, job: Object, own: Sequence[Object], now: datetime) -> StageJob:
        lost = _lost_labels(job)
        metadata = job["metadata"] | {"labels": (job["metadata"].get("labels") or {}) | lost}
        job = job | {"metadata": metadata}
        verdict = within_time(judge(job, own, creation_events(self._client, job, own, now), now), own, now)
        age = now - parse_timestamp(metadata["creationTimestamp"])
        missing = False
        if verdict.state is State.WAITING and own and age > STARTED_GRACE:
            missing = self._client.get(CONFIG_MAPS, metadata["namespace"], metadata["name"]) is None
        labels = metadata["labels"]
        return StageJob(
            name=metadata["name"],
            uid=metadata["uid"],
            run=labels.get(meta.LABEL_RUN, ""),
            stage=labels.get(meta.LABEL_STAGE, ""),
            recovers=labels.get(LABEL_RECOVERS, ""),
            suspended=bool(job["spec"].get("suspend")),
            queued="kueue.x-k8s.io/queue-name" in labels,
            verdict=verdict,
            suspended_by_us=meta.ANNOTATION_SUSPENDED in (metadata.get("annotations") or {}),
            age=age,
            asked=(metadata.get("annotations") or {}).get(meta.ANNOTATION_REVIEW, ""),
            input_missing=missing,
            lost_labels=lost,
            peers_missing=verdict.state in (State.WAITING, State.RUNNING) and self._lacks_peers(owner, job),
        )

    def _lacks_peers(self, owner: Owner, job: Object) -> bool:
        """Whether the Service of a Job of several pods is gone. It is not read while its endpoints are watched."""
        service = job["spec"]["template"]["spec"].get("subdomain")
        slices = self._cache.children(owner.key, ENDPOINT_SLICES)
        known = {(each["metadata"].get("labels") or {}).get(LABEL_SERVICE) for each in slices}
        if not service or service in known:
            return False
        return self._client.get(SERVICES, owner.namespace, service) is None

    def _expired(
        self, owner: Owner, status: FineTuneJobStatus, jobs: Sequence[StageJob], now: datetime
    ) -> Iterator[ExpiredObject]:
        """Objects of ended runs, Jobs last: while no Job is left, nothing else is listed."""
        keep = timedelta(seconds=self._settings.keep_ended_seconds)
        done = [job for job in jobs if not job.unfinished and has_expired(status, job.run, keep, now)]
        for resource in (CONFIG_MAPS, SERVICES) if done else ():
            for child in self._client.select(resource, owner.namespace, owner.selector):
                metadata = child["metadata"]
                run = metadata["labels"].get(meta.LABEL_RUN, "")
                if owner.owns(child) and has_expired(status, run, keep, now):
                    yield ExpiredObject(resource, metadata["name"], metadata["uid"], run)
        yield from (ExpiredObject(JOBS, job.name, job.uid, job.run) for job in done)

    def _conflict(self, resource: Object) -> str:
        """Name of the oldest of the FineTuneJobs with this output that go first; empty if none does."""
        elders = elder_publishers(resource, self._cache.indexed(output_of(resource)))
        return next((str(elder["metadata"]["name"]) for elder in elders if self._goes_first(elder)), "")

    def _goes_first(self, elder: Object) -> bool:
        """Whether it has published, or will without anybody's doing: what is held back or has failed holds back
        nothing."""
        spec, _ = parse_spec(FineTuneJobSpec, elder.get("spec") or {})
        status = elder.get("status") or {}
        if status.get("artifact") or status.get("candidate"):
            return True
        run = status.get("run") or {}
        if run.get("outcome") == Phase.FAILED and run.get("generation") == elder["metadata"]["generation"]:
            return False
        if spec is None or spec.suspend or spec.profile not in self._settings.profiles:
            return False
        return not job_violation(self._settings, elder["metadata"]["namespace"], spec)

    def _has_account(self, namespace: str, profile: str) -> bool:
        known = self._settings.profiles.get(profile)
        return known is None or self._accounts.exists(namespace, known.service_account_name)

    def _sample(self, jobs: Sequence[StageJob]) -> Sample | None:
        for job in jobs:
            if job.verdict.pod_ip and job.stage in set(Stage):
                return self._progress.read(job.uid, job.stage, job.verdict.pod_ip)
        return None


def spec_hash(spec: FineTuneJobSpec) -> str:
    """Identity of what a run makes."""
    return digest(made(spec))


def means_hash(spec: FineTuneJobSpec) -> str:
    """Identity of what a run needs for that: credentials and budget."""
    return digest(means(spec))


def elder_publishers(resource: Object, publishers: Sequence[Object]) -> list[Object]:
    """Those that are older than this FineTuneJob and are not being deleted, oldest first."""
    elders = [
        other
        for other in publishers
        if _seniority(other) < _seniority(resource) and not other["metadata"].get("deletionTimestamp")
    ]
    return sorted(elders, key=_seniority)


def _lost_labels(job: Object) -> dict[str, str]:
    """Our labels that a Job lacks. Its template has them all, and nobody can change that."""
    labels = job["metadata"].get("labels") or {}
    wanted = ((job["spec"].get("template") or {}).get("metadata") or {}).get("labels") or {}
    ours = {name: value for name, value in wanted.items() if name.startswith(f"{meta.GROUP}/")}
    return {name: value for name, value in ours.items() if labels.get(name) != value}


def _of_a_stage(owner: Owner, pod: Object) -> bool:
    """Whether a Job of this owner made the pod; the Job itself may be gone. Labels alone say nothing."""
    controller = controller_of(pod)
    return controller.get("kind") == JOBS.kind and str(controller.get("name")).startswith(f"{owner.name}-")


def _runs(pod: Object) -> bool:
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


def _seniority(resource: Object) -> tuple[str, str]:
    return resource["metadata"]["creationTimestamp"], resource["metadata"]["uid"]
