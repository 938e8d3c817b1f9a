"""What a training step keeps for its backward pass, and what is alive at its worst moment.

That is the larger of two: the output layer's loss, while every layer waits for its backward pass, and the backward pass
of one layer. The terms count what PyTorch's autograd keeps. Layers of different kinds are added up, and the largest of
them is taken for the one whose backward pass runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from finetune_api.training import AdapterKind, Method, Training
from finetune_jobs.fit.families import Read
from finetune_jobs.fit.shapes import LayerKind, Matrix, Shape
from finetune_jobs.fit.steps import BF16, FP32, MASK, Head, Step

DORA_PER_OUTPUT, DORA_PER_WEIGHT = 6, 7
"""Bytes that DoRA takes per output of a token and per weight of one layer (PEFT 0.21; fitted to the memory tracker)."""
PIECE: Final = 64
"""Tokens that the gated delta rule computes at a time."""
SCORES: Final = 6
"""Bytes that a backward pass has beside, for each score of attention that no kernel computes: its gradient, in float32
and as it is rounded (fitted to the memory tracker)."""
TILE: Final = 1 << 25
"""Logits in memory at a time (``training.tiled_loss``)."""


@dataclass(frozen=True)
class _Layer:
    """Bytes of one layer of a kind."""

    count: int
    """How many such layers there are."""
    kept: float
    """What it keeps for its backward pass where nothing is computed again."""
    backward: float
    """What that has beside."""
    selected: float
    """What selective checkpointing keeps."""


def activations(shape: Shape, training: Training, step: Step) -> float:
    """Bytes at the worst moment of a step with the longest batch."""
    examples, length = training.batch_size, training.max_length
    tokens, masked = examples * length, step.padded and examples > 1
    mask = 2 * BF16 * examples * length * length if masked else 0
    head = head_bytes(shape, training, tokens, step) + output_gradient(shape, training)
    layers = [_layer(shape, kind, training, step, masked=masked) for kind in shape.kinds]
    if not step.checkpointing:
        kept = sum(layer.count * layer.kept for layer in layers)
        return kept + mask + max(head, *(layer.backward for layer in layers))
    boundary = FP32 if training.method is Method.FULL and not step.rounded else BF16
    inputs = boundary * shape.layers * tokens * shape.hidden
    selected = sum(layer.count * layer.selected for layer in layers)
    # What is kept of a layer is used up as the layer is computed again.
    again = (layer.kept + layer.backward - layer.selected for layer in layers)
    return inputs + selected + mask + max(head, *again)


def _layer(shape: Shape, kind: LayerKind, training: Training, step: Step, *, masked: bool) -> _Layer:
    tokens = training.batch_size * training.max_length
    scores = _scores(kind, training)
    waiting = output_gradient(shape, training) if shape.tied else 0
    return _Layer(
        count=kind.count,
        kept=tokens * _layer_bytes(shape, kind, training, step, masked=masked)
        + kind.score_bytes * scores
        + _dora_kept(kind, training),
        backward=max(
            tokens * _backward_bytes(shape, kind),
            SCORES * scores - tokens * _feed_forward_bytes(kind),  # when what that kept is free again
        )
        + dora_passing(kind, training)
        + waiting,
        selected=tokens * _selected_bytes(kind, training) if step.selective else 0,
    )


def _scores(kind: LayerKind, training: Training) -> int:
    """How many scores a layer's attention has in memory: one per head, query and key, unless a kernel computes them."""
    return training.batch_size * training.max_length**2 * kind.heads if kind.score_bytes else 0


def _layer_bytes(shape: Shape, kind: LayerKind, training: Training, step: Step, *, masked: bool) -> float:
    """What one layer keeps for its backward pass, per token."""
    mixing = delta_bytes(kind) if kind.key_dim else _attention_bytes(kind, masked=masked)
    norms = FP32 * kind.norms * shape.hidden
    return norms + mixing + _feed_forward_bytes(kind) + _input_bytes(shape, kind, training, step)


def _feed_forward_bytes(kind: LayerKind) -> float:
    return BF16 * (3 if kind.gated else 1) * kind.intermediate


def _attention_bytes(kind: LayerKind, *, masked: bool) -> float:
    query, key = kind.attention_width, kind.kv_heads * kind.head_dim
    # With a mask, PyTorch's kernels want as many key heads as query heads, and so does attention without a kernel:
    # transformers repeats them.
    keys = query if masked or kind.score_bytes else key
    gate = 2 * query if kind.output_gate else 0  # itself, and what it makes of attention's result
    before_norms = FP32 * (query + key) if kind.qk_norm else 0
    return BF16 * (2 * query + 2 * keys + gate) + FP32 * kind.heads + before_norms


