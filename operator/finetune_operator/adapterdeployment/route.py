"""The way in from outside: what it is to be, what stands in its way, and whether a gateway takes it. Pure.

It is never in the way of anything else: inside the cluster the endpoint serves whatever becomes of it.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from finetune_api.meta import GROUP
from finetune_api.reasons import Reason
from finetune_api.routes import ParentRef, Route
from finetune_api.serving_status import RevisionStatus
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.route_claims import own_part, route_kind, route_violation
from finetune_operator.framework.actions import Action, Delete, Patch
from finetune_operator.framework.conditions import ConditionType, Finding, parse_timestamp, timestamp
from finetune_operator.framework.objects import HTTP_ROUTES, Object
from finetune_operator.resources.drift import ensure
from finetune_operator.resources.route import Backend, backends_of, http_route, ingress
from finetune_operator.resources.service import candidate_service_name

UNDIVIDED_SINCE: Final = f"{GROUP}/undivided-since"
"""Annotation of an HTTPRoute that has divided requests: since when it sends all of them to the public Service again."""
ROUTE: Final = "route"
"""The word for its actions, which are optional."""
LOOK_SECONDS: Final = 15.0
"""When to look again for what no event tells: a kind that is installed, another endpoint that gives up its address."""
SETTLING_SECONDS: Final = 10.0
"""So long a gateway may take to follow its route, whatever it says. Until then it may send clients to a Service that
the route no longer names."""
FOLLOWING_SECONDS: Final = 120.0
"""So long it is waited for to say that it has seen the route: cloud load balancers take a minute or two, and one that
is gone never says so."""


def route_blocker(observed: ObservedDeployment) -> tuple[Reason, str] | None:
    """Why the route that the spec asks for cannot be, for any of its hosts; None if it can, or none is asked for."""
    route = observed.resource.spec.access.route
    if route is None:
        return None
    kind, serving = route_kind(route), observed.settings.serving
    if kind not in serving.routes:
        value = "httpRoutes" if kind == HTTP_ROUTES else "ingresses"
        said = f"The platform offers no {kind.kind} (serving.{value} of the chart's values); "
        if kind in serving.watched_routes:
            said += "an existing one is deleted."
        else:
            said += "an existing one stays unchanged, with its weights (serving.formerRoutes)."
        return Reason.ROUTE_UNAVAILABLE, said
    if kind in observed.lacking:
        crd = f"{kind.plural}.{kind.api_version.partition('/')[0]}"
        said = f"The cluster has no {kind.kind} of {kind.api_version}: its CRD, {crd}, is not installed."
        return Reason.ROUTE_UNAVAILABLE, said
    if violation := route_violation(observed.settings, observed.owner.namespace, route):
        return Reason.NOT_ALLOWED, violation
    return (Reason.ROUTE_TAKEN, _taken(observed)) if _own(observed) is None else None


def route_actions(
    observed: ObservedDeployment, port: int | None, candidate: RevisionStatus | None, now: datetime
) -> tuple[Action, ...]:
    """Make or restore the route, once a revision serves, which clients reach at a ``port`` of its Service; delete what
    is not wanted any more. What the platform's rules no longer allow stays as it is, as everything that serves does. No
    rollout goes on then: a canary has no share."""
    route, blocked = _own(observed), route_blocker(observed)
    if blocked is not None and blocked[0] is Reason.NOT_ALLOWED:
        return _undivided(observed, now)
    wanted = None if blocked or port is None or route is None else _wanted(observed, route, port, candidate, now)
    kind = route_kind(route) if route else None
    gone = tuple(
        Delete(resource, name, child["metadata"]["uid"])
        for resource in observed.settings.serving.watched_routes
        for name, child in observed.children.get(resource, {}).items()
        if "deletionTimestamp" not in child["metadata"]
        and (wanted is None or (resource, name) != (kind, wanted["metadata"]["name"]))
    )
    if wanted is None or kind is None:
        return gone
    return (*gone, *ensure(kind, wanted, _live(observed), whole_lists=True))


def route_finding(observed: ObservedDeployment, stable: RevisionStatus | None) -> Finding | None:
    """Whether clients outside of the cluster have a way in, by all hosts; None where the spec asks for none."""
    if observed.resource.spec.access.route is None:
        return None
    if blocked := route_blocker(observed):
        return _finding(False, *blocked)
    route = _own(observed)
    if route is None:  # for the type checker: then it is blocked
        return None
    name = f"{route_kind(route).kind} {observed.owner.name}"
    found = _way_in(observed, route, name, stable)
    if not observed.holders:
        return found
    said = f"{_taken(observed)} The {name} has only {', '.join(route.hosts)}."
    reason = Reason.ROUTE_REFUSED if found.reason is Reason.ROUTE_REFUSED else Reason.ROUTE_TAKEN
    return _finding(False, reason, f"{said} {found.message}")


def _way_in(observed: ObservedDeployment, route: Route, name: str, stable: RevisionStatus | None) -> Finding:
    """Whether clients have a way in by its own hosts."""
    if said := observed.unmet.get(ROUTE, "").rstrip("."):
        return _finding(False, Reason.ROUTE_REFUSED, f"The {name} cannot be written: {said}.{_divides(observed)}")
    if stable is None:
        return _finding(False, Reason.ROUTE_PENDING, f"The {name} is created once a revision serves.")
    answer = _answer(observed, route)
    if answer.refusal:
        return _finding(False, Reason.ROUTE_REFUSED, f"The {name} is not accepted. {answer.refusal}")
    if not answer.accepted:
        return _finding(False, Reason.ROUTE_PENDING, f"The {name} waits for {answer.of} to accept it.")
    return _finding(True, Reason.ROUTE_ACCEPTED, f"{answer.of} accepts the {name}: {', '.join(route.urls)}.")


def public_url(observed: ObservedDeployment, stable: RevisionStatus | None) -> str:
    """Where clients outside of the cluster reach the endpoint; empty without a route."""
    route = _own(observed)
    if route is None or stable is None or route_blocker(observed) or observed.unmet.get(ROUTE):
        return ""
    return route.urls[0]


def look_after(observed: ObservedDeployment) -> float | None:
    """Seconds after which to look again whether the route can be; None where an event tells."""
    found = route_blocker(observed)
    if found is None and observed.holders:
        return LOOK_SECONDS
    is_watched = found is None or found[0] is Reason.NOT_ALLOWED or _is_turned_off(observed)
    return None if is_watched else LOOK_SECONDS


def gives_weights(observed: ObservedDeployment) -> bool:
    """Whether a gateway takes the endpoint's HTTPRoute, so that it can divide requests."""
    route = observed.resource.spec.access.route
    if route is None or route.http_route is None or route_blocker(observed) or observed.unmet.get(ROUTE):
        return False
    return _answer(observed, route).accepted


