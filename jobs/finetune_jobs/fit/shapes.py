"""The shape of a causal language model, from its config.json alone: its matrices, and what a token passes through.

Exact for the families that are known (``families``): tests compare every linear layer and the count of all parameters
with models of transformers on PyTorch's meta device. An unlisted family is unknown, not guessed: what looks like Llama
in a config may differ in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, ValidationError

from finetune_jobs.fit.families import NESTED, NO_TEXT_MODEL, OF_TYPE, Family, QkNorm


class UnknownShapeError(ValueError):
    """This config.json does not describe a known shape; the message says why."""


class Read(Enum):
    """What a linear layer reads: those of a kind share one tensor."""

    BEFORE_ATTENTION = auto()
    """The normalised hidden state."""
    ATTENTION = auto()
    """What attention gives."""
    BEFORE_FEED_FORWARD = auto()
    """The normalised hidden state, which one family's single normalisation makes for attention too."""
    PRODUCT = auto()
    """What the last layer of the feed-forward part reads."""


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
        return self.experts is not None and any(matrix.name == "down_proj" for matrix in self.matrices)

    def adapted(self, targets: tuple[str, ...] = ()) -> tuple[Matrix, ...]:
        """Linear layers of one layer that get an adapter: those that ``targets`` name, or all.

        A target may be a full name, as in ``spec.training.targetModules``; its last part counts.
        """
        names = {target.rpartition(".")[2] for target in targets}
        return tuple(matrix for matrix in self.matrices if not names or matrix.name in names)


FAMILIES: Final = (*OF_TYPE, *NESTED)
"""``model_type`` of the architectures that are known."""

_Size = Annotated[int, Field(gt=0, le=1 << 24)]


class _Config(BaseModel):
    """The fields of a config.json that shape a model; everything else is ignored."""

    model_type: str
    hidden_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    intermediate_size: _Size
    vocab_size: _Size
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool = False
    qk_layernorm: bool = False
    num_local_experts: _Size | None = None
    num_experts: _Size | None = None
    num_experts_per_tok: _Size = 2
    moe_intermediate_size: _Size | None = None
    decoder_sparse_step: int = 1
    interleave_moe_layer_step: int = 1
    moe_layers: list[int] | None = None
    use_bias: bool | None = None
    mlp_only_layers: list[int] | None = None
    quantization_config: dict[str, Any] | None = None


