"""Of which kind each layer of a family's models is: which of the usual fields says it, found by setting them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, Final

from transformers.configuration_utils import ALLOWED_MLP_LAYER_TYPES

from finetune_jobs.fit.families import Asks, Condition, Pattern
from finetune_jobs.fit.fields import order
from hack.families.models import Parts, config_of, different, layout

_CONDITIONS: Final[Mapping[str, Asks]] = {
    "first_k_dense_replace": Asks.FROM,
    "num_dense_layers": Asks.FROM,
    "moe_layer_start_index": Asks.FROM,
    "moe_layer_end_index": Asks.UNTIL,
    "moe_layer_interval": Asks.EVERY,
    "decoder_sparse_step": Asks.EVERY,
    "interleave_moe_layer_step": Asks.EVERY,
    "full_attention_interval": Asks.EVERY,
    "mlp_only_layers": Asks.EXCEPT,
}
"""Fields by which families tell their layers apart."""
_LISTS: Final[Mapping[str, Sequence[str]]] = {
    "mlp_layer_types": ALLOWED_MLP_LAYER_TYPES,
    "layer_types": ("full_attention", "sliding_attention", "chunked_attention", "linear_attention"),
    "moe_layers": (),
}
"""Fields that list the kind of each layer, and its names there, or the numbers of the layers of one kind."""
_UNLISTED: Final = {"full_attention_interval": "layer_types"}
"""Fields that configs take though their classes do not list them, if they list another."""
_TRIED: Final[Mapping[Asks, tuple[int | list[int], ...]]] = {
    Asks.FROM: (2, 0, 1),
    Asks.UNTIL: (3, -1),
    Asks.EVERY: (2, 1, 3),
    Asks.EXCEPT: ([1], [], [0, 3]),
}
"""Values of the fields; with the first ones, a model has layers of both kinds."""
_FIXED: Final = (
    *(Condition(asks=Asks.FROM, usual=value) for value in range(1, 5)),
    *(Condition(asks=Asks.EVERY, usual=value) for value in range(2, 9)),
)
"""What transformers may do where no field says anything."""
LAYERS: Final = (5, 9)
"""Of the models in which the fields are set."""


def pattern_of(family: str) -> Pattern | None:
    """The pattern of the family's layers; None if they are all alike, whatever these fields say. Raises LeftOutError if
    they are not and none fits."""
    usual, many = (_layers(family, count, {}) for count in LAYERS)
    if usual is None or many is None:
        return None  # reading it says why there is no such model
    odd = next((layer for layer in many if layer != many[0]), None)
    lists = [name for name in _LISTS if any(each.name == name for each in _fields(family))]
    for some in _subsets([each for each in _conditions(family) if _matters(family, each, usual)]):
        for listed in [*lists, ""]:
            usually = [()] if odd is None else [(each,) for each in _FIXED]
            for second in [some] if some else usually:
                if (found := _listing(family, listed, second)) and _fits(family, found):
                    return found
    if odd is not None:
        raise different(many[0], odd)
    return None


def showing(pattern: Pattern | None, layers: int) -> dict[str, Any]:
    """Fields with which a model has layers of every kind."""
    if pattern is None:
        return {}
    said = {each.field: _TRIED[each.asks][0] for each in pattern.second if each.field}
    if not pattern.listed:
        return said
    if not pattern.labels:
        return {**said, pattern.listed: [1, 2]}
    numbers = sorted(set(pattern.labels.values()))
    labels = [next(label for label, each in pattern.labels.items() if each == number) for number in numbers]
    return {**said, pattern.listed: [labels[min(number, len(labels) - 1)] for number in range(layers)]}


def fields_of(pattern: Pattern | None) -> set[str]:
    """The fields that set it."""
    return {each.field for each in pattern.second} | {pattern.listed} if pattern else set()


def order_of(pattern: Pattern | None, fields: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """The kind of each layer; all have the same without a pattern."""
    return order(pattern, fields, layers) if pattern else (0,) * layers


def settings(pattern: Pattern | None, layers: int) -> Iterator[dict[str, Any]]:
    """Fields that set the pattern in several ways, none at first."""
    if pattern is None:
        return
    yield {}
    fields = [each for each in pattern.second if each.field]
    for values in product(*(_TRIED[each.asks] for each in fields)):
        yield {each.field: value for each, value in zip(fields, values, strict=True)}
    for each in fields:
        yield from ({each.field: value} for value in _TRIED[each.asks])
    if pattern.listed:
        yield showing(pattern, layers)
        labels = list(pattern.labels)
        yield from ({pattern.listed: [label] * layers} for label in labels)
        if labels:
            yield {pattern.listed: [labels[number % len(labels)] for number in range(layers)]}
        else:
            yield from ({pattern.listed: numbers} for numbers in ([], [0, 3], list(range(layers))))


def _layers(family: str, count: int, changed: Mapping[str, Any]) -> tuple[Parts, ...] | None:
    """The layers of a small model; None if there is none with these fields."""
    try:
        return layout(family, 0, {"num_hidden_layers": count, **changed}).layers
    except Exception:  # noqa: BLE001 # whatever a config or a model raises
        return None


def _conditions(family: str) -> Iterator[Condition]:
    own = {each.name for each in _fields(family)}
    for name, asks in _CONDITIONS.items():
        if name in own or _UNLISTED.get(name) in own:
            usual = _usual(family, name, asks)
            if usual is not None:
                yield Condition(asks=asks, field=name, usual=usual)


def _usual(family: str, name: str, asks: Asks) -> int | tuple[int, ...] | None:
    """What it means that config.json does not say a field."""
    default = next((each.default for each in _fields(family) if each.name == name), None)
    if isinstance(default, int):
        return default
    value = getattr(config_of(family, {}), name, None)
    if isinstance(value, list):
        return tuple(value)
    if asks is Asks.EXCEPT:
        return None
    unsaid = _layers(family, LAYERS[1], {})
    return next((each for each in range(1, LAYERS[1]) if _layers(family, LAYERS[1], {name: each}) == unsaid), None)


def _fields(family: str) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(type(config_of(family, {})))


def _matters(family: str, condition: Condition, usual: tuple[Parts, ...]) -> bool:
    found = [_layers(family, LAYERS[0], {condition.field: value}) for value in _TRIED[condition.asks]]
    return any(each is not None and each != usual for each in found)


def _subsets(conditions: Sequence[Condition]) -> Iterator[tuple[Condition, ...]]:
    """The largest first; the empty one last."""
    for size in range(len(conditions), -1, -1):
        yield from combinations(conditions, size)


def _listing(family: str, listed: str, second: tuple[Condition, ...]) -> Pattern | None:
    """The pattern with these conditions and a field that lists kinds; None if layers differ by more, or the list makes
    no difference."""
    plain = Pattern(second=second)
    if not listed:
        return plain if second else None
    if not _LISTS[listed]:
        return Pattern(listed=listed, second=second)
    known = _kinds(family, plain, [(LAYERS[0], showing(plain, LAYERS[0]))]) or {}
    labels = dict[str, int]()
    for label in _LISTS[listed] if known else ():
        layers = _layers(family, LAYERS[0], {listed: [label] * LAYERS[0]})
        if layers and all(layer == layers[0] for layer in layers):
            if len(known) == 1:  # usually they are alike
                known.setdefault(0, layers[0])
            labels.update((label, number) for number, layer in known.items() if layer == layers[0])
    return Pattern(listed=listed, labels=labels, second=second) if len(set(labels.values())) > 1 else None


def _fits(family: str, pattern: Pattern) -> bool:
    """Whether layers are of the same kind just where the pattern says so, in small models with several settings."""
    tried: list[tuple[int, dict[str, Any]]] = [(count, {}) for count in LAYERS]
    tried += [(LAYERS[0], changed) for changed in settings(pattern, LAYERS[0])]
    known = _kinds(family, pattern, tried)
    return known is not None and len(known) > 1 and all(one != other for one, other in combinations(known.values(), 2))


def _kinds(family: str, pattern: Pattern, tried: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[int, Parts] | None:
    """The kinds of layers in models with so many layers and these fields; None if the pattern does not tell them
    apart."""
    known = dict[int, Parts]()
    for count, changed in tried:
        layers = _layers(family, count, changed)
        for number, layer in zip(order(pattern, changed, count), layers or (), strict=layers is not None):
            if known.setdefault(number, layer) != layer:
                return None
    return known
