"""Kernels that compute normalisation, rotary embeddings and gated activations in one go, put into a loaded model.

They are Liger Kernel's (Hsu et al. 2024, arXiv 2410.10989), written in Triton. PyTorch launches a kernel for each step
of an RMSNorm, each of which reads and writes all activations. Liger's own functions say for each family which modules
are concerned and how they round. They are called for the loaded model only: what they change for every model of this
process is changed back, but for the rotation, which attention looks up in its family's module.

Two things are done otherwise than there. A normalisation's backward pass does not overwrite the gradient that it is
given, which may also be another's. And the rotation turns copies: Liger turns queries and keys in place, behind
autograd's back, which selective checkpointing (``training.selective``) may have kept for the backward pass.

Whether a kernel computes the same is not believed but asked, on the GPU that will train (``training.kernel_checks``).
"""

import functools
import logging
import sys
from dataclasses import dataclass
from inspect import signature
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn
from triton import knobs

from finetune_api.reasons import Reason
from finetune_api.training import Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.kernels import Kernel, fused_kernels, listed
from finetune_jobs.modelling.device import device, precision
from finetune_jobs.training.kernel_checks import gate_fault, norm_fault, rotation_fault
from finetune_jobs.training.team import ALONE, Team

log = logging.getLogger(__name__)

ROTATION: Final = "apply_rotary_pos_emb"
"""What the modules of transformers call the function that turns queries and keys."""
LIBRARY: Final = "liger_kernel"
_PATCHED: Final = ("forward", "extra_repr", "_get_name")
"""What Liger binds to a module."""


@dataclass(frozen=True)
class Fused:
    """What of a model computes with fused kernels."""

    family: ModuleType
    """The module of transformers with the model's code."""
    norms: list[nn.Module]
    gates: list[nn.Module]
    rotated: bool

    def remove(self, kernel: Kernel) -> None:
        """Let the model compute as before."""
        if kernel is Kernel.ROPE:
            restore_rotation(self.family)
            return
        for module in self.norms if kernel is Kernel.RMS_NORM else self.gates:
            for name in _PATCHED:
                module.__dict__.pop(name, None)


def runnable() -> bool:
    """Whether Triton's kernels can run here: on a GPU, or in Triton's interpreter, which only tests switch on."""
    return bool(device() != "cpu" or knobs.runtime.interpret)


def use_kernels(model: Any, training: Training, team: Team = ALONE) -> tuple[Kernel, ...]:
    """Let ``model``, as it was loaded, compute with fused kernels; those that it does compute with. One that does not
    compile here, or gives other numbers, is left out with a warning, in all processes of ``team``, which call this
    together."""
    family = sys.modules[type(model).__module__]
    restore_rotation(family)  # a model before this one, of the same family, may have had it
    if not runnable() or not (wanted := fused_kernels(model.config.to_dict(), training)):
        return ()
    fused, unusable = _fused(model)
    faults = [unusable or fault_of(kernel, fused, model) for kernel in wanted]
    used = []
    for kernel, fault, faulty in zip(wanted, faults, team.any(*map(bool, faults)), strict=True):
        if faulty:
            fused.remove(kernel)
            why = fault or "it does not on another process's GPU"
            log.warning("training continues without the fused kernel for %s, which is slower: %s", kernel, why)
        else:
            used.append(kernel)
    log.info("fused kernels: %s", listed(tuple(used)))
    return tuple(used)


def _fused(model: Any) -> tuple[Fused, str]:
    """What ``fuse`` has put in place; or nothing, and why the library cannot be used at all, in words."""
    family = sys.modules[type(model).__module__]
    try:
        return fuse(model), ""
    except Exception as error:  # noqa: BLE001 # a library that does not fit its neighbours; training can do without
        nothing = Fused(family, [], [each for each in model.modules() if _is_changed(each)], rotated=False)
        nothing.remove(Kernel.SWIGLU)
        return nothing, _failed(error)


