"""The shape of a causal language model, from its config.json alone: its matrices, and what a token passes through.

Exact for the families that are known (``families``): every linear layer and the count of all parameters are those of
the model in transformers. An unlisted family is unknown, not guessed: what looks like Llama in a config may differ in
memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, ValidationError

from finetune_jobs.fit.families import EVERY_LAYER, Count, Family, Fixed, Read, evaluate, known


class UnknownShapeError(ValueError):
    """This config.json does not describe a known shape; the message says why."""


@dataclass(frozen=True)
class Matrix:
    """A linear layer: what quantisation rounds and what adapters attach to."""

    name: str
    inputs: int
    outputs: int
    reads: Read

    @property
    def parameters(self) -> int:
        """Weights, without the bias."""
        return self.inputs * self.outputs

    @property
    def selected(self) -> bool:
        """Whether selective checkpointing keeps the product with it (``training.selective``)."""
        return self.outputs <= self.inputs


@dataclass(frozen=True)
class Experts:
    """A layer's mixture of experts. Its weights are no linear layers in transformers 5: not rounded, not adapted."""

    count: int
    active: int
    """Experts that a token passes through."""
    parameters_each: int


@dataclass(frozen=True)
class Tower:
    """What a model has beside its text part, e.g. for images: in memory and adapted, but no text passes through it."""

    parameters: int
    sides: int
    """Inputs and outputs of all its linear layers, by which an adapter grows."""


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer of equal layers."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the feed-forward part that a token passes through."""
    gated: bool
    """Whether the feed-forward part multiplies two projections (SwiGLU, GeGLU)."""
    vocab: int
    tied: bool
    """Whether the output layer shares the embedding's weights."""
    norms: int
    """Normalisations over the hidden state per layer."""
    matrices: tuple[Matrix, ...]
    """Linear layers of one layer."""
    vectors: int
    """Further parameters of one layer: biases, normalisations, a router."""
    outer_vectors: int
    """Parameters of the last normalisation and the output layer's bias."""
    experts: Experts | None = None
    tower: Tower | None = None

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers but the output layer."""
        return self.layers * sum(matrix.parameters for matrix in self.matrices)

    @property
    def embedding_parameters(self) -> int:
        """Embedding and output layer, counted once where they are tied."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def expert_parameters(self) -> int:
        """Weights of all experts."""
        return self.layers * self.experts.count * self.experts.parameters_each if self.experts else 0

    @property
    def parameters(self) -> int:
        """All of them: this takes memory."""
        plain = self.layers * self.vectors + self.outer_vectors + (self.tower.parameters if self.tower else 0)
        return self.linear_parameters + self.embedding_parameters + self.expert_parameters + plain

    @property
    def active_parameters(self) -> int:
        """What one token passes through."""
        idle = self.experts.count - self.experts.active if self.experts else 0
        return self.parameters - self.layers * idle * (self.experts.parameters_each if self.experts else 0)

    @property
    def computed_parameters(self) -> int:
        """What one token is multiplied with: this takes time. An embedding is only looked up."""
        looked_up = 0 if self.tied else self.vocab * self.hidden
        return self.active_parameters - looked_up - (self.tower.parameters if self.tower else 0)

    @property
    def shares_feed_forward(self) -> bool:
        """Whether all tokens pass through one feed-forward part beside the experts (Llama 4)."""
        return self.experts is not None and any(matrix.reads is Read.PRODUCT for matrix in self.matrices)

    def adapted(self, targets: tuple[str, ...] = ()) -> tuple[Matrix, ...]:
        """Linear layers of one layer that get an adapter: those that ``targets`` name, or all.

        A target may be a full name, as in ``spec.training.targetModules``; its last part counts.
        """
        names = {target.rpartition(".")[2] for target in targets}
        return tuple(matrix for matrix in self.matrices if not names or matrix.name in names)


WITH_IMAGES: Final = {"gemma3": "gemma3_text"}
"""Families whose model has a part for images beside that of the other family, which is loaded and adapted too. That
part is no stack of the same layers, so ``hack.families`` cannot read it: ``_tower`` counts it by hand."""
LARGEST: Final = 1 << 24
"""No size in a config.json is larger."""

_Size = Annotated[int, Field(gt=0, le=LARGEST)]


def families() -> tuple[str, ...]:
    """``model_type`` of the architectures that are known."""
    return (*known().families, *known().texts, *WITH_IMAGES)


