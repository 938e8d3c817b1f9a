"""How many tokens a pass of a validation may have: as many as take no more memory than a pass of training does. Pure.

Without a backward pass nothing is kept, so that one layer's numbers are alive at a time, and a pass may have several
times the tokens of one of training. The room that training needs anyway is all that is used, and needs even where no
activations are kept: a validation is no reason for a GPU to be too small, and has the same passes in every attempt,
in every process, and whatever activations a card has room for.
"""

from bisect import bisect_right
from typing import Final

from finetune_api.training import AdapterKind, Method, Training
from finetune_jobs.fit.activations import activations, delta_bytes, dora_passing, head_bytes
from finetune_jobs.fit.shapes import LayerKind, Shape
from finetune_jobs.fit.steps import BF16, FP32, Step

ENOUGH_ON_GPU: Final = 32_768
"""Tokens after which a larger pass gains nothing: computing them takes far longer than launching kernels."""
ENOUGH_ON_CPU: Final = 4_096
"""The same of a CPU, which launches nothing but unpacks rounded weights in each pass. More would be a pass of many
minutes, after which a training without a sign of life counts as hung."""
STATES: Final = 5
"""Copies of the hidden state that are alive at once: the sum of all layers so far, and normalising it."""
SCORES: Final = 6
"""Bytes for each score of attention that no kernel computes: itself, in 16 bits, and its share in float32. What a
backward pass would keep of it, where that is more."""
DORA_PER_OUTPUT: Final = 12
"""Bytes that DoRA takes beside per output of a token. All such numbers are fitted to PyTorch's memory tracker, to the
safe side."""


def validation_tokens(shape: Shape, training: Training, step: Step) -> int:
    """Tokens of a pass at most, padding included, and at least those of a pass of training: of ``training``'s examples,
    each as long as its longest."""
    room, trained = activations(shape, training, step.with_least()), training.batch_size * training.max_length
    most = ENOUGH_ON_GPU if step.on_gpu else ENOUGH_ON_CPU
    fitting = bisect_right(range(1, most + 1), room, key=lambda tokens: forward_memory(shape, training, step, tokens))
    return max(trained, fitting)


def forward_memory(shape: Shape, training: Training, step: Step, tokens: int) -> float:
    """Bytes at the worst moment of a forward pass without gradients, over examples of ``training.max_length``."""
    mask = 2 * BF16 * tokens * training.max_length if step.padded else 0
    layers = (tokens * _layer_bytes(shape, kind, training, step) + dora_passing(kind, training) for kind in shape.kinds)
    return mask + max(head_bytes(shape, training, tokens, step), *layers)


def _layer_bytes(shape: Shape, kind: LayerKind, training: Training, step: Step) -> float:
    """Of one layer, per token: around attention, or the delta rule, or around the feed-forward part."""
    full = training.method is Method.FULL
    number = FP32 if full and not step.rounded else BF16  # of the hidden state, and of queries and keys after rotating
    query, key = kind.attention_width, kind.kv_heads * kind.head_dim
    mixing = delta_bytes(kind) if kind.key_dim else number * (4 * query + 3 * key)
    if kind.score_bytes:
        mixing += max(SCORES, kind.score_bytes) * kind.heads * training.max_length
    widths = (3 if kind.gated else 2) + (0 if full else 1)  # an adapter's result is added to its layer's
    weighed = 0 if full or training.adapter is not AdapterKind.DORA else DORA_PER_OUTPUT * _widest(kind, training)
    return STATES * number * shape.hidden + max(mixing, BF16 * widths * kind.intermediate) + weighed


def _widest(kind: LayerKind, training: Training) -> int:
    return max((matrix.outputs for matrix in kind.adapted(training.target_modules)), default=0)
