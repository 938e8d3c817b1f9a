"""The status of an AdapterDeployment, composed anew in every reconciliation, and the events for its transitions."""

from collections.abc import Iterator
from datetime import datetime

from finetune_api.base import Condition
from finetune_api.meta import ADAPTERDEPLOYMENT
from finetune_api.reasons import Reason, remedy
from finetune_api.serving_status import (
    AdapterDeploymentStatus,
    AdapterState,
    AdapterStatus,
    RevisionState,
    RevisionStatus,
    ServingPhase,
)
from finetune_operator.adapterdeployment.budget import budget_advice, budget_news
from finetune_operator.adapterdeployment.gap import has_begun
from finetune_operator.adapterdeployment.health import PASSING
from finetune_operator.adapterdeployment.model_cache import cache_news, with_model_cache
from finetune_operator.adapterdeployment.observe import ObservedDeployment, UnplannedDeployment
from finetune_operator.adapterdeployment.revision_objects import is_encrypted
from finetune_operator.adapterdeployment.rollout import Rollout
from finetune_operator.adapterdeployment.route import public_url, route_finding
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.adapterdeployment.turns import ACTIVE, is_ahead
from finetune_operator.blockers import Blocker
from finetune_operator.framework.actions import Event
from finetune_operator.framework.conditions import ConditionType, Finding, merge_conditions
from finetune_operator.resources.deployment import server_labels
from finetune_operator.resources.service import service_url


def compose(rollout: Rollout) -> AdapterDeploymentStatus:
    """The whole new status."""
    observed, stable = rollout.observed, rollout.stable
    before, generation = observed.resource.status, observed.resource.metadata.generation
    findings = [_ready(rollout), _reconciling(rollout), _stalled(rollout)]
    findings += [*_advice(rollout), *_degraded(rollout), *_rolled_back(rollout), *_service_gap(rollout)]
    findings += [finding for finding in (route_finding(observed, stable),) if finding]
    return AdapterDeploymentStatus(
        observed_generation=generation,
        phase=_phase(rollout),
        conditions=merge_conditions(before.conditions, findings, ADAPTERDEPLOYMENT, generation, rollout.now),
        endpoint=_endpoint(observed, stable) if stable else "",
        url=public_url(observed, stable),
        channel=observed.resource.status.channel,
        adapter_channels=observed.resource.status.adapter_channels,
        stable=with_model_cache(observed, stable, rollout.now),
        candidate=with_model_cache(observed, rollout.candidate, rollout.now),
        previous=with_model_cache(observed, rollout.previous, rollout.now),
        last_good_revision=stable.revision if stable else before.last_good_revision,
        revisions=rollout.history,
        replicas=rollout.existing,
        ready_replicas=rollout.ready,
        selector=_selector(server_labels(observed.owner, stable.revision)) if stable else "",
    )


def _endpoint(observed: ObservedDeployment, stable: RevisionStatus) -> str:
    """Where clients in the cluster reach what serves."""
    return service_url(observed.owner, observed.owner.name, tls=is_encrypted(observed, stable.revision))


def compose_unplanned(observed: UnplannedDeployment, now: datetime) -> AdapterDeploymentStatus:
    """The status where nothing can be planned: the stable revision keeps serving, unobserved."""
    before, generation = observed.status, observed.metadata.generation
    known = {condition.type: condition for condition in before.conditions}
    ready = known.get(ConditionType.READY)
    what = "The spec is not valid" if observed.reason is Reason.SPEC_INVALID else "Calls to the Kubernetes API fail"
    serves = "the stable revision keeps serving" if before.stable else "no revision serves yet"
    serves = "no revision serves" if has_begun(before.candidate, now) else serves
    findings = (
        Finding(
            ConditionType.READY,
            ready is not None and ready.status == "True",
            observed.reason,
            f"{what}; {serves}.",
        ),
        Finding(ConditionType.RECONCILING, False, observed.reason, f"{what}."),
        Finding(ConditionType.STALLED, True, observed.reason, f"{what}: {observed.problem}."),
    )
    # What cannot be planned takes no turn, and must not hold up those behind it: neither in line, nor with a gap that
    # is announced and cannot begin.
    waits = before.candidate is not None and before.candidate.state is RevisionState.WAITING
    return before.model_copy(
        update={
            "observed_generation": generation,
            "candidate": None if waits or is_ahead(before.candidate) else before.candidate,
            "phase": ServingPhase.DEGRADED if before.stable else ServingPhase.FAILED,
            "conditions": merge_conditions(before.conditions, findings, ADAPTERDEPLOYMENT, generation, now),
        }
    )


