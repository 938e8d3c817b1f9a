"""Which namespaces may use what: the admin's rules, compared with what a custom resource asks for. Pure.

Rules are alternatives, and each is applied alone: a resource is allowed if one rule for its namespace allows everything
that it asks for. Without any rule, everything is allowed; once there is one, only what a rule allows. So a rule for an
expensive profile with a low limit, and another for a cheap profile with a high one, do not add up to both.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Final, assert_never

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.budget import dollars

NAMESPACE_PLACEHOLDER: Final = "{namespace}"
"""Stands in a prefix for the name of the namespace that asks."""
_PARENT: Final = ".."

NameGlob = Annotated[str, Field(pattern=r"^[a-z0-9*]([-a-z0-9*]*[a-z0-9*])?$", max_length=63)]
"""A name, in which ``*`` stands for any characters."""
Prefix = Annotated[str, Field(pattern=r"^(s3|hf)://([A-Za-z0-9!_.'()=+@/-]|\{namespace\})*$", max_length=512)]
"""Where something may lie: at this URI, or below it."""
Endpoint = Annotated[str, Field(pattern=r"^(https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?)?$", max_length=253)]
"""As in a custom resource's storage.endpoint: the URL of a store, or the empty string for AWS."""


class TenancyRule(ApiModel):
    """What some namespaces may use. An omitted list limits nothing; an empty list allows nothing."""

    namespaces: Annotated[list[NameGlob], Field(min_length=1)]
    """Namespaces that the rule is for; * matches any characters, e.g. team-*."""
    profiles: list[NameGlob] | None = None
    """Profiles that FineTuneJobs may name."""
    runtimes: list[NameGlob] | None = None
    """Runtimes that AdapterDeployments may name."""
    outputs: list[Prefix] | None = None
    """Allowed prefixes of spec.output.uri, e.g. s3://models/{namespace}; they match whole path segments."""
    inputs: list[Prefix] | None = None
    """Allowed prefixes of data, base models and served artifacts: s3://bucket/prefix, hf://organisation/name; s3:// or
    hf:// alone allows all. Everything below outputs may be read too."""
    endpoints: list[Endpoint] | None = None
    """Allowed stores (storage.endpoint); the empty string is AWS. Without this list, a bucket name may refer to
    anyone's store."""
    max_usd_per_run: Annotated[float, Field(ge=0)] | None = None
    """Maximum spec.budget.maxCost; jobs on a profile with a price must then set it."""

    def is_for(self, namespace: str) -> bool:
        """Whether the rule speaks of a namespace."""
        return _matches(self.namespaces, namespace)


class Tenancy(ApiModel):
    """Which namespaces may use what."""

    rules: list[TenancyRule] = []
    """One of them must allow everything that a custom resource asks for. Without rules everything is allowed."""


class Subject(StrEnum):
    """What a rule can limit."""

    PROFILE = "profile"
    RUNTIME = "runtime"
    OUTPUT = "output"
    INPUT = "input"
    ENDPOINT = "endpoint"
    COST = "cost"


@dataclass(frozen=True)
class Claim:
    """One thing that a custom resource asks for."""

    subject: Subject
    field: str
    """The field that asks for it, as people know it."""
    value: str
    """What it asks for; for COST the highest cost in US dollars, empty where the resource sets no limit."""


def tenancy_violation(tenancy: Tenancy, namespace: str, claims: Iterable[Claim]) -> str:
    """Which of the ``claims`` a namespace may not have: field, value, and what is allowed. Empty: it may have all."""
    if not tenancy.rules:
        return ""
    rules = [rule for rule in tenancy.rules if rule.is_for(namespace)]
    if not rules:
        return f"Namespace {namespace!r} may not run anything: no tenancy rule of the platform applies to it."
    asked = list(claims)
    nearest = min(([*_faults(rule, namespace, asked)] for rule in rules), key=len)
    if nearest and len(rules) > 1:
        nearest.append(f"This is the closest of {len(rules)} rules for this namespace.")
    return " ".join(nearest)


def lies_below(uri: str, prefix: str) -> bool:
    """Whether ``uri`` is at ``prefix`` or below it, by whole path segments.

    Some stores resolve ``..``, ``.`` and double slashes in a key, others do not. So both readings of the URI must lie
    below the prefix.
    """
    readings, wanted = (_segments(uri), _resolved(uri)), _resolved(prefix)
    return wanted is not None and all(each is not None and each[: len(wanted)] == wanted for each in readings)


def _faults(rule: TenancyRule, namespace: str, claims: Sequence[Claim]) -> Iterator[str]:
    """Which claims one rule does not allow, a sentence each."""
    for claim in claims:
        allowed = _allowed(rule, namespace, claim)
        if not allowed.met:
            value = f"is {claim.value!r}" if claim.value else "is empty"
            yield f"{claim.field} {value}; namespace {namespace!r} may use {allowed.words}."


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
        case Subject.ENDPOINT:
            return _by_endpoint(rule.endpoints, claim.value)
        case Subject.OUTPUT:
            return _by_place(rule.outputs, namespace, claim.value)
        case Subject.INPUT:
            readable = None if rule.inputs is None else [*rule.inputs, *(rule.outputs or [])]
            return _by_place(readable, namespace, claim.value)
        case Subject.COST:
            return _by_cost(rule.max_usd_per_run, claim.value)
        case unknown:
            assert_never(unknown)


def _by_name(names: list[str] | None, value: str) -> _Allowed:
    return _Allowed(True) if names is None else _Allowed(_matches(names, value), _one_of(names))


def _by_endpoint(endpoints: list[str] | None, value: str) -> _Allowed:
    if endpoints is None:
        return _Allowed(True)
    known = {endpoint.lower() for endpoint in endpoints}  # host names know no case
    return _Allowed(value.lower() in known, _one_of([endpoint or "none (AWS)" for endpoint in endpoints]))


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


def _matches(globs: Iterable[str], name: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _one_of(choices: Sequence[str]) -> str:
    return " or ".join(choices) or "none"


def _segments(uri: str) -> tuple[str, ...]:
    """Scheme, bucket or organisation, and the path's parts as written, without slashes at its ends.

    The revision of a repository on the hub is a part of its own: hf://organisation/name is above each revision.
    """
    scheme, _, path = uri.partition("://")
    if scheme == "hf":
        path = path.replace("@", "/@", 1)
    path = path.strip("/")
    return (scheme, *path.split("/")) if path else (scheme,)


def _resolved(uri: str) -> tuple[str, ...] | None:
    """The same as a file system would resolve it; None where ``..`` leads out of the bucket."""
    scheme, *parts = _segments(uri)
    path: list[str] = []
    for part in parts:
        if part == _PARENT:
            if len(path) <= 1:
                return None
            path.pop()
        elif part not in ("", "."):
            path.append(part)
    return (scheme, *path)