class _Vision(BaseModel):
    """The fields that shape the part for images, a SigLIP encoder; the defaults are Gemma 3's."""

    hidden_size: _Size = 1152
    num_hidden_layers: _Size = 27
    intermediate_size: _Size = 4304
    image_size: _Size = 896
    patch_size: _Size = 14
    vision_use_head: bool = True


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a parsed config.json describes. Raises UnknownShapeError."""
    kind = str(config.get("model_type", ""))
    of_text = WITH_IMAGES.get(kind) or known().texts.get(kind)
    family = known().families.get(of_text or kind)
    if family is None:
        raise UnknownShapeError(_unlisted(kind))
    if config.get("quantization_config") is not None:
        raise UnknownShapeError("the checkpoint is already quantised (quantization_config)")
    text = config.get("text_config") if of_text else config
    if not isinstance(text, Mapping):
        raise UnknownShapeError("config.json does not describe the model's shape (text_config: missing)")
    shape = describe(family, text, kind)
    return replace(shape, tower=_tower(config, shape.hidden)) if kind in WITH_IMAGES else shape


def describe(family: Family, config: Mapping[str, Any], kind: str) -> Shape:
    """The shape of the family's model that ``config`` describes. Raises UnknownShapeError."""
    other_names = {family.aliases[name]: value for name, value in config.items() if name in family.aliases}
    fields = {**other_names, **config}
    sizes, switches = _Sizes(family, fields), _switches(family, fields)
    _require_fixed(family, fields, evaluate(family.layers, sizes))
    matrices = tuple(
        Matrix(each.name, evaluate(each.inputs, sizes), evaluate(each.outputs, sizes), each.reads)
        for each in family.linear
        if each.there(switches)
    )
    experts = _experts(family, sizes, switches)
    passed = sum(matrix.inputs for matrix in matrices if matrix.reads is Read.PRODUCT)
    if experts and family.experts:
        passed += experts.active * evaluate(family.experts.width, sizes)
    tied = fields.get("tie_word_embeddings")
    return Shape(
        family=kind,
        hidden=evaluate(family.hidden, sizes),
        layers=evaluate(family.layers, sizes),
        heads=evaluate(family.heads, sizes),
        kv_heads=evaluate(family.kv_heads, sizes),
        head_dim=evaluate(family.head_dim, sizes),
        intermediate=passed,
        gated=family.gated,
        vocab=evaluate(family.vocab, sizes),
        tied=family.tied if tied is None else bool(tied),
        norms=family.norms,
        matrices=matrices,
        vectors=_counted(family.vectors, sizes, switches),
        outer_vectors=_counted(family.outside, sizes, switches),
        experts=experts,
    )


class _Sizes(dict[str, int]):
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
    if not isinstance(value, int) or isinstance(value, bool):
        raise _undescribed(name, "no whole number")
    if not 0 < value <= LARGEST:
        raise _undescribed(name, f"not from 1 to {LARGEST:,}")
    return value


def _undescribed(name: str, why: str) -> UnknownShapeError:
    return UnknownShapeError(f"config.json does not describe the model's shape ({name}: {why})")


def _differs(name: str) -> UnknownShapeError:
    return UnknownShapeError(f"its layers differ from the family's usual models ({name})")


def _switches(family: Family, fields: Mapping[str, Any]) -> Mapping[str, bool]:
    """As Python reads them: null is no."""
    found = {name: fields.get(name, default) for name, default in family.switches.items()}
    for name, value in found.items():
        if not isinstance(value, bool | None):
            raise _undescribed(name, "neither true nor false")
    return {name: bool(value) for name, value in found.items()}


def _require_fixed(family: Family, fields: Mapping[str, Any], layers: int) -> None:
    """Refuses fields that make layers of another kind."""
    for name, only in family.fixed.items():
        if name in fields and not _as_usual(fields[name], only, layers):
            raise _differs(name)


def _as_usual(value: object, only: Fixed, layers: int) -> bool:
    if only == EVERY_LAYER:
        return value is None or value == list(range(layers))
    if isinstance(only, tuple):
        return value is None or (isinstance(value, list) and all(each in only for each in value))
    return value == only or not (value or only)


def _experts(family: Family, sizes: Mapping[str, int], switches: Mapping[str, bool]) -> Experts | None:
    if family.experts is None:
        return None
    count, active = evaluate(family.experts.count, sizes), evaluate(family.experts.active, sizes)
    if active > count:
        raise UnknownShapeError("in config.json, a token uses more experts than there are")
    return Experts(count, active, _counted(family.experts.each, sizes, switches))


def _counted(parts: Iterable[Count], sizes: Mapping[str, int], switches: Mapping[str, bool]) -> int:
    return sum(evaluate(part.size, sizes) for part in parts if part.there(switches))


def _unlisted(kind: str) -> str:
    if kind in known().images:
        return f"model_type {kind!r} is a model for images and text; take one for text alone, e.g. its text part"
    if kind in known().left_out:
        why = f"those whose shape can be computed: {known().left_out[kind]}"
    else:
        why = f"the {len(families())} families that are known here"
    return f"model_type {kind[:40]!r} is not one of {why}. docs/reference/families.md lists those that are known"


def _tower(config: Mapping[str, Any], text: int) -> Tower:
    """Of a SigLIP encoder and the projection from its width to that of the text part."""
    try:
        fields = _Vision.model_validate(config.get("vision_config") or {})
    except ValidationError as error:
        raise UnknownShapeError(f"vision_config does not describe its shape ({error.errors()[0]['msg']})") from None
    width, inner = fields.hidden_size, fields.intermediate_size
    mlp = 2 * width * inner + inner + width
    attention = 4 * (width * width + width)
    layer = attention + mlp + 4 * width
    patches = (fields.image_size // fields.patch_size) ** 2
    embedding = 3 * fields.patch_size**2 * width + width + patches * width
    head = width + attention + 2 * width + mlp if fields.vision_use_head else 0
    whole = fields.num_hidden_layers * layer + embedding + 2 * width + head
    sides = fields.num_hidden_layers * (8 * width + 2 * (width + inner))
    return Tower(whole + width * text + width, sides + (2 * (width + inner) if fields.vision_use_head else 0))