def transition_events(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> tuple[Event, ...]:
    """Events for problems that a person can act on, when they appear, and for their end. The rollout reports on its
    candidate itself."""
    advice = (*budget_news(before.conditions, after.conditions), *_degradation(before, after))
    advice += (*_route_news(before, after), *cache_news(before, after), *_recovery(before, after))
    now, then = _problem(after), _problem(before)
    if now is None or (then is not None and then.reason == now.reason) or now.reason in {e.reason for e in advice}:
        return advice
    waits = now.reason == Reason.SOURCE_NOT_READY and now.type != ConditionType.STALLED
    return (Event("Normal" if waits else "Warning", Reason(now.reason), now.message), *advice)


def _recovery(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> Iterator[Event]:
    """That a revision answers again which stopped after it had come to serve: its last event would be a warning
    otherwise."""
    if before.stable is None or after.stable is None or before.stable.revision != after.stable.revision:
        return
    was, now = (
        next((each for each in status.conditions if each.type == ConditionType.READY), None)
        for status in (before, after)
    )
    if was is None or now is None or (was.status, now.status) != ("False", "True"):
        return
    if was.last_transition_time > before.stable.since:
        yield Event("Normal", Reason(now.reason), now.message)


def _degradation(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> Iterator[Event]:
    """A warning once pods of what serves fail their self-check, and not again for each try of theirs."""
    if any(each.type == ConditionType.DEGRADED for each in before.conditions):
        return
    for each in after.conditions:
        if each.type == ConditionType.DEGRADED:
            yield Event("Warning", Reason(each.reason), each.message)


def _route_news(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> Iterator[Event]:
    """That a gateway takes the route, or why there is none; not that one waits for an answer."""
    known = {each.reason for each in before.conditions if each.type == ConditionType.ROUTE_ACCEPTED}
    for each in after.conditions:
        told = each.reason in known or each.reason == Reason.ROUTE_PENDING
        if each.type == ConditionType.ROUTE_ACCEPTED and not told:
            yield Event("Normal" if each.status == "True" else "Warning", Reason(each.reason), each.message)


def _problem(status: AdapterDeploymentStatus) -> Condition | None:
    """The condition that says what stands in the way, or what a candidate or further pods wait for; None if nothing
    does.

    Some pods of the stable revision not being ready is no problem by itself: they may be new.
    """
    candidate, shown = status.candidate, {condition.type: condition for condition in status.conditions}
    told = candidate.reason if candidate and candidate.state not in ACTIVE else ""
    speaking = [(ConditionType.STALLED, "True"), (ConditionType.READY, "False")]
    reconciling = shown.get(ConditionType.RECONCILING)
    if candidate or (reconciling and reconciling.reason in PASSING):
        speaking.append((ConditionType.RECONCILING, "True"))
    found = [condition for kind, value in speaking if (condition := shown.get(kind)) and condition.status == value]
    news = [each for each in found if each.reason != told and remedy(Reason(each.reason), ADAPTERDEPLOYMENT)]
    return news[0] if news else None


def _failure(rollout: Rollout) -> tuple[Reason, str] | None:
    """A problem that somebody has to act on."""
    blocker, target, candidate = rollout.blocker, rollout.target, rollout.candidate
    # A blocker ends a candidate, except for a refusal by the API server, which is then what to report. One that has
    # failed may be remembered until its source is back.
    blocks = isinstance(target, Blocker) or candidate is None or candidate.revision != target.revision
    if blocker and not blocker.waiting and blocks:
        return blocker.reason, blocker.message
    if failed := rollout.failed:
        became = "rolled back" if rollout.rolled_back else "not promoted"
        return Reason(failed.reason), f"Revision {failed.revision} was {became}: {failed.message}"
    if stuck := rollout.stuck:
        return Reason(stuck.reason), f"Revision {stuck.revision} waits: {stuck.message}"
    if refused := _adapters(rollout, AdapterState.FAILED):
        names = ", ".join(repr(each.name) for each in refused)
        one = "Adapter" if len(refused) == 1 else "Adapters"
        return Reason(refused[0].reason), f"{one} {names}: not served. {refused[0].message}"
    if held := [each for each in _moving(rollout) if each.reason not in (Reason.VERIFYING, Reason.WAITING)]:
        return Reason(held[0].reason), f"Adapter {held[0].name!r}: {held[0].message}"
    return None


def _adapters(rollout: Rollout, state: AdapterState) -> list[AdapterStatus]:
    """Those of what serves that are in a state."""
    return [each for each in rollout.stable.adapters if each.state is state] if rollout.stable else []


def _moving(rollout: Rollout) -> list[AdapterStatus]:
    """Those that come to running pods, or go."""
    return [*_adapters(rollout, AdapterState.LOADING), *_adapters(rollout, AdapterState.REMOVING)]


def _progress(rollout: Rollout) -> tuple[Reason, str] | None:
    """What is in progress, and passes by itself."""
    stable, candidate, blocker = rollout.stable, rollout.candidate, rollout.blocker
    if _failure(rollout):
        return None
    if candidate:
        return Reason(candidate.reason), f"Revision {candidate.revision}: {candidate.message}"
    if blocker:
        return blocker.reason, blocker.message
    if stable and rollout.ready < rollout.wanted:
        trouble = rollout.trouble
        return trouble.reason, f"{rollout.ready} of {rollout.wanted} pods are ready. {trouble.message}"
    if stable and rollout.wanted and not rollout.endpoint.settled:
        return Reason.WAITING, _spreading(rollout, stable)
    if moving := _moving(rollout):
        return Reason(moving[0].reason), f"Adapter {moving[0].name!r}: {moving[0].message}"
    return None


def _ready(rollout: Rollout) -> Finding:
    """Whether clients get answers; a candidate that failed does not change that."""
    if rollout.stable is None:
        reason, message = _failure(rollout) or _progress(rollout) or (Reason.WAITING, "No revision serves yet.")
        return Finding(ConditionType.READY, False, reason, message)
    if rollout.ready == 0 and (rollout.in_gap or (rollout.gap_lasts and _is_unexplained(rollout))):
        return Finding(ConditionType.READY, False, Reason.GAP_IN_SERVICE, _gap(rollout))
    if rollout.ready == 0 and rollout.wanted > 0:
        trouble, revision = rollout.trouble, rollout.stable.revision
        said = f"The pod of revision {revision} is not ready."
        if rollout.wanted > 1:
            said = f"None of the {rollout.wanted} pods of revision {revision} is ready."
        message = f"{said} {trouble.message}"
        if rollout.canary_answers:
            return Finding(ConditionType.READY, True, Reason.SERVING, f"{message}{_beside(rollout)}")
        return Finding(ConditionType.READY, False, trouble.reason, message)
    if rollout.wanted and not rollout.endpoint.answers:
        return Finding(ConditionType.READY, False, Reason.WAITING, _spreading(rollout, rollout.stable))
    return Finding(ConditionType.READY, True, Reason.SERVING, _serving(rollout, rollout.stable))


def _serving(rollout: Rollout, stable: RevisionStatus) -> str:
    if rollout.wanted and not rollout.endpoint.settled:
        return (
            f"Until every node knows revision {stable.revision}, some clients get answers from the previous revision."
        )
    serves = f"Revision {stable.revision} serves artifact {stable.artifact_digest[:12]}"
    pods = f"{rollout.ready} of {rollout.wanted} pods answer" if rollout.wanted else "it is scaled to zero"
    return f"{serves}; {pods}.{_beside(rollout)}"


def _beside(rollout: Rollout) -> str:
    """What clients get from a canary."""
    candidate = rollout.candidate
    if candidate is None or candidate.canary is None or candidate.canary.started_at is None:
        return ""
    return f" Beside it, revision {candidate.revision} is a canary. {candidate.message}"


def _spreading(rollout: Rollout, stable: RevisionStatus) -> str:
    if gap := rollout.endpoint.gap:
        why = f" {rollout.trouble.message}" if rollout.ready < rollout.wanted else ""
        return f"Revision {stable.revision} is deployed, but none of its pods is in the Service's endpoints: {gap}{why}"
    return f"Revision {stable.revision} is deployed; waiting until every node knows the Service's endpoints."


def _reconciling(rollout: Rollout) -> Finding:
    progress = _progress(rollout)
    reason, message = progress or (Reason.SERVING, "No change is in progress.")
    return Finding(ConditionType.RECONCILING, progress is not None, reason, message)


def _stalled(rollout: Rollout) -> Finding:
    failure = _failure(rollout)
    reason, message = failure or (Reason.SERVING, "Nothing needs attention.")
    return Finding(ConditionType.STALLED, failure is not None, reason, message)


def _advice(rollout: Rollout) -> list[Finding]:
    """Warnings about what serves, may serve, or is missing; no condition without one. A withdrawal weighs most."""
    found = rollout.target.warning if isinstance(rollout.target, Target) else ""
    warning = f"{found} {budget_advice(rollout.observed)}".strip()
    if rollout.stable and (said := rollout.withdrawn):
        text = f"Revision {rollout.stable.revision} serves an artifact that was {said}. {warning}".strip()
        return [Finding(ConditionType.DISCOURAGED, True, Reason.ARTIFACT_WITHDRAWN, text)]
    reason = Reason.SETTINGS_DISCOURAGED if found else Reason.DISRUPTION_BUDGET_REFUSED
    return [Finding(ConditionType.DISCOURAGED, True, reason, warning)] if warning else []


def _degraded(rollout: Rollout) -> list[Finding]:
    """That pods of what serves are not what was verified any more; no condition otherwise."""
    wrong = rollout.disproved
    if not wrong or rollout.stable is None:
        return []
    pods = len(rollout.observed.server_pods(rollout.stable.revision))
    fail, get = ("fails its", "gets") if len(wrong) == 1 else ("fail their", "get")
    message = (
        f"{len(wrong)} of {pods} pods of revision {rollout.stable.revision} {fail} self-check and {get} no new "
        f"connections. {wrong[0].message}"
    )
    return [Finding(ConditionType.DEGRADED, True, Reason.SELF_CHECK_FAILED, message)]


def _rolled_back(rollout: Rollout) -> list[Finding]:
    """That an earlier revision serves than the source asks for; no condition otherwise."""
    candidate, stable, pinned = rollout.candidate, rollout.stable, rollout.observed.resource.spec.rollback_to
    if candidate is not None and rollout.rolled_back:
        message = f"Revision {candidate.revision} was rolled back: {candidate.message}"
        return [Finding(ConditionType.ROLLED_BACK, True, Reason(candidate.reason), message)]
    if stable is None or not pinned or stable.revision != pinned:
        return []
    message = f"Revision {pinned} serves, as spec.rollbackTo asks, whatever the source says."
    return [Finding(ConditionType.ROLLED_BACK, True, Reason.ROLLED_BACK, message)]


def _service_gap(rollout: Rollout) -> list[Finding]:
    """Whether clients get no answers because a rollout in place makes room: False once it is announced, True from its
    beginning until clients get answers again; no condition otherwise."""
    if rollout.gap_lasts:
        return [Finding(ConditionType.SERVICE_GAP, True, Reason.GAP_IN_SERVICE, _gap(rollout))]
    candidate = rollout.candidate
    if rollout.wanted and candidate and candidate.state is RevisionState.STOPPING:
        return [Finding(ConditionType.SERVICE_GAP, False, Reason.GAP_ANNOUNCED, candidate.message)]
    return []


def _is_unexplained(rollout: Rollout) -> bool:
    """Whether no cause is known for which pods of the stable revision are not ready: they are just starting."""
    return rollout.trouble.reason is Reason.SERVER_UNAVAILABLE


def _gap(rollout: Rollout) -> str:
    """What a gap in service waits for."""
    stable, candidate = rollout.stable, rollout.candidate
    revision = stable.revision if stable else ""
    if not candidate or not rollout.in_gap:
        why = "" if rollout.ready else f" {rollout.trouble.message}"
        return f"Requests are not answered until revision {revision} serves.{why}"
    return (
        f"Requests have not been answered since {candidate.gap_starts_at}: the pods of revision {revision} are stopped "
        f"for revision {candidate.revision}, until that is verified or {revision} serves again."
    )


def _phase(rollout: Rollout) -> ServingPhase:
    waiting = rollout.blocker is not None and rollout.blocker.waiting and rollout.candidate is None
    if rollout.stable is None:
        if _failure(rollout):
            return ServingPhase.PENDING if rollout.stuck else ServingPhase.FAILED
        return ServingPhase.PENDING if waiting else ServingPhase.PROGRESSING
    if _failure(rollout) or (rollout.ready == 0 and rollout.wanted > 0 and not rollout.in_gap):
        return ServingPhase.DEGRADED
    if rollout.candidate or waiting or _moving(rollout):
        return ServingPhase.PROGRESSING
    if rollout.ready < rollout.wanted:
        return ServingPhase.DEGRADED
    return ServingPhase.READY if rollout.endpoint.settled or not rollout.wanted else ServingPhase.PROGRESSING


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
