"""Layers of LLM.int8 that do not keep their inputs.

bitsandbytes (0.50) leaves a layer's input on its node of autograd, in an attribute, which no checkpointing can give up
and which stays until the whole backward pass is over: 52 KiB a token and layer of an 8B, where plain checkpointing
keeps 8. It is there for the gradient of the weights. These are frozen, so that nothing ever reads it.
"""

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt


def release_inputs(model: torch.nn.Module) -> None:
    """Let the layers of ``model`` that are rounded to 8 bits, and not trained, keep no inputs."""
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.register_forward_hook(release_input)


def release_input(_layer: Any, _given: Any, product: torch.Tensor) -> None:
    """Forget what ``product``, which a layer of LLM.int8 has just computed, was computed from."""
    node = product.grad_fn
    if hasattr(node, "tensors"):  # bitsandbytes' algorithm for GPUs
        node.tensors = (None, None, None)
    elif hasattr(node, "A"):  # that for CPUs
        node.A = None
