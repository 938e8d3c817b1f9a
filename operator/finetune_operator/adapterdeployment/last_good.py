"""The last good revision: its pods stay for a while after another one took over, and the traffic can go back. Pure.

```
          another one is promoted          keepLastGood is over, or its pods make room
Serving ─────────────────────────▶ Kept ─────────────────────────────────────────────▶ Superseded
   ▲                                │
   └────────────────────────────────┘  the new one crashes, stops answering or answers wrongly, or the spec goes back
```
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState, RevisionState, RevisionStatus
from finetune_api.verification import WithdrawnPolicy
from finetune_operator.adapterdeployment.candidate import given_back, in_state
from finetune_operator.adapterdeployment.context import RolloutContext
from finetune_operator.adapterdeployment.health import Sighting, watch
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import Outlook, ServerProblem
from finetune_operator.adapterdeployment.revision import asked_gates, asked_hash, is_as_the_spec_protects
from finetune_operator.adapterdeployment.revision_objects import direct_traffic, is_as_recorded
from finetune_operator.adapterdeployment.rollout import withdrawal
from finetune_operator.adapterdeployment.step import RolloutStep
from finetune_operator.adapterdeployment.target import Target, recorded_target
from finetune_operator.blockers import Blocker
from finetune_operator.framework.actions import Action, Event
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import DEPLOYMENTS
from finetune_operator.tenancy.floor import floor_violation

_STAYED: Final = "Its pods were kept from when it served before"


class Kept(NamedTuple):
    """The revision that served before, whose pods stay and are what was proved."""

    revision: RevisionStatus
    target: Target
    """What makes its pods."""


def kept(observed: ObservedDeployment) -> Kept | None:
    """The revision that served before, as long as its pods are what was proved: with the keys, too, that the spec asks
    for by now. One that asks clients for none never comes back by itself where the spec does."""
    previous = observed.resource.status.previous
    if previous is None or not _keeps(observed) or barred(observed, previous) or _was_rejected(observed, previous):
        return None
    target = recorded_target(observed, previous)
    if target is None or not is_as_the_spec_protects(target.serving, observed.resource.spec):
        return None
    return Kept(previous, target) if is_as_recorded(observed, target.record) else None


def _was_rejected(observed: ObservedDeployment, previous: RevisionStatus) -> bool:
    """Whether ``spec.rollbackTo`` leads back from it to an earlier one, which serves. Versions of the operator that
    kept it all the same may have left it so. Where what serves was asked for by its source first, and was named by
    ``spec.rollbackTo`` later, nobody has rejected what served before."""
    stable, records = observed.resource.status.stable, observed.records
    if stable is None or observed.resource.spec.rollback_to != stable.revision:
        return False
    if stable.spec_hash != asked_hash(observed):
        return False
    serves, left = records.get(stable.revision), records.get(previous.revision)
    return serves is not None and left is not None and serves.number < left.number


def barred(observed: ObservedDeployment, revision: RevisionStatus) -> str:
    """Why the policy lets no traffic go back to a revision without another verification; empty: it does."""
    policy, gates = observed.resource.spec.policy, asked_gates(observed.resource.spec)
    if policy.withdrawn is WithdrawnPolicy.REFUSE and (said := withdrawal(observed, revision)):
        return f"its artifact was {said}. spec.policy.withdrawn is {policy.withdrawn}."
    if gates and revision.gates != gates:
        return "it was not verified by the gates of spec.policy."
    return ""


def unproved(observed: ObservedDeployment, revision: RevisionStatus) -> str:
    """Why a revision that served before does not do so again where the spec asks for it, until it is verified again: it
    was verified by less than the platform asks for by now. Empty: nothing is in the way.

    Traffic that goes back by itself does not wait for that: what serves would go on failing its clients.
    """
    floors, spec = observed.settings.serving.verification_floors, observed.resource.spec
    if revision.verified_by is not None:
        violation = floor_violation(floors, observed.owner.namespace, revision.verified_by, spec.policy)
        return f"By the spec with which it was verified: {violation}" if violation else ""
    asks = any(floor.is_for(observed.owner.namespace) for floor in floors)
    return "An earlier version did not record how it was verified, and the platform sets a minimum." if asks else ""


def proves_again(
    observed: ObservedDeployment, target: Target | Blocker, previous: Kept | None, step: RolloutStep
) -> tuple[Event, ...]:
    """That the revision to go back to is verified again first, as soon as it is the candidate."""
    known, begun = observed.resource.status.candidate, step.candidate
    if previous is None or begun is None or not isinstance(target, Target):
        return ()
    if target.revision != previous.target.revision or begun.revision != target.revision:
        return ()
    if (known is not None and known.revision == target.revision) or not (said := unproved(observed, previous.revision)):
        return ()
    message = f"Revision {target.revision} served before, and is verified again before it serves: {said}"
    return (Event("Normal", Reason.BELOW_VERIFICATION_FLOOR, message),)


def let_go(observed: ObservedDeployment, before: RevisionStatus | None, step: RolloutStep) -> tuple[Event, ...]:
    """That pods do not stay, or no longer, because nothing may go back to them. ``before``: as in to_keep."""
    left = observed.resource.status.previous
    if before is not None and step.stable is not None and step.stable.revision != before.revision:
        left = before if step.fallen is None else None
    if left is None or not _keeps(observed) or not (said := barred(observed, left)):
        return ()
    message = (
        f"The pods of revision {left.revision}, which served before, are not kept, and no traffic goes back to them: "
        f"{said}"
    )
    reason = Reason.ARTIFACT_WITHDRAWN if withdrawal(observed, left) else Reason.GATES_NOT_PASSED
    return (Event("Warning", reason, message),)


def keep_left(observed: ObservedDeployment, previous: RevisionStatus, now: datetime) -> float:
    """Seconds for which the pods of the revision before still stay."""
    end = parse_timestamp(previous.since) + timedelta(seconds=observed.resource.spec.keep_seconds)
    return max(0.0, (end - now).total_seconds())


def is_over(observed: ObservedDeployment, previous: Kept, seen: Sighting, now: datetime) -> bool:
    """Whether the pods of the revision before have stayed long enough: not while it is open whether they are needed."""
    open_still = seen.problem is not None or seen.due_after is not None
    return keep_left(observed, previous.revision, now) == 0 and not open_still


def answers(observed: ObservedDeployment, previous: Kept) -> bool:
    """Whether a kept revision could serve at once."""
    live = observed.child(DEPLOYMENTS, previous.revision.deployment) or {}
    return bool((live.get("status") or {}).get("readyReplicas"))


def watched(context: RolloutContext, previous: Kept | None) -> Sighting:
    """What is seen of the revision that serves, while there is another to go back to."""
    stable = context.stable
    if stable is None or previous is None or not answers(context.observed, previous):
        return Sighting()
    pods = context.observed.server_pods(stable.revision, lost=True)
    live = context.observed.child(DEPLOYMENTS, stable.deployment)
    return watch(live, pods, parse_timestamp(stable.since), context.now)


def is_blocked(observed: ObservedDeployment) -> bool:
    """Whether the API server refuses objects: then traffic does not go back, since only what was done is reported."""
    return bool(observed.refusal or observed.conflicts or observed.pending_deletion)


def roll_back(
    observed: ObservedDeployment,
    target: Target | Blocker,
    stable: RevisionStatus,
    previous: Kept,
    problem: ServerProblem,
    now: datetime,
) -> RolloutStep:
    """The serving revision fails under traffic: the one before serves again.

    The fallen one is the candidate that failed, so that it is not tried again for the same spec. If another one is the
    target already, that goes on.
    """
    ended = f"{problem.message} Revision {previous.target.revision}, which served before, serves again."
    said = replace(problem, message=ended)
    tried = stable.model_copy(update={"spec_hash": asked_hash(observed)})
    if problem.checks:
        tried = tried.model_copy(update={"verification": list(problem.checks)})
    fallen = in_state(tried, RevisionState.FAILED, said.reason, said.message, now)
    candidate = fallen if said.outlook is Outlook.FAIL else given_back(tried, said, now)
    if isinstance(target, Target) and target.revision != stable.revision:
        candidate = observed.resource.status.candidate or candidate
    message = f"Revision {stable.revision} was rolled back: {ended}"
    return RolloutStep(
        stable=_serving_again(previous.revision, f"{_STAYED}, and {stable.revision} was rolled back.", now),
        candidate=candidate,
        fallen=fallen,
        takes_back=True,
        actions=_to_kept_pods(observed, previous.target),
        events=(Event("Warning", Reason.ROLLED_BACK, message),),
    )


def go_back(
    observed: ObservedDeployment, target: Target, stable: RevisionStatus, previous: Kept, now: datetime
) -> RolloutStep:
    """The spec asks for the revision that served before, whose pods are there and were proved: it serves at once."""
    asked, left = "as its source asks", ""
    if observed.resource.spec.rollback_to:
        asked, left = "as spec.rollbackTo asks", f" Those of {stable.revision} drain and end."
    message = f"Revision {target.revision} serves again instead of {stable.revision}, {asked}. {_STAYED}.{left}"
    again = _serving_again(previous.revision, f"{_STAYED}.", now).model_copy(update={"spec_hash": target.spec_hash})
    return RolloutStep(
        stable=again, actions=_to_kept_pods(observed, target), events=(Event("Normal", Reason.ROLLED_BACK, message),)
    )


def to_keep(
    observed: ObservedDeployment,
    before: RevisionStatus | None,
    previous: Kept | None,
    step: RolloutStep,
    now: datetime,
) -> RevisionStatus | None:
    """The revision whose pods stay after this pass.

    Args:
        observed: what was observed.
        before: the revision that served until this pass.
        previous: the one whose pods stayed until this pass.
        step: what this pass does.
        now: its time.
    """
    if before is None or step.stable is None:
        return None
    if before.revision == step.stable.revision:
        if previous is None or (step.candidate and step.candidate.revision == previous.target.revision):
            return None  # it starts anew
        if step.candidate and step.candidate.state is RevisionState.CANARY:
            return None  # while the Service names no revision, no third one may have pods
        return previous.revision
    rejected = observed.resource.spec.rollback_to == step.stable.revision  # by a person, so as if it had fallen
    if rejected or step.fallen is not None or not _keeps(observed) or barred(observed, before):
        return None
    until = timestamp(now + timedelta(seconds=observed.resource.spec.keep_seconds))
    message = f"Its pods are kept until {until}, so that traffic can go back to them."
    stays = [each for each in before.adapters if each.state is not AdapterState.REMOVING]
    left = before.model_copy(update={"reason": "", "message": message, "since": timestamp(now), "adapters": stays})
    return left.model_copy(update={"state": RevisionState.KEPT})


def _keeps(observed: ObservedDeployment) -> bool:
    """Whether the spec has pods stay: not once it asks for none, so as to free their hardware."""
    return observed.resource.spec.keep_seconds > 0 and observed.resource.spec.replicas > 0


def _to_kept_pods(observed: ObservedDeployment, target: Target) -> tuple[Action, ...]:
    """The traffic goes to pods that are there. Nothing else is written: the rest, such as more pods, is for the next
    pass, and its refusal holds up no way back."""
    return direct_traffic(observed, target.revision)


def _serving_again(previous: RevisionStatus, message: str, now: datetime) -> RevisionStatus:
    return in_state(previous, RevisionState.SERVING, Reason.SERVING, message, now)
