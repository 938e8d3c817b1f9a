"""Whether a description is right: models that it was not read from must have just the parameters that it says."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from finetune_jobs.fit.families import Family, Pattern, names
from finetune_jobs.fit.fields import UnknownShapeError
from finetune_jobs.fit.shapes import describe
from hack.families import sizes
from hack.families.formulas import Dimensions
from hack.families.models import LeftOutError, Parts, build, config_of, kinds, layout, linear_layers, parameters
from hack.families.patterns import order_of, settings, showing

HEAD_DIM: Final = "head_dim"
_MEANINGS: Final = ("{heads}", "{hidden}//{heads}", "4*{hidden}", "{hidden}")
"""What it may mean that config.json does not say a size."""
_NO_MODEL: Final = "there is no such model"
_COUNTS: Final = (4, 13)
"""Layers of models that have several kinds of them."""
_MANY: Final = 40
"""Layers; in a model of as many every kind of them would show."""


@dataclasses.dataclass(frozen=True)
class Small:
    """The small models of a family."""

    kind: str
    """``model_type``."""
    config: type[Any]
    names: Mapping[str, str]
    """The fields that are sizes, by their usual names."""
    computed: Mapping[str, str]
    """Sizes that no field says."""
    pattern: Pattern | None = None
    """Of which kind each layer is."""

    @classmethod
    def of(cls, kind: str, pattern: Pattern | None = None) -> Small:
        """Those of a family whose heads are as wide as its config says."""
        config = type(config_of(kind, {}))
        found = sizes.names(config)
        if HEAD_DIM in found:  # be it another name of a field
            return cls(kind, config, found, {}, pattern)
        return (
            cls(kind, config, found | {HEAD_DIM: HEAD_DIM}, {}, pattern)
            if _takes_head_dim(kind)
            else cls.computing(kind, pattern)
        )

    @classmethod
    def computing(cls, kind: str, pattern: Pattern | None = None) -> Small:
        """Those of a family whose heads are as wide as the hidden state allows."""
        config = type(config_of(kind, {}))
        found = sizes.names(config)
        over = [found[name] for name in ("hidden_size", "num_attention_heads") if name in found]
        return cls(kind, config, found, {HEAD_DIM: "//".join(over)} if len(over) == 2 else {}, pattern)

    @property
    def listed(self) -> bool:
        """Whether the config's class has a field for the width of heads, or no model takes one."""
        return HEAD_DIM not in self.names or HEAD_DIM in sizes.names(self.config)

    def fields(self, index: int) -> dict[str, int]:
        """Of one of them."""
        extra = {field: sizes.SIZES[name][index] for name, field in self.names.items()}
        return sizes.small(self.config, index) | extra

    def sizes(self, index: int) -> dict[str, int]:
        """The sizes of one of them, that of its layers by itself; those that no field says too."""
        found = {field: sizes.SIZES[name][index] for name, field in self.names.items() if name != "num_hidden_layers"}
        over = [self.names[name] for name in ("hidden_size", "num_attention_heads") if name in self.names]
        return found | ({HEAD_DIM: found[over[0]] // found[over[1]]} if self.computed else {})

    def shown(self, index: int) -> dict[str, Any]:
        """The fields of one of them, with layers of all kinds."""
        return {**self.fields(index), **showing(self.pattern, _layers(index))}

    def layout(self, index: int, changed: Mapping[str, Any]) -> KindsOf:
        """What one of them consists of, with layers of all kinds."""
        shown = self.shown(index)
        found = layout(self.kind, index, {**shown, **changed})
        return KindsOf(kinds(found, order_of(self.pattern, shown, _layers(index))), found.outside)


@dataclasses.dataclass(frozen=True)
class KindsOf:
    """What a model consists of: a layer of each kind, and what is outside the layers."""

    kinds: tuple[Parts, ...]
    outside: Mapping[str, Dimensions]


def _takes_head_dim(kind: str) -> bool:
    """Whether a config of the kind takes the width of a head that its class does not list."""
    try:
        return layout(kind, 0, {HEAD_DIM: sizes.SIZES[HEAD_DIM][0]}) != layout(kind, 0, {})
    except LeftOutError:
        raise
    except Exception:  # noqa: BLE001 # whatever a config or a model raises
        return False


def with_defaults(family: Family, small: Small) -> Family:
    """The same with what config.json may leave out, and what null means there."""
    fields = {each.name: each for each in dataclasses.fields(small.config)}
    for name in sorted(_sizes_of(family)):
        field = fields.get(name)
        default = field.default if field else None
        nullable = default is None or (field is not None and "None" in str(field.type))
        null = _meaning(family, small, name, {name: None}) if nullable else None
        if not isinstance(default, int):
            default = _meaning(family, small, name, {})
        family = family.model_copy(
            update={
                "nulls": {**family.nulls, **({name: null} if null else {})},
                "defaults": {**family.defaults, **({name: default} if default is not None else {})},
            }
        )
    return family


def _sizes_of(family: Family) -> set[str]:
    """Every size that a description asks of config.json."""
    formulas = [family.hidden, family.layers, family.vocab, *(part.size for part in family.outside)]
    for kind in family.kinds:
        formulas += [
            kind.heads,
            kind.kv_heads,
            kind.head_dim,
            *filter(None, [kind.key_dim]),
            *(part.size for part in kind.vectors),
        ]
        formulas += [side for part in kind.linear for side in (part.inputs, part.outputs)]
        if kind.experts:
            formulas += [kind.experts.count, kind.experts.active, kind.experts.width]
            formulas += [part.size for part in kind.experts.each]
    asked = {name for formula in formulas for name in names(formula)} - set(family.computed)
    return asked | {name for formula in family.computed.values() for name in names(formula)}


def _meaning(family: Family, small: Small, name: str, said: Mapping[str, None]) -> str | None:
    """The formula of a size that gives the models' parameters where config.json leaves it out or, ``said``, has null;
    None if there is none."""
    words = {"heads": family.kinds[0].heads, "hidden": family.hidden}
    for rule in _MEANINGS:
        formula = rule.format_map(words)
        tried = family.model_copy(
            update={part: {**getattr(family, part), name: formula} for part in ("nulls", "defaults")}
        )
        models = [small.fields(index) | showing(small.pattern, _layers(index)) for index in (0, sizes.READ)]
        others = ({**fields, **said} if said else _without(fields, name) for fields in models)
        if name not in names(formula) and not any(_difference(tried, small, fields) for fields in others):
            return formula
    return None


def _layers(index: int) -> int:
    return sizes.SIZES["num_hidden_layers"][index]


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {field: value for field, value in fields.items() if field != name}


def prove(family: Family, small: Small) -> None:
    """Raises LeftOutError if a model has other parameters than the description says: one of other sizes, the family's
    usual one, whose config leaves out all sizes, and others with other settings, also of the kinds of their layers."""
    other = small.fields(sizes.READ)
    changed = {name: not usual for name, usual in family.switches.items()}
    deep = {**other, family.layers: _MANY}
    # A usual model that cannot be built, because its defaults contradict each other, proves nothing.
    unbuilt = _difference(family, small, {}) == _NO_MODEL
    cases: dict[str, Mapping[str, Any]] = {
        "of other sizes": other,
        **({"with many layers": deep} if unbuilt else {"as usual": {}}),
        "with all settings changed": {**other, **changed},
    }
    for what, fields in cases.items():
        if difference := _difference(family, small, fields):
            raise LeftOutError(f"in a model {what}, {difference}")
    for count in _COUNTS:
        for said in settings(family.pattern, count):
            difference = _difference(family, small, {**other, family.layers: count, **said})
            if difference not in ("", _NO_MODEL):
                raise LeftOutError(f"in a model of {count} layers with {said}, {difference}")
    for tied in (True, False):
        difference = _difference(family, small, {**other, "tie_word_embeddings": tied})
        if difference not in ("", _NO_MODEL):
            raise LeftOutError(f"in a model with tie_word_embeddings {str(tied).lower()}, {difference}")


def _difference(family: Family, small: Small, fields: Mapping[str, Any]) -> str:
    """How a model differs from the description, as a clause; empty if it does not."""
    try:
        config = config_of(small.kind, fields)
        model = build(config)
    except Exception:  # noqa: BLE001 # whatever a config or a model raises
        return _NO_MODEL
    for written in (fields, config.to_dict(), config.to_diff_dict()):
        try:
            shape = describe(family, written, small.kind)
        except UnknownShapeError as error:
            return str(error)
        if shape.parameters != parameters(model):
            return "the count of parameters differs"
        if Counter(shape.linear_layers) != Counter(linear_layers(model)):
            return "linear layers differ"
    return ""
