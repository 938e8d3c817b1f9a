"""Which fields of a config change what a model consists of, apart from those that are sizes.

Each is set to other values, one at a time. A field that only adds or removes parameters is a switch. One that does
anything else is fixed: with another value the family is not described.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final, Literal, get_args, get_origin

from transformers import PreTrainedConfig
from transformers.configuration_utils import ALLOWED_LAYER_TYPES

from finetune_jobs.fit.families import EVERY_LAYER, Fixed, Pattern
from hack.families.models import Layout, LeftOutError, config_of, kinds, layout
from hack.families.patterns import fields_of, order_of, showing
from hack.families.sizes import SET, names, small

_GENERAL: Final = {each.name for each in dataclasses.fields(PreTrainedConfig)} | {"tie_word_embeddings"}
"""Fields that all models have. Whether the embedding's weights are shared is looked at for itself."""
_HARMLESS: Final = (
    "_token_id",
    "dropout",
    "_pdrop",
    "_eps",
    "epsilon",
    "initializer",
    "_coef",
    "use_cache",
    "softcapping",
)
"""In names of fields that are computed with and make no parameters; not tried, to save time."""
_LAYERS: Final = 5
"""Of the first model of ``sizes``, in which fields are set."""


class _Effect(Enum):
    """What another value of a field does."""

    REFUSED = auto()
    """The config or the model does not take it."""
    NONE = auto()
    PARTS = auto()
    """Parameters are there that were not, or the other way round; all others are as they were."""
    OTHER = auto()


@dataclasses.dataclass(frozen=True)
class Effects:
    """What the fields of a family do."""

    switches: Mapping[str, bool]
    """Their defaults."""
    fixed: Mapping[str, Fixed]


def effects(family: str, pattern: Pattern | None) -> Effects:
    """Of all fields but the sizes and those of the pattern of its layers. Raises LeftOutError for one of which no value
    can be said."""
    kind, shown = type(config_of(family, {})), showing(pattern, _LAYERS)
    usual, numbers = layout(family, 0, shown), order_of(pattern, shown, _LAYERS)
    kinds(usual, numbers)
    known = {*names(kind).values(), *names(kind, standard=SET).values(), *_GENERAL, *fields_of(pattern)}
    switches: dict[str, bool] = {}
    fixed: dict[str, Fixed] = {"per_layer_config": None}  # of any model: it gives each layer a config of its own
    for field in dataclasses.fields(kind):
        if field.name in known or any(word in field.name for word in _HARMLESS):
            continue
        found = {_key(value): _effect(family, usual, numbers, {**shown, field.name: value}) for value in _others(field)}
        if not set(found.values()) & {_Effect.PARTS, _Effect.OTHER}:
            continue
        if _lists_kinds(field):
            fixed[field.name] = tuple(
                each for each in ALLOWED_LAYER_TYPES if found[_key([each] * _LAYERS)] is _Effect.NONE
            )
        elif isinstance(field.default, bool) and set(found.values()) == {_Effect.PARTS}:
            switches[field.name] = field.default
        else:
            fixed[field.name] = _usual_value(family, field)
    return Effects(switches, fixed)


def _key(value: Any) -> str:
    return repr(value)


def _effect(family: str, usual: Layout, numbers: Sequence[int], changed: Mapping[str, Any]) -> _Effect:
    try:
        other = layout(family, 0, changed)
        kinds(other, numbers)
    except LeftOutError:
        return _Effect.OTHER
    except Exception:  # noqa: BLE001 # whatever a config or a model raises
        return _Effect.REFUSED
    if other == usual:
        return _Effect.NONE
    return _Effect.PARTS if _only_parts(usual, other) else _Effect.OTHER


def _only_parts(one: Layout, other: Layout) -> bool:
    """Whether what both have is the same."""
    pairs = [(one.outside, other.outside)]
    for own, others in zip(one.layers, other.layers, strict=True):
        pairs += [(own.linear, others.linear), (own.tensors, others.tensors)]
    return all(left[name] == right[name] for left, right in pairs for name in left.keys() & right.keys())


def _lists_kinds(field: dataclasses.Field[Any]) -> bool:
    return "list[str]" in str(field.type) and field.name.endswith("types")


def _others(field: dataclasses.Field[Any]) -> Iterator[Any]:
    """Other values than its default, of its type; none for what holds several settings, or names something."""
    kind, default = str(field.type), field.default
    if _lists_kinds(field):
        yield from ([each] * _LAYERS for each in ALLOWED_LAYER_TYPES)
    elif "list[int]" in kind:
        yield from ([], [0], [1, 3], list(range(_LAYERS)), [1] * _LAYERS, [0] * _LAYERS)
    elif "bool" in kind:
        yield not default
    elif "int" in kind:
        yield from (default + 1, 2 * default, 0) if isinstance(default, int | float) else (2, 16)
    elif "float" in kind:
        yield from (2 * default, default / 2) if isinstance(default, float) else (0.5, 2.0)
    elif get_origin(field.type) is Literal:
        yield from (each for each in get_args(field.type) if each != default)
    if default is not None and "None" in kind and not (_lists_kinds(field) or "bool" in kind):
        yield None


def _usual_value(family: str, field: dataclasses.Field[Any]) -> Fixed:
    default = field.default
    if default is None or default is dataclasses.MISSING:  # a config may compute one
        default = getattr(config_of(family, small(type(config_of(family, {})), 0)), field.name)
    if default == list(range(_LAYERS)):
        return EVERY_LAYER
    if default is None or default == []:
        return None
    if isinstance(default, bool | int | float | str):
        return default
    raise LeftOutError(f"its layers depend on {field.name}, which has no usual value")
