"""The Job that asks running pods what became of adapters: whether each pod serves those that are added, and whether any
still answers to the name of one that was removed. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from finetune_api import meta
from finetune_api.endpoint_stages import VerifyParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome
from finetune_api.stages import Params, Stage, StageInput
from finetune_operator.adapterdeployment.channel import facts_of, known_channel
from finetune_operator.adapterdeployment.health import PASSING
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.revision import asked_hash
from finetune_operator.adapterdeployment.side_jobs import is_blocked, look_again, stage_objects
from finetune_operator.adapterdeployment.stored_record import Record
from finetune_operator.framework.actions import Action, Delete
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import JOBS, Object
from finetune_operator.outcome.job import UNFINISHED, State, Verdict, judge
from finetune_operator.outcome.no_pod import FIRST_LOOK_SECONDS
from finetune_operator.outcome.pod import find_condition
from finetune_operator.resources.deployment import Adapter, fetch_and_prove_seconds
from finetune_operator.resources.pod import scratch_bytes
from finetune_operator.resources.stage_request import StageRequest, run_ref
from finetune_operator.settings import PodShape

DELIVERY_SECONDS: Final = 900
"""For how long the pods may take with what is small: the kubelet brings the set within about two minutes, and an
adapter is fetched and proved."""
LABEL_DELIVERY: Final = f"{meta.GROUP}/delivery"
"""On the Job that waits for the pods, and on its input."""
AGAIN_SECONDS: Final = 300.0
"""After which pods are asked again if a Job has ended without what they say."""
_AT_ONCE: Final = 1.0
_SHAPE: Final = PodShape(
    requests={"cpu": "50m", "memory": "128Mi"}, limits={"cpu": "1", "memory": "512Mi"}, scratch_size="100Mi"
)


class Answer(NamedTuple):
    """What came of asking by now."""

    verdict: Verdict | None = None
    """None: there is no Job yet, or nobody to ask."""
    actions: tuple[Action, ...] = ()
    due_after: float | None = None


class Question(NamedTuple):
    """What running pods are asked: one of the two."""

    added: Sequence[Adapter] = ()
    """Whether each pod serves them."""
    removed: Sequence[Adapter] = ()
    """Whether any pod still answers to their names."""


def ask_pods(observed: ObservedDeployment, request: StageRequest, now: datetime) -> Answer:
    """Make the Job that asks, or see what it has found. One that has ended without anything that decides is removed
    after a while, and another one of its name asks again: the pods have gone on meanwhile."""
    job = observed.child(JOBS, request.name)
    if job is None:
        return Answer(None, stage_objects(observed, request), FIRST_LOOK_SECONDS)
    verdict = judge(job, observed.job_pods(job), observed.job_events.get(request.name, ()), now)
    if job["metadata"].get("deletionTimestamp"):  # what it has found was read, and the next one has its name
        return Answer(None, (), FIRST_LOOK_SECONDS)
    if verdict.state in UNFINISHED:
        return Answer(verdict, stage_objects(observed, request), look_again(job, verdict, now))
    if not _is_asked_again(request, verdict):
        return Answer(verdict, stage_objects(observed, request))
    left = _pause_left(job, request, verdict, now)
    if left > 0:
        return Answer(verdict, due_after=left)
    return Answer(verdict, (Delete(JOBS, request.name, job["metadata"]["uid"]),), _AT_ONCE)


def says_nothing(verdict: Verdict) -> bool:
    """Whether a Job has failed for a cause outside of the adapters: a store that does not answer, or its own end."""
    return verdict.state is State.FAILED and (verdict.reason in PASSING or not _checks(verdict))


def cause_of(verdict: Verdict) -> Reason:
    """Why a Job has failed. The remedies for a lack of memory or time are about serving pods, not about such a Job."""
    return Reason.STAGE_CRASHED if not _checks(verdict) and verdict.reason not in PASSING else verdict.reason


def found_of(name: str, verdict: Verdict) -> tuple[CheckOutcome, str, str]:
    """What the Job has found of an adapter, the message and the reason. Its exit code decides; its report may be lost
    with its pod."""
    if verdict.state is not State.FAILED or _checks(verdict).get(name) is CheckOutcome.PASSED:
        return CheckOutcome.PASSED, "", ""
    return CheckOutcome.FAILED, verdict.message, verdict.reason


def needs_a_person(verdict: Verdict, now: datetime) -> bool:
    """Whether nothing shows when its pod would not be refused any more: that is in the Job's events alone."""
    return verdict.needs_events and is_blocked(verdict, now)


def delivery_seconds(sizes: Sequence[int]) -> int:
    """For how long the pods may take with adapters of these sizes in bytes, which they fetch and prove one by one."""
    return DELIVERY_SECONDS + fetch_and_prove_seconds(sum(sizes), len(sizes))


def is_of_delivery(child: Object) -> bool:
    """Whether a Job or ConfigMap is one that waits for adapters on running pods."""
    return LABEL_DELIVERY in (child["metadata"].get("labels") or {})


