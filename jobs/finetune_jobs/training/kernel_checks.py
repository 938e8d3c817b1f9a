"""Does a fused kernel compute what it replaces? Asked on the hardware that will train, before the first step.

Each check has random inputs of the sizes and types of the model, goes forward and backward with and without the kernel,
and compares row by row. The first use compiles the kernel, so that one that does not compile is found here too. Weights
are drawn, so that a model whose own are not here yet, or are elsewhere, can be asked.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, Final

import torch
from torch import nn

ROWS: Final = 48
"""Rows with which a module is asked; what a row gives does not depend on the others."""
NARROW, MANY = 256, 1 << 15
"""Normalisations of up to so many numbers have another kernel for so many rows and more (Liger 0.8): the rows of all
heads of a pass. It is asked on GPUs; in Triton's interpreter it would take minutes."""
SMALL: Final = 16
"""Size of the hidden states with which a gate is asked; its kernel never sees them."""
DEVIATION: Final = 0.02
"""How far a row may be from the plain one, relative to its norm, where numbers have 16 bits: mostly they are 0.004
apart, as both round several times."""
EXACT: Final = 1e-4
"""The same where they have 32."""
Forward = Callable[..., torch.Tensor]


def norm_fault(module: nn.Module, fused: Forward, where: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with a normalisation whose forward pass is ``fused``; empty if nothing. It is asked with inputs in
    the type of its weights and in ``dtype``, since queries and keys of a model in float32 are in 16 bits."""
    weight: Any = module.weight
    counts = (ROWS, MANY) if where.type != "cpu" and weight.numel() <= NARROW else (ROWS,)
    for kind, count in product({weight.dtype, dtype}, counts):
        twin = _twin(module, {name: _drawn(each, where) for name, each in module.named_parameters()}, {})
        size = torch.logspace(-4, 1, count, device=where)[:, None]  # small rows show what is added to the variance
        rows = (torch.randn(count, weight.numel(), device=where) * size).to(kind)
        plain, found = (
            _computed(partial(each, twin), [rows], [*twin.parameters()]) for each in (type(module).forward, fused)
        )
        if fault := _apart(plain, found):
            return fault
    return ""


def gate_fault(module: nn.Module, fused: Forward, where: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with a feed-forward part whose forward pass is ``fused``; empty if nothing. Its projections are
    small ones into and none out of the true width, so that each number of the gate is seen."""
    inner: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            wide = nn.Linear(SMALL, child.out_features, bias=False, device=where, dtype=dtype)
            nn.init.normal_(wide.weight, std=2 / SMALL**0.5)
            inner[name] = nn.Identity() if "down" in name else wide
    twin = _twin(module, {}, inner)
    rows = torch.randn(ROWS, SMALL, device=where).to(dtype)
    plain, found = (
        _computed(partial(each, twin), [rows], [*twin.parameters()]) for each in (type(module).forward, fused)
    )
    return _apart(plain, found)


def rotation_fault(  # both functions, and for what
    fused: Callable[..., Any], plain: Callable[..., Any], config: Any, where: torch.device, dtype: torch.dtype
) -> str:
    """What is wrong with a rotation; empty if nothing. Two examples share the row, as packed ones do."""
    heads, keys = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    turned = int(size * ((getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor") or 1))
    places = torch.cat([torch.arange(ROWS // 2), torch.arange(ROWS - ROWS // 2)])
    angles = torch.outer(places.float(), 100.0 ** -(torch.arange(0, turned, 2) / turned)).repeat(1, 2)[None].to(where)
    for kind in {dtype, torch.float32}:
        cos, sin = angles.cos().to(kind), angles.sin().to(kind)
        given = [torch.randn(1, ROWS, count, size, device=where).to(dtype).transpose(1, 2) for count in (heads, keys)]
        if fault := _apart(*(_computed(partial(each, cos=cos, sin=sin), given, []) for each in (plain, fused))):
            return fault
    return ""


def _twin(module: nn.Module, parameters: dict[str, nn.Parameter], children: dict[str, nn.Module]) -> nn.Module:
    """A module with the same settings and other weights, and these for those of its children that have the name."""
    twin = copy.copy(module)
    vars(twin).update(_parameters=parameters, _modules={**module._modules, **children})
    return twin


def _drawn(weight: torch.Tensor, where: torch.device) -> nn.Parameter:
    return nn.Parameter((torch.rand(weight.shape, device=where) + 0.5).to(weight.dtype))


def _computed(
    compute: Callable[..., Any], given: Sequence[torch.Tensor], weights: Sequence[nn.Parameter]
) -> list[torch.Tensor]:
    """The results, and the gradients of inputs and weights for random ones of the results."""
    inputs = [each.detach().clone().requires_grad_() for each in given]
    made = compute(*inputs)
    results = list(made) if isinstance(made, tuple) else [made]
    draw = torch.Generator().manual_seed(0)
    wanted = [torch.randn(each.shape, generator=draw).to(each.device, each.dtype) for each in results]
    gradients = torch.autograd.grad(results, [*inputs, *weights], wanted)
    return [each.detach() for each in (*results, *gradients)]


def _apart(plain: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> str:
    """Which of the results are too far apart; empty if none is."""
    return next(filter(None, _faults(plain, found)), "")


def _faults(plain: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Iterator[str]:
    for number, (expected, given) in enumerate(zip(plain, found, strict=True)):
        if expected.shape != given.shape:
            yield f"it gives {tuple(given.shape)} numbers instead of {tuple(expected.shape)}"
            return
        coarse = min(torch.finfo(each.dtype).bits for each in (*plain, *found)) < torch.finfo(torch.float32).bits
        allowed = DEVIATION if coarse else EXACT
        norm = expected.float().norm(dim=-1)
        far = (given.float() - expected.float()).norm(dim=-1) / norm.clamp(min=torch.finfo(torch.float32).tiny)
        if not bool((far <= allowed).all()):  # so that what is not a number is no agreement
            what = "gradients" if number else "results"
            most = float(far.nan_to_num(nan=torch.inf).max())
            yield f"its {what} are {most:.1%} from PyTorch's, more than {allowed:.2%}"
