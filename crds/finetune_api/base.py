"""What all API models share: camelCase on the wire, descriptions from docstrings, no unknown fields.

Stored objects and messages of other programs may come from a newer version. They are read with ``extra="ignore"``,
which applies at every level, including the models that people write.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from finetune_api.meta import MAX_NAME, NAME_PATTERN
from finetune_api.spelled import spelled

T = TypeVar("T")
MAX_INTEGER: Final = 2**63 - 1
"""The largest integer that the API server stores; it refuses a whole object for a larger one."""
REFUSE_RETIRED: Final = "refuse retired fields"
"""As a validation's context, for what people write: a retired field is an error that names its successor, even where
unknown fields are not. Without it, what programs of an earlier version wrote is read as they meant it, where it can be.
"""


@dataclass(frozen=True)
class Successor:
    """How statuses and stage inputs that still have a retired field are read."""

    name: str
    """The field of this version, on the wire; where it is given, it counts."""
    values: Mapping[Any, Any]
    """Its value for each value of the retired field."""


@dataclass(frozen=True)
class Retired:
    """A field of an earlier version. The CRD keeps it, so that the API server neither drops it nor calls it unknown,
    but refuses it with what to write instead."""

    instead: str
    type: str = "object"
    """Its type in OpenAPI."""
    successor: Successor | None = None
    """None: nothing but specs ever had it."""


_WORD: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_,:]{0,61}[A-Za-z0-9_])?", re.ASCII)
"""What metav1.Condition accepts as a reason, limited to the length that our conditions allow."""
_NUMBER: Final = re.compile(r"[0-9]{1,10}(\.[0-9]{1,8})?", re.ASCII)


class OpenEnum(StrEnum):
    """Words of a status. Any other word comes from a newer version and is a member too: ``Phase("AddedLater")``.

    Such a member is made anew each time: it equals its word, and is identical to nothing.
    """

    @classmethod
    def _missing_(cls, value: object) -> "Self | None":
        """A member without a name, made as ``enum.Flag`` makes them; None for what is not a word."""
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            return None
        unknown = str.__new__(cls, value)
        unknown._name_ = unknown._value_ = value
        return unknown

    @property
    def is_known(self) -> bool:
        """Whether this version knows the word."""
        return self.value in type(self)._value2member_map_


class ApiModel(BaseModel):
    """Base of the spec and of everything else that people write: unknown fields are errors."""

    retired: ClassVar[Mapping[str, Retired]] = {}
    """Fields of earlier versions, by their name on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        extra="forbid",
        frozen=True,
    )

    def __hash__(self) -> int:
        """Also of a model with lists: nothing changes one. A default that has no hash is copied whole, by pydantic,
        each time that a model takes it."""
        return hash(tuple(map(_hashable, vars(self).values())))

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        reference = handler(core)
        if cls.retired:
            properties = handler.resolve_ref_schema(reference)["properties"]
            properties |= {name: _retired_schema(name, field) for name, field in cls.retired.items()}
        return reference

    @model_validator(mode="before")
    @classmethod
    def _refuse_or_read_retired(cls, given: Any, info: ValidationInfo) -> Any:
        if not cls.retired or not isinstance(given, dict):
            return given
        for name in sorted(given.keys() & cls.retired.keys()):
            field = cls.retired[name]
            if info.context == REFUSE_RETIRED:
                raise ValueError(_refusal(name, field))
            if (now := field.successor) and given[name] in now.values:
                rest = {key: value for key, value in given.items() if key != name}
                given = {now.name: now.values[given[name]], **rest}
        return given