def carries(observed: ObservedDeployment, revision: str, weight: int) -> bool:
    """Whether the gateway has taken an HTTPRoute that gives the candidate's Service this percentage of the requests."""
    route, live = observed.resource.spec.access.route, _live(observed)
    if route is None or live is None or backends_of(live) != _divided(observed, revision, weight):
        return False
    return _answer(observed, route).settled


def takes_back(observed: ObservedDeployment, stable: RevisionStatus | None, candidate: RevisionStatus | None) -> bool:
    """Whether the HTTPRoute sends requests to the Service of a revision that is to have none after this pass."""
    routed = candidate is not None and candidate.canary is not None and candidate.canary.routed_weight is not None
    having = [each.revision for each in (stable, candidate if routed else None) if each]
    services = {observed.owner.name, *(candidate_service_name(observed.owner, each) for each in having)}
    return any(each.weight and each.service not in services for each in _backends(observed))


def named_left(observed: ObservedDeployment, service: str, now: datetime) -> float:
    """Seconds for which a gateway may still send clients to a Service: as long as the HTTPRoute names it, and a while
    longer, until the gateway has followed. Since when it is not named, the route says itself: nothing else tells of a
    canary that was dropped."""
    live = observed.child(HTTP_ROUTES, observed.owner.name)
    if live is None:
        return 0.0
    if service in {each.service for each in _backends(observed)}:
        return SETTLING_SECONDS
    try:
        since = parse_timestamp(_undivided_since(live))
    except ValueError:
        return 0.0
    seconds = SETTLING_SECONDS if _has_been_seen(live) else FOLLOWING_SECONDS
    return max(0.0, (since + timedelta(seconds=seconds) - now).total_seconds())


