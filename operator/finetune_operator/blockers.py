"""What keeps a custom resource of either kind from making progress.

A check is a named function of what was observed; it returns the blocker that it finds, or None. Each kind lists its
checks in one tuple, ``BLOCKERS``, and reports the first blocker only. A check may rely on those before it: only a
profile that exists has a ServiceAccount. The checks here serve both kinds.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from finetune_api.reasons import Reason
from finetune_operator.framework.ownership import Owner
from finetune_operator.outcome.pod import refusal
from finetune_operator.settings import Profile, Runtime, Settings


@dataclass(frozen=True)
class Blocker:
    """Why a custom resource cannot make progress."""

    reason: Reason
    message: str
    waiting: bool = False
    """True: it passes without anybody changing the resource; False: somebody has to act."""
    watched: bool = False
    """True: an event shows when it is gone, or the operator's restart (the platform's settings); False: somebody has to
    look again."""
    requeue_after: float | None = None
    """Seconds after which to look again, for what passes by itself soon."""


@dataclass(frozen=True)
class Choice:
    """A profile or runtime that a spec names, and those that the platform offers."""

    field: str
    """Of the spec: profile or runtime."""
    name: str
    offered: Mapping[str, Profile] | Mapping[str, Runtime]
    unknown: Reason
    """Reported for a name that the platform does not offer."""


class Observation(Protocol):
    """What the shared checks read of what was observed."""

    @property
    def owner(self) -> Owner: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def choice(self) -> Choice: ...
    @property
    def service_account(self) -> bool: ...
    @property
    def conflicts(self) -> tuple[str, ...]: ...
    @property
    def refusal(self) -> str: ...


O = TypeVar("O")  # noqa: E741 - what was observed
Check = Callable[[O], Blocker | None]


def first_blocker(checks: Iterable[Check[O]], observed: O) -> Blocker | None:
    """The first blocker that the checks find; None if nothing is in the way."""
    return next((blocker for check in checks if (blocker := check(observed))), None)


def choice_unknown(observed: Observation) -> Blocker | None:
    """The spec names a profile or runtime that the platform does not offer."""
    choice = observed.choice
    if choice.name in choice.offered:
        return None
    known = ", ".join(sorted(choice.offered)) or "none"
    message = f"spec.{choice.field} is {choice.name!r}; the platform offers: {known}."
    return Blocker(choice.unknown, message, watched=True)


def tenancy_blocker(violation: str) -> Blocker | None:
    """The platform's tenancy does not allow what the spec asks for, in words; empty: it does."""
    return Blocker(Reason.NOT_ALLOWED, violation, watched=True) if violation else None


def name_conflict(observed: Observation) -> Blocker | None:
    """An object of the plan has the name of one that belongs to somebody else."""
    if not observed.conflicts:
        return None
    objects, kind = ", ".join(observed.conflicts), observed.owner.resource.kind
    return Blocker(Reason.NAME_TAKEN, f"{objects} already exists and does not belong to this {kind}.")


def account_missing(observed: Observation) -> Blocker | None:
    """The namespace lacks the ServiceAccount that the pods run with. Only for a choice that is known."""
    if observed.service_account:
        return None
    choice = observed.choice
    return Blocker(
        Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
        f"ServiceAccount {choice.offered[choice.name].service_account_name!r} of {choice.field} {choice.name!r} "
        f"does not exist in namespace {observed.owner.namespace!r}.",
    )


def refused(observed: Observation) -> Blocker | None:
    """The API server refused an object of the plan (a quota, a policy)."""
    return Blocker(*refusal(observed.refusal)) if observed.refusal else None
