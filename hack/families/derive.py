"""How a family is read: three small models give formulas; a fourth, and the family's usual one, prove them.

A family that has something without a simple formula, or whose models have other parameters than the formulas say, is
left out with the reason.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from finetune_jobs.fit.families import Count, Family, Layer, Linear, Mixture, Norms, Read
from hack.families import sizes
from hack.families.fields import Effects, effects
from hack.families.formulas import Dimensions, Formulas, product, total
from hack.families.models import LeftOutError, Parts, config_of
from hack.families.patterns import pattern_of
from hack.families.proof import Small, prove, with_defaults
from hack.families.roles import attention, roles
from hack.families.scores import score_bytes

_RECURRENT: Final = "linear_attention"
"""What transformers calls layers whose state goes from token to token, of whichever rule."""


def derive(kind: str) -> Family:
    """What the code of the family with this ``model_type`` fixes. Raises LeftOutError."""
    pattern = pattern_of(kind)
    small, found = Small.of(kind, pattern), effects(kind, pattern)
    try:
        return _with_switches(small, found)
    except LeftOutError:
        if small.listed:
            raise
        # Some parts take the width of heads that config.json says, others do not: described is one that says none.
        return _with_switches(Small.computing(kind, pattern), found)


def _with_switches(small: Small, found: Effects) -> Family:
    try:
        return _proved(small, found)
    except LeftOutError:
        if not found.switches:
            raise
        # Switches that cannot be told apart: described is the model with their defaults.
        return _proved(small, Effects({}, {**found.fixed, **found.switches}))


def _proved(small: Small, found: Effects) -> Family:
    family = with_defaults(_read(small, found), small)
    prove(family, small)
    return family


@dataclasses.dataclass(frozen=True)
class _Item:
    """A linear layer or another parameter: where it is there, and its dimensions in each model."""

    when: Mapping[str, bool]
    dimensions: tuple[Dimensions, ...]


Items = Mapping[str, _Item]
"""By path."""


def _read(small: Small, found: Effects) -> Family:
    """The family's description, but for what config.json may leave out."""
    own = small.names
    if lacking := {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"} - set(own):
        raise LeftOutError(f"its config has no {min(lacking)}")
    formulas = Formulas([small.sizes(index) for index in range(sizes.READ)])
    states: list[dict[str, bool]] = [{}, *({name: not usual} for name, usual in found.switches.items())]
    models = [[small.layout(index, state) for index in range(sizes.READ)] for state in states]
    outside = _items([[model.outside for model in state] for state in models], states, found)
    kinds = tuple(
        _layer([[model.kinds[number] for model in state] for state in models], states, small, found, formulas)
        for number in range(len(models[0][0].kinds))
    )
    recurrent = small.pattern.labels.get(_RECURRENT) if small.pattern else None
    if recurrent is not None and not kinds[recurrent].key_dim:
        raise LeftOutError("it has recurrent layers whose memory nobody has counted")
    return Family(
        aliases=sizes.aliases(small.config),
        computed=small.computed,
        switches=found.switches,
        fixed=found.fixed,
        tied=bool(config_of(small.kind, {}).tie_word_embeddings),
        hidden=own["hidden_size"],
        layers=own["num_hidden_layers"],
        vocab=own["vocab_size"],
        kinds=kinds,
        pattern=small.pattern,
        outside=_counts(outside, formulas),
    )


def _layer(
    models: list[list[Parts]], states: list[dict[str, bool]], small: Small, found: Effects, formulas: Formulas
) -> Layer:
    """What the layers of one kind have in common, read from a layer of each model in each state."""
    hidden, heads = small.names["hidden_size"], small.names["num_attention_heads"]
    linear = _items([[parts.linear for parts in state] for state in models], states, found)
    tensors = _items([[parts.tensors for parts in state] for state in models], states, found)
    if any("experts" in path.split(".") for path in linear):
        raise LeftOutError("its experts are linear layers of their own")
    sides = {path: _sides(path, item, formulas) for path, item in linear.items()}
    read = roles(sides, hidden)
    of_models = [small.sizes(index) for index in range(sizes.READ)]
    asked = attention({path: item.dimensions for path, item in linear.items()}, read, heads, formulas, of_models)
    experts = {path: item for path, item in tensors.items() if "experts" in path.split(".")}
    others = {path: item for path, item in tensors.items() if path not in experts}
    usual, *switched = [_norms(state[0], read, experts) for state in models]
    if not usual.hidden:
        raise LeftOutError("its layers do not normalise the hidden state")
    changes = _changes(usual, dict(zip(found.switches.items(), switched, strict=True)))
    return Layer(
        gated=_gated(read, linear, experts),
        norms=usual.hidden - sum(each.hidden for each in changes if _is_usual(each, found)),
        heads=asked.heads,
        kv_heads=asked.kv_heads,
        head_dim=asked.head_dim,
        output_gate=asked.output_gate,
        qk_norm=not asked.key_dim and usual.of_heads and not any(each.of_heads for each in changes),
        switched_norms=tuple(changes),
        score_bytes=0 if asked.key_dim else score_bytes(small.kind, small.shown(0)),
        key_dim=asked.key_dim,
        linear=tuple(
            Linear(name=_last(path), reads=read[path], inputs=sides[path][0], outputs=sides[path][1], when=item.when)
            for path, item in linear.items()
        ),
        vectors=_counts(others, formulas),
        experts=_mixture(small, experts, hidden, formulas) if experts else None,
    )


def _items(
    seen: list[list[Mapping[str, Dimensions]]], states: list[dict[str, bool]], found: Effects
) -> dict[str, _Item]:
    """What the models have in each state: with each switch at its default and, one at a time, not."""
    for first, *others in seen:
        if any(set(each) != set(first) for each in others):
            raise LeftOutError("the parts of its layers change with their sizes")
    items = {}
    for path in dict.fromkeys(path for of_state in seen for path in of_state[0]):
        there = [path in of_state[0] for of_state in seen]
        if there[0]:
            changed = [name for has, state in zip(there, states, strict=True) for name in state if not has]
            when = {name: found.switches[name] for name in changed}
        elif there.count(True) == 1:
            when = states[there.index(True)]
        else:
            raise LeftOutError(f"several settings add {path}")
        items[path] = _Item(when, tuple(each[path] for each in seen[there.index(True)]))
    return items


def _sides(path: str, item: _Item, formulas: Formulas) -> tuple[str, str]:
    inputs, outputs = _formulas(path, item, formulas)
    return inputs, outputs


def _formulas(path: str, item: _Item, formulas: Formulas) -> list[str]:
    found = [formulas.find(values) for values in zip(*item.dimensions, strict=True)]
    if None in found:
        raise LeftOutError(f"the size of {path} has no simple formula")
    return [each for each in found if each is not None]


def _counts(items: Items, formulas: Formulas) -> tuple[Count, ...]:
    """Parameters, those that are there together in one formula."""
    grouped: dict[tuple[tuple[str, bool], ...], list[str]] = defaultdict(list)
    for path, item in items.items():
        grouped[tuple(item.when.items())].append(product(_formulas(path, item, formulas)))
    return tuple(Count(size=total(each), when=dict(when)) for when, each in sorted(grouped.items()))


def _mixture(small: Small, experts: Items, hidden: str, formulas: Formulas) -> Mixture:
    count, active = _first(small, sizes.EXPERTS), _first(small, sizes.ACTIVE)
    each = {
        path: dataclasses.replace(item, dimensions=tuple(every[1:] for every in item.dimensions))
        for path, item in experts.items()
    }
    for path, item in experts.items():
        if formulas.find(tuple(every[0] for every in item.dimensions)) != count:
            raise LeftOutError(f"{path} is not one tensor of all its experts")
    down = next(
        (path for path, item in each.items() if _last(path) == "down_proj" and len(item.dimensions[0]) == 2), ""
    )
    widths = [formula for formula in _formulas(down, each[down], formulas) if formula != hidden] if down else []
    if len(widths) != 1:
        raise LeftOutError("its experts are not of the usual kind")
    return Mixture(count=count, active=active, width=widths[0], each=_counts(each, formulas))


def _first(small: Small, wanted: Iterable[str]) -> str:
    found = next((small.names[name] for name in wanted if name in small.names), None)
    if found is None:
        raise LeftOutError("its config does not say how many experts there are and how many a token uses")
    return found


def _gated(read: Mapping[str, Read], linear: Items, experts: Items) -> bool:
    """Whether all feed-forward parts multiply two projections, which no part may do alone."""
    ratios: set[float] = set()
    for path in (path for path, each in read.items() if each is Read.PRODUCT):
        around = path.rpartition(".")[0]
        beside = [other for other, each in read.items() if each is Read.BEFORE_FEED_FORWARD]
        width = linear[path].dimensions[0][0]
        up = (linear[other].dimensions[0][1] for other in beside if other.rpartition(".")[0] == around)
        ratios.add(sum(outputs for outputs in up if outputs in (width, 2 * width)) / width)
    weights = {_last(path): item.dimensions[0] for path, item in experts.items()}
    if "down_proj" in weights:
        down = weights["down_proj"]
        ratios.add(2 if "gate_up_proj" in weights and sorted(weights["gate_up_proj"]) != sorted(down) else 1)
    if ratios not in ({1.0}, {2.0}):
        raise LeftOutError("its feed-forward part is not of the usual kind, or missing")
    return ratios == {2.0}


def _norms(layer: Parts, read: Mapping[str, Read], experts: Items) -> Norms:
    """Normalisations of a layer. Over the hidden state are those inside neither attention nor the feed-forward part."""
    inner = [path for path, each in read.items() if each in (Read.ATTENTION, Read.PRODUCT)] + list(experts)
    around = {path.partition(".")[0] for path in inner if "." in path}
    found = sum(path.partition(".")[0] not in around for path in layer.norms)
    return Norms(hidden=found, of_heads=layer.qk_norm)


def _changes(usual: Norms, switched: Mapping[tuple[str, bool], Norms]) -> list[Norms]:
    """Normalisations that are there with a switch at its default, or only with it changed, of which ``switched`` has
    what a layer has then."""
    changes = []
    for (name, default), other in switched.items():
        if more := other.hidden - usual.hidden:
            changes.append(Norms(when={name: (more > 0) != default}, hidden=abs(more)))
        if other.of_heads != usual.of_heads:
            changes.append(Norms(when={name: other.of_heads != default}, of_heads=True))
    return changes


def _is_usual(norms: Norms, found: Effects) -> bool:
    """Whether they are there with all switches at their defaults."""
    return all(found.switches[name] is wanted for name, wanted in norms.when.items())


def _last(path: str) -> str:
    return path.rpartition(".")[2]
