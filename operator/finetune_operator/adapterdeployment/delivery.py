"""Adapters that come and go while their pods serve. Pure.

A set that differs from the served one only by what was added and removed needs no other pods where the engine loads
adapters while it runs: the wanted set is in the ConfigMap that the pods' self-checks read. Each pod fetches what is
new, proves it under a name that nobody knows and then gives it its own; a Job waits until all of them have said what
became of it.

```
                        ┌──▶ Loaded: from then on no pod is ready without it
added ──▶ Loading ──────┤          (Waiting first, where no pods are asked for)
   ▲                    └──▶ Failed: taken from all pods; the others are not touched
   └── another digest, or another spec
```
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from finetune_api import meta
from finetune_api.artifact_source import set_address
from finetune_api.endpoint_stages import VerifyParams, WantedAdapter, WantedAdapters
from finetune_api.reasons import Reason
from finetune_api.serving_status import (
    AdapterState,
    AdapterStatus,
    CheckOutcome,
    RevisionState,
    RevisionStatus,
    VerificationCheck,
)
from finetune_api.stages import Params, Stage, StageInput
from finetune_operator.adapterdeployment.adapters import read_back, shown
from finetune_operator.adapterdeployment.health import PASSING
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.revision import asked_hash, choice_of
from finetune_operator.adapterdeployment.side_jobs import is_blocked, look_again, stage_objects
from finetune_operator.adapterdeployment.stored_record import Record
from finetune_operator.framework.actions import Action, Delete, Event
from finetune_operator.framework.objects import JOBS, Object
from finetune_operator.outcome.job import UNFINISHED, State, Verdict, judge
from finetune_operator.outcome.no_pod import FIRST_LOOK_SECONDS
from finetune_operator.outcome.pod import find_condition
from finetune_operator.resources.deployment import Adapter, Serving, fetch_and_prove_seconds
from finetune_operator.resources.pod import scratch_bytes
from finetune_operator.resources.self_check import loads_adapters
from finetune_operator.resources.stage_request import StageRequest, run_ref
from finetune_operator.settings import PodShape

DELIVERY_SECONDS: Final = 900
"""For how long the pods may take with what is small: the kubelet brings the set within about two minutes, and an
adapter is fetched and proved."""
LABEL_DELIVERY: Final = f"{meta.GROUP}/delivery"
"""On the Job that waits for the pods, and on its input."""
_RECORD_SECONDS: Final = 1.0
"""After which to look again, once the status says what came of it."""
_FAILED: Final = AdapterState.FAILED
_MESSAGE_LIMIT: Final = 256
"""The API's limit."""
_SHAPE: Final = PodShape(
    requests={"cpu": "50m", "memory": "128Mi"}, limits={"cpu": "1", "memory": "512Mi"}, scratch_size="100Mi"
)


class Standing(NamedTuple):
    """An adapter that is asked for, and what came of it on the pods that serve."""

    adapter: Adapter
    known: AdapterStatus
    outcome: CheckOutcome | None
    """Passed or Failed; None: it is being loaded."""


@dataclass(frozen=True)
class Delivery:
    """Where the adapters of what serves stand after this pass."""

    stable: RevisionStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    due_after: float | None = None
    blocked: bool = False
    """As in Plan."""


def taken_at_run_time(observed: ObservedDeployment, asked: Serving) -> Record | None:
    """The record of the revision that has, or takes, these adapters without a restart; None: they take other pods.

    It is what serves, if its pods can load what is new; or what fell with this very set, which is no other revision,
    and no other try, for having been started with fewer.
    """
    return _taken_by_what_serves(observed, asked) or _fallen_with(observed, asked)


def standing(observed: ObservedDeployment, record: Record, adapters: Sequence[Adapter]) -> list[Standing]:
    """What came of each adapter on the pods of a revision. Those that the revision was verified with have passed, if
    they have not been removed since; one that failed is tried again when the spec changes."""
    stable = observed.resource.status.stable
    ours = stable if stable is not None and stable.revision == record.revision else None
    known = {(each.name, each.artifact_digest): each for each in (ours.adapters if ours else [])}
    verified = {(each.name, each.digest) for each in record.serving.adapters}
    same_spec = ours is not None and ours.spec_hash == asked_hash(observed)
    found = []
    for adapter, fresh in zip(adapters, shown(adapters), strict=True):
        key = (adapter.name, adapter.digest)
        row = known.get(key, fresh)
        # Of a revision that has just taken over, or whose status was lost, nothing else is known.
        as_verified = key in verified and row.state is None and (key in known or not known)
        if row.outcome is CheckOutcome.PASSED or as_verified:
            found.append(Standing(adapter, row, CheckOutcome.PASSED))
        else:
            failed = row.outcome is CheckOutcome.FAILED and same_spec
            found.append(Standing(adapter, row, CheckOutcome.FAILED if failed else None))
    return found


