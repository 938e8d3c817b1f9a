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

removed ──▶ Removing: from then on no pod answers to its name, once it has read the list
                └──▶ no row: all pods have said so
```
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from finetune_api.artifact_source import set_address
from finetune_api.endpoint_stages import WantedAdapter, WantedAdapters
from finetune_api.reasons import Reason
from finetune_api.serving_status import (
    AdapterState,
    AdapterStatus,
    CheckOutcome,
    RevisionState,
    RevisionStatus,
)
from finetune_operator.adapterdeployment.adapters import adapter_of, read_back, shown
from finetune_operator.adapterdeployment.delivery_job import (
    Answer,
    Question,
    ask_pods,
    cause_of,
    found_of,
    needs_a_person,
    ready_pods,
    request_of,
    says_nothing,
)
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.revision import asked_hash, choice_of
from finetune_operator.adapterdeployment.side_jobs import is_blocked
from finetune_operator.adapterdeployment.stored_record import Record
from finetune_operator.framework.actions import Action, Event
from finetune_operator.outcome.job import UNFINISHED, Verdict
from finetune_operator.resources.deployment import Adapter, Serving
from finetune_operator.resources.self_check import loads_adapters

_RECORD_SECONDS: Final = 1.0
"""After which to look again, once the status says what came of it."""
_FAILED: Final = AdapterState.FAILED
_MESSAGE_LIMIT: Final = 256
"""The API's limit."""


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
    leaving = _leaving(observed, record, adapters)
    added, removed = (_ask(observed, record, each, now) for each in _questions(found, leaving))
    pods = ready_pods(observed, record.revision)
    counted = f"{len(pods)}/{observed.resource.spec.replicas}"
    waits = _waits_for(observed, bool(pods), added.verdict, now)
    rows = [_row(each, counted, waits, added.verdict) for each in found]
    left = [_row_of_removed(each, removed.verdict, now) for each in leaving]
    events = (*_news(found, rows, len(pods)), *_news_of_removed(leaving, left))
    update = {
        "adapters": [*rows, *(each for each in left if each is not None)],
        "artifact_digest": set_address({each.name: each.artifact_digest for each in rows if each.state != _FAILED}),
        "spec_hash": asked_hash(observed),
    }
    served = stable.model_copy(update=update)
    answers = (added, removed)
    due = [each.due_after for each in answers if each.due_after is not None]
    return Delivery(
        stable=served,
        actions=(*added.actions, *removed.actions),
        events=events,
        due_after=_RECORD_SECONDS if events else min(due, default=None),
        blocked=any(each.verdict is not None and needs_a_person(each.verdict, now) for each in answers),
    )


def deliveries_in_use(observed: ObservedDeployment, record: Record | None, stable: RevisionStatus | None) -> set[str]:
    """Names of those that are not to be deleted."""
    if record is None or stable is None or stable.revision != record.revision:
        return set()
    loading = {each.name for each in stable.adapters if each.state is AdapterState.LOADING}
    found = [each for each in standing(observed, record, read_back(stable.adapters)) if each.adapter.name in loading]
    leaving = [each for each in stable.adapters if each.state is AdapterState.REMOVING]
    requests = [request_of(observed, record, each) for each in _questions(found, leaving)]
    return {each.name for each in requests if each is not None}


def _questions(found: Sequence[Standing], leaving: Sequence[AdapterStatus]) -> tuple[Question, Question]:
    """What pods are asked of those that are added, and of those that are removed: neither holds up the other."""
    pending = [each.adapter for each in found if each.outcome is None]
    return Question(added=pending), Question(removed=[adapter_of(each) for each in leaving])


def _ask(observed: ObservedDeployment, record: Record, question: Question, now: datetime) -> Answer:
    request = request_of(observed, record, question)
    return Answer() if request is None else ask_pods(observed, request, now)


def _leaving(observed: ObservedDeployment, record: Record, adapters: Sequence[Adapter]) -> list[AdapterStatus]:
    """What is no longer asked for, and what pods may still answer to: the kubelet brings them the list only after a
    while. What has failed on one pod may have been loaded by another. A name that is asked for again, with whatever
    artifact, is loaded by a pod only once it has let go of the former one."""
    stable = observed.resource.status.stable
    known = stable.adapters if stable is not None and stable.revision == record.revision else []
    names = {each.name for each in adapters}
    if not loads_adapters(record.template) or observed.resource.spec.replicas == 0:
        return []
    return [each for each in known if each.name not in names and each.state is not AdapterState.WAITING]


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
    there = [each for each in rows if each.state is not AdapterState.REMOVING]
    served = {each.name: each.artifact_digest for each in there if each.outcome is not CheckOutcome.FAILED}
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
        outcome, message, reason = found_of(each.adapter.name, verdict)
        if outcome is CheckOutcome.FAILED and says_nothing(verdict):
            outcome, waits = None, _Wait(cause_of(verdict), f"Not served yet, and tried again. {message}")
    elif _is_told_of(each.known, AdapterState.LOADING) and waits.reason is Reason.VERIFYING:
        waits = _Wait(Reason(reason), message)
    if outcome is CheckOutcome.PASSED:
        update: dict[str, Any] = {"state": AdapterState.LOADED, "pods": pods, "message": "", "reason": ""}
    elif outcome is CheckOutcome.FAILED:
        update = {"state": _FAILED, "pods": "", "message": message[:_MESSAGE_LIMIT], "reason": reason}
    else:
        said = waits.message[:_MESSAGE_LIMIT]
        update = {"state": waits.state, "pods": "", "message": said, "reason": waits.reason}
    return each.known.model_copy(update=update | {"outcome": outcome})


def _row_of_removed(each: AdapterStatus, verdict: Verdict | None, now: datetime) -> AdapterStatus | None:
    """An adapter that is removed, after what the Job has found; None: no pod answers to its name any more."""
    reason, said = Reason.WAITING, "Waiting until no running pod answers to its name any more."
    if verdict is not None and is_blocked(verdict, now):
        reason = verdict.reason
        said = f"The pods are told; the Job that asks whether they still answer to its name waits. {verdict.message}"
    elif verdict is not None and verdict.state not in UNFINISHED:
        if found_of(each.name, verdict)[0] is CheckOutcome.PASSED:
            return None
        reason = cause_of(verdict)
        said = f"The pods are told, and asked again whether they still answer to its name. {verdict.message}"
    elif _is_told_of(each, AdapterState.REMOVING):
        reason, said = Reason(each.reason), each.message
    update = {
        "state": AdapterState.REMOVING,
        "outcome": None,
        "pods": "",
        "reason": reason,
        "message": said[:_MESSAGE_LIMIT],
    }
    return each.model_copy(update=update)


def _is_told_of(row: AdapterStatus, state: AdapterState) -> bool:
    """Whether the status tells what holds an adapter up in this state: that stands until the pods have said anything
    else."""
    return row.state is state and row.reason not in ("", Reason.WAITING, Reason.VERIFYING)


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


def _news_of_removed(leaving: Sequence[AdapterStatus], left: Sequence[AdapterStatus | None]) -> Iterator[Event]:
    for before, after in zip(leaving, left, strict=True):
        if after is None:
            said = f"Adapter {before.name!r} was removed: no running pod answers to its name any more."
            yield Event("Normal", Reason.ADAPTER_REMOVED, said)