def ready_pods(observed: ObservedDeployment, revision: str) -> list[Object]:
    """The pods of a revision that are ready, by name: each has loaded what is required."""
    return [pod for pod in _pods(observed, revision) if find_condition(pod["status"], "Ready")]


def request_of(observed: ObservedDeployment, record: Record, question: Question) -> StageRequest | None:
    """The stage that waits for what the pods say. It asks nothing but them: it gets no keys of any store. None: there
    is nothing to ask, or nobody.

    Of what is added, the pods are asked that are ready. Of what was removed, all are: one that is not ready may become
    so with the former list."""
    removed = bool(question.removed)
    pods = _pods(observed, record.revision) if removed else ready_pods(observed, record.revision)
    if not pods or not any(question):
        return None
    owner, settings, serving = observed.owner, observed.settings, record.serving
    spec = observed.resource.spec
    room = scratch_bytes(serving.runtime.pod)
    seconds = delivery_seconds([_size(observed, each) or room for each in question.added])
    first = [*question.added, *question.removed][0]
    identity = [
        record.revision,
        asked_hash(observed),
        [[each.name, each.digest] for each in question.added],
        [[pod["metadata"]["name"], pod["status"]["podIP"]] for pod in pods],
        *([[[each.name, each.digest] for each in question.removed]] if removed else []),
    ]
    params = VerifyParams(
        endpoint="",
        engine=serving.runtime.engine.value,
        samples=0,
        min_agreement_percent=spec.verification.min_agreement_percent,
        timeout_seconds=seconds,
        model=owner.name,
        adapters=replace(serving, adapters=tuple(question.added)).refs,
        removed=replace(serving, adapters=tuple(question.removed)).refs,
        pods=[_url(pod["status"]["podIP"]) for pod in pods],
        attempt=asked_hash(observed),
    )
    return StageRequest(
        owner=owner,
        input=StageInput(
            stage=Stage.VERIFY,
            run=run_ref(owner, record.revision),
            artifact_uri=first.uri,
            artifact_digest=first.digest,
            params=Params(verify=params),
        ),
        image=settings.images.of(Stage.VERIFY),
        images=settings.images,
        shape=_SHAPE,
        service_account=serving.runtime.service_account_name,
        labels={meta.LABEL_REVISION: record.revision, LABEL_DELIVERY: "adapters"},
        identity=["delivery", *identity],
        deadline_seconds=2 * seconds,
    )


def _is_asked_again(request: StageRequest, verdict: Verdict) -> bool:
    """Whether another Job of the name is to ask. Where one adapter has passed, one of another name asks for the rest.
    That a pod still answers to a removed name never stands."""
    if verdict.state is not State.FAILED or CheckOutcome.PASSED in _checks(verdict).values():
        return False
    asked = request.input.params.verify
    return says_nothing(verdict) or (asked is not None and bool(asked.removed))


def _pause_left(job: Object, request: StageRequest, verdict: Verdict, now: datetime) -> float:
    """Seconds until then: none if the Job has waited for the pods, which go on; but where it has ended itself, the next
    one may end like it."""
    if _checks(verdict) or verdict.reason in PASSING:
        return 0.0
    created = parse_timestamp(job["metadata"]["creationTimestamp"])
    ended = parse_timestamp(verdict.finished_at) if verdict.finished_at else created
    pause = AGAIN_SECONDS if verdict.finished_at else AGAIN_SECONDS + request.deadline_seconds
    return (ended + timedelta(seconds=pause) - now).total_seconds()


def _pods(observed: ObservedDeployment, revision: str) -> list[Object]:
    """The pods of a revision that have an address, by name, without those that have ended or are about to."""
    found = [
        pod
        for pod in observed.server_pods(revision)
        if (pod.get("status") or {}).get("podIP")
        and pod["status"].get("phase") not in ("Succeeded", "Failed")
        and not pod["metadata"].get("deletionTimestamp")
    ]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def _checks(verdict: Verdict) -> dict[str, CheckOutcome]:
    return {each.name: each.outcome for each in verdict.result.checks} if verdict.result else {}


def _size(observed: ObservedDeployment, adapter: Adapter) -> int:
    """Bytes of an adapter's weights, as its FineTuneJob has published them, or a look at its channel has read; 0:
    unknown, as of a pinned one."""
    asked = {each.name: each for each in observed.resource.spec.source.adapters or []}.get(adapter.name)
    known = None
    if asked is not None and asked.fine_tune_job is not None:
        source = observed.sources.get(asked.fine_tune_job.name)
        known = source.artifact if source is not None else None
    elif asked is not None and asked.output is not None:
        known = facts_of(known_channel(observed, asked.output, asked.name), adapter.digest)
    return (known.size_bytes or 0) if known is not None and known.digest == adapter.digest else 0


def _url(host: str) -> str:
    return f"http://[{host}]:{meta.SELF_CHECK_PORT}" if ":" in host else f"http://{host}:{meta.SELF_CHECK_PORT}"