def wanted_adapters(observed: ObservedDeployment, record: Record, adapters: Sequence[Adapter]) -> WantedAdapters | None:
    """What the pods of a revision are told to serve; None: what they are started with."""
    if not loads_adapters(record.template):
        return None
    policy = observed.resource.spec.policy
    return WantedAdapters(
        adapters=[
            WantedAdapter(
                name=each.adapter.name,
                uri=each.adapter.uri,
                digest=each.adapter.digest,
                required=each.outcome is CheckOutcome.PASSED,
                attempt="" if each.outcome is CheckOutcome.PASSED else asked_hash(observed),
            )
            for each in standing(observed, record, adapters)
            if _counts(each)
        ],
        withdrawn=policy.withdrawn,
        gates=policy.gates,
        required_gates=policy.required_gates,
    )


def deliver(
    observed: ObservedDeployment, record: Record, adapters: Sequence[Adapter], stable: RevisionStatus, now: datetime
) -> Delivery:
    """Bring the pods of what serves the adapters that are asked for, and say where each stands. What they are told is
    among the objects of the revision; here is what waits for their answer."""
    if not adapters:
        return Delivery(stable)
    found = standing(observed, record, adapters)
    pending = [each for each in found if each.outcome is None]
    pods = _ready(observed, record.revision)
    verdict: Verdict | None = None
    actions: tuple[Action, ...] = ()
    due_after: float | None = None
    if pending and pods:
        request = _request(observed, record, pending, pods)
        job, due_after = observed.child(JOBS, request.name), FIRST_LOOK_SECONDS
        if job is not None:
            verdict = judge(job, observed.job_pods(job), observed.job_events.get(request.name, ()), now)
            due_after = look_again(job, verdict, now) if verdict.state in UNFINISHED else None
        actions = stage_objects(observed, request)
        if job is not None and verdict is not None and _says_nothing(verdict) and not _passed(verdict):
            # The pods go on trying. Another Job of the name asks them again.
            actions, due_after = (Delete(JOBS, request.name, job["metadata"]["uid"]),), _RECORD_SECONDS
    counted = f"{len(pods)}/{observed.resource.spec.replicas}"
    waits = _waits_for(observed, bool(pods), verdict, now)
    rows = [_row(each, counted, waits, verdict) for each in found]
    events = tuple(_news(found, rows, len(pods)))
    update = {
        "adapters": rows,
        "artifact_digest": set_address({each.name: each.artifact_digest for each in rows if each.state != _FAILED}),
        "spec_hash": asked_hash(observed),
    }
    served = stable.model_copy(update=update)
    # A refusal of its pod shows in the Job's events alone: nothing shows when it would not be refused any more.
    refused = verdict is not None and verdict.needs_events and is_blocked(verdict, now)
    return Delivery(served, actions, events, _RECORD_SECONDS if events else due_after, refused)


def delivery_seconds(sizes: Sequence[int]) -> int:
    """For how long the pods may take with adapters of these sizes in bytes, which they fetch and prove one by one."""
    return DELIVERY_SECONDS + fetch_and_prove_seconds(sum(sizes), len(sizes))


def is_of_delivery(child: Object) -> bool:
    """Whether a Job or ConfigMap is one that waits for adapters on running pods."""
    return LABEL_DELIVERY in (child["metadata"].get("labels") or {})


def delivery_in_use(observed: ObservedDeployment, record: Record | None, stable: RevisionStatus | None) -> str:
    """Name of the one that is not to be deleted; empty: none."""
    if record is None or stable is None or stable.revision != record.revision:
        return ""
    loading = {each.name for each in stable.adapters if each.state is AdapterState.LOADING}
    pending = [each for each in standing(observed, record, read_back(stable.adapters)) if each.adapter.name in loading]
    pods = _ready(observed, record.revision)
    return _request(observed, record, pending, pods).name if pending and pods else ""


