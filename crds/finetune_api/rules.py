"""CEL rules of the CRDs: what the API server rejects, with a message that says what to do.

Rules for one model are in its ``json_schema_extra``; the rules here span the whole object.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel, JsonValue
from pydantic.alias_generators import to_camel

from finetune_api import meta


@dataclass(frozen=True)
class Rule:
    """One entry of ``x-kubernetes-validations``."""

    rule: str
    message: str
    optional_old_self: bool = False
    """Evaluate on create too, when ``oldSelf`` is absent."""

    def as_schema(self) -> dict[str, JsonValue]:
        """The rule as written in a CRD."""
        base: dict[str, JsonValue] = {"rule": self.rule, "message": self.message}
        return base | ({"optionalOldSelf": True} if self.optional_old_self else {})


def exactly_one_of(*fields: str) -> dict[str, JsonValue]:
    """``json_schema_extra`` of a model in which exactly one of these fields must be set."""
    names = [to_camel(field) for field in fields]
    rule = Rule(
        f"[{', '.join(f'has(self.{name})' for name in names)}].exists_one(set, set)",
        f"exactly one of {' and '.join(names)} must be set",
    )
    return {"x-kubernetes-validations": [rule.as_schema()]}


def name_rule() -> Rule:
    """Names become Service names and, with a suffix, label values."""
    return Rule(
        f"self.metadata.name.matches('{meta.NAME_PATTERN}') && size(self.metadata.name) <= {meta.MAX_NAME}",
        f"metadata.name must start with a lower-case letter, contain only lower-case letters, digits and '-', not end "
        f"with '-', and have at most {meta.MAX_NAME} characters",
    )


def frozen_while(phases: Iterable[str], spec: type[BaseModel], free: Iterable[str]) -> Rule:
    """The spec may not change in these phases, except for the fields in ``free``."""
    listed = ", ".join(f"'{phase}'" for phase in phases)
    fields = [to_camel(name) for name in spec.model_fields if name not in set(free)]
    required = {to_camel(name) for name, field in spec.model_fields.items() if field.is_required()}
    same = [f"self.spec.{f} == oldSelf.spec.{f}" if f in required else _same_or_absent(f) for f in fields]
    return Rule(
        f"!has(oldSelf.status) || !has(oldSelf.status.phase) || !(oldSelf.status.phase in [{listed}]) || "
        f"({' && '.join(same)})",
        "spec is frozen while a run is active (only suspend may change): set spec.suspend to true first, or wait for "
        "the run to end; changing the spec then starts a new run",
    )


def _same_or_absent(field: str) -> str:
    return (
        f"has(self.spec.{field}) == has(oldSelf.spec.{field}) && "
        f"(!has(self.spec.{field}) || self.spec.{field} == oldSelf.spec.{field})"
    )
