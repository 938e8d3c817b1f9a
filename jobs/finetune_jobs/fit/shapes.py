"""The shape of a causal language model, from its config.json alone: its matrices, and what a token passes through.

Exact for the families that are known (``families``): every linear layer and the count of all parameters are those of
the model in transformers. An unlisted family is unknown, not guessed: what looks like Llama in a config may differ in
memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from finetune_jobs.fit.families import Count, Family, Layer, Mixture, Read, evaluate, known
from finetune_jobs.fit.fields import Sizes, UnknownShapeError, counts, require_fixed, switches_of
from finetune_jobs.fit.towers import Tower, tower_of


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

    @property
    def parameters(self) -> int:
        """Weights of all of them."""
        return self.count * self.parameters_each

    @property
    def idle_parameters(self) -> int:
        """Weights of those that a token does not pass through."""
        return (self.count - self.active) * self.parameters_each


@dataclass(frozen=True)
class LayerKind:
    """Layers that are all alike. All but ``count`` is of one of them."""

    count: int
    """How many there are."""
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the feed-forward part that a token passes through."""
    gated: bool
    """Whether the feed-forward part multiplies two projections (SwiGLU, GeGLU)."""
    norms: int
    """Normalisations over the hidden state."""
    output_gate: bool
    """Whether what attention gives is multiplied by a gate."""
    qk_norm: bool
    """Whether attention normalises queries and keys."""
    score_bytes: int
    """What attention keeps of each score, one per head, query and key, for its backward pass; 0: none."""
    key_dim: int
    """Width of a key of the gated delta rule, of which heads are those of values; 0 for attention."""
    matrices: tuple[Matrix, ...]
    """Linear layers."""
    vectors: int
    """Further parameters: biases, normalisations, a router."""
    experts: Experts | None = None

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers."""
        return sum(matrix.parameters for matrix in self.matrices)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.linear_parameters + self.vectors + (self.experts.parameters if self.experts else 0)

    @property
    def selected_parameters(self) -> int:
        """Weights whose products selective checkpointing keeps."""
        return sum(matrix.parameters for matrix in self.matrices if matrix.selected)

    @property
    def attention_width(self) -> int:
        """Numbers that attention, or the delta rule, gives for a token."""
        return self.heads * self.head_dim

    def adapted(self, targets: Iterable[str] = ()) -> tuple[Matrix, ...]:
        """Linear layers that get an adapter: those that ``targets`` name, or all.

        A target may be a full name, as in ``spec.training.targetModules``; its last part counts.
        """
        names = {target.rpartition(".")[2] for target in targets}
        return tuple(matrix for matrix in self.matrices if not names or matrix.name in names)


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer."""

    family: str
    hidden: int
    vocab: int
    tied: bool
    """Whether the output layer shares the embedding's weights."""
    kinds: tuple[LayerKind, ...]
    """Its layers by their kinds, mostly one."""
    outer_vectors: int
    """Parameters of the last normalisation and the output layer's bias."""
    tower: Tower | None = None

    @property
    def layers(self) -> int:
        """How many there are."""
        return sum(kind.count for kind in self.kinds)

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers but the output layer."""
        return sum(kind.count * kind.linear_parameters for kind in self.kinds)

    @property
    def embedding_parameters(self) -> int:
        """Embedding and output layer, counted once where they are tied."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def expert_parameters(self) -> int:
        """Weights of all experts."""
        return sum(kind.count * kind.experts.parameters for kind in self.kinds if kind.experts)

    @property
    def layer_parameters(self) -> int:
        """What the layers have, with the part for images."""
        layers = sum(kind.count * kind.parameters for kind in self.kinds)
        return layers + (self.tower.parameters if self.tower else 0)

    @property
    def parameters(self) -> int:
        """All of them: this takes memory."""
        return self.layer_parameters + self.embedding_parameters + self.outer_vectors

    @property
    def active_parameters(self) -> int:
        """What one token passes through."""
        return self.parameters - sum(kind.count * kind.experts.idle_parameters for kind in self.kinds if kind.experts)

    @property
    def computed_parameters(self) -> int:
        """What one token is multiplied with: this takes time. An embedding is only looked up."""
        looked_up = 0 if self.tied else self.vocab * self.hidden
        return self.active_parameters - looked_up - (self.tower.parameters if self.tower else 0)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Linear layers of one layer of each kind."""
        return tuple(matrix for kind in self.kinds for matrix in kind.matrices)

    @property
    def linear_layers(self) -> Iterator[tuple[str, int, int]]:
        """Name, inputs and outputs of each linear layer, of all layers."""
        for kind in self.kinds:
            for matrix in kind.matrices:
                yield from [(matrix.name, matrix.inputs, matrix.outputs)] * kind.count

    @property
    def has_experts(self) -> bool:
        """Whether it is a mixture of experts, be it only in some layers."""
        return any(kind.experts for kind in self.kinds)

    @property
    def has_delta_rule(self) -> bool:
        """Whether some layers have the gated delta rule in place of attention."""
        return any(kind.key_dim for kind in self.kinds)

    @property
    def shares_feed_forward(self) -> bool:
        """Whether all tokens pass through one feed-forward part, beside the experts (Llama 4) or in layers without
        them."""
        return self.has_experts and any(matrix.reads is Read.PRODUCT for matrix in self.matrices)

    def adapted_parameters(self, targets: Iterable[str] = ()) -> int:
        """Weights of all linear layers that get an adapter (``LayerKind.adapted``)."""
        names = tuple(targets)
        return sum(kind.count * sum(each.parameters for each in kind.adapted(names)) for kind in self.kinds)

    def whole(self, kind: LayerKind) -> float:
        """Parameters of one of its layers of a kind, with a layer's share of the part for images."""
        return kind.parameters + (self.tower.parameters / self.layers if self.tower else 0)