def _taken_by_what_serves(observed: ObservedDeployment, asked: Serving) -> Record | None:
    """Everything but the adapters has to be the same, an adapter that has been proved has to stay, and none may have
    changed: vLLM has no way to replace one by another under the same name without a moment in which it is not there,
    or in which answers that have begun go on with other weights."""
    stable = observed.resource.status.stable
    record = _with_other_adapters(observed, stable.revision if stable else observed.traffic, asked)
    if record is None:
        return None
    made = record.serving
    rows = stable.adapters if stable is not None and stable.adapters else shown(made.adapters)
    served = {each.name: each.artifact_digest for each in rows if each.outcome is not CheckOutcome.FAILED}
    if any(served.get(each.name, each.digest) != each.digest for each in asked.adapters):
        return None
    found = standing(observed, record, asked.adapters)
    stays = any(each.outcome is CheckOutcome.PASSED and each.adapter.name in served for each in found)
    fits = all(made.rank_for(each) <= made.run_time_rank for each in asked.adapters)
    return record if stays and fits else None


def _with_other_adapters(observed: ObservedDeployment, revision: str, asked: Serving) -> Record | None:
    """The record of a revision, if its pods take adapters while they run, and are what is asked but for those."""
    record = observed.records.get(revision)
    if record is None or not asked.adapters or not loads_adapters(record.template):
        return None
    made = record.serving
    as_made = replace(asked, adapters=made.adapters, artifact_digest=made.artifact_digest)
    return record if choice_of(as_made, observed.settings) == record.choice else None


def _fallen_with(observed: ObservedDeployment, asked: Serving) -> Record | None:
    """Of the candidate of this spec, if it served these adapters before the traffic was taken from it. One that is
    tried again is verified with all that its record has."""
    tried = observed.resource.status.candidate
    if tried is None or tried.spec_hash != asked_hash(observed):
        return None
    record = _with_other_adapters(observed, tried.revision, asked)
    served, wanted = set(read_back(tried.adapters)), set(asked.adapters)
    if record is None or served != wanted:
        return None
    return record if tried.state is RevisionState.FAILED or wanted.issuperset(record.serving.adapters) else None


def _counts(each: Standing) -> bool:
    return each.outcome is not CheckOutcome.FAILED


def _says_nothing(verdict: Verdict) -> bool:
    """Whether a Job has failed for a cause outside of the adapters, such as a store that does not answer."""
    return verdict.state is State.FAILED and verdict.reason in PASSING


def _passed(verdict: Verdict) -> bool:
    """Whether a Job has found any that is loaded: then the others are asked for by a Job of another name."""
    return verdict.result is not None and any(each.outcome is CheckOutcome.PASSED for each in verdict.result.checks)


class _Wait(NamedTuple):
    """What an adapter waits for that is not loaded yet."""

    reason: Reason
    message: str
    state: AdapterState = AdapterState.LOADING


def _waits_for(observed: ObservedDeployment, answers: bool, verdict: Verdict | None, now: datetime) -> _Wait:
    """What an adapter waits for that is to be loaded. The pods do their part whether or not the Job runs that asks them
    what came of it. Where no pods are asked for, nothing is in progress."""
    if not answers and observed.resource.spec.replicas == 0:
        said = "There are no pods (replicas: 0). They download, verify and load it once they are started."
        return _Wait(Reason.WAITING, said, AdapterState.WAITING)
    if not answers:
        return _Wait(Reason.VERIFYING, "Waiting for a pod that is ready.")
    if verdict is not None and is_blocked(verdict, now):
        said = f"Not served yet: the Job that asks the pods for their verdict waits. {verdict.message}"
        return _Wait(verdict.reason, said)
    return _Wait(Reason.VERIFYING, "Running pods are downloading and verifying it.")


def _row(each: Standing, pods: str, waits: _Wait, verdict: Verdict | None) -> AdapterStatus:
    """An adapter for the status, after what the Job has found; ``waits``: what one that is not loaded waits for."""
    outcome, message, reason = each.outcome, each.known.message, each.known.reason
    if outcome is None and verdict is not None and verdict.state not in UNFINISHED:
        outcome, message, reason = _found(each.adapter.name, verdict)
        if outcome is CheckOutcome.FAILED and _says_nothing(verdict):
            outcome, waits = None, _Wait(verdict.reason, f"Not served yet, and tried again. {message}")
    elif reason in PASSING and waits.reason is Reason.VERIFYING:  # it stands until the pods have said anything else
        waits = _Wait(Reason(reason), message)
    if outcome is CheckOutcome.PASSED:
        update: dict[str, Any] = {"state": AdapterState.LOADED, "pods": pods, "message": "", "reason": ""}
    elif outcome is CheckOutcome.FAILED:
        update = {"state": _FAILED, "pods": "", "message": message[:_MESSAGE_LIMIT], "reason": reason}
    else:
        said = waits.message[:_MESSAGE_LIMIT]
        update = {"state": waits.state, "pods": "", "message": said, "reason": waits.reason}
    return each.known.model_copy(update=update | {"outcome": outcome})


