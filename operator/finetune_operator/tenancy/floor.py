"""The least that AdapterDeployments must ask of a revision before clients reach it, as the admin sets it.

Floors add up: each that is for a namespace holds, whatever the others say. Rules of tenancy are alternatives, of which
people would pick the one without a floor.
"""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.verification import (
    DISTANCE,
    DROP,
    MAX_SAMPLES,
    GatesPolicy,
    Objectives,
    Policy,
    PublicKey,
    RequiredGate,
    Verification,
    WithdrawnPolicy,
    duration_seconds,
)
from finetune_operator.tenancy.rules import NameGlob


class VerificationFloor(ApiModel):
    """The least that some namespaces must ask of a revision. An omitted field asks nothing."""

    namespaces: Annotated[list[NameGlob], Field(min_length=1)] = ["*"]
    """Namespaces that it is for; * matches any characters, e.g. prod-*. By default all."""
    max_distance: Annotated[str, Field(pattern=DISTANCE, max_length=16)] | None = None
    """The largest spec.verification.maxDistance, e.g. "0.8". What the spec leaves out, as measured, is always
    allowed."""
    samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)] = 0
    """The fewest test examples, e.g. 50: of spec.verification.samples, or that detectDrop may come down to."""
    detect_drop: Annotated[str, Field(pattern=DROP, max_length=4)] | None = None
    """The largest drop in accuracy that may stay unseen: spec.verification.detectDrop must be set, and no larger."""
    min_agreement_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """The least spec.verification.minAgreementPercent."""
    require_probabilities: bool = False
    """Whether spec.verification.requireProbabilities must be true."""
    objectives: Objectives | None = None
    """The loosest spec.verification.objectives: each that is named here must be set, and be no longer."""
    withdrawn: WithdrawnPolicy = WithdrawnPolicy.WARN
    """Refuse: spec.policy.withdrawn must be Refuse."""
    signed: bool = False
    """Whether spec.policy.signature must be set."""
    public_keys: Annotated[list[PublicKey], Field(max_length=16)] = []
    """The only keys that spec.policy.signature may name, which must be set then; empty: any."""
    gates: GatesPolicy = GatesPolicy.ANY
    """Passed: spec.policy.gates must be Passed."""
    required_gates: Annotated[list[RequiredGate], Field(max_length=12)] = []
    """Gates that spec.policy.requiredGates must name, beside its own."""

    def is_for(self, namespace: str) -> bool:
        """Whether the floor speaks of a namespace."""
        return any(fnmatchcase(namespace, glob) for glob in self.namespaces)


Floors = Sequence[VerificationFloor]


def floor_violation(floors: Floors, namespace: str, asked: Verification, policy: Policy) -> str:
    """Where a spec asks for less than a namespace must: field, value and the least. Empty: nowhere."""
    found = [fault for floor in floors if floor.is_for(namespace) for fault in _faults(floor, asked, policy)]
    return (
        f"{' '.join(found)} The platform's values (serving.verificationFloors) require this in namespace '{namespace}'."
        if found
        else ""
    )


def strictest(floors: Floors, namespace: str, asked: Verification) -> Verification:
    """What pods prove themselves by: what a spec asks for, and no less than the floors. A spec below them changes no
    limits that are there; those of what serves may have to be made anew all the same."""
    own = [floor for floor in floors if floor.is_for(namespace)]
    least = max([asked.min_agreement_percent, *(floor.min_agreement_percent for floor in own)])
    most = asked.max_distance
    if most is not None:
        most = min([most, *(floor.max_distance for floor in own if floor.max_distance is not None)], key=float)
    proved = asked.require_probabilities or any(floor.require_probabilities for floor in own)
    limits = {"min_agreement_percent": least, "max_distance": most, "require_probabilities": proved}
    return asked.model_copy(update=limits)


def _faults(floor: VerificationFloor, asked: Verification, policy: Policy) -> Iterator[str]:
    """Each as a sentence that says what to write instead."""
    yield from _of_verification(floor, asked)
    if floor.withdrawn is WithdrawnPolicy.REFUSE and policy.withdrawn is not WithdrawnPolicy.REFUSE:
        yield f"spec.policy.withdrawn is {policy.withdrawn}; it must be {WithdrawnPolicy.REFUSE}."
    if floor.gates is GatesPolicy.PASSED and policy.gates is not GatesPolicy.PASSED:
        yield f"spec.policy.gates is {policy.gates}; it must be {GatesPolicy.PASSED}."
    if missing := [name for name in floor.required_gates if name not in policy.required_gates]:
        yield f"spec.policy.requiredGates must include {_listed(missing)}."
    if (floor.signed or floor.public_keys) and policy.signature is None:
        yield "spec.policy.signature is not set; it must be."
    elif policy.signature is not None and floor.public_keys:
        known = {key.strip() for key in floor.public_keys}
        others = [n for n, key in enumerate(policy.signature.public_keys) if key.strip() not in known]
        if others:
            places = ", ".join(f"spec.policy.signature.publicKeys[{number}]" for number in others)
            yield f"{places}: not one of the platform's keys; use only those."


def _of_verification(floor: VerificationFloor, asked: Verification) -> Iterator[str]:
    if floor.max_distance and asked.max_distance and float(asked.max_distance) > float(floor.max_distance):
        yield f"spec.verification.maxDistance is {asked.max_distance}; it may be at most {floor.max_distance}."
    if floor.detect_drop and (asked.detect_drop is None or float(asked.detect_drop) > float(floor.detect_drop)):
        shown = f"is {asked.detect_drop}" if asked.detect_drop else "is not set"
        yield f"spec.verification.detectDrop {shown}; it may be at most {floor.detect_drop}."
    if asked.least_samples < floor.samples:
        if asked.detect_drop is None:
            yield f"spec.verification.samples is {asked.samples}; it must be at least {floor.samples}."
        else:
            yield (
                f"spec.verification.detectDrop is {asked.detect_drop}, which may come down to {asked.least_samples} "
                f"test examples; there must be at least {floor.samples}: set a smaller drop, or set samples instead."
            )
    if asked.min_agreement_percent < floor.min_agreement_percent:
        yield (
            f"spec.verification.minAgreementPercent is {asked.min_agreement_percent}; it must be at least "
            f"{floor.min_agreement_percent}."
        )
    if floor.require_probabilities and not asked.require_probabilities:
        yield "spec.verification.requireProbabilities is false; it must be true."
    if floor.objectives is not None:
        yield from _of_objectives(floor.objectives, asked.objectives)


def _of_objectives(floor: Objectives, asked: Objectives) -> Iterator[str]:
    for name, longest, time in (
        ("timeToFirstToken", floor.time_to_first_token, asked.time_to_first_token),
        ("timePerOutputToken", floor.time_per_output_token, asked.time_per_output_token),
    ):
        if longest and (time is None or duration_seconds(time) > duration_seconds(longest)):
            shown = f"is {time}" if time else "is not set"
            yield f"spec.verification.objectives.{name} {shown}; it may be at most {longest}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
