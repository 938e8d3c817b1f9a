"""The shape of a causal language model, from its config.json alone: its matrices, and what a token passes through.

Parameter counts are exact for the families below (tests/unit/test_fit_shapes.py builds each with transformers and
compares). An unlisted family is unknown, not guessed: what looks like Llama in a config may differ in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, ValidationError


class UnknownShapeError(ValueError):
    """This config.json does not describe a known shape; the message says why."""


@dataclass(frozen=True)
class Matrix:
    """A linear layer: what quantisation rounds and what adapters attach to."""

    name: str
    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        """Weights, without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Experts:
    """A layer's mixture of experts. Its weights are no linear layers in transformers 5: not rounded, not adapted."""

    count: int
    active: int
    """Experts that a token passes through."""
    parameters_each: int


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
        plain = self.layers * self.vectors + self.outer_vectors
        return self.linear_parameters + self.embedding_parameters + self.expert_parameters + plain

    @property
    def active_parameters(self) -> int:
        """What one token passes through."""
        idle = self.experts.count - self.experts.active if self.experts else 0
        return self.parameters - self.layers * idle * (self.experts.parameters_each if self.experts else 0)

    @property
    def computed_parameters(self) -> int:
        """What one token is multiplied with: this takes time. An embedding is only looked up."""
        return self.active_parameters - (0 if self.tied else self.vocab * self.hidden)

    def adapted(self, targets: tuple[str, ...] = ()) -> tuple[Matrix, ...]:
        """Linear layers of one layer that get an adapter: those that ``targets`` name, or all.

        A target may be a full name, as in ``spec.training.targetModules``; its last part counts.
        """
        names = {target.rpartition(".")[2] for target in targets}
        return tuple(matrix for matrix in self.matrices if not names or matrix.name in names)


@dataclass(frozen=True)
class _Family:
    """What a family's code in transformers fixes, and the defaults of what its config.json may leave out."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    gated: bool = True
    norms: int = 2
    norm_bias: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied: bool = False
    head_dim: int | None = None
    sparse: bool = False


_FAMILIES: Final[Mapping[str, _Family]] = {
    "llama": _Family(),
    "mistral": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm=True, head_dim=128),
    "gemma": _Family(tied=True, head_dim=256),
    "gemma2": _Family(norms=4, tied=True, head_dim=256),
    "gemma3_text": _Family(norms=4, qk_norm=True, tied=True, head_dim=256),
    "phi": _Family(
        out="dense",
        up=("fc1",),
        down="fc2",
        gated=False,
        norms=1,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        head_bias=True,
    ),
    "phi3": _Family(qkv=("qkv_proj",), up=("gate_up_proj",)),
    "gpt_neox": _Family(
        qkv=("query_key_value",),
        out="dense",
        up=("dense_h_to_4h",),
        down="dense_4h_to_h",
        gated=False,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
    ),
    "mixtral": _Family(sparse=True),
    "qwen3_moe": _Family(qk_norm=True, sparse=True),
}

FAMILIES: Final = tuple(_FAMILIES)
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
    mlp_only_layers: list[int] | None = None
    quantization_config: dict[str, Any] | None = None


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a parsed config.json describes. Raises UnknownShapeError."""
    try:
        fields = _Config.model_validate(config)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        raise UnknownShapeError(f"config.json does not describe the model's shape ({problems})") from None
    family = _FAMILIES.get(fields.model_type)
    if family is None:
        raise UnknownShapeError(f"model_type {fields.model_type[:40]!r} is not one of {', '.join(FAMILIES)}")
    if fields.quantization_config is not None:
        raise UnknownShapeError("the checkpoint is already quantised (quantization_config)")
    if fields.qk_layernorm or fields.decoder_sparse_step != 1 or fields.mlp_only_layers:
        raise UnknownShapeError("its layers differ from the family's usual models")
    return _shape(fields, family)


def _shape(fields: _Config, family: _Family) -> Shape:
    heads = fields.num_attention_heads
    kv_heads = fields.num_key_value_heads or heads
    head_dim = fields.head_dim or family.head_dim or fields.hidden_size // heads
    experts = _experts(fields) if family.sparse else None
    width = (fields.moe_intermediate_size if family.sparse else None) or fields.intermediate_size
    matrices = _attention(fields, family, heads * head_dim, kv_heads * head_dim)
    if experts is None:
        matrices += _feed_forward(fields.hidden_size, width, family)
    norm = fields.hidden_size * (2 if family.norm_bias else 1)
    return Shape(
        family=fields.model_type,
        hidden=fields.hidden_size,
        layers=fields.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=width * (experts.active if experts else 1),
        gated=family.gated,
        vocab=fields.vocab_size,
        tied=family.tied if fields.tie_word_embeddings is None else fields.tie_word_embeddings,
        norms=family.norms,
        matrices=matrices,
        vectors=_vectors(fields, family, matrices, norm, head_dim, experts),
        outer_vectors=norm + (fields.vocab_size if family.head_bias else 0),
        experts=experts,
    )


def _attention(fields: _Config, family: _Family, query: int, key: int) -> tuple[Matrix, ...]:
    hidden, out = fields.hidden_size, Matrix(family.out, query, fields.hidden_size)
    if len(family.qkv) == 1:
        return (Matrix(family.qkv[0], hidden, query + 2 * key), out)
    return (*(Matrix(name, hidden, size) for name, size in zip(family.qkv, (query, key, key), strict=True)), out)


def _feed_forward(hidden: int, width: int, family: _Family) -> tuple[Matrix, ...]:
    total = width * (2 if family.gated else 1)
    up = tuple(Matrix(name, hidden, total // len(family.up)) for name in family.up)
    return (*up, Matrix(family.down, width, hidden))


def _experts(fields: _Config) -> Experts:
    count = fields.num_local_experts or fields.num_experts
    if count is None or fields.num_experts_per_tok > count:
        raise UnknownShapeError("config.json does not say how many experts there are and how many a token uses")
    width = fields.moe_intermediate_size or fields.intermediate_size
    return Experts(count, fields.num_experts_per_tok, 3 * fields.hidden_size * width)


def _vectors(
    fields: _Config, family: _Family, matrices: tuple[Matrix, ...], norm: int, head_dim: int, experts: Experts | None
) -> int:
    biased = fields.attention_bias if fields.attention_bias is not None else family.attention_bias
    mlp = (*family.up, family.down)
    names = set(family.qkv) if family.qkv_bias or biased else set()
    names |= {family.out} if biased else set()
    names |= set(mlp) if fields.mlp_bias or family.mlp_bias else set()
    biases = sum(matrix.outputs for matrix in matrices if matrix.name in names)
    router = experts.count * fields.hidden_size if experts else 0
    return family.norms * norm + (2 * head_dim if family.qk_norm else 0) + biases + router