def _found(name: str, verdict: Verdict) -> tuple[CheckOutcome, str, str]:
    """What the Job has found of an adapter, the message and the reason. Its exit code decides; its report may be lost
    with its pod."""
    if verdict.state is not State.FAILED:
        return CheckOutcome.PASSED, "", ""
    checks: dict[str, VerificationCheck] = {each.name: each for each in verdict.result.checks} if verdict.result else {}
    if name in checks and checks[name].outcome is CheckOutcome.PASSED:
        return CheckOutcome.PASSED, "", ""
    return CheckOutcome.FAILED, verdict.message, verdict.reason


def _news(found: Sequence[Standing], rows: Sequence[AdapterStatus], pods: int) -> Iterator[Event]:
    """What this pass has found out."""
    for each, row in zip(found, rows, strict=True):
        if each.outcome is not None or row.outcome is None:
            continue
        if row.outcome is CheckOutcome.PASSED:
            where = f"{pods} running pods, which now serve" if pods > 1 else "the running pod, which now serves"
            said = f"Adapter {row.name!r} was verified on {where} it by its name."
            yield Event("Normal", Reason.PROMOTED, said)
        else:
            yield Event("Warning", Reason(row.reason), f"Adapter {row.name!r} is not served: {row.message}")


def _ready(observed: ObservedDeployment, revision: str) -> list[Object]:
    """The pods of a revision that are ready, by name: each has loaded what is required."""
    pods = [pod for pod in observed.server_pods(revision) if find_condition(pod.get("status") or {}, "Ready")]
    return sorted((pod for pod in pods if pod["status"].get("podIP")), key=lambda pod: str(pod["metadata"]["name"]))


def _request(
    observed: ObservedDeployment, record: Record, pending: Sequence[Standing], pods: Sequence[Object]
) -> StageRequest:
    """The stage that waits for what the pods say. It asks nothing but them: it gets no keys of any store."""
    owner, settings, serving = observed.owner, observed.settings, record.serving
    spec = observed.resource.spec
    asked = [each.adapter for each in pending]
    room = scratch_bytes(serving.runtime.pod)
    seconds = delivery_seconds([_size(observed, each) or room for each in asked])
    identity = [
        record.revision,
        asked_hash(observed),
        [[each.name, each.digest] for each in asked],
        [[pod["metadata"]["name"], pod["status"]["podIP"]] for pod in pods],
    ]
    params = VerifyParams(
        endpoint="",
        engine=serving.runtime.engine.value,
        samples=0,
        min_agreement_percent=spec.verification.min_agreement_percent,
        timeout_seconds=seconds,
        model=owner.name,
        adapters=replace(serving, adapters=tuple(asked)).refs,
        pods=[_url(pod["status"]["podIP"]) for pod in pods],
        attempt=asked_hash(observed),
    )
    return StageRequest(
        owner=owner,
        input=StageInput(
            stage=Stage.VERIFY,
            run=run_ref(owner, record.revision),
            artifact_uri=asked[0].uri,
            artifact_digest=asked[0].digest,
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


def _size(observed: ObservedDeployment, adapter: Adapter) -> int:
    """Bytes of an adapter's weights, as its FineTuneJob has published them; 0: unknown, as of a pinned one."""
    asked = {
        each.name: each.fine_tune_job.name
        for each in observed.resource.spec.source.adapters or []
        if each.fine_tune_job
    }
    source = observed.sources.get(asked.get(adapter.name, ""))
    if source is None or source.artifact is None or source.artifact.digest != adapter.digest:
        return 0
    return source.artifact.size_bytes or 0


def _url(host: str) -> str:
    return f"http://[{host}]:{meta.SELF_CHECK_PORT}" if ":" in host else f"http://{host}:{meta.SELF_CHECK_PORT}"
