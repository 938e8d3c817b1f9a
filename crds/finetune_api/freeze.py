"""Which fields of a spec may change while a run is at work, and what a change of them means.

A spec says what is made. Some of its fields say something else: how pods get in (credentials), how much of a run is
kept and tracked, what it may cost, whether it pauses. They carry a mark, ``Annotated[..., Changes.…]``, wherever they
stand in the model. From these marks follow the CEL rule that freezes everything else (``rules.py``), the identity of a
run (``made``), and what a failed run is tried again for (``means``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from finetune_api.hashing import without_defaults


class Changes(Enum):
    """What a change of a field does to a run. A field without such a mark is part of what is made."""

    NOTHING = "nothing"
    """Neither ends a run nor starts one, e.g. suspend."""
    RETRY = "retry"
    """Stages that start later use it; a run that has failed is tried again, e.g. with other credentials."""


@dataclass(frozen=True)
class Place:
    """A field of a model, as the freeze sees it."""

    name: str
    """As on the wire."""
    changes: Changes | None
    """None: part of what is made, apart from marked fields below it."""
    required: bool
    below: type[BaseModel] | None
    """The model of the field, or of its items."""
    many: bool
    """Whether the field is a list."""


@cache
def places(model: type[BaseModel]) -> tuple[Place, ...]:
    """The fields of a model, in order. The operator asks in every pass over a FineTuneJob."""
    return tuple(
        Place(field.alias or to_camel(name), _mark(field), field.is_required(), *model_of(field.annotation))
        for name, field in model.model_fields.items()
    )


def has_marks(model: type[BaseModel] | None) -> bool:
    """Whether a field of the model, at any depth, carries a mark."""
    return model is not None and any(place.changes or has_marks(place.below) for place in places(model))


def made(spec: BaseModel) -> dict[str, Any]:
    """The part of a spec that says what is made, on the wire. Defaults are left out, so a field that a later version
    adds changes nothing."""
    return _without_marked(type(spec), without_defaults(spec))


def means(spec: BaseModel) -> list[tuple[str, Any]]:
    """The fields for which a failed run is tried again, with their places. Defaults are left out."""
    return list(_retried(type(spec), without_defaults(spec), ""))


def _without_marked(model: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """A block that only marked fields made appear is left out with them: it would be there for their sake."""
    kept: dict[str, Any] = {}
    for place in places(model):
        value = given.get(place.name)
        if place.name not in given or place.changes:
            continue
        if place.below is None or value is None:
            kept[place.name] = value
        elif place.many:
            kept[place.name] = [_without_marked(place.below, each) for each in value]
        elif (rest := _without_marked(place.below, value)) or not value:
            kept[place.name] = rest
    return kept


def _retried(model: type[BaseModel], given: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for place in places(model):
        value, here = given.get(place.name), f"{path}.{place.name}"
        if place.changes is Changes.RETRY and place.name in given:
            yield here, value
        elif place.below is not None and not place.changes and value is not None:
            for number, each in enumerate(value) if place.many else [(0, value)]:
                yield from _retried(place.below, each, f"{here}.{number}" if place.many else here)


def _mark(field: FieldInfo) -> Changes | None:
    return next((each for each in field.metadata if isinstance(each, Changes)), None)


def model_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model in a field's type (``M``, ``M | None``, ``list[M]``), and whether it is in a list."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return model_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        found = [model_of(each) for each in get_args(annotation) if each is not type(None)]
        return found[0] if len(found) == 1 else (None, False)
    if origin is list:
        return model_of(get_args(annotation)[0])[0], True
    return (annotation, False) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else (None, False)
