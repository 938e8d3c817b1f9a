"""What is left of earlier revisions, and when it is deleted."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from finetune_api.meta import LABEL_REVISION
from finetune_api.serving_status import RevisionState
from finetune_operator.adapterdeployment.analysis import is_of_analysis, names_in_use
from finetune_operator.adapterdeployment.delivery import deliveries_in_use
from finetune_operator.adapterdeployment.delivery_job import is_of_delivery
from finetune_operator.adapterdeployment.gap import serving_pods
from finetune_operator.adapterdeployment.look import is_of_look, is_past
from finetune_operator.adapterdeployment.rollout import Rollout
from finetune_operator.adapterdeployment.route import named_left
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.adapterdeployment.turns import ACTIVE
from finetune_operator.adapterdeployment.verification import verify_request
from finetune_operator.framework.actions import Delete
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    JOBS,
    NETWORK_POLICIES,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.resources.deployment import deployment_name, drain_seconds
from finetune_operator.resources.service import candidate_service_name

_NO_CLIENT: Final = (JOBS, SERVICES, CONTROLLER_REVISIONS)
"""No client can be connected to them."""
_CLEANED: Final = (JOBS, SERVICES, DEPLOYMENTS, NETWORK_POLICIES, CONFIG_MAPS, CONTROLLER_REVISIONS)
"""In this order."""
_TOLD_SECONDS: Final = 0.5
"""When to look again for what waits until the status, which is written last, tells of this pass."""


@dataclass(frozen=True)
class Cleanup:
    """Deletions that are due, and the seconds until others are."""

    first: tuple[Delete, ...] = ()
    """Objects that no client can be connected to; deleted before others are created, to make room in a quota."""
    last: tuple[Delete, ...] = ()
    """Objects of the revision that the Service pointed to; deleted after the Service has moved."""
    due_after: float | None = None


def plan_cleanup(rollout: Rollout, looking: Mapping[str, str] | None = None) -> Cleanup:
    """Delete what belongs to no revision in use. ``looking``: the Jobs that look where channels point, by adapter; the
    one before stays until then, so that its log can be read, as long as the status says what it has found: a source
    that comes back is looked at anew.

    The pods of the revision before stay as long as it is kept. Others are deleted last, once their own drain, which
    began with the newest promotion, is over (that of bad ones is not waited for) and none of them is an endpoint of the
    Service, or of one that a gateway may send clients to: until then these may be connected to them; and their network
    stays as it is until they have ended. A candidate's own Service is deleted once the candidate is verified, unless a
    gateway divides requests. One that waits keeps nothing: its next try is verified anew. The verification Job of a
    failed candidate stays, so that its log can be read. Records stay as long as the history tells of their revision.
    """
    observed, target, stable, candidate = rollout.observed, rollout.target, rollout.stable, rollout.candidate
    owner = observed.owner
    serving = stable.revision if stable else ""
    stays = rollout.previous.revision if rollout.previous else serving
    has_pods = candidate is not None and candidate.state in ACTIVE - {RevisionState.STOPPING}
    starting = candidate.revision if candidate and has_pods else ""
    verified = candidate is not None and candidate.state in (RevisionState.CANARY, RevisionState.PROMOTING)
    routed = candidate is not None and candidate.canary is not None and candidate.canary.routed_weight is not None
    asked = "" if verified and not routed else starting
    services = {owner.name} | ({candidate_service_name(owner, asked)} if asked else set())
    told = {line.revision for line in rollout.history}
    told |= {target.revision} if isinstance(target, Target) else set()
    verification = ""
    if isinstance(target, Target) and candidate and (has_pods or candidate.state is RevisionState.FAILED):
        retry = candidate.verification_retries
        verification = verify_request(observed, target, retry=retry).name

    analyses = names_in_use(observed, candidate)
    deliveries = deliveries_in_use(observed, observed.records.get(serving), stable)
    answering = {_revision_of(pod) for pod in serving_pods(observed)}

    def unused(resource: Resource, name: str, child: Object) -> bool:
        revision = _revision_of(child)
        if is_of_analysis(child):
            return name not in analyses
        if is_of_delivery(child):
            return name not in deliveries
        if is_of_look(child):
            return is_past(child, observed, looking or {})
        if resource == SERVICES:
            return name not in services
        if resource == CONTROLLER_REVISIONS:
            return revision not in told
        in_use = revision in {serving, stays, starting} or name == verification
        # Earlier verifications are of no use, even those of the candidate.
        stale = resource == JOBS and name != verification and revision != serving
        guards = resource == NETWORK_POLICIES and revision in answering
        return stale or not (in_use or guards)

    gone = [
        (Delete(resource, name, child["metadata"]["uid"]), _revision_of(child))
        for resource in _CLEANED
        for name, child in observed.children.get(resource, {}).items()
        if unused(resource, name, child) and "deletionTimestamp" not in child["metadata"]
    ]
    due, waits = [], []
    for delete, revision in gone:
        left = 0.0 if delete.resource in _NO_CLIENT else _drain_left(rollout, revision)
        left = max(left, _routed_left(rollout, delete, revision))
        if left:
            waits.append(left)
        elif delete.resource in _NO_CLIENT or not _may_be_asked(rollout, revision):
            due.append((delete, revision))
    return Cleanup(
        first=tuple(delete for delete, revision in due if revision != observed.traffic),
        last=tuple(delete for delete, revision in due if revision == observed.traffic),
        due_after=min(waits, default=None),
    )


def _revision_of(child: Object) -> str:
    return str((child["metadata"].get("labels") or {}).get(LABEL_REVISION, ""))


def _may_be_asked(rollout: Rollout, revision: str) -> bool:
    """Whether clients may still be sent to pods of a revision. A candidate that failed before it had any goes at once:
    the hardware that it holds may be what the last good one waits for."""
    pods = {pod["metadata"]["name"] for pod in rollout.observed.server_pods(revision)}
    return not pods.isdisjoint(rollout.endpoint.elsewhere)


def _routed_left(rollout: Rollout, delete: Delete, revision: str) -> float:
    """Seconds for which a gateway may still send clients to a candidate's Service, which needs its pods."""
    if delete.resource in (JOBS, CONTROLLER_REVISIONS):
        return 0.0
    return named_left(rollout.observed, candidate_service_name(rollout.observed.owner, revision), rollout.now)


def _drain_left(rollout: Rollout, revision: str) -> float:
    """Seconds until the drain of an earlier revision is over, as its own pods have it. One that was found to be bad, by
    itself or by a person, begins to end as soon as the status says so: its pods drain then, and until then whoever has
    kept a connection to them gets answers that are not to be relied on. Not before, since an operator that died in
    between would know nothing of its fall, and serve it again."""
    observed, stable, candidate = rollout.observed, rollout.stable, rollout.candidate
    live = observed.child(DEPLOYMENTS, deployment_name(observed.owner, revision))
    if stable is None or live is None:
        return 0.0
    is_candidate = candidate is not None and candidate.revision == revision
    has_fallen = (line.revision == revision and line.state is RevisionState.ROLLED_BACK for line in rollout.history)
    if is_candidate or any(has_fallen) or observed.resource.spec.rollback_to == stable.revision:
        told = observed.resource.status.stable
        return 0.0 if told is not None and told.revision == stable.revision else _TOLD_SECONDS
    end = parse_timestamp(stable.since) + timedelta(seconds=drain_seconds(live))
    return max(0.0, (end - rollout.now).total_seconds())
