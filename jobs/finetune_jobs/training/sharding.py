"""Training by several processes that share one model: weights, gradients and optimiser are divided among them (FSDP2;
the same as ZeRO's stage 3, Rajbhandari et al. 2020, arXiv 1910.02054).

A layer's weights are gathered when it computes, and freed again. They are gathered as they are kept: a whole model's in
float32, rounded by autocast as in a single process, which is the same training at twice the traffic of gathering them
in bfloat16; under an adapter the base's in 16 or 4 bits. The scales of 4-bit weights, a thirtieth of them, stay whole
in every process.

Only the first process reads the model. The others build it without weights, and get their shares one weight at a time,
so that none of them ever holds more than its share and one weight. The trainer is then given a model that is sharded
already, which transformers 5.24 knows (``is_distributed_loading_by_transformers``): accelerate, whose own FSDP is
refused on CPUs, neither wraps nor divides it, and tests divide over gloo what GPUs divide over NCCL.

At a checkpoint each process writes the rows that it holds (``shards``), from which any number of processes can resume,
divided or not. One that an undivided training left is read by the first process, for all.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils import AutocastKwargs
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load, load_file, save
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import distribute_tensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from finetune_jobs.training.checkpoints import is_sharded
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.selective import use_selective
from finetune_jobs.training.shards import (
    WEIGHTS,
    Shards,
    kinds_of_state,
    read_settings,
    write_settings,
    write_shard,
)
from finetune_jobs.training.team import Team

log = logging.getLogger(__name__)

_WHOLE: Final = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
"""What is trained, from all processes to the first one."""
_FROM_FIRST: Final = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
_Weights = dict[str, torch.Tensor]


def divide(model: Any, team: Team, device: torch.device) -> None:
    """Leave each process of ``team`` its share of the weights that the first one has, on ``device``. All call it
    together; the others' ``model`` has no weights (``modelling.loading.build_base``)."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    _hand_out_scales(base, team, device)
    whole = _put_aside(model)
    shard = partial(fully_shard, mesh=init_device_mesh(device.type, (team.size,)))
    for layer in _layers(base):
        shard(layer)
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    if not tied:
        shard(embedding)
    # The loss reads the output layer's weights without calling it: the last normalisation, before it, gathers both.
    # Where there is none, they are gathered with the model itself.
    norms = [child for child in base.base_model.children() if "Norm" in type(child).__name__]
    if norms and head is not None:
        shard([norms[-1], *([embedding] if tied else []), head], reshard_after_forward=False)
    shard(model)
    _replace(model, {name: _share(each, whole.pop(name), device) for name, each in model.named_parameters()})
    for buffer in model.buffers():
        distributed.broadcast(buffer, 0)


class ShardedTrainer(LabelLossTrainer):
    """LabelLossTrainer with a model that it divides. All processes call together what saves or loads anything."""

    is_distributed_loading_by_transformers: bool
    """transformers' own."""

    def create_accelerator_and_postprocess(self) -> None:
        """Called by the trainer's constructor. Autocast would keep its 16-bit copies of all weights until the pass
        ends, a whole model again."""
        super().create_accelerator_and_postprocess()
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """It may not fit there: only shares go."""

    def _prepare_for_training(self, max_steps: int, dataloader: Any, checkpoint: str | None) -> Any:
        divide(self.model, self.team, self.args.device)
        if self.selective:
            use_selective(self)
        parameters = list(self.model.parameters())
        held = sum(parameter.to_local().numel() for parameter in parameters)
        whole = sum(parameter.numel() for parameter in parameters)
        log.info("FSDP: process %s holds %s of the model's %s weights", self.team.rank, held, whole)
        if checkpoint:
            self._read(Path(checkpoint))
        self.is_distributed_loading_by_transformers = True  # not earlier: the constructor would refuse checkpoints
        return super()._prepare_for_training(max_steps, dataloader, checkpoint)

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        """Nothing is deferred: the passes of a step but its last one would add up whole gradients, in every process."""
        return nullcontext()

    def weights(self, dtype: torch.dtype | None = None) -> _Weights:
        """All weights that are trained in the first process, without tied copies; nothing in the others."""
        if dtype:
            self.model.to(dtype)
        weights = get_model_state_dict(self.model, options=_WHOLE)
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in weights.items() if name in trained}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """This process's weights of a checkpoint."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_shard(folder, self.team, WEIGHTS, self._trained())
        if self.team.first and isinstance(self.model, PeftModel):
            self.model.peft_config[self.model.active_adapter].save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Called before the model is divided, after which the checkpoint is read."""

    def _load_best_model(self) -> None:
        self._read(Path(self.state.best_model_checkpoint))

    def _read(self, checkpoint: Path) -> None:
        """Take the weights that are trained from a checkpoint."""
        if is_sharded(checkpoint):
            shards = Shards(checkpoint, WEIGHTS)
            with torch.no_grad():
                for name, parameter in self._trained().items():
                    parameter.to_local().copy_(shards.read(name, parameter).to_local())
            return
        found: _Weights = {}
        if self.team.first:
            for file in checkpoint.glob("*.safetensors"):
                found |= load_file(file)
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.to_local().copy_(_share(parameter, found.get(name), self.args.device).to_local())

    def _trained(self) -> dict[str, Any]:
        """What is trained, by the names of PEFT's files, which do not name the adapter; divided again where a
        validation has left the output layer gathered."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return {_plain(name): each for name, each in self.model.named_parameters() if each.requires_grad}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder, state = Path(output_dir), self.optimizer.state
        trained = self._trained()
        for kind in sorted({kind for values in state.values() for kind in values}):
            # A weight that got no gradient so far has no state.
            known = {name: each for name, each in trained.items() if kind in state.get(each, {})}
            write_shard(folder, self.team, kind, {name: state[each][kind] for name, each in known.items()})
        if self.team.first:
            names = iter(map(_plain, self._optimised()))
            groups = self.optimizer.param_groups
            write_settings(folder, [{**group, "params": [next(names) for _ in group["params"]]} for group in groups])
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if is_sharded(folder):
            self.optimizer.load_state_dict(self._state_in(folder))
        else:
            state: dict[str, Any] = {}
            if self.team.first:
                state = torch.load(folder / OPTIMIZER_NAME, weights_only=True, mmap=True)
                shapes = {name: each.shape for name, each in self.model.named_parameters()}
                state = _named(state, {name: shapes[name] for name in self._optimised()})
            set_optimizer_state_dict(self.model, self.optimizer, state, options=_FROM_FIRST)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def _state_in(self, checkpoint: Path) -> dict[str, Any]:
        """The optimiser's state for this process, by the places of its parameters, from all processes' shards: of
        those of which these have any."""
        trained, names = self._trained(), [_plain(name) for name in self._optimised()]
        state: dict[int, dict[str, Any]] = {}
        for kind in kinds_of_state(checkpoint):
            shards = Shards(checkpoint, kind)
            known = set(shards.names)
            for number, name in enumerate(names):
                if name in known:
                    state.setdefault(number, {})[kind] = shards.read(name, trained[name].detach())
        numbers = iter(range(len(names)))
        groups = [{**group, "params": [next(numbers) for _ in group["params"]]} for group in read_settings(checkpoint)]
        return {"state": state, "param_groups": groups}

    def _optimised(self) -> list[str]:
        """The names of the optimiser's parameters, in its order."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]


