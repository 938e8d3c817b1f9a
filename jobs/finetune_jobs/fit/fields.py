"""What the fields of a config.json say of a family's model: its sizes, its settings, and the kind of each layer.

A field may be missing or null, and of any type; what is not understood is said, never guessed.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from finetune_jobs.fit.families import EVERY_LAYER, Asks, Condition, Family, Fixed, Pattern, evaluate

LARGEST: Final = 1 << 24
"""No size in a config.json is larger."""
MOST_LAYERS: Final = 10_000
"""Of a model whose layers differ."""


class UnknownShapeError(ValueError):
    """This config.json does not describe a known shape; the message says why."""


class Sizes(dict[str, int]):
    """What a config.json says of sizes, and what transformers takes for those that it leaves out."""

    def __init__(self, family: Family, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._family, self._fields = family, fields

    def __missing__(self, name: str) -> int:
        self[name] = found = self._found(name)
        return found

    def _found(self, name: str) -> int:
        if name in self._family.computed:
            return self._computed(name)
        if name not in self._fields:
            default = self._family.defaults.get(name)
        elif self._fields[name] is None:
            default = self._family.nulls.get(name)
        else:
            return _size(name, self._fields[name])
        if default is None:
            raise _undescribed(name, "missing")
        return default if isinstance(default, int) else evaluate(default, self)

    def _computed(self, name: str) -> int:
        found = evaluate(self._family.computed[name], self)
        if self._fields.get(name) not in (None, found):
            raise _differs(name)
        return found


def _size(name: str, value: object) -> int:
    if not 0 < _whole(name, value) <= LARGEST:
        raise _undescribed(name, f"not from 1 to {LARGEST:,}")
    return _whole(name, value)


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _undescribed(name, "no whole number")
    return value


def _undescribed(name: str, why: str) -> UnknownShapeError:
    return UnknownShapeError(f"config.json does not describe the model's shape ({name}: {why})")


def _differs(name: str) -> UnknownShapeError:
    return UnknownShapeError(f"its layers differ from the family's usual models ({name})")


def switches_of(family: Family, fields: Mapping[str, Any]) -> Mapping[str, bool]:
    """The family's switches, as Python reads them: null is no."""
    found = {name: fields.get(name, default) for name, default in family.switches.items()}
    for name, value in found.items():
        if not isinstance(value, bool | None):
            raise _undescribed(name, "neither true nor false")
    return {name: bool(value) for name, value in found.items()}


def require_fixed(family: Family, fields: Mapping[str, Any], layers: int) -> None:
    """Refuses fields that make layers of a kind that the family does not have."""
    for name, only in family.fixed.items():
        if name in fields and not _as_usual(fields[name], only, layers):
            raise _differs(name)


def _as_usual(value: object, only: Fixed, layers: int) -> bool:
    if only == EVERY_LAYER:
        return value is None or value == list(range(layers))
    if isinstance(only, tuple):
        return value is None or (isinstance(value, list) and all(each in only for each in value))
    return value == only or not (value or only)


def counts(family: Family, fields: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """How many layers of each of the family's kinds there are."""
    if family.pattern is None:
        return (layers,)
    found = Counter(order(family.pattern, fields, layers))
    return tuple(found[number] for number in range(len(family.kinds)))


def order(pattern: Pattern, fields: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """The kind of each layer, from the first one on."""
    if layers > MOST_LAYERS:
        raise _undescribed("num_hidden_layers", f"more than {MOST_LAYERS:,}")
    said = fields.get(pattern.listed) if pattern.listed else None
    if said is None:
        values = [_value(condition, fields) for condition in pattern.second]
        asked = [*zip(pattern.second, values, strict=True)]
        return tuple(int(all(_holds(each.asks, value, number) for each, value in asked)) for number in range(layers))
    if not pattern.labels:
        numbers = _numbers(pattern.listed, said)
        return tuple(int(number in numbers) for number in range(layers))
    if not isinstance(said, list) or len(said) != layers:
        raise _undescribed(pattern.listed, "not a list with an entry for each layer")
    if any(not isinstance(each, str) or each not in pattern.labels for each in said):
        raise _differs(pattern.listed)
    return tuple(pattern.labels[each] for each in said)


def _value(condition: Condition, fields: Mapping[str, Any]) -> int | frozenset[int]:
    """What a condition compares with."""
    name, said = condition.field, condition.usual
    if isinstance(said, tuple):
        said = said if fields.get(name) is None else fields[name]
        return _numbers(name, said)
    value = _whole(name, fields.get(name, said) if name else said)
    if condition.asks is Asks.EVERY and value < 1:
        raise _undescribed(name, "below 1")
    return value


def _numbers(name: str, value: object) -> frozenset[int]:
    if not isinstance(value, list | tuple):
        raise _undescribed(name, "no list")
    return frozenset(_whole(name, each) for each in value)


def _holds(asks: Asks, value: int | frozenset[int], number: int) -> bool:
    if isinstance(value, frozenset):
        return number not in value
    if asks is Asks.EVERY:
        return (number + 1) % value == 0
    return number >= value if asks is Asks.FROM else number <= value or value == -1