def fuse(model: Any) -> Fused:
    """Put all kernels of its family in place, unasked. Raises KeyError for a family that Liger does not know."""
    from liger_kernel.transformers import monkey_patch  # seconds, which CPUs need not spend
    from liger_kernel.transformers.rms_norm import LigerRMSNorm
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    family = sys.modules[type(model).__module__]
    apply = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN[model.config.model_type]
    losses = {name: False for name in signature(apply).parameters if "cross_entropy" in name}
    before = dict(vars(family))
    try:
        apply(model=model, **losses)
        rotated = vars(family).get(ROTATION) is liger_rotary_pos_emb
    finally:
        for name, value in before.items():
            setattr(family, name, value)
    if rotated:
        setattr(family, ROTATION, _rotating(before[ROTATION]))
    changed = [module for module in model.modules() if _is_changed(module)]
    norms = [module for module in changed if _bound(module) is LigerRMSNorm.forward]
    for norm in norms:
        norm.in_place = False
    return Fused(family, norms, [module for module in changed if module not in norms], rotated)


def restore_rotation(family: ModuleType) -> None:
    """Undo for a family's module what ``fuse`` changed there."""
    rotation = getattr(family, ROTATION, None)
    if plain := getattr(rotation, "plain", None):
        setattr(family, ROTATION, plain)


def fault_of(kernel: Kernel, fused: Fused, model: Any) -> str:
    """What speaks against a kernel, in words; empty if it computes what the model does without it. One module of each
    shape is asked. Raises StageError (GpuUnusable) if the kernel has left a GPU with which nothing can be computed."""
    where, dtype = torch.device(device()), precision()
    modules = fused.norms if kernel is Kernel.RMS_NORM else fused.gates
    if not (fused.rotated if kernel is Kernel.ROPE else modules):
        return "the library has none for this model"
    try:
        if kernel is Kernel.ROPE:
            rotate = getattr(fused.family, ROTATION)
            return rotation_fault(rotate, rotate.plain, model.config.get_text_config(), where, dtype)
        ask = norm_fault if kernel is Kernel.RMS_NORM else gate_fault
        shapes = {str([(name, each.shape) for name, each in module.named_parameters()]): module for module in modules}
        found = (ask(module, _bound(module), where, dtype) for module in shapes.values())
        return next(filter(None, found), "")
    except Exception as error:  # noqa: BLE001 # whatever a compiler or a driver says, or if the check finds no room
        _require_usable(where, kernel, _failed(error))
        return _failed(error)


def _require_usable(where: torch.device, kernel: Kernel, why: str) -> None:
    """A kernel that reads where it must not makes every later call of the process fail."""
    try:
        torch.ones(1, device=where).item()
    except RuntimeError as error:
        raise StageError(
            Reason.GPU_UNUSABLE,
            f"After the check of the fused kernel for {kernel} nothing can be computed on the GPU: {why}. "
            "Set spec.training.kernels to Off.",
        ) from error


def _failed(error: Exception) -> str:
    said = str(error).strip().splitlines() or [""]
    return f"it fails with {type(error).__name__}: {said[0][:300]}"


def _is_changed(module: nn.Module) -> bool:
    return str(getattr(_bound(module), "__module__", "")).startswith(LIBRARY)


def _bound(module: nn.Module) -> Any:
    """The function that is bound to a module in the place of its class's own, if any."""
    return getattr(vars(module).get("forward"), "__func__", None)


def _rotating(plain: Any) -> Any:
    """``apply_rotary_pos_emb`` of a family, in one kernel where that can run."""

    @functools.wraps(plain)
    def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if rest or named or (q.device.type == "cpu" and not knobs.runtime.interpret):
            return plain(q, k, cos, sin, *rest, **named)
        return _Rotation.apply(q, k, cos, sin)

    rotate.plain = plain  # type: ignore[attr-defined] # how a function is marked
    return rotate


class _Rotation(torch.autograd.Function):  # type: ignore[misc] # torch's types are not looked at
    """Liger's rotation of copies of queries and keys, (1, heads, tokens, size)."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        from liger_kernel.ops.rope import rope_forward

        q, k, cos, sin = rope_forward(q.clone(), k.clone(), cos, sin)
        ctx.save_for_backward(cos, sin)
        return q, k

    @staticmethod
    def backward(ctx: Any, dq: torch.Tensor, dk: torch.Tensor) -> Any:
        from liger_kernel.ops.rope import rope_backward

        return *rope_backward(dq.clone(), dk.clone(), *ctx.saved_tensors), None, None
