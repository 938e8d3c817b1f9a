"""The steps of a canary: which share of the traffic a verified candidate has, until when, and whether it stands it.
Pure.

```
             its pods are ready,                     the last step is over
             the network is open       step by step
Verifying ─▶ Canary ────────────────▶ Canary … ─────────────────────▶ Promoting ─▶ Serving
             │                           │                              │
             └───────────────────────────┴──────────────────────────────┴─▶ Failed: all traffic is the old one's again
```

If no pod of the old revision has been ready for a minute, the remaining steps are skipped: nobody else answers, and
there is nothing to compare with.

A step ends with its pause; where the spec asks for an analysis, it takes its verdict too (``analysis.py``).

While it has a share, the public Service names no revision, so that connections are spread over the pods of both. So the
share is that of its pods; and no other revision may have any. All pods of the old revision stay.

Where a gateway takes the endpoint's HTTPRoute when the canary begins, the route divides requests by the weights of the
steps instead, between the public Service, which goes on naming the old revision, and the candidate's. If the gateway
does not take the route any more, the canary goes on by pods, and stays with them.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from finetune_api.meta import LABEL_REVISION
from finetune_api.reasons import Reason
from finetune_api.serving_status import AnalysisOutcome, CanaryStatus, RevisionState, RevisionStatus
from finetune_api.strategy import CanaryStep
from finetune_operator.adapterdeployment.analysis import Analysis, analysis_of
from finetune_operator.adapterdeployment.candidate import MESSAGE_LIMIT, in_state
from finetune_operator.adapterdeployment.context import CanaryContext, RolloutContext
from finetune_operator.adapterdeployment.gap import deletion_left, serving_pods
from finetune_operator.adapterdeployment.health import (
    UNANSWERED_SECONDS,
    Sighting,
    crash_since,
    is_available,
    serving_problem,
    watch,
)
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import ServerProblem
from finetune_operator.adapterdeployment.revision_objects import is_encrypted
from finetune_operator.adapterdeployment.route import carries, gives_weights
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import DEPLOYMENTS, Object
from finetune_operator.resources.client_proxy import speaks_tls

LOOK_SECONDS: Final = 5.0
"""When to look again whether the pods of other revisions are gone."""
_NAMES: Final = 3
"""So many of those are named in a message."""


class Strays(NamedTuple):
    """What other revisions have, to which a Service that names none could send clients."""

    names: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    """Those of them that nobody deletes: pods that have lost their Deployment."""

    def __str__(self) -> str:
        """For messages, which have room for a few names."""
        named = ", ".join(self.names[:_NAMES]) + (", …" if len(self.names) > _NAMES else "")
        orphaned = f" (nothing deletes {', '.join(self.orphans[:_NAMES])}: delete them by hand)" if self.orphans else ""
        return named + orphaned


class Progress(NamedTuple):
    """Where a canary stands after this pass."""

    candidate: RevisionStatus
    replicas: int
    """So many pods of it are wanted."""
    due_after: float | None = None
    """Seconds until something is due, if nothing else happens."""
    begins: bool = False
    """Whether a step begins in this pass."""
    overdue: bool = False
    """Whether its pods hold hardware that the others of its step do not get, or for pods that nobody deletes."""
    strays: Strays = Strays()
    """What keeps it from its share although its own pods are ready."""
    analysis: Analysis | None = None
    """What its servers' metrics say of it, if the spec asks."""


def has_proved_itself(candidate: RevisionStatus) -> bool:
    """Whether a candidate was verified before its steps began: its verification is not looked at any more."""
    states = (RevisionState.CANARY, RevisionState.PROMOTING)
    return candidate.state in states and candidate.canary is not None and candidate.canary.step > 0


def end_of_steps(candidate: RevisionStatus, now: datetime) -> str:
    """For messages: how a candidate that takes over has come to the end of its steps."""
    canary = candidate.canary or CanaryStatus()
    if canary.step == canary.steps and canary.until is not None and parse_timestamp(canary.until) <= now:
        return "It passed every step of its canary."
    return f"The rest of its canary was skipped at step {canary.step} of {canary.steps}."


