"""Which layers get an adapter, and of what kind."""

from typing import Any

from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune_api.reasons import Reason
from finetune_api.training import AdapterKind, Scaling, Training
from finetune_jobs.base.errors import StageError

_SHOWN = 12
"""Names of layers in a message."""


def adapter_config(model: Any, training: Training) -> LoraConfig:
    """The adapter that the spec asks for: LoRA (Hu et al. 2021), or with the changes of DoRA and rsLoRA.

    Raises StageError (SpecInvalid): ``targetModules`` names a layer that the model does not have, or ``rank`` is higher
    than the layers can use.
    """
    layers = linear_layers(model)
    _require_layers(layers, training, type(model).__name__)
    return LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        lora_dropout=float(training.dropout),
        use_rslora=training.scaling is Scaling.ROOT_OF_RANK,
        use_dora=training.adapter is AdapterKind.DORA,
        target_modules=list(training.target_modules) or sorted(layers),
        task_type="CAUSAL_LM",
    )


def linear_layers(model: Any) -> dict[str, int]:
    """Every layer that can have an adapter, by its full name: the smaller side of its weight, which is its maximum
    rank."""
    head = model.get_output_embeddings()
    return {
        name: _smaller_side(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and not is_router(module)
    }


def is_router(module: Any) -> bool:
    """Whether a linear layer chooses experts (Llama 4, Phi-3.5-MoE). It returns more than one tensor, to which PEFT
    cannot add an adapter's."""
    return isinstance(module, nn.Linear) and type(module).__name__.endswith("Router")


def _smaller_side(layer: Any) -> int:
    if isinstance(layer, Conv1D):
        return int(min(layer.weight.shape))
    return int(min(layer.in_features, layer.out_features))  # a 4-bit weight's own shape is that of its packed bytes


def _require_layers(layers: dict[str, int], training: Training, architecture: str) -> None:
    if not training.target_modules:
        _require_rank(training.rank, "any linear layer", max(layers.values()))
    for target in training.target_modules:
        sides = [side for name, side in layers.items() if name == target or name.endswith(f".{target}")]
        if not sides:
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise StageError(
                Reason.SPEC_INVALID,
                f"spec.training.targetModules names {target!r}, which is not a linear layer of {architecture} that can "
                f"have an adapter. Available: {', '.join(known[:_SHOWN])}{', …' if len(known) > _SHOWN else ''}. "
                "Without targetModules, all of them are trained.",
            )
        _require_rank(training.rank, target, max(sides))


def _require_rank(rank: int, layer: str, limit: int) -> None:
    if rank > limit:
        raise StageError(
            Reason.SPEC_INVALID,
            f"spec.training.rank {rank} is more than {layer} can use (its smaller side is {limit}): set it to at most "
            f"{limit}; 16 suits most tasks.",
        )
