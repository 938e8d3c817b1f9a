"""Activation checkpointing that keeps of each layer what is small and took long to compute.

Plain checkpointing keeps a layer's input and computes all of the layer again before its backward pass. Here the results
of attention are kept too, and those of matrix products that are no wider than what they are computed from: of a Llama's
layer all but the two wide products of its feed-forward part, half of its multiplications for a quarter of its memory.
PyTorch hands each operator's result over to be kept or not (``create_selective_checkpoint_contexts``).

TRL's own (``gradient_checkpointing_kwargs: {"selective": True}``, 1.16) keeps attention only, does not know the kernel
of packed examples, and keeps attention that has drawn random numbers: those drawn after it would then be others when
the layer is computed again.

What is kept is found again by counting an operator's calls, and must not be changed in place in between. Few
architectures would break that, so the loaded model is asked (``_agrees``).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import bitsandbytes  # noqa: F401 # which gives torch its operators
import torch
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from finetune_jobs.modelling.device import is_out_of_memory
from finetune_jobs.training.collator import Collator
from finetune_jobs.training.label_loss import LabelLossTrainer

log = logging.getLogger(__name__)

PROBE_TOKENS: Final = 48
"""Tokens of the example with which a model is asked."""
DEVIATION: Final = 0.02
"""How far its gradients may be from those of plain checkpointing, relative to their norm: mostly they are the same bit
for bit, but a few kernels of GPUs add up in another order each time."""
_PRODUCTS: Final[Mapping[Any, Callable[[tuple[Any, ...]], tuple[int, int]]]] = {
    torch.ops.aten.mm.default: lambda given: given[1].shape,
    torch.ops.aten.addmm.default: lambda given: given[2].shape,
    torch.ops.bitsandbytes.gemm_4bit.default: lambda given: given[2][::-1],
}
"""Products with a matrix, by operator: its inputs and outputs, found in what the operator is given. bitsandbytes hides
its product, and the unpacking of 4-bit weights for it, in one operator, which has the shape the other way round."""
_ATTENTION: Final = ("attention", "attn")
"""In the names of operators: PyTorch's own for all hardware, and FlashAttention's."""


def contexts() -> tuple[Any, Any]:
    """For one layer's forward pass, and for the second time that it is computed."""
    found: tuple[Any, Any] = create_selective_checkpoint_contexts(_policy)
    return found


PLAIN: Final[dict[str, Any]] = {"use_reentrant": False}
SELECTIVE: Final[dict[str, Any]] = PLAIN | {"context_fn": contexts}
"""What transformers hands to PyTorch's ``checkpoint``."""


def use_selective(trainer: LabelLossTrainer) -> bool:
    """Let the trainer, which checkpoints activations, keep a part of them; False, with plain checkpointing, if its
    model does not allow that. Processes that share a model call this together."""
    (differs,) = trainer.team.any(not _agrees(trainer))
    trainer.args.activation_checkpointing_kwargs = dict(PLAIN if differs else SELECTIVE)
    if differs:
        log.warning("all activations are computed again in the backward pass: this model allows no selection")
    return not differs


def _policy(_context: Any, operator: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    product = _PRODUCTS.get(operator)
    keep = _narrows(*product(given)) if product else _attends(operator, given, named)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _narrows(inputs: int, outputs: int) -> bool:
    """Whether a product has no more outputs than inputs: the fewer, the more work there is in each byte of the
    result."""
    return outputs <= inputs


def _attends(operator: Any, given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether the operator is attention, without a dropout of its own."""
    if not any(word in operator.name() for word in _ATTENTION):
        return False
    names = (argument.name for argument in operator._schema.arguments)
    return not (dict(zip(names, given, strict=False)) | named).get("dropout_p")


def _agrees(trainer: LabelLossTrainer) -> bool:
    """Whether the model's gradients are those of plain checkpointing."""
    try:
        plain, found = (_gradients(trainer, how) for how in (PLAIN, SELECTIVE))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        log.info("selective checkpointing fails: %s", str(error).splitlines()[0][:300])
        return False
    return float((found - plain).norm()) <= DEVIATION * float(plain.norm())


def _gradients(trainer: LabelLossTrainer, how: dict[str, Any]) -> torch.Tensor:
    """Of what is small among the trained parameters: adapters, or else normalisations, in each layer."""
    model, where = trainer.model, trainer.args.device
    model.activation_checkpointing_enable(dict(how))
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (PROBE_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    batch = Collator(0, padding_free=trainer.data_collator.padding_free)([{"input_ids": tokens, "labels": tokens}])
    inputs = {name: each.to(where) if torch.is_tensor(each) else each for name, each in batch.items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    asked = [parameter for parameter in trained if parameter.ndim == 1] or trained
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.manual_seed(0)  # dropout is the same each time
        model.train()
        trainer.compute_loss(model, inputs).backward()
    found = [_own(each.grad).flatten().float() for each in asked if each.grad is not None]
    model.zero_grad()
    return torch.cat(found)


def _own(gradient: torch.Tensor) -> torch.Tensor:
    """This process's share, where the model is divided."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
