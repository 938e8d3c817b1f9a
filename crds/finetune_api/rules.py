"""CEL rules of the CRDs: what the API server rejects, with a message that says what to do.

Rules for one model are in its ``json_schema_extra``; the rules here span the whole object.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, JsonValue, ValidationInfo
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from finetune_api import meta
from finetune_api.base import REFUSE_RETIRED
from finetune_api.freeze import Place, has_marks, places


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


def exactly_one_of(*fields: str, also: Iterable[JsonValue] = ()) -> dict[str, JsonValue]:
    """``json_schema_extra`` of a model in which exactly one of these fields must be set; ``also``: its other rules."""
    names = [to_camel(field) for field in fields]
    rule = Rule(
        f"[{', '.join(f'has(self.{name})' for name in names)}].exists_one(set, set)",
        f"exactly one of {', '.join(names[:-1])} and {names[-1]} must be set",
    )
    return {"x-kubernetes-validations": [rule.as_schema(), *also]}


def not_zero(instead: str) -> dict[str, JsonValue]:
    """``json_schema_extra`` of a number of at least 1, in which 0 once meant something: the API server says what to
    write ``instead``."""
    rule = Rule("self != 0", f"0 has no meaning here any more: {instead}")
    return {"minimum": 0, "x-kubernetes-validations": [rule.as_schema()]}


@dataclass(frozen=True)
class NotEmpty:
    """Annotation of an optional text, in which the empty one once meant that it was not given: the API server and
    readers of specs say what to write ``instead``. In what programs of an earlier version wrote, it is absent.

    The text's own pattern lets the empty one through, so that this is the only complaint."""

    instead: str
    absent: str | None = None
    """What the model holds where the text is absent."""

    RULE: ClassVar[str] = "self != ''"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self._absent, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        return schema | {
            "x-kubernetes-validations": [*schema.get("x-kubernetes-validations", []), self._rule.as_schema()]
        }

    @property
    def _rule(self) -> Rule:
        return Rule(self.RULE, f"an empty text has no meaning here any more: {self.instead}")

    def _absent(self, given: Any, info: ValidationInfo) -> Any:
        if given != "":
            return given
        if info.context == REFUSE_RETIRED:
            raise ValueError(self._rule.message)
        return self.absent


def name_rule() -> Rule:
    """Names become Service names and, with a suffix, label values."""
    return Rule(
        f"self.metadata.name.matches('{meta.NAME_PATTERN}') && size(self.metadata.name) <= {meta.MAX_NAME}",
        f"metadata.name must start with a lower-case letter, contain only lower-case letters, digits and '-', not end "
        f"with '-', and have at most {meta.MAX_NAME} characters",
    )


AT_WORK: Final = (
    "has(oldSelf.status) && has(oldSelf.status.run) && !has(oldSelf.status.run.finishedAt) && "
    "has(oldSelf.status.stages) && "
    "oldSelf.status.stages.exists(stage, stage.state == 'Running' && has(stage.workingSince))"
)
"""The open run has a stage with pods at work; ``FineTuneJobStatus.at_work`` says the same."""

BUDGET_NOT_LOWERED: Final = (
    "!has(self.spec.budget) || (has(oldSelf.spec.budget) && "
    "double(self.spec.budget.maxCost) >= double(oldSelf.spec.budget.maxCost) && "
    "self.spec.budget.onExceeded == oldSelf.spec.budget.onExceeded)"
)


CEL_WORDS: Final = frozenset(
    {"as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop"}
    | {"namespace", "null", "package", "return", "true", "var", "void", "while"}
)
"""Names that a rule writes as ``__name__``; with one as it is, the API server says that the rule costs too much."""


def frozen_at_work(spec: type[BaseModel]) -> Rule:
    """While a stage is at work, only the fields of the spec may change that are marked so (``freeze.py``)."""
    return Rule(
        f"!({AT_WORK}) || ({_same(spec, 'self.spec', 'oldSelf.spec')} && ({BUDGET_NOT_LOWERED}))",
        "spec is frozen while a stage is at work (only suspend, tracking, retention, credentials, caBundle and a "
        "higher budget may change): set spec.suspend to true first, or wait for the run to end; changing the spec then "
        "starts a new run",
    )


def _same(model: type[BaseModel], new: str, old: str, depth: int = 0) -> str:
    """The CEL condition under which two objects are equal but for what may change.

    Fields are compared one by one, with ``has``: the API server cannot estimate what CEL's optional values cost.
    """
    frozen = [field for field in places(model) if not field.changes]
    names = {field.name: f"__{field.name}__" if field.name in CEL_WORDS else field.name for field in frozen}
    return " && ".join(
        _same_field(field, f"{new}.{names[field.name]}", f"{old}.{names[field.name]}", depth) for field in frozen
    )


def _same_field(field: Place, new: str, old: str, depth: int) -> str:
    if field.below is None or not has_marks(field.below):
        same = f"{new} == {old}"
    elif field.many:
        number, item = f"n{depth}", f"item{depth}"
        items = _same(field.below, item, f"{old}[{number}]", depth + 1)
        same = f"size({new}) == size({old}) && {new}.all({number}, {item}, {items})"
    else:
        same = _same(field.below, new, old, depth)
    return same if field.required else f"has({new}) == has({old}) && (!has({new}) || ({same}))"