class _Vision(BaseModel):
    """The same of the part for images, a SigLIP encoder; the defaults are Gemma 3's."""

    hidden_size: _Size = 1152
    num_hidden_layers: _Size = 27
    intermediate_size: _Size = 4304
    image_size: _Size = 896
    patch_size: _Size = 14
    vision_use_head: bool = True


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a parsed config.json describes. Raises UnknownShapeError."""
    kind = str(config.get("model_type", ""))
    family = OF_TYPE.get(NESTED.get(kind, kind))
    nested = config.get("text_config") if kind in NESTED else config
    if family is not None and isinstance(nested, Mapping):
        given = {name: value for name, value in nested.items() if value is not None}
        quantized = {"quantization_config": config.get("quantization_config")}
        config_of_text = {**family.defaults, **given, "model_type": kind, **quantized}
    else:
        config_of_text = dict(config)
    try:
        fields = _Config.model_validate(config_of_text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        raise UnknownShapeError(f"config.json does not describe the model's shape ({problems})") from None
    if family is None:
        raise UnknownShapeError(_unlisted(kind))
    if fields.quantization_config is not None:
        raise UnknownShapeError("the checkpoint is already quantised (quantization_config)")
    sparse_layers = fields.moe_layers is None or len(fields.moe_layers) == fields.num_hidden_layers
    if fields.qk_layernorm or fields.decoder_sparse_step != 1 or fields.mlp_only_layers or not sparse_layers:
        raise UnknownShapeError("its layers differ from the family's usual models")
    if family.shared and fields.interleave_moe_layer_step != 1:
        raise UnknownShapeError("its layers differ from the family's usual models")
    return _shape(fields, family, _tower(config, fields.hidden_size) if kind == "gemma3" else None)


def _unlisted(kind: str) -> str:
    if kind in NO_TEXT_MODEL:
        return f"model_type {kind!r} is a model for images and text; take one for text alone, e.g. its text part"
    return f"model_type {kind[:40]!r} is not one of {', '.join(FAMILIES)}"


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


def _shape(fields: _Config, family: Family, tower: Tower | None) -> Shape:
    heads = fields.num_attention_heads
    kv_heads = fields.num_key_value_heads or heads
    head_dim = fields.head_dim or fields.hidden_size // heads
    experts = _experts(fields, family) if family.sparse else None
    width = (fields.moe_intermediate_size if family.sparse else None) or fields.intermediate_size
    matrices = _attention(fields, family, heads * head_dim, kv_heads * head_dim)
    if experts is None or family.shared:
        matrices += _feed_forward(fields.hidden_size, width, family)
    norm = fields.hidden_size * (2 if family.norm_bias else 1 if family.norm_weight else 0)
    passed = (experts.active if experts else 1) + (1 if family.shared else 0)
    return Shape(
        family=fields.model_type,
        hidden=fields.hidden_size,
        layers=fields.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=width * passed,
        gated=family.gated,
        vocab=fields.vocab_size,
        tied=family.tied if fields.tie_word_embeddings is None else fields.tie_word_embeddings,
        norms=family.norms,
        matrices=matrices,
        vectors=_vectors(fields, family, matrices, norm, (heads, kv_heads, head_dim), experts),
        outer_vectors=norm + (fields.vocab_size if family.head_bias else 0),
        experts=experts,
        tower=tower,
    )


def _attention(fields: _Config, family: Family, query: int, key: int) -> tuple[Matrix, ...]:
    hidden, out = fields.hidden_size, Matrix(family.out, query, fields.hidden_size, Read.ATTENTION)
    sizes = (query + 2 * key,) if len(family.qkv) == 1 else (query, key, key)
    named = zip(family.qkv, sizes, strict=True)
    return (*(Matrix(name, hidden, size, Read.BEFORE_ATTENTION) for name, size in named), out)


def _feed_forward(hidden: int, width: int, family: Family) -> tuple[Matrix, ...]:
    total = width * (2 if family.gated else 1)
    each = total // len(family.up)
    up = tuple(Matrix(name, hidden, each, Read.BEFORE_FEED_FORWARD) for name in family.up)
    return (*up, Matrix(family.down, width, hidden, Read.PRODUCT))


def _experts(fields: _Config, family: Family) -> Experts:
    count = fields.num_local_experts or fields.num_experts
    if count is None or fields.num_experts_per_tok > count:
        raise UnknownShapeError("config.json does not say how many experts there are and how many a token uses")
    width = fields.moe_intermediate_size or fields.intermediate_size
    bias = 2 * width + fields.hidden_size if family.expert_bias else 0
    return Experts(count, fields.num_experts_per_tok, 3 * fields.hidden_size * width + bias)


def _vectors(  # what a layer's parameters beside its matrices depend on
    fields: _Config,
    family: Family,
    matrices: tuple[Matrix, ...],
    norm: int,
    heads: tuple[int, int, int],
    experts: Experts | None,
) -> int:
    query, key, head_dim = heads
    biased = fields.attention_bias if fields.attention_bias is not None else family.attention_bias
    of_mlp = fields.mlp_bias or family.mlp_bias
    if fields.use_bias is not None:
        biased = of_mlp = fields.use_bias
    names = set(family.qkv) if family.qkv_bias or biased else set()
    names |= {family.out} if biased and family.out_bias else set()
    names |= {*family.up, family.down} if of_mlp else set()
    biases = sum(matrix.outputs for matrix in matrices if matrix.name in names)
    router = experts.count * (fields.hidden_size + (1 if family.expert_bias else 0)) if experts else 0
    qk = {QkNorm.NONE: 0, QkNorm.HEAD: 2 * head_dim, QkNorm.WHOLE: (query + key) * head_dim}[family.qk_norm]
    return family.norms * norm + qk + biases + router + (query if family.sinks else 0)