WITH_IMAGES: Final = {"gemma3": "gemma3_text"}
"""Families whose model has a part for images beside that of the other family, which is loaded and adapted too. That
part is no stack of the same layers, so ``hack.families`` cannot read it: ``towers`` counts it by hand."""


def families() -> tuple[str, ...]:
    """``model_type`` of the architectures that are known."""
    return (*known().families, *known().texts, *WITH_IMAGES)


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
    return replace(shape, tower=tower_of(config, shape.hidden)) if kind in WITH_IMAGES else shape


def describe(family: Family, config: Mapping[str, Any], kind: str) -> Shape:
    """The shape of the family's model that ``config`` describes. Raises UnknownShapeError."""
    other_names = {family.aliases[name]: value for name, value in config.items() if name in family.aliases}
    fields = {**other_names, **config}
    sizes, switches = Sizes(family, fields), switches_of(family, fields)
    layers = evaluate(family.layers, sizes)
    require_fixed(family, fields, layers)
    tied = fields.get("tie_word_embeddings")
    return Shape(
        family=kind,
        hidden=evaluate(family.hidden, sizes),
        vocab=evaluate(family.vocab, sizes),
        tied=family.tied if tied is None else bool(tied),
        kinds=tuple(
            _kind(layer, count, sizes, switches)
            for layer, count in zip(family.kinds, counts(family, fields, layers), strict=True)
            if count
        ),
        outer_vectors=_counted(family.outside, sizes, switches),
    )


def _kind(layer: Layer, count: int, sizes: Mapping[str, int], switches: Mapping[str, bool]) -> LayerKind:
    matrices = tuple(
        Matrix(each.name, evaluate(each.inputs, sizes), evaluate(each.outputs, sizes), each.reads)
        for each in layer.linear
        if each.there(switches)
    )
    experts = _experts(layer.experts, sizes, switches) if layer.experts else None
    passed = sum(matrix.inputs for matrix in matrices if matrix.reads is Read.PRODUCT)
    if experts and layer.experts:
        passed += experts.active * evaluate(layer.experts.width, sizes)
    switched = [each for each in layer.switched_norms if each.there(switches)]
    return LayerKind(
        count=count,
        heads=evaluate(layer.heads, sizes),
        kv_heads=evaluate(layer.kv_heads, sizes),
        head_dim=evaluate(layer.head_dim, sizes),
        intermediate=passed,
        gated=layer.gated,
        norms=layer.norms + sum(each.hidden for each in switched),
        output_gate=layer.output_gate,
        qk_norm=layer.qk_norm or any(each.of_heads for each in switched),
        score_bytes=layer.score_bytes,
        key_dim=evaluate(layer.key_dim, sizes) if layer.key_dim else 0,
        matrices=matrices,
        vectors=_counted(layer.vectors, sizes, switches),
        experts=experts,
    )


def _experts(mixture: Mixture, sizes: Mapping[str, int], switches: Mapping[str, bool]) -> Experts:
    count, active = evaluate(mixture.count, sizes), evaluate(mixture.active, sizes)
    if active > count:
        raise UnknownShapeError("in config.json, a token uses more experts than there are")
    return Experts(count, active, _counted(mixture.each, sizes, switches))


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