def delta_bytes(kind: LayerKind) -> float:
    """The gated delta rule as transformers computes it without a kernel of its own: in pieces of so many tokens, each
    of whose states is kept, in float32 with 16-bit copies for each product (counted, ``saved_tensors_hooks``)."""
    keys, values = kind.heads * kind.key_dim, kind.heads * kind.head_dim  # keys are repeated for each head of values
    before = 2 * kind.kv_heads * kind.key_dim + values
    pairs, states = kind.heads * PIECE, keys * kind.head_dim / PIECE
    wide = FP32 * (2 * pairs + 5 * values + 6 * keys + states + 8 * kind.heads)
    return wide + BF16 * (3 * pairs + 4 * values + 7 * keys + 2 * states + 2 * before + kind.heads)


def _selected_bytes(kind: LayerKind, training: Training) -> float:
    """What is kept of one layer beside its input, per token: what attention gives, and products that are no wider than
    their input, those with an adapter's first matrices among them."""
    products = sum(matrix.outputs for matrix in kind.matrices if matrix.selected)
    if training.method is not Method.FULL:
        products += training.rank * len(kind.adapted(training.target_modules))
    return BF16 * (kind.attention_width + products) + FP32 * kind.heads


def _input_bytes(shape: Shape, kind: LayerKind, training: Training, step: Step) -> float:
    """What linear layers keep of their inputs, per token: a frozen one keeps nothing, its adapter does."""
    norms = kind.norms * shape.hidden
    if step.rounded:
        return BF16 * (norms + sum(matrix.inputs for matrix in kind.matrices))
    if training.method is Method.FULL:  # the hidden state is float32, of which autocast makes each layer a copy
        return FP32 * norms + BF16 * sum(matrix.inputs for matrix in kind.matrices)
    adapted = kind.adapted(training.target_modules)
    inner = BF16 * training.rank * len(adapted)
    if training.adapter is AdapterKind.DORA:
        inner += DORA_PER_OUTPUT * sum(matrix.outputs for matrix in adapted)
    dropped = float(training.dropout) > 0
    rounded = training.base_quantization is not None and step.rounded_keep_inputs
    reading = kind.matrices if rounded else () if dropped else adapted
    plain = BF16 * _read(shape, kind, reading)
    return inner + plain + (BF16 + MASK) * sum(m.inputs for m in adapted if dropped)  # each has its own dropout


def _read(shape: Shape, kind: LayerKind, matrices: Sequence[Matrix]) -> int:
    """Numbers per token that these linear layers read, those that several read once, and without attention's result,
    which attention keeps itself."""
    reads = {matrix.reads for matrix in matrices}
    normalised = reads & {Read.BEFORE_ATTENTION, Read.BEFORE_FEED_FORWARD}
    norms = kind.norms if len(normalised) == 2 else (kind.norms + 1) // 2 if normalised else 0
    compressed = sum(matrix.inputs for matrix in matrices if matrix.reads is Read.COMPRESSED)
    return norms * shape.hidden + compressed + (kind.intermediate if Read.PRODUCT in reads else 0)


def _dora_kept(kind: LayerKind, training: Training) -> float:
    """DoRA multiplies with a 16-bit copy of each rounded matrix of a layer, and autograd keeps it."""
    return BF16 * _dora_parameters(kind, training) if training.base_quantization else 0


def dora_passing(kind: LayerKind, training: Training) -> float:
    """What DoRA computes the lengths of a layer's weights from."""
    return DORA_PER_WEIGHT * _dora_parameters(kind, training)


def _dora_parameters(kind: LayerKind, training: Training) -> int:
    if training.adapter is not AdapterKind.DORA or training.method is Method.FULL:
        return 0
    return sum(matrix.parameters for matrix in kind.adapted(training.target_modules))


def _backward_bytes(shape: Shape, kind: LayerKind) -> float:
    """Gradients that are alive at once, per token: around the feed-forward part, or those of the delta rule, when what
    the feed-forward part kept is free again (both fitted to PyTorch's memory tracker)."""
    feed_forward = BF16 * (4 * kind.intermediate + 6 * shape.hidden)
    if not kind.key_dim:
        return feed_forward
    pieces = FP32 * kind.heads * (3 * PIECE + 3 * kind.key_dim + 2 * kind.head_dim)
    return max(feed_forward, pieces - _feed_forward_bytes(kind))


def output_gradient(shape: Shape, training: Training) -> float:
    """The output layer's gradient, beside the one of the pass before; where tied, it waits for the embedding's."""
    return FP32 * shape.vocab * shape.hidden if training.method is Method.FULL else 0


def head_bytes(shape: Shape, training: Training, tokens: int, step: Step) -> float:
    """From the last hidden state to its gradient, with the last normalisation; every token has a label."""
    hidden = (3 * FP32 + 3 * BF16) * tokens * shape.hidden
    if step.head is Head.LOGITS:  # probabilities, the gradient of the loss by them, and that by the logits
        return hidden + 3 * FP32 * tokens * shape.vocab
    # A CPU makes a float32 copy of a tile on the way to its probabilities.
    logit = BF16 + FP32 + (0 if step.on_gpu else FP32)
    # The output layer in 16 bits, and a tile's share of its gradient.
    matrix = 2 * BF16 * shape.vocab * shape.hidden if training.method is Method.FULL else 0
    return hidden + matrix + logit * min(tokens * shape.vocab, TILE)
