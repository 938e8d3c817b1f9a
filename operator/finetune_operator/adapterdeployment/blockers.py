"""What keeps an AdapterDeployment from having a target, in the order in which it is reported. Pure."""

from collections.abc import Iterable
from typing import Final

from finetune_api.compatibility import ADAPTER
from finetune_api.reasons import Reason
from finetune_api.suitability import serving_verdict
from finetune_operator.adapterdeployment.adapters import alone, no_room
from finetune_operator.adapterdeployment.artifact import asked_record, find_artifact
from finetune_operator.adapterdeployment.claims import claims_of, spec_claims
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.revision import accepted_keys, is_as_the_spec_protects
from finetune_operator.adapterdeployment.size_limits import memory_violation, volume_violation
from finetune_operator.adapterdeployment.stored_record import Record
from finetune_operator.adapterdeployment.token_limits import prompt_violation
from finetune_operator.blockers import (
    Blocker,
    Check,
    account_missing,
    choice_unknown,
    name_conflict,
    tenancy_blocker,
)
from finetune_operator.runtimes.facts import serving_facts
from finetune_operator.tenancy.claim import Claim
from finetune_operator.tenancy.floor import floor_violation
from finetune_operator.tenancy.verdict import tenancy_violation

_OTHER_SIGNATURE: Final = "its signature was not checked with the keys of spec.policy"
_OTHER_ACCESS: Final = "its keys for clients, or its certificate, are not those of spec.access"
DELETION_SECONDS: Final = 5.0
"""When to look again for an object that the garbage collector is about to delete."""


def not_allowed(observed: ObservedDeployment) -> Blocker | None:
    """The platform's tenancy does not allow what the spec asks for, or what was found for it."""
    return _beyond_rules(observed, claims_of(observed))


def not_allowed_to_look(observed: ObservedDeployment) -> Blocker | None:
    """The same of what the spec itself names. What was found may be an earlier revision's, with keys that are not
    allowed any more, and a look would find another one."""
    return _beyond_rules(observed, spec_claims(observed))


def _beyond_rules(observed: ObservedDeployment, claims: Iterable[Claim]) -> Blocker | None:
    settings, namespace = observed.settings, observed.owner.namespace
    return tenancy_blocker(tenancy_violation(settings.tenancy, settings.free_profiles, namespace, claims))


def below_floor(observed: ObservedDeployment) -> Blocker | None:
    """The spec asks less of a revision than the platform does. What serves keeps serving."""
    spec, floors = observed.resource.spec, observed.settings.serving.verification_floors
    violation = floor_violation(floors, observed.owner.namespace, spec.verification, spec.policy)
    return Blocker(Reason.BELOW_VERIFICATION_FLOOR, violation, watched=True) if violation else None


def pending_deletion(observed: ObservedDeployment) -> Blocker | None:
    """An object of a deleted resource of this name still has a name that the plan needs."""
    if not observed.pending_deletion:
        return None
    objects = ", ".join(observed.pending_deletion)
    message = f"{objects} of a deleted AdapterDeployment of this name still exists; garbage collection will delete it."
    return Blocker(Reason.WAITING, message, waiting=True, watched=True, requeue_after=DELETION_SECONDS)


def revision_unusable(observed: ObservedDeployment) -> Blocker | None:
    """The spec goes back to a revision without a record, or whose signature was checked with other keys, or whose
    clients need other keys."""
    spec, known = observed.resource.spec, observed.records
    wanted = spec.rollback_to
    usable = [name for name, record in known.items() if is_as_the_spec_protects(record.serving, spec)]
    if not wanted or wanted in usable:
        return None
    what = "no record of it is kept"
    if wanted in known:
        same = known[wanted].serving.public_keys == accepted_keys(spec)
        what = _OTHER_ACCESS if same else _OTHER_SIGNATURE
    told = [line.revision for line in observed.resource.status.revisions if line.revision in usable]
    message = f"spec.rollbackTo is {wanted!r}; {what}. Revisions that can serve again: {', '.join(told) or 'none'}."
    return Blocker(Reason.REVISION_UNUSABLE, message, watched=True)


def source_not_ready(observed: ObservedDeployment) -> Blocker | None:
    """The source has no artifact, and no earlier one is known."""
    artifact = find_artifact(observed)
    return artifact if isinstance(artifact, Blocker) else None


def prompts_too_long(observed: ObservedDeployment) -> Blocker | None:
    """The artifact's golden prompts are too long for the runtime. A revision that serves already keeps serving."""
    spec, artifact = observed.resource.spec, find_artifact(observed)
    if isinstance(artifact, Blocker) or spec.rollback_to:
        return None
    runtime = observed.settings.runtimes[spec.runtime]
    violation = prompt_violation(artifact.tokens, spec.runtime, runtime)
    if not violation or _serves(observed):
        return None
    return Blocker(Reason.PROMPTS_TOO_LONG, violation, watched=True)


def runtime_unsuitable(observed: ObservedDeployment) -> Blocker | None:
    """The runtime is not known to serve such an artifact. A revision that serves already keeps serving."""
    artifact, name = find_artifact(observed), observed.resource.spec.runtime
    if isinstance(artifact, Blocker) or observed.resource.spec.rollback_to:
        return None
    found = serving_verdict(
        serving_facts(name, observed.settings.runtimes[name]), artifact.architecture, artifact.format
    )
    if found.starts or _serves(observed):
        return None
    what = "cannot serve it" if found.refused else "is not known to serve it"
    return Blocker(Reason.RUNTIME_UNSUITABLE, f"Runtime {name!r} {what}: {found.message}", watched=True)


def artifact_too_large(observed: ObservedDeployment) -> Blocker | None:
    """The artifact does not fit the volume into which its pods would download it, or their memory: they would ask for a
    GPU, download it, be evicted or killed, and start over. With a cache it has to fit that, if there is a limit. A
    revision that serves already keeps serving."""
    artifact, name = find_artifact(observed), observed.resource.spec.runtime
    if isinstance(artifact, Blocker) or observed.resource.spec.rollback_to:
        return None
    runtime = observed.settings.runtimes[name]
    given = (artifact.size_bytes, name, runtime)
    violation = volume_violation(*given) or memory_violation(*given)
    if not violation or _serves(observed):
        return None
    return Blocker(Reason.RUNTIME_UNSUITABLE, violation, watched=True)


def adapters_unsuitable(observed: ObservedDeployment) -> Blocker | None:
    """The runtime has no room for the adapters, or an adapter is named as if it were a whole model."""
    artifact, name = find_artifact(observed), observed.resource.spec.runtime
    if isinstance(artifact, Blocker) or observed.resource.spec.rollback_to or _serves(observed):
        return None
    if artifact.format == ADAPTER and not artifact.adapters:
        return alone(artifact.digest)
    return no_room(artifact.adapters, name, observed.settings.runtimes[name])


def _serves(observed: ObservedDeployment) -> bool:
    """Whether the revision that the spec asks for is the one that serves: it has proved that it can."""
    stable = observed.resource.status.stable
    asked = asked_record(observed) if stable else None
    return stable is not None and isinstance(asked, Record) and stable.revision == asked.revision


BLOCKERS: Final[tuple[Check[ObservedDeployment], ...]] = (
    choice_unknown,
    not_allowed,
    below_floor,
    name_conflict,
    pending_deletion,
    revision_unusable,
    source_not_ready,
    account_missing,
    adapters_unsuitable,
    runtime_unsuitable,
    artifact_too_large,
    prompts_too_long,
)
"""A refusal by the API server is not among them: it does not change the target."""