def takes_steps(context: RolloutContext, target: Target, candidate: RevisionStatus) -> bool:
    """Whether a verified candidate is to have a share of the traffic before it takes over: not if nobody answers
    otherwise, nor on the way back that ``spec.rollbackTo`` asks for, nor if one of the two speaks TLS: no client can
    talk to both."""
    observed, stable, spec = context.observed, context.stable, context.observed.resource.spec
    if stable is None or not spec.by_steps or spec.replicas == 0 or spec.rollback_to == target.revision:
        return False
    if is_encrypted(observed, stable.revision) != speaks_tls(target.record.template):
        return False
    if candidate.state is RevisionState.CANARY:
        return True
    return not has_proved_itself(candidate) and _pods(observed, stable, "readyReplicas") > 0


def is_shared(context: RolloutContext, candidate: RevisionStatus) -> bool:
    """Whether the public Service sends clients to a candidate of this pass too."""
    if not has_proved_itself(candidate) or candidate.canary is None or candidate.canary.started_at is None:
        return False
    if context.stable is None or is_routed(candidate):
        return False
    return not _strays(context.observed, {context.stable.revision, candidate.revision}, context.now).names


def is_routed(candidate: RevisionStatus | None) -> bool:
    """Whether its share is one of the requests that come through the HTTPRoute."""
    return candidate is not None and candidate.canary is not None and candidate.canary.routed_weight is not None