class _Answer(NamedTuple):
    """What those who are to take a route say of it."""

    of: str
    """Who they are."""
    accepted: bool = False
    """All of them take it."""
    settled: bool = False
    """All of them take it as it is now, and can reach what it names."""
    refusal: str = ""
    """What one of them has against it."""


def _answer(observed: ObservedDeployment, route: Route) -> _Answer:
    live = _live(observed) or {"metadata": {}}
    if route.http_route is None:
        found = ((live.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        asked = f"the controller of IngressClass {route.ingress.class_name}" if route.ingress else ""
        return _Answer(asked, accepted=bool(found), settled=bool(found))
    namespace, generation = observed.owner.namespace, live["metadata"].get("generation", 0)
    answers = [(each, list(_answers(live, each, namespace))) for each in route.http_route.parent_refs]
    accepted = [any(_says(one, "Accepted", "True") for one in given) for _, given in answers]
    return _Answer(
        of="Gateway " + " and ".join(_named(each, namespace) for each, _ in answers),
        accepted=all(accepted),
        settled=all(any(_is_settled(one, generation) for one in given) for _, given in answers),
        refusal=" ".join(text for each, given in answers for text in _refusals(_named(each, namespace), given)),
    )


_Conditions = dict[str, dict[str, Any]]


def _answers(live: Object, asked: ParentRef, namespace: str) -> Iterator[_Conditions]:
    """What each controller says for a parent: its conditions by their types."""
    wanted = (asked.name, asked.namespace or namespace, asked.section_name)
    for entry in (live.get("status") or {}).get("parents") or []:
        parent = entry["parentRef"]
        if (parent["name"], parent.get("namespace") or namespace, parent.get("sectionName")) == wanted:
            yield {each["type"]: each for each in entry.get("conditions") or []}


def _is_settled(given: _Conditions, generation: int) -> bool:
    accepted = given.get("Accepted") or {}
    is_new = accepted.get("observedGeneration", generation) >= generation
    return is_new and _says(given, "Accepted", "True") and not _says(given, "ResolvedRefs", "False")


def _has_been_seen(live: Object) -> bool:
    """Whether none who has an answer to a route has it to an earlier state of that, whatever the answer is."""
    generation, parents = live["metadata"].get("generation", 0), (live.get("status") or {}).get("parents") or []
    given = [each for parent in parents for each in parent.get("conditions") or [] if each["type"] == "Accepted"]
    return all(each.get("observedGeneration", generation) >= generation for each in given)


def _refusals(gateway: str, answers: list[_Conditions]) -> Iterator[str]:
    if any(_says(one, "Accepted", "True") and not _says(one, "ResolvedRefs", "False") for one in answers):
        return
    for one in answers:
        for kind in ("Accepted", "ResolvedRefs"):
            if _says(one, kind, "False"):
                said = str(one[kind].get("message", ""))[:_MOST].rstrip(".")
                yield f"Gateway {gateway} says {kind}: False, {one[kind].get('reason', '')}: {said}."


_MOST: Final = 300
"""So many characters of a gateway's message have room."""


def _says(given: _Conditions, kind: str, status: str) -> bool:
    return bool((given.get(kind) or {}).get("status") == status)


def _named(parent: ParentRef, namespace: str) -> str:
    section = f" ({parent.section_name})" if parent.section_name else ""
    return f"{parent.namespace or namespace}/{parent.name}{section}"


def _wanted(
    observed: ObservedDeployment, route: Route, port: int, candidate: RevisionStatus | None, now: datetime
) -> Object | None:
    """The route as it is to be; one of its two kinds is given."""
    owner = observed.owner
    if route.ingress is not None:
        return ingress(owner, route.ingress, observed.settings.serving.ingresses.annotations, port)
    if route.http_route is None:
        return None
    weight = candidate.canary.routed_weight if candidate and candidate.canary else None
    divided = _divided(observed, candidate.revision if candidate else "", weight or 0)
    made, live = http_route(owner, route.http_route, divided, port), _live(observed)
    if live is not None and not weight and (since := _undivided_from(live, owner.name, now)):
        made["metadata"]["annotations"] = {UNDIVIDED_SINCE: since}
    return made


def _undivided_since(live: Object) -> str:
    return str((live["metadata"].get("annotations") or {}).get(UNDIVIDED_SINCE, ""))


def _undivided_from(live: Object, name: str, now: datetime) -> str:
    """Since when an HTTPRoute names the public Service alone, if it does from now on; empty: it has always."""
    divides = any(each.service != name for each in backends_of(live))
    return timestamp(now) if divides else _undivided_since(live)


def _backends(observed: ObservedDeployment) -> list[Backend]:
    """Where the HTTPRoute sends requests now."""
    live = observed.child(HTTP_ROUTES, observed.owner.name)
    return backends_of(live) if live else []


def _divides(observed: ObservedDeployment) -> str:
    """For messages: what an HTTPRoute that stays as it is sends to a canary."""
    others = [each for each in _backends(observed) if each.weight and each.service != observed.owner.name]
    return "".join(f" It still sends {each.weight} % of the requests to Service {each.service}." for each in others)


def _divided(observed: ObservedDeployment, revision: str, weight: int) -> list[Backend]:
    """The public Service alone, or beside it the candidate's with its percentage."""
    owner = observed.owner
    candidate = [Backend(candidate_service_name(owner, revision), weight)] if weight else []
    return [Backend(owner.name, 100 - weight), *candidate]


def _undivided(observed: ObservedDeployment, now: datetime) -> tuple[Action, ...]:
    """Have an HTTPRoute that divides requests send all of them to the public Service, and change nothing else of it."""
    live, name = observed.child(HTTP_ROUTES, observed.owner.name), observed.owner.name
    if live is None or all(each.service == name for each in backends_of(live)):
        return ()
    rules = [
        rule | {"backendRefs": [each for each in rule.get("backendRefs") or [] if each["name"] == name]}
        for rule in live["spec"]["rules"]
    ]
    since = {"annotations": {UNDIVIDED_SINCE: timestamp(now)}}
    return (Patch(HTTP_ROUTES, name, {"metadata": since, "spec": {"rules": rules}}),)


def _live(observed: ObservedDeployment) -> Object | None:
    route = observed.resource.spec.access.route
    return observed.child(route_kind(route), observed.owner.name) if route else None


def _own(observed: ObservedDeployment) -> Route | None:
    """The route for those hosts that nobody else has."""
    route = observed.resource.spec.access.route
    return own_part(route, (each.address for each in observed.holders)) if route else None


def _taken(observed: ObservedDeployment) -> str:
    return " ".join(each.told(observed.owner.namespace) for each in observed.holders)


def _is_turned_off(observed: ObservedDeployment) -> bool:
    route = observed.resource.spec.access.route
    return route is not None and route_kind(route) not in observed.settings.serving.routes


def _finding(status: bool, reason: Reason, message: str) -> Finding:
    return Finding(ConditionType.ROUTE_ACCEPTED, status, reason, message)
