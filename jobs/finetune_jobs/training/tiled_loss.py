"""Cross entropy of the labelled positions, tile by tile: the logits of all of them are never in memory at once.

A tile's logits give its loss and, at once, the gradients of what they were computed from, so that nothing is computed
twice and the backward pass has only to hand these on (Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989). The same code
runs on CPUs and GPUs, in one process and in several.

What a model does between its output layer and its logits is read from its config, and the loaded model is asked
whether that is all (``_agrees``). One that does something else computes its loss from its own logits, whole.
"""

import functools
import logging
from dataclasses import dataclass
from types import MethodType
from typing import Any, Final

import torch
from torch import nn

from finetune_jobs.training.team import ALONE, Team

log = logging.getLogger(__name__)

TILE: Final = 1 << 25
"""Logits in memory at a time, each in the precision of the matrices and in float32: 192 MiB in bfloat16. With 128,000
words these are 256 positions, enough for a matrix product to be worth reading the output layer for."""
PROBE_TOKENS: Final = 8
"""Tokens with which a model is asked for its logits."""
DEVIATION: Final = 0.02
"""How far its logits may be from those computed here, relative to their norm: 16 bits round by less than half of it."""
_SCALES: Final = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Settings of a few architectures (Cohere, Falcon-H1) that multiply the logits; ``logits_scaling`` divides them
(Granite)."""


@dataclass(frozen=True)
class Logits:
    """What a model makes of its output layer's result x: cap × tanh(scale × x / cap), or scale × x without a cap."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "Logits":
        """As a config of transformers says."""
        factors = [float(found) for name in _SCALES if (found := getattr(config, name, None)) is not None]
        divisor = float(getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(factors[0] if factors else 1 / divisor, None if cap is None else float(cap))

    def __call__(self, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """The logits, and how fast each grows with ``raw``."""
        if self.cap is None:
            return (raw, 1.0) if self.scale == 1 else (_precise(raw) * self.scale, self.scale)
        logits = (_precise(raw) * (self.scale / self.cap)).tanh_()
        slope = logits.square().neg_().add_(1).mul_(self.scale)
        return logits.mul_(self.cap), slope


def tiled_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, logits: Logits
) -> torch.Tensor:
    """The sum of the cross entropies of ``hidden``, (positions, size), with ``targets``, (positions), through an output
    layer with ``weight``, (words, size), and ``bias``, (words).

    It computes in the precision of autocast, or else in that of ``hidden``, and adds up in float32 at least. Only one
    backward pass can follow: it uses up the gradients. No position gives a loss of 0 and gradients of 0.
    """
    parts = (hidden, weight, bias)
    wanted = tuple(torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts)
    loss: torch.Tensor = _TiledLoss.apply(*parts, targets, logits, wanted)
    return loss


class _TiledLoss(torch.autograd.Function):  # type: ignore[misc] # torch's types are not looked at
    """The gradients come from the forward pass, for a loss that counts once."""

    @staticmethod
    def forward(  # noqa: PLR0913 # autograd takes no objects
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        logits: Logits,
        wanted: tuple[bool, bool, bool],
    ) -> torch.Tensor:
        kind = hidden.device.type
        computing = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        matrix, offset = weight.to(computing), None if bias is None else bias.to(computing)
        precise = torch.promote_types(computing, torch.float32)
        loss = torch.zeros((), dtype=precise, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=precise) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=precise) if bias is not None and wanted[2] else None
        size = max(1, TILE // len(weight) // (1 if logits.cap is None else 2))  # a cap takes twice the memory
        for start in range(0, len(targets), size):
            tile = slice(start, start + size)
            inputs = hidden[tile].to(computing)
            found, change = _of_tile(nn.functional.linear(inputs, matrix, offset), targets[tile, None], logits)
            loss += found
            if of_hidden is not None:
                of_hidden[tile] = change @ matrix
            if of_weight is not None:
                of_weight += change.t() @ inputs
            if of_bias is not None:
                of_bias += change.sum(0, dtype=precise)
            del change  # before the next tile
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.dtypes = [None if part is None else part.dtype for part in (hidden, weight, bias)]
        return loss

    @staticmethod
    def backward(ctx: Any, given: torch.Tensor) -> tuple[Any, ...]:
        """In place, since an output layer's gradient is large; autograd refuses a second time."""
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*(None if each is None else each.mul_(given).to(dtype) for each, dtype in found), None, None, None)


def _of_tile(raw: torch.Tensor, target: torch.Tensor, logits: Logits) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a tile, and how it changes with ``raw``, in its place."""
    scores, slope = logits(raw)
    chances = torch.log_softmax(scores, -1, dtype=torch.promote_types(raw.dtype, torch.float32))
    loss = -chances.gather(1, target).sum()
    chances.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=chances.dtype))
    if logits != Logits():
        chances *= slope
    return loss, raw.copy_(chances)


def add_tiled_loss(model: Any, team: Team = ALONE) -> None:
    """Let ``model``, a causal language model of transformers, answer with the sum of its losses where it is also given
    ``positions``, of all tokens of a batch one after the other, and their ``targets``.

    It is a part of the model's own forward pass, around which several processes exchange gradients. Call it before the
    model gets an adapter, or fused kernels. Of a ``team``, only the first process has the model's weights, in host
    memory, where such kernels could not read them; it is asked for all.
    """
    original, logits = model.forward, Logits.of(model.config.get_text_config())
    agrees = team.first and _agrees(model, logits)
    team.wait_for_first("loss asked")  # a large model in host memory may take longer to answer than a message may
    (known,) = team.any(agrees)
    if not known:
        log.info("the loss takes all logits at once: %s computes them in a way of its own", model.config.model_type)

    @functools.wraps(type(model).forward)
    def forward(self: Any, *arguments: Any, positions: Any = None, targets: Any = None, **others: Any) -> Any:
        if targets is None:
            return original(*arguments, **others)
        head = self.get_output_embeddings()
        if not (known and type(head) is nn.Linear):  # an adapter may be on it
            scores = original(*arguments, **others).logits.flatten(0, 1).index_select(0, positions)
            return nn.functional.cross_entropy(_precise(scores), targets, reduction="sum")
        others.pop("labels", None)
        states = self.base_model(*arguments, **others).last_hidden_state.flatten(0, 1)
        return tiled_loss(states.index_select(0, positions), head.weight, head.bias, targets, logits)

    model.forward = MethodType(forward, model)


def _agrees(model: Any, logits: Logits) -> bool:
    """Whether the model's logits are those of its output layer and ``logits``."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    tokens = torch.arange(PROBE_TOKENS, device=head.weight.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        found, _ = logits(head(states))
    return float((found.float() - expected).norm()) <= DEVIATION * float(expected.norm())


def _precise(values: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
