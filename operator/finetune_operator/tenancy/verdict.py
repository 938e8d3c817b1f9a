"""The verdict: whether the rules allow what a custom resource asks for.

Rules are alternatives, and each is applied alone: a resource is allowed if one rule for its namespace allows everything
that it asks for. So a rule for an expensive profile with a low limit, and another for a cheap profile with a high one,
do not add up to both.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, assert_never

from finetune_api.budget import dollars
from finetune_operator.tenancy.claim import Claim, Subject
from finetune_operator.tenancy.places import host_of, is_inside, lies_below
from finetune_operator.tenancy.rules import AWS, NAMESPACE_PLACEHOLDER, Tenancy, TenancyRule

MOST_NAMED: Final = 8
"""So many things that a rule allows are named in a message."""
WITHOUT_RULES: Final = (
    "The platform has no tenancy.rules: profiles with a price may not be used, and http:// only inside the cluster."
)


def tenancy_violation(tenancy: Tenancy, free: Iterable[str], namespace: str, claims: Iterable[Claim]) -> str:
    """Which of the ``claims`` a namespace may not have: field, value, and what is allowed. Empty: it may have all.

    ``free`` are the names of the profiles without a price, which are all that there is without any rule.
    """
    if tenancy.open:
        return ""
    asked = list(claims)
    if not tenancy.rules:
        closed = TenancyRule(namespaces=["*"], profiles=sorted(free))
        found = [*_faults(closed, namespace, asked)]
        return " ".join([*found, WITHOUT_RULES] if found else [])
    rules = [rule for rule in tenancy.rules if rule.is_for(namespace)]
    if not rules:
        return f"Namespace '{namespace}' may not run anything: no tenancy rule of the platform applies to it."
    nearest = min(([*_faults(rule, namespace, asked)] for rule in rules), key=len)
    if nearest and len(rules) > 1:
        nearest.append(f"This is the closest of {len(rules)} rules for this namespace.")
    return " ".join(nearest)


def _faults(rule: TenancyRule, namespace: str, claims: Sequence[Claim]) -> Iterator[str]:
    """Which claims one rule does not allow, a sentence each."""
    for claim in claims:
        allowed = _allowed(rule, namespace, claim)
        if not allowed.met:
            value = f"is '{claim.value}'" if claim.value else "is not set"
            yield f"{claim.field} {value}; namespace '{namespace}' may use {allowed.words}."


@dataclass(frozen=True)
class _Allowed:
    """Whether a rule allows a claim, and what it would allow."""

    met: bool
    words: str = ""


def _allowed(rule: TenancyRule, namespace: str, claim: Claim) -> _Allowed:
    match claim.subject:
        case Subject.PROFILE:
            return _by_name(rule.profiles, claim.value)
        case Subject.RUNTIME:
            return _by_name(rule.runtimes, claim.value)
        case Subject.SECRET:
            return _by_name(rule.secrets, claim.value)
        case Subject.HOST:
            return _by_name(rule.hosts, host_of(claim.value), "the host ")
        case Subject.TRANSPORT:
            return _by_transport(rule, claim.value)
        case Subject.ENDPOINT:
            return _by_endpoint(rule.endpoints, claim.value)
        case Subject.OUTPUT:
            return _by_place(rule.outputs, namespace, claim.value)
        case Subject.INPUT:
            readable = None if rule.inputs is None else [*rule.inputs, *(rule.outputs or [])]
            return _by_place(readable, namespace, claim.value)
        case Subject.GATEWAY:
            return _by_own_name(rule.gateways, namespace, claim.value)
        case Subject.INGRESS_CLASS:
            return _by_name(rule.ingress_classes, claim.value)
        case Subject.HOSTNAME:
            return _by_own_name(rule.hostnames, namespace, claim.value)
        case Subject.COST:
            return _by_cost(rule.max_usd_per_run, claim.value)
        case unknown:
            assert_never(unknown)


def _by_name(names: list[str] | None, value: str, kind: str = "") -> _Allowed:
    if names is None:
        return _Allowed(True)
    return _Allowed(_matches(names, value), f"{kind if names else ''}{_one_of(names)}")


def _by_own_name(names: list[str] | None, namespace: str, value: str) -> _Allowed:
    return _by_name(names and [name.replace(NAMESPACE_PLACEHOLDER, namespace) for name in names], value)


def _by_endpoint(endpoints: list[str] | None, value: str) -> _Allowed:
    if endpoints is None:
        return _Allowed(True)
    words = ["none (AWS)" if endpoint == AWS else endpoint for endpoint in endpoints]
    return _Allowed(_is_listed(endpoints, value or AWS), _one_of(words))


def _by_transport(rule: TenancyRule, url: str) -> _Allowed:
    """Keys and data cross a network in the clear only where the rule says so."""
    host, but = host_of(url), f", or http:// to {_one_of(rule.insecure_hosts)}" if rule.insecure_hosts else ""
    encrypted = url.lower().startswith("https://") or is_inside(host)
    excepted = _is_listed(rule.endpoints or [], url) or _matches(rule.insecure_hosts, host)
    return _Allowed(encrypted or excepted, f"https:// outside of the cluster{but}")


def _by_place(prefixes: list[str] | None, namespace: str, value: str) -> _Allowed:
    if prefixes is None:
        return _Allowed(True)
    own = [prefix.replace(NAMESPACE_PLACEHOLDER, namespace) for prefix in prefixes]
    words = f"URIs below {_one_of(own)}" if own else "none"
    return _Allowed(any(lies_below(value, prefix) for prefix in own), words)


def _by_cost(most: float | None, value: str) -> _Allowed:
    if most is None:
        return _Allowed(True)
    return _Allowed(bool(value) and float(value) <= most, f"at most {dollars(most)} USD a run")


def _is_listed(endpoints: Iterable[str], url: str) -> bool:
    """Host names know no case."""
    return url.lower() in {endpoint.lower() for endpoint in endpoints}


def _matches(globs: Iterable[str], name: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _one_of(choices: Sequence[str]) -> str:
    """The first of the choices, and how many there are besides: a message has room for a kilobyte or a few."""
    left = len(choices) - MOST_NAMED
    return " or ".join([*choices[:MOST_NAMED], *([f"{left} more"] if left > 0 else [])]) or "none"
