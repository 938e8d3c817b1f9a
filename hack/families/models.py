"""Models of transformers on PyTorch's meta device, and what they consist of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from finetune_jobs.training.adapter import is_router
from hack.families.formulas import Dimensions
from hack.families.sizes import small

_ROUNDED: Final = (nn.Linear, Conv1D)
"""What bitsandbytes rounds: these classes, not their subclasses (transformers.integrations.bitsandbytes)."""

_OF_QUERIES: Final = ("q_norm", "q_layernorm", "query_norm", "query_layernorm")
_OF_KEYS: Final = ("k_norm", "k_layernorm", "key_norm", "key_layernorm")
"""How the names of the modules begin that normalise queries and keys."""


class LeftOutError(ValueError):
    """A family cannot be described; the message says why, as a part of a sentence."""


@dataclass(frozen=True)
class Parts:
    """What a layer consists of. Paths are those within it."""

    linear: Mapping[str, Dimensions]
    """Inputs and outputs of each linear layer."""
    tensors: Mapping[str, Dimensions]
    """Further parameters."""
    norms: tuple[str, ...]
    """The normalisations outside attention."""
    qk_norm: bool = False
    """Whether attention normalises queries and keys."""


@dataclass(frozen=True)
class Layout:
    """What a model consists of."""

    layers: tuple[Parts, ...]
    """Each of them, from the first one on."""
    outside: Mapping[str, Dimensions]
    """Parameters outside, without those of embedding and output layer."""
    tied: bool
    """Whether the output layer has no weights of its own."""


def config_of(family: str, fields: Mapping[str, Any]) -> Any:
    """The config of a model, as if config.json had these ``fields``."""
    return AutoConfig.for_model(family, **fields)


def build(config: Any) -> Any:
    """The model, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def layout(family: str, index: int, changed: Mapping[str, Any]) -> Layout:
    """What the model of ``sizes`` with this ``index`` consists of, with these fields ``changed``. Raises LeftOutError,
    or what transformers raises for values that it does not take."""
    config = config_of(family, {**small(type(config_of(family, {})), index), **changed})
    layers = getattr(config, "num_hidden_layers", None)
    if layers is None:
        raise LeftOutError("its config has no num_hidden_layers")
    return read(build(config), layers)


def parameters(model: Any) -> int:
    """All of them, shared ones once."""
    return sum(each.numel() for each in model.parameters())


def linear_layers(model: Any) -> list[tuple[str, int, int]]:
    """Name, inputs and outputs of everything that can have an adapter: all linear layers but the output layer."""
    head = model.get_output_embeddings()
    return [(name.rpartition(".")[2], *_sides(module)) for name, module in _linear_modules(model) if module is not head]


def read(model: Any, layers: int) -> Layout:
    """What ``model``, which has so many ``layers``, consists of. Raises LeftOutError."""
    prefix, stack = _stack(model, layers)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.shape != embedding.weight.shape:
        raise LeftOutError("its output layer is not one matrix of the embedding's size")
    for name, module in _linear_modules(model):
        if module is not head and not name.startswith(prefix):
            raise LeftOutError(f"it has linear layers outside its layers ({name})")
        if type(module) not in _ROUNDED:
            raise LeftOutError(f"its linear layers are {type(module).__name__}, which bitsandbytes does not round")
    counted = (embedding.weight, head.weight)
    outside = {
        name: tuple(each.shape)
        for name, each in model.named_parameters()
        if not name.startswith(prefix) and all(each is not other for other in counted)
    }
    return Layout(tuple(_parts(layer) for layer in stack), outside, head.weight is embedding.weight)


def kinds(layout: Layout, order: Sequence[int]) -> tuple[Parts, ...]:
    """The kinds of a model's layers, of which each has the number that ``order`` says. Raises LeftOutError if layers
    with the same number differ, or some have none."""
    found: dict[int, Parts] = {}
    for number, layer in zip(order, layout.layers, strict=True):
        first = found.setdefault(number, layer)
        if layer != first:
            raise different(first, layer)
    return tuple(found[number] for number in sorted(found))


def in_attention(path: str) -> bool:
    """Whether a part of a layer is one of attention's, by the names of the modules around it."""
    return any("attn" in each or "attention" in each for each in path.lower().split(".")[:-1])


def _stack(model: Any, layers: int) -> tuple[str, nn.ModuleList]:
    """The outermost list of so many modules with linear layers in them, and how the names of its parts begin."""
    found = [
        (name, each)
        for name, each in model.named_modules()
        if isinstance(each, nn.ModuleList) and len(each) == layers and any(_linear_modules(each))
    ]
    if not found:
        raise LeftOutError("it has no list of layers with linear layers of PyTorch")
    name, stack = min(found, key=lambda each: each[0].count("."))
    return f"{name}.", stack


def _parts(layer: nn.Module) -> Parts:
    modules = dict(_linear_modules(layer))
    linear: dict[str, Dimensions] = {name: _sides(module) for name, module in modules.items()}
    weights = {f"{name}.weight" for name in linear}
    rest = {name: tuple(each.shape) for name, each in layer.named_parameters() if name not in weights}
    norms = [name for name, each in layer.named_modules() if name and "norm" in type(each).__name__.lower()]
    outside = tuple(name for name in norms if not in_attention(name))
    return Parts(linear, rest, outside, _normalise_both(name for name in norms if in_attention(name)))


def _normalise_both(norms: Iterable[str]) -> bool:
    """Whether queries and keys are among what attention's own normalisations are for, by their names. Latent attention
    has others, of what queries and keys are computed from (``q_a_layernorm``)."""
    names = [name.rpartition(".")[2] for name in norms]
    return all(any(name.startswith(begin) for name in names) for begin in (_OF_QUERIES, _OF_KEYS))


def _linear_modules(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return (
        (name, each)
        for name, each in module.named_modules()
        if isinstance(each, nn.Linear | Conv1D) and not is_router(each)
    )


def _sides(layer: Any) -> tuple[int, int]:
    inputs, outputs = layer.weight.shape if isinstance(layer, Conv1D) else reversed(layer.weight.shape)
    return inputs, outputs


def different(one: Parts, other: Parts) -> LeftOutError:
    """What is wrong where two layers should be alike."""
    return LeftOutError(f"its layers are not all of one kind ({_differing(one, other)})")


def _differing(one: Parts, other: Parts) -> str:
    """A name that only one of two layers has, or that has another size there."""
    for left, right in ((one.linear, other.linear), (one.tensors, other.tensors)):
        for name in (*left, *right):
            if left.get(name) != right.get(name):
                return name
    return "its normalisations"