def _hashable(value: Any) -> Any:
    """Equal for equal values."""
    if isinstance(value, dict):
        return frozenset((key, _hashable(each)) for key, each in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _retired_schema(name: str, field: Retired) -> JsonSchemaValue:
    """A field that no value satisfies."""
    schema = {
        "type": field.type,
        "description": f"Retired: {field.instead}.",
        "x-kubernetes-validations": [{"rule": "false", "message": _refusal(name, field)}],
    }
    return schema | ({"x-kubernetes-preserve-unknown-fields": True} if field.type == "object" else {})


def is_retired(schema: JsonSchemaValue) -> bool:
    """Whether the schema of a field says that it is retired."""
    return any(rule["rule"] == "false" for rule in schema.get("x-kubernetes-validations", []))


def _refusal(name: str, field: Retired) -> str:
    return f"{name} was a field of an earlier version: {field.instead}"


class WireModel(ApiModel):
    """Base of what programs exchange: ignores unknown fields of its own; in a nested ApiModel they are errors."""

    model_config = ConfigDict(extra="ignore")


def unknown_fields(model: type[BaseModel], raw: Any) -> dict[tuple[str | int, ...], Any]:
    """The fields of ``raw``, at any level, that the model does not have, with their values; ``raw`` is otherwise
    valid."""
    try:
        model.model_validate(raw, extra="forbid")
    except ValidationError as error:
        return {fault["loc"]: fault["input"] for fault in error.errors() if fault["type"] == "extra_forbidden"}
    return {}


def _distinct(items: list[T]) -> list[T]:
    twice = next((item for number, item in enumerate(items) if item in items[:number]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is listed twice")
    return items


AS_SET: Final = (Field(json_schema_extra={"x-kubernetes-list-type": "set"}), AfterValidator(_distinct))
"""For ``Annotated[list[…], *AS_SET]``: no value twice, and appliers share the list: each owns the values that it sets.
Lists whose order means something, or whose items have no identity, stay whole (``atomic``)."""


def as_map(key: str) -> Any:
    """For ``Annotated[list[…], …]``: items are told apart by this field, and appliers share the list."""
    return Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]})


NAME_IN_WORDS: Final = "write lower-case letters, digits and -, starting with a letter and not ending with -"
Name = Annotated[str, spelled(NAME_PATTERN, NAME_IN_WORDS, min_length=1, max_length=MAX_NAME)]
"""Name of an object of this API or of the platform's values."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", min_length=64, max_length=64)]
"""A SHA-256 in hexadecimal: the address of content."""

Decimal = Annotated[
    str,
    spelled(
        r"^[0-9]{1,6}(\.[0-9]{1,8})?([eE]-?[0-9]{1,2})?$",
        "write a number of at least 0, e.g. 0.05 or 2e-4, with at most 6 digits before the point and 8 after it",
        max_length=20,
    ),
]
"""A number as text, e.g. ``0.05`` or ``2e-4``: Kubernetes APIs avoid floats (API conventions, "Primitive types")."""

RerunToken = Annotated[str, spelled(r"^[A-Za-z0-9._:-]*$", "write letters, digits and ._:-", max_length=64)]
"""What asks for another attempt where it changes."""

Message = Annotated[str, Field(max_length=1024)]
"""Text for people, at most 1 KiB."""


def _moment(text: str) -> str:
    if text:
        datetime.fromisoformat(text)
    return text


def _word(text: str) -> str:
    if text and not _WORD.fullmatch(text):
        raise ValueError("not one word")
    return text


def _number(text: str) -> str:
    if text and not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    return text


Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"}), AfterValidator(_moment)]
"""RFC 3339 in UTC, e.g. ``2026-01-31T12:00:00Z``."""

Word = Annotated[str, Field(max_length=63), AfterValidator(_word)]
"""A reason in a status: one word, also one that this version does not know, or empty."""

Number = Annotated[str, Field(max_length=16), AfterValidator(_number)]
"""A number in a status, as text; empty in the model, and absent on the wire, while it is not known."""

Count = Annotated[int | None, BeforeValidator(lambda given: None if given == 0 else given)]
"""How many there are in a status, of what is never none. Absent: not counted, for which earlier versions wrote 0."""


class Condition(WireModel):
    """One condition, as metav1.Condition defines it."""

    type: Annotated[str, Field(max_length=63)]
    """What this condition is about, e.g. Ready."""
    status: Annotated[str, Field(json_schema_extra={"enum": ["True", "False", "Unknown"]})]
    """True, False or Unknown."""
    reason: Annotated[Word, Field(min_length=1)]
    """Why the condition has this status: one CamelCase word for programs."""
    message: Message = ""
    """What happened, why, and what to do next."""
    last_transition_time: Timestamp
    """When the status last changed."""
    observed_generation: int = 0
    """The generation of the spec that this condition describes."""


class ObjectMeta(WireModel):
    """The part of metadata that this project reads."""

    name: str
    namespace: str = ""
    uid: str = ""
    creation_timestamp: str = ""
    """RFC 3339 in UTC."""
    generation: int = 1
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
