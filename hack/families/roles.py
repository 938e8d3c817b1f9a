"""What the linear layers and the experts of a layer are there for, by their names and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from finetune_jobs.fit.families import Read
from hack.families.formulas import Dimensions, Formulas
from hack.families.models import LeftOutError, in_attention

Sides = tuple[str, str]
"""Formulas of inputs and outputs."""
_MORE: Final = "its attention computes more than queries, keys and values"
_DELTA: Final = {"linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"}
"""The sizes of the gated delta rule."""


@dataclass(frozen=True)
class Attention:
    """Formulas of what attention computes with."""

    heads: str
    kv_heads: str
    head_dim: str
    output_gate: bool = False
    """Whether a gate is multiplied with what attention gives."""
    key_dim: str = ""
    """Width of a key of the gated delta rule; empty for attention."""


def roles(linear: Mapping[str, Sides], hidden: str) -> dict[str, Read]:
    """What each linear layer of a layer reads, by its path. Raises LeftOutError."""
    results = [path for path, (_, outputs) in linear.items() if in_attention(path) and outputs == hidden]
    found = {path: _role(path, sides, hidden, results) for path, sides in linear.items()}
    if list(found.values()).count(Read.ATTENTION) != 1:
        raise LeftOutError("its layers have no attention, or more than one")
    return found


def _role(path: str, sides: Sides, hidden: str, results: Sequence[str]) -> Read:
    inputs, outputs = sides
    if in_attention(path):
        if results and path == results[-1]:
            return Read.ATTENTION
        return Read.BEFORE_ATTENTION if inputs == hidden else Read.COMPRESSED
    if inputs == hidden:
        return Read.BEFORE_FEED_FORWARD
    if outputs == hidden:
        return Read.PRODUCT
    raise LeftOutError(f"it has a linear layer that is part of neither attention nor a feed-forward part ({path})")


def attention(
    linear: Mapping[str, Sequence[Dimensions]],
    found: Mapping[str, Read],
    heads: str,
    formulas: Formulas,
    models: Sequence[Mapping[str, int]],
) -> Attention:
    """How queries, keys and values share the linear layers of attention, whose sides are given for each model. Raises
    LeftOutError."""
    counts = [model[heads] for model in models]
    (result,) = (path for path, read in found.items() if read is Read.ATTENTION)
    if Read.COMPRESSED in found.values() and "kv_lora_rank" in models[0]:
        return _latent(linear, found, result, heads, formulas, counts)
    query = [inputs for inputs, _ in linear[result]]
    before = [path for path, read in found.items() if read is Read.BEFORE_ATTENTION]
    widths = [sum(linear[path][index][1] for path in before) for index in range(len(models))]
    if all(_last(path).startswith("in_proj") for path in before) and _is_delta_rule(query, widths, models):
        return Attention(
            "linear_num_value_heads", "linear_num_key_heads", "linear_value_head_dim", key_dim="linear_key_head_dim"
        )
    gate = any(_gates(path, [outputs for _, outputs in linear[path]], query) for path in before)
    sizes = [width // count for width, count in zip(query, counts, strict=True)]
    own = [2 * each if gate else each for each in query]
    keys = [(width - each) / (2 * size) for width, each, size in zip(widths, own, sizes, strict=True)]
    head_dim, kv_heads = formulas.find(tuple(sizes)), formulas.find(tuple(map(int, keys)))
    exact = all(each == int(each) for each in keys) and all(
        size * count == width for size, count, width in zip(sizes, counts, query, strict=True)
    )
    if (
        Read.COMPRESSED in found.values()
        or not exact
        or head_dim is None
        or kv_heads is None
        or "+" in kv_heads
        or "*" in kv_heads
    ):
        raise LeftOutError(_MORE)
    return Attention(heads, kv_heads, head_dim, output_gate=gate)


def _is_delta_rule(values: Sequence[int], widths: Sequence[int], models: Sequence[Mapping[str, int]]) -> bool:
    """Whether a layer has the gated delta rule (Yang et al. 2024, arXiv 2412.06464), by what its first linear layers
    give together: queries and keys, values and a gate for each, and two numbers for each head of values."""
    if any(not model.keys() >= _DELTA for model in models):
        return False
    for value, width, model in zip(values, widths, models, strict=True):
        keys = model["linear_num_key_heads"] * model["linear_key_head_dim"]
        heads = model["linear_num_value_heads"]
        if value != heads * model["linear_value_head_dim"] or width != 2 * (keys + value + heads):
            return False
    return True


def _gates(path: str, outputs: Sequence[int], query: Sequence[int]) -> bool:
    """Whether a linear layer gives a number for each of attention's, by its name, or by being twice as wide as queries,
    which it gives too."""
    twice = [2 * each for each in query]
    return outputs == twice if _last(path).startswith("q") else "gate" in _last(path) and outputs == list(query)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _latent(
    linear: Mapping[str, Sequence[Dimensions]],
    found: Mapping[str, Read],
    result: str,
    heads: str,
    formulas: Formulas,
    counts: Sequence[int],
) -> Attention:
    """Multi-head latent attention: keys and values are made for each head from less. Values count as wide as keys,
    which they are not: a little too much memory."""
    widths = [
        tuple(outputs // count for (_, outputs), count in zip(linear[path], counts, strict=True))
        for path, read in found.items()
        if read is not Read.ATTENTION and _last(path).startswith("q")
    ]
    if any(in_attention(path) and not _last(path).startswith(("q", "k")) for path in set(linear) - {result}):
        raise LeftOutError(_MORE)
    head_dim = formulas.find(widths[-1]) if widths else None
    if head_dim is None:
        raise LeftOutError(_MORE)
    return Attention(heads, heads, head_dim)
