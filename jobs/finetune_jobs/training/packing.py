"""The examples of a pass side by side in one row, without padding, each of which attends to itself only.

Attention is the one place where tokens of a row meet, so it is what knows where examples end (``cu_seq_lens_q``, as
TRL's collator counts them). FlashAttention's kernel does that by itself on GPUs that have it; elsewhere attention is
computed example by example. Positions start anew with each example, and the loss never crosses from one to the next.

What each pass computes is exactly what the examples would give one by one. Since an architecture may mix tokens in
other places too (state spaces, convolutions), ``keeps_apart`` asks the loaded model before it is relied on.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from finetune_jobs.modelling.device import is_out_of_memory, precision
from finetune_jobs.training.collator import Collator
from finetune_jobs.training.team import ALONE, Team

log = logging.getLogger(__name__)

PACKED: Final = "packed"
"""The name of this attention among those of transformers."""
FLASH_CAPABILITY: Final = (8, 0)
"""PyTorch's FlashAttention kernel runs on Ampere and later."""
FLASH_HEAD, FLASH_STEP = 256, 8
"""The largest head that it takes, and of what its size is a multiple (its backward pass pads nothing). Queries, keys
and values must have the same size."""
LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers, as a model's config names them, that mix tokens in attention only, and say their window there."""
MORE: Final = ("softcap", "s_aux", "position_bias")
"""What a few architectures ask of attention and is not computed here."""
PROBE_TOKENS: Final = 48
"""Tokens of an example with which a model is asked; a head, a window and a convolution see more than one of them."""
DEVIATION: Final = 0.05
"""How far the packed result may be from the plain one, relative to its norm: rounding to 16 bits makes up to 0.02."""


def is_used(model: Any) -> bool:
    """Whether ``model`` takes packed batches."""
    return bool(model.config._attn_implementation == PACKED)


def use_packing(model: Any, team: Team = ALONE) -> bool:
    """Let ``model`` take packed batches; False, with the model as it was, if it would mix their examples here or in
    another process of ``team``: which examples are a process's follows from their order, which padding changes. All
    call this together."""
    usual = model.config._attn_implementation
    packed = _takes_packed(model)
    (refused,) = team.any(not packed)
    if packed and refused:
        model.set_attn_implementation(usual)
        return _not_packed("another process cannot keep the examples of a row apart")
    return packed


def _takes_packed(model: Any) -> bool:
    usual = model.config._attn_implementation
    others = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - LAYERS
    if others:
        return _not_packed(f"layers of the kind {', '.join(sorted(others))} may mix the examples of a row")
    try:
        model.set_attn_implementation(PACKED)
        if keeps_apart(model, usual):
            return True
        why = "the model's layers mix the examples of a row"
    except ValueError as error:
        why = str(error)
    except RuntimeError as error:  # a kernel that does not run on this card; if nothing does, the next one will say so
        if is_out_of_memory(error):
            raise
        why = f"attention fails, {next(iter(str(error).splitlines()), '')[:300]}"
    model.set_attn_implementation(usual)
    return _not_packed(why)


def keeps_apart(model: Any, usual: str) -> bool:
    """Whether an example's result is the same whatever stands before it in the row, and that of ``usual`` attention.

    The first must hold bit for bit: both rows go through the same kernels.
    """
    vocabulary = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    first, other, asked = (torch.randint(vocabulary, (PROBE_TOKENS,), generator=draw).tolist() for _ in range(3))
    behind, changed = (_states(model, [before, asked])[-PROBE_TOKENS:] for before in (first, other))
    if not torch.equal(behind, changed):
        return False
    model.set_attn_implementation(usual)
    alone = _states(model, [asked])
    model.set_attn_implementation(PACKED)
    return float((behind - alone).norm() / alone.norm()) <= DEVIATION


def packed_attention(  # noqa: PLR0913 # the interface of transformers
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each example of a row to itself, as ``transformers.AttentionInterface`` asks for it: (1, heads,
    tokens, size) to (1, tokens, heads, size). Raises ValueError if the model needs more of attention than that."""
    if cu_seq_lens_q is None:
        plain = {"dropout": dropout, "scaling": scaling, **others}
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **plain)
        return found, None
    if asked := [name for name in MORE if others.get(name) is not None]:
        raise ValueError(f"its attention needs {', '.join(asked)}")
    query, key, value = (each.to(_computing(each)) for each in (query, key, value))
    if dropout == 0 and max_length_q is not None and _flash_takes(query, value):
        width = value.shape[-1]
        if narrower := query.shape[-1] - width:  # latent attention's
            value = nn.functional.pad(value, (0, narrower))
        rows = (each[0].transpose(0, 1) for each in (query, key, value))
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        ends, most = cu_seq_lens_q, max_length_q
        found = varlen_attn(*rows, ends, ends, most, most, scale=scaling, window_size=window, enable_gqa=True)
        return found[None, ..., :width], None
    lengths = cu_seq_lens_q.diff().tolist()
    parts = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    apart = [_alone(*part, dropout=dropout, scale=scaling, window=sliding_window) for part in parts]
    return torch.cat(apart, dim=2).transpose(1, 2).contiguous(), None


def _alone(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout: float,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """One example's causal attention, within ``window`` tokens if there is one."""
    mask, tokens = None, query.shape[2]
    if window is not None and window < tokens:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    return nn.functional.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=True
    )


def _computing(values: torch.Tensor) -> torch.dtype:
    """What autocast computes attention in, which it tells PyTorch's own only: queries and keys of a whole model, which
    is in float32, come out of its rotations in float32, and FlashAttention would not take them."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


def _flash_takes(query: torch.Tensor, value: torch.Tensor) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= FLASH_HEAD
        and query.shape[-1] % FLASH_STEP == 0
        and value.shape[-1] <= query.shape[-1]
        and torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY
    )


def _states(model: Any, examples: Sequence[list[int]]) -> torch.Tensor:
    """The last hidden states of a row of examples, computed as in training: (tokens, size), in float32."""
    batch = Collator(0, padding_free=True)([{"input_ids": tokens, "labels": tokens} for tokens in examples])
    given = {name: each.to(model.device) if torch.is_tensor(each) else each for name, each in batch.items()}
    for name in ("labels", "positions", "targets"):
        del given[name]
    computing = precision()
    with torch.no_grad(), torch.autocast(model.device.type, computing, enabled=computing is torch.bfloat16):
        return model.base_model(**given, use_cache=False).last_hidden_state[0].float()


def _not_packed(why: str) -> bool:
    log.info("examples are padded to the longest of their pass: %s", why)
    return False


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, flash_attention_mask)
