"""Full fine-tuning by several processes: weights, gradients and optimiser are sharded over them (FSDP2, through
accelerate; the same as ZeRO's stage 3, Rajbhandari et al. 2020, arXiv 1910.02054).

A layer's weights are gathered when it computes, and freed again. They are gathered in float32 and rounded by autocast,
as in a single process: the same training, at twice the traffic of gathering them in bfloat16.

A checkpoint has the files that a single process writes, so that any number of processes can resume from it:
transformers' own for FSDP can be read under FSDP only, and torch's sharded ones contain pickles. The first process
therefore needs host memory for the whole checkpoint while it writes or reads it.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import AutocastKwargs, DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from finetune_jobs.training.label_loss import LabelLossTrainer

log = logging.getLogger(__name__)

_WHOLE: Final = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""From all processes to the first one."""
_FROM_FIRST: Final = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def settings() -> dict[str, Any]:
    """What the configuration of a ``ShardedTrainer`` has more than others."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "reshard_after_forward": True,
            "state_dict_type": "FULL_STATE_DICT",
        },
        # Otherwise the passes of a step but its last one add up whole gradients, in every process.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


class ShardedTrainer(LabelLossTrainer):
    """LabelLossTrainer with a sharded model. All processes call together what saves or loads anything."""

    is_fsdp_enabled: bool
    """transformers' own."""

    def create_accelerator_and_postprocess(self) -> None:
        """Called by the trainer's constructor."""
        plugin = self.args.fsdp_plugin_args
        plugin["mixed_precision_policy"] = MixedPrecisionPolicy()  # accelerate's would add up gradients in bfloat16
        super().create_accelerator_and_postprocess()
        if not self.is_fsdp_enabled:
            _enable_on_cpus(self.accelerator.state, FullyShardedDataParallelPlugin(**plugin))
            self.is_fsdp_enabled = True

    def _prepare_for_training(self, *arguments: Any) -> Any:
        prepared = super()._prepare_for_training(*arguments)
        parameters = list(self.model.parameters())
        held = sum(parameter.to_local().numel() for parameter in parameters)
        whole = sum(parameter.numel() for parameter in parameters)
        log.info("FSDP: process %s holds %s of the model's %s weights", self.team.rank, held, whole)
        return prepared

    def autocast(self) -> AbstractContextManager[None]:
        """Without a cache: autocast would keep its 16-bit copies of all weights until the pass ends, a whole model
        again."""
        found: AbstractContextManager[None] = self.accelerator.autocast(AutocastKwargs(cache_enabled=False))
        return found

    def weights(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """All weights in the first process, without tied copies; nothing in the others."""
        if dtype:
            self.model.to(dtype)
        weights = get_model_state_dict(self.model, options=_WHOLE)
        return {name: tensor for name, tensor in weights.items() if name not in self.model.all_tied_weights_keys}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights of a checkpoint."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.weights()
        if self.team.first:
            save_file(weights, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights: dict[str, torch.Tensor] = {}
        if self.team.first:
            for file in Path(resume_from_checkpoint).glob("*.safetensors"):
                weights |= load_file(file)
            for name, source in self.model.all_tied_weights_keys.items():
                weights.setdefault(name, weights[source])
        set_model_state_dict(self.model, weights, options=_FROM_FIRST)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = get_optimizer_state_dict(self.model, self.optimizer, options=_WHOLE)
        if self.team.first:
            torch.save(_numbered(state), Path(output_dir, OPTIMIZER_NAME))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state: dict[str, Any] = {}
        if self.team.first:
            state = _named(torch.load(Path(checkpoint, OPTIMIZER_NAME), weights_only=True), self._optimised())
        set_optimizer_state_dict(self.model, self.optimizer, state, options=_FROM_FIRST)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _optimised(self) -> list[str]:
        """The names of the optimiser's parameters, in its order."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]


def _enable_on_cpus(state: AcceleratorState, plugin: FullyShardedDataParallelPlugin) -> None:
    """accelerate 1.15 applies FSDP's settings on accelerators only, and silently drops them on CPUs.

    Nothing behind that check asks for one: FSDP2 is a part of torch, which shards, gathers and reduces over gloo as
    over NCCL. Whoever asks accelerate later gets the state that it would have made (``AcceleratorState.__init__``).
    """
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
    PartialState().distributed_type = DistributedType.FSDP  # from which the other state is made anew now and then


def _numbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state by the places of its parameters, as torch's own is, instead of by their names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: values for name, values in state["state"].items()}, "param_groups": groups}


def _named(state: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The reverse: ``names`` by place."""
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: values for number, values in state["state"].items()}, "param_groups": groups}