def canary_pods(beside: int, weight: int) -> int:
    """So many pods beside those of the old revision come closest to a weight in percent without being more; at least
    one, and never more than the old one has: as many can take all requests, which is what comes next."""
    return max(1, min(beside, weight * beside // (100 - weight)))


def canary_sighting(
    candidate: RevisionStatus, deployment: Object | None, pods: Sequence[Object], now: datetime
) -> Sighting:
    """Whether a candidate with a share of the traffic stands it: one crash is too many, and so is a minute in which
    none of its pods answers."""
    if not has_proved_itself(candidate) or candidate.canary is None or candidate.canary.started_at is None:
        return Sighting()
    since = parse_timestamp(candidate.canary.started_at)
    crashed = crash_since(pods, since)
    return Sighting(crashed) if crashed is not None else watch(deployment, pods, since, now)


class Silence(NamedTuple):
    """That no pod of the revision that serves is ready beside a canary."""

    since: str
    left: float
    """Seconds until it has lasted for too long."""
    answers: bool
    """Whether a pod of the canary can answer instead."""
    cause: ServerProblem

    @property
    def takes_over(self) -> bool:
        """Whether the canary serves from now on."""
        return not self.left and self.answers


def silence(context: CanaryContext, candidate: RevisionStatus) -> Silence | None:
    """Whether what serves answers beside a canary; None: it does."""
    observed, stable, now = context.observed, context.stable, context.now
    if _pods(observed, stable, "readyReplicas"):
        return None
    since = (candidate.canary.stable_unready_since if candidate.canary else None) or timestamp(now)
    left = UNANSWERED_SECONDS - (now - parse_timestamp(since)).total_seconds()
    answers = _pods(observed, candidate, "availableReplicas") > 0 and not context.closed
    live, pods = observed.child(DEPLOYMENTS, stable.deployment), observed.server_pods(stable.revision, lost=True)
    return Silence(since, max(0.0, left), answers, serving_problem(live, pods))


def beside_silence(candidate: RevisionStatus, stable: RevisionStatus, found: Silence) -> RevisionStatus:
    """A canary that has not taken over yet, with what that waits for."""
    said = f"No pod of revision {stable.revision} has been ready since {found.since}."
    if found.left:
        ends = timestamp(parse_timestamp(found.since) + timedelta(seconds=UNANSWERED_SECONDS))
        said += f" If that lasts until {ends}, this revision takes over."
    else:
        said += " This revision takes over as soon as one of its own pods can answer."
    canary = candidate.canary and candidate.canary.model_copy(update={"stable_unready_since": found.since})
    message = f"{candidate.message} {said}"[:MESSAGE_LIMIT]
    return candidate.model_copy(update={"message": message, "canary": canary})


def step_on(context: CanaryContext, candidate: RevisionStatus) -> Progress:
    """The canary of this pass."""
    observed, target, closed, now = context.observed, context.target, context.closed, context.now
    steps, beside = observed.resource.spec.strategy.canary.steps, observed.resource.spec.replicas
    # A gateway learns from a policy by a Service's name that its pods speak TLS, and knows none of the candidate's.
    routed = gives_weights(observed) and not speaks_tls(target.record.template)
    known = CanaryStatus(step=1)
    if has_proved_itself(candidate) and candidate.canary:
        known = candidate.canary if routed else candidate.canary.model_copy(update={"routed_weight": None})
    elif routed:
        known = known.model_copy(update={"routed_weight": 0})
    number = min(known.step, len(steps))
    step, may_start = steps[number - 1], target.serving.start_seconds
    canary, replicas = _at_step(known, number, steps, beside)
    strays = _strays(observed, {context.stable.revision, candidate.revision}, now)
    could = not closed and is_available(observed.child(DEPLOYMENTS, candidate.deployment), replicas)
    # While others are being deleted it is not late, whether or not all of its own pods are ready just then.
    least = LOOK_SECONDS if strays.names and not strays.orphans else -math.inf
    has_share, strays = could and not strays.names, strays if could else Strays()
    left = may_start - (now - parse_timestamp(candidate.since)).total_seconds()
    if has_share and canary.routed_weight is not None:
        canary, has_share = _divided(context, candidate, canary, left)
    reached = canary.reached_at or (timestamp(now) if has_share else None)
    if reached is None:
        if could and least > 0 and left < may_start / 2:
            # It waits for others: when they have gone, its own pods still have half of their time.
            since = now - timedelta(seconds=observed.settings.policy_seconds)  # the network stays open
            candidate = candidate.model_copy(update={"since": timestamp(since)})
        return _waiting(candidate, canary, replicas, (closed, least if least > 0 else left), strays, now)
    until = parse_timestamp(reached) + timedelta(seconds=step.pause_seconds)
    canary = canary.model_copy(
        update={"started_at": canary.started_at or reached, "reached_at": reached, "until": timestamp(until)}
    )
    left, paused = (until - now).total_seconds(), candidate.model_copy(update={"canary": canary})
    analysis = analysis_of(context, paused)
    canary = canary.model_copy(update={"analysis": analysis.status if analysis else None})
    if left > 0 or (analysis is not None and not analysis.goes_on):
        return _pausing(candidate, canary, replicas, now, analysis, begins=known.reached_at is None)
    if not has_share:
        waits = (closed, max(least, may_start + left))
        return _waiting(candidate, canary, replicas, waits, strays, now)._replace(analysis=analysis)
    if number == len(steps):
        return _over(candidate, canary, replicas, now)._replace(analysis=analysis)
    canary, replicas = _at_step(canary, number + 1, steps, beside)
    canary = canary.model_copy(update={"reached_at": None, "until": None, "analysis": None})
    begun = candidate.model_copy(update={"since": timestamp(now)})
    waits = (float(observed.settings.policy_seconds), float(may_start))
    return _waiting(begun, canary, replicas, waits, Strays(), now)._replace(analysis=analysis)


def _at_step(known: CanaryStatus, number: int, steps: Sequence[CanaryStep], beside: int) -> tuple[CanaryStatus, int]:
    """The canary at a step, and its number of pods beside so many others."""
    weight = steps[number - 1].weight
    replicas = canary_pods(beside, weight)
    share = round(100 * replicas / (beside + replicas)) if known.routed_weight is None else weight
    found = {
        "stable_unready_since": None,
        "step": number,
        "steps": len(steps),
        "weight": weight,
        "share": share,
        "pods": f"{replicas} of {beside + replicas}",
        "summary": f"{number}/{len(steps)} {share}%",
    }
    return known.model_copy(update=found), replicas


def _divided(
    context: CanaryContext, candidate: RevisionStatus, canary: CanaryStatus, left: float
) -> tuple[CanaryStatus, bool]:
    """The canary once its pods could take the weight of its step, and whether the gateway has taken it. If it has not
    in all the time that a step has to begin, the canary goes on by pods."""
    if canary.reached_at is None and left <= 0:
        return canary.model_copy(update={"routed_weight": None}), True
    asked = {"routed_weight": canary.weight, "started_at": canary.started_at or timestamp(context.now)}
    return canary.model_copy(update=asked), carries(context.observed, candidate.revision, canary.weight)


def _shares(canary: CanaryStatus, verb: str) -> str:
    """What it gets, or is to get."""
    if canary.routed_weight is not None:
        return f"{canary.pods} pods {verb} {canary.weight} % of the requests through the HTTPRoute"
    return f"{canary.pods} pods {verb} {canary.share} % of new connections (weight {canary.weight})"


def _waiting(
    candidate: RevisionStatus,
    canary: CanaryStatus,
    replicas: int,
    waits: tuple[float, float],
    strays: Strays,
    now: datetime,
) -> Progress:
    """The share of a step is not reached yet, or its last pods are missing. ``waits``: seconds until the network is
    open, and until its pods have had hardware for as long as they may. What is being deleted is waited for as long as
    that takes."""
    what = f"once these are gone: {strays}" if strays.names else "once they are ready and the network is open"
    if canary.routed_weight == canary.weight and canary.reached_at is None:
        what = "once its gateway has applied the weights"
    message = f"Step {canary.step} of {canary.steps}: {_shares(canary, 'will get')}, {what}."
    shown = in_state(candidate, RevisionState.CANARY, Reason.CANARY_STEP, message, now)
    looks = (*waits, LOOK_SECONDS if strays.names else 0.0)
    due_after = min((seconds for seconds in looks if seconds > 0), default=None)
    return Progress(
        shown.model_copy(update={"canary": canary}), replicas, due_after, overdue=waits[1] <= 0, strays=strays
    )


def _pausing(
    candidate: RevisionStatus,
    canary: CanaryStatus,
    replicas: int,
    now: datetime,
    analysis: Analysis | None,
    *,
    begins: bool,
) -> Progress:
    """It has its share, and has to stand it for a while, or until its analysis has a verdict."""
    left = (parse_timestamp(canary.until or timestamp(now)) - now).total_seconds()
    shares = f"Step {canary.step} of {canary.steps}: {_shares(canary, 'get')}"
    then = f" until {canary.until}; then {'the next step follows' if canary.step < canary.steps else 'it takes over'}"
    reason, message = Reason.CANARY_STEP, f"{shares}{then}."
    if analysis is not None and analysis.holds:
        reason = Reason.ANALYSIS_INCONCLUSIVE
        message = f"{shares}. There is no verdict yet. {analysis.status.message} The analysis continues until "
        message += f"{analysis.status.until}."
    elif analysis is not None and left <= 0:
        message = f"{shares}. Its pause is over; the verdict of its analysis is due."
    elif analysis is not None and analysis.status.outcome is AnalysisOutcome.RUNNING:
        message = f"{shares}{then}, if its analysis passes."
    shown = in_state(candidate, RevisionState.CANARY, reason, message, now)
    looks = [
        seconds for seconds in (left, analysis.due_after if analysis else None) if seconds is not None and seconds > 0
    ]
    shown = shown.model_copy(update={"canary": canary})
    return Progress(shown, replicas, min(looks, default=None), begins=begins, analysis=analysis)


def _over(candidate: RevisionStatus, canary: CanaryStatus, replicas: int, now: datetime) -> Progress:
    """All steps are over: its other pods start."""
    message = f"All {canary.steps} steps are complete; the remaining pods start, then it takes over."
    shown = in_state(candidate, RevisionState.PROMOTING, Reason.VERIFIED, message, now)
    return Progress(shown.model_copy(update={"canary": canary}), replicas, 1.0)


def _strays(observed: ObservedDeployment, revisions: set[str], now: datetime) -> Strays:
    """What revisions other than these have. A pod whose grace period is over, on a node that does not answer, gets no
    client. Pods whose Deployment is still there go with it."""
    live = observed.children.get(DEPLOYMENTS, {}).items()
    owners = [f"Deployment {name}" for name, each in live if _revision_of(each) not in revisions]
    pods = [(each, deletion_left(each, now)) for each in serving_pods(observed) if _revision_of(each) not in revisions]
    names = [f"pod {pod['metadata']['name']}" for pod, left in pods if left is None or left > 0]
    orphans = [] if owners else [f"pod {pod['metadata']['name']}" for pod, left in pods if left is None]
    return Strays((*owners, *names), tuple(orphans))


def _pods(observed: ObservedDeployment, revision: RevisionStatus, count: str) -> int:
    """Pods of a revision that its Deployment counts so."""
    live = observed.child(DEPLOYMENTS, revision.deployment) or {}
    return int((live.get("status") or {}).get(count, 0))


def _revision_of(live: Object) -> str:
    return str((live["metadata"].get("labels") or {}).get(LABEL_REVISION, ""))
