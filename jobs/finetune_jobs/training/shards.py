"""The files in which the processes of a divided training keep a checkpoint: each writes the rows that it holds, alone.

    checkpoint-<step>/shards/<rank>-of-<size>/weights.safetensors
    checkpoint-<step>/shards/<rank>-of-<size>/exp_avg.safetensors   … and whatever else the optimiser knows of a weight
    checkpoint-<step>/optimizer.json                                its settings, and its weights in its order

FSDP2 divides a tensor by its first dimension. A file says in its header which rows of which tensors it has, so that any
number of processes finds its own rows in the files of any other number, and one process the whole tensors. Nothing is
pickled, and no process waits for another (docs/decisions/0055-each-process-saves-its-own-shard.md).
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, Shard
from transformers.trainer import OPTIMIZER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.training.checkpoints import SHARDS, is_sharded, shard_folder
from finetune_jobs.training.team import Team

WEIGHTS: Final = "weights"
_SETTINGS: Final = "optimizer.json"
_ROWS: Final = "rows"
"""In a file's header: for each divided tensor, the first of its rows and how many there are in all files."""


def write_shard(checkpoint: Path, team: Team, kind: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write this process's rows of ``tensors``; those that are not divided are written whole, by each."""
    rows = {name: (_own_rows(each)[0], each.shape[0]) for name, each in tensors.items() if isinstance(each, DTensor)}
    write_rows(checkpoint, team, kind, {name: _local(each) for name, each in tensors.items()}, rows)


def write_rows(
    checkpoint: Path, team: Team, kind: str, local: Mapping[str, torch.Tensor], rows: Mapping[str, tuple[int, int]]
) -> None:
    """Write ``local`` tensors, which are those of all ``rows``, from the first one of so many on."""
    path = checkpoint / shard_folder(team) / f"{kind}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: each.detach().cpu().contiguous() for name, each in local.items() if name not in rows or len(each)}
    save_file(held, path, metadata={_ROWS: json.dumps(rows)})


def write_settings(checkpoint: Path, groups: Sequence[Mapping[str, Any]]) -> None:
    """An optimiser's settings: its groups, whose ``params`` are names."""
    (checkpoint / _SETTINGS).write_text(json.dumps(groups))


def read_settings(checkpoint: Path) -> list[dict[str, Any]]:
    """The groups that ``write_settings`` was given; what were tuples (``betas``) are tuples again."""
    groups = json.loads((checkpoint / _SETTINGS).read_text())
    return [
        {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()}
        for group in groups
    ]


class Shards:
    """The tensors of one kind, in whatever files of a checkpoint have rows of them: of all processes, or, in a pod that
    wrote it itself, of its own."""

    def __init__(self, checkpoint: Path, kind: str) -> None:
        self._checkpoint, self._kind = checkpoint, kind
        self._pieces: dict[str, list[tuple[int, Any]]] = {}
        self._totals: dict[str, int | None] = {}
        for path in sorted(checkpoint.glob(f"{SHARDS}/*/{kind}.safetensors")):
            file: Any = safe_open(path, framework="pt")  # safetensors has no types
            rows = json.loads(file.metadata()[_ROWS])
            self._totals |= {name: total for name, (_, total) in rows.items()}
            for name in file.keys():  # noqa: SIM118 # no mapping
                start, self._totals[name] = rows.get(name, (0, None))
                self._pieces.setdefault(name, []).append((start, file))

    @property
    def names(self) -> list[str]:
        """Of the tensors, also of those whose rows are in the files of other processes."""
        return list(self._totals)

    def read(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """The tensor as this process holds it: divided as ``like`` is, or whole. Raises StageError (ArtifactCorrupt)
        for rows that no file has."""
        if self._totals.get(name, 0) is None:
            return torch.as_tensor(self._pieces[name][0][1].get_tensor(name))
        made, (start, stop) = torch.zeros_like(like), _own_rows(like)
        if start < stop:
            _local(made).copy_(self._rows(name, start, stop))
        return made

    def whole(self, name: str) -> torch.Tensor:
        """All of a tensor. Raises as ``read``."""
        total = self._totals[name]
        if total is None:
            return torch.as_tensor(self._pieces[name][0][1].get_tensor(name))
        return self._rows(name, 0, total)

    def _rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        found, reached = list[torch.Tensor](), start
        for first, file in sorted(self._pieces.get(name, []), key=lambda piece: piece[0]):
            rows = file.get_slice(name)
            last = min(stop, first + rows.get_shape()[0])
            if first <= reached < last:
                found.append(rows[reached - first : last - first])
                reached = last
        if reached < stop:
            raise StageError(
                Reason.ARTIFACT_CORRUPT,
                f"{self._checkpoint.name} lacks {self._kind} of {name}, row {reached} of {stop}: delete this "
                "checkpoint; the training resumes from an earlier one.",
            )
        return torch.cat(found)


def kinds_of_state(checkpoint: Path) -> set[str]:
    """What the optimiser keeps of each weight: ``exp_avg``, ``step`` …"""
    return {path.stem for path in checkpoint.glob(f"{SHARDS}/*/*.safetensors")} - {WEIGHTS}


def make_all_whole(work: Path, team: Team, dtype: torch.dtype | None = None) -> None:
    """Let a training whose model is not divided resume from the checkpoints below ``work``; its processes call this
    together. ``dtype`` and errors as of ``make_whole``."""
    if team.first_of_pod:
        for checkpoint in work.glob("checkpoint-*"):
            make_whole(checkpoint, dtype)
    team.wait()


def make_whole(checkpoint: Path, dtype: torch.dtype | None = None) -> None:
    """Write the files that an undivided training resumes from, in place of the shards of all processes: for a while
    there are both, on the disk, and in memory the larger of weights and optimiser, which such a training reads into
    memory anyway. ``dtype``: what it computes in, if that is less than they have: it would round them when it reads
    them, and so needs no more memory for another's checkpoint than for its own (``fit.memory.host_memory``).
    Raises StageError (ArtifactCorrupt) if a shard is missing."""
    if not is_sharded(checkpoint):
        return
    name = ADAPTER_WEIGHTS if (checkpoint / ADAPTER_CONFIG).exists() else SAFE_WEIGHTS_NAME
    save_file(dict(_all(checkpoint, WEIGHTS, dtype)), checkpoint / name, metadata={"format": "pt"})
    _write_optimizer(checkpoint, dtype)
    shutil.rmtree(checkpoint / SHARDS)


def _write_optimizer(checkpoint: Path, dtype: torch.dtype | None) -> None:
    state: dict[str, dict[str, torch.Tensor]] = {}
    for kind in kinds_of_state(checkpoint):
        for each, tensor in _all(checkpoint, kind, dtype):
            state.setdefault(each, {})[kind] = tensor
    torch.save(numbered({"state": state, "param_groups": read_settings(checkpoint)}), checkpoint / OPTIMIZER_NAME)


def numbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state by the places of its parameters, as torch's own is, instead of by their names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: values for name, values in state["state"].items()}, "param_groups": groups}


def _all(checkpoint: Path, kind: str, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor as it is needed, in ``dtype`` if given; Adam's count of steps, one number, stays as it is."""
    shards = Shards(checkpoint, kind)
    for name in shards.names:
        whole = shards.whole(name)
        yield name, whole.to(dtype) if dtype and whole.dim() else whole


def _own_rows(tensor: Any) -> tuple[int, int]:
    """The rows that this process holds, from the first to the one after the last: FSDP2 cuts a tensor into equal parts,
    rounded up, the last of which may be smaller or empty (``torch.chunk``)."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.shape[0]
    if tensor.placements != (Shard(0),):
        raise ValueError(f"divided as {tensor.placements}, not by rows")
    rows = -(-tensor.shape[0] // tensor.device_mesh.size())
    start = min(tensor.shape[0], tensor.device_mesh.get_local_rank() * rows)
    return start, start + _local(tensor).shape[0]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
