"""What the linear layers and the experts of a layer are there for, by their names and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_jobs.fit.families import Read
from hack.families.formulas import Dimensions, Formulas
from hack.families.models import LeftOutError, in_attention

Sides = tuple[str, str]
"""Formulas of inputs and outputs."""


@dataclass(frozen=True)
class Attention:
    """Formulas of what attention computes with."""

    heads: str
    kv_heads: str
    head_dim: str


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
        return _latent(linear, found, heads, formulas, counts)
    query = [inputs for inputs, _ in linear[result]]
    before = [path for path, read in found.items() if read is Read.BEFORE_ATTENTION]
    widths = [sum(linear[path][index][1] for path in before) for index in range(len(models))]
    sizes = [width // count for width, count in zip(query, counts, strict=True)]
    keys = [(width - own) / (2 * size) for width, own, size in zip(widths, query, sizes, strict=True)]
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
        raise LeftOutError("its attention computes more than queries, keys and values")
    return Attention(heads, kv_heads, head_dim)


def _latent(
    linear: Mapping[str, Sequence[Dimensions]],
    found: Mapping[str, Read],
    heads: str,
    formulas: Formulas,
    counts: Sequence[int],
) -> Attention:
    """Multi-head latent attention: keys and values are made for each head from less. Values count as wide as keys,
    which they are not: a little too much memory."""
    widths = [
        tuple(outputs // count for (_, outputs), count in zip(linear[path], counts, strict=True))
        for path, read in found.items()
        if read is not Read.ATTENTION and path.rpartition(".")[2].startswith("q")
    ]
    head_dim = formulas.find(widths[-1]) if widths else None
    if head_dim is None:
        raise LeftOutError("its attention computes more than queries, keys and values")
    return Attention(heads, heads, head_dim)