def _plain(name: str) -> str:
    return name.replace(".default.", ".")


def _layers(base: Any) -> Iterator[nn.Module]:
    """The modules that are gathered one by one, inner ones first."""
    names = set(base._no_split_modules or ())
    return (module for module in reversed(list(base.modules())) if type(module).__name__ in names)


def _hand_out_scales(base: Any, team: Team, device: torch.device) -> None:
    """Give all processes the scales of 4-bit weights, and make these plain numbers; bitsandbytes puts both together
    again when a layer computes (``fix_4bit_weight_quant_state_from_module``)."""
    for module in base.modules():
        if isinstance(module, Linear4bit):
            own = save(module.quant_state.as_dict(packed=True)) if team.first else b""
            module.quant_state = QuantState.from_dict(load(team.share(own)), device)
            plain = module.weight.detach().as_subclass(torch.Tensor)
            module.weight = nn.Parameter(plain, requires_grad=False)


def _put_aside(model: nn.Module) -> _Weights:
    """All weights of ``model``, which keeps their shapes only: FSDP would move what it divides to the GPU, whole."""
    taken = {name: parameter.detach() for name, parameter in model.named_parameters()}
    _replace(model, {name: torch.empty_like(tensor, device="meta") for name, tensor in taken.items()})
    return taken


def _replace(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put ``tensors`` in the place of the parameters of these names, and of those that are tied to them."""
    new = {
        id(parameter): nn.Parameter(tensors[name], requires_grad=parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = new[id(parameter)]


def _share(parameter: Any, whole: torch.Tensor | None, device: torch.device) -> Any:
    """This process's share of a weight, which is divided as ``parameter`` is; the first process has the ``whole``."""
    if whole is None or whole.is_meta:
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
    return distribute_tensor(whole.to(device, parameter.dtype), parameter.device_mesh, parameter.placements)


def _named(state: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    """An optimiser's state, as torch's own is by the places of its parameters, by their names, in the order of their
    whole ``shapes``. A weight that got no gradient so far has none, and gets that with which Adam begins:
    ``set_optimizer_state_dict`` would raise in the first process, while the others wait for it."""
    names, known = list(shapes), state["state"]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    named = {names[number]: values for number, values in known.items()}
    if named:
        like = next(iter(named.values()))
        named |= {name: _beginning(like, shape) for name, shape in shapes.items() if name not in named}
    return {"state": named, "param_groups": groups}


def _beginning(like: Mapping[str, Any], shape: torch.Size) -> dict[str, Any]:
    """The state of a weight of this ``shape`` before its first step, of the kinds that another weight has."""
    return {
        kind: torch.zeros(shape if each.dim() else (), dtype=each.dtype) if isinstance(each, torch.Tensor) else 0.0
        for kind, each in like.items()
    }
