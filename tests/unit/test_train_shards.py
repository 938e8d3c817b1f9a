"""The rows that the processes of a divided training keep, read by as many or by another number of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finetune_jobs.base.errors import StageError
from finetune_jobs.training.checkpoints import is_sharded
from finetune_jobs.training.sharding import ShardedTrainer, _named
from finetune_jobs.training.shards import WEIGHTS, Shards, make_all_whole, make_whole, write_rows, write_settings
from finetune_jobs.training.team import Team
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]
GROUPS = [{"lr": 1e-3, "betas": [0.9, 0.999], "params": ["b", "a"]}, {"lr": 0.1, "betas": [0.9, 0.999], "params": []}]


def tensors(kind: str) -> dict[str, torch.Tensor]:
    """A matrix of seven rows, and a vector that is shorter than there are processes."""
    seed = len(kind)
    return {"a": torch.arange(21.0).reshape(7, 3) + seed, "b": torch.arange(2.0) + seed}


def write(checkpoint: Path, size: int, ranks: list[int] | None = None) -> None:
    """As ``size`` processes, or the ``ranks`` of them, write."""
    for rank in range(size) if ranks is None else ranks:
        for kind in (WEIGHTS, "exp_avg"):
            local, rows = {}, {}
            for name, whole in tensors(kind).items():
                length = -(-len(whole) // size)
                start = min(len(whole), rank * length)
                local[name], rows[name] = whole[start : start + length], (start, len(whole))
            write_rows(checkpoint, Team(rank=rank, size=size), kind, local, rows)
        steps = {name: torch.tensor(5.0) for name in ("a", "b")}
        write_rows(checkpoint, Team(rank=rank, size=size), "step", steps, {})
    write_settings(checkpoint, GROUPS)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_any_number_of_shards_makes_the_same_whole(size: int, tmp_path: Path) -> None:
    write(tmp_path, size)
    assert is_sharded(tmp_path)

    make_whole(tmp_path)

    found = load_file(tmp_path / "model.safetensors")
    for name, wanted in tensors(WEIGHTS).items():
        assert torch.equal(found[name], wanted)
    state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert [group["params"] for group in state["param_groups"]] == [[0, 1], []]
    assert (state["param_groups"][0]["lr"], state["param_groups"][0]["betas"]) == (1e-3, (0.9, 0.999))
    for number, name in enumerate(("b", "a")):
        assert torch.equal(state["state"][number]["exp_avg"], tensors("exp_avg")[name])
        assert state["state"][number]["step"] == torch.tensor(5.0)


def test_the_whole_files_take_the_place_of_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the best and the newest, one after the other: the disk never holds more than the three checkpoints that
    ``fit.disk`` counts, nor memory the weights beside the optimiser's state."""
    for step in (10, 20):
        write(tmp_path / f"checkpoint-{step}", 2)
    sizes, made = [disk(tmp_path)], []

    def then_measured(write: Any, *given: Any, **options: Any) -> None:
        write(*given, **options)
        sizes.append(disk(tmp_path))
        made.append(Path(given[1]).name)

    whole, pickled = save_file, torch.save
    monkeypatch.setattr("finetune_jobs.training.shards.save_file", lambda *g, **o: then_measured(whole, *g, **o))
    monkeypatch.setattr("torch.save", lambda *g, **o: then_measured(pickled, *g, **o))
    make_all_whole(tmp_path, Team())

    assert made == ["model.safetensors", "optimizer.pt"] * 2
    assert not any(is_sharded(each) for each in tmp_path.iterdir())
    extra = 8192  # what a pickle of so few numbers has beside them
    assert max(sizes) < sizes[0] / 2 * 3 + extra
    assert disk(tmp_path) < sizes[0] + extra


def disk(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_weight_that_got_no_gradient_yet_has_no_state(tmp_path: Path) -> None:
    """An expert that no token has reached, say: neither writing nor reading expects any of it."""
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    trainer: Any = ShardedTrainer.__new__(ShardedTrainer)
    trainer.model, trainer.team, trainer.args = model, Team(), SimpleNamespace(should_save=False)
    trainer.optimizer = torch.optim.AdamW(model.parameters())
    model["used"](torch.ones(3)).sum().backward()
    trainer.optimizer.step()

    trainer._save_optimizer_and_scheduler(str(tmp_path))

    found = trainer._state_in(tmp_path)["state"]
    assert sorted(found) == [0, 1]
    assert torch.equal(found[0]["exp_avg"], trainer.optimizer.state[model["used"].weight]["exp_avg"])
    trainer.optimizer.load_state_dict(trainer._state_in(tmp_path))
    model["unused"](torch.ones(3)).sum().backward()
    trainer.optimizer.step()


@pytest.mark.parametrize("step", [torch.tensor(5.0), 5.0])  # of torch's own AdamW, and of the rounded one
def test_a_weight_without_state_begins_where_the_optimiser_would(step: Any) -> None:
    """torch refuses to hand out the state of an undivided training that lacks a weight, in the first process only."""
    known = {"step": step, "exp_avg": torch.ones(2, 3, dtype=torch.bfloat16), "exp_avg_sq": torch.ones(2, 3)}
    groups = [{"lr": 1e-3, "params": [0, 1]}]
    shapes = {"unused": torch.Size([4]), "used": torch.Size([2, 3])}

    found = _named({"state": {1: known}, "param_groups": groups}, shapes)

    assert found["param_groups"] == [{"lr": 1e-3, "params": ["unused", "used"]}]
    assert found["state"]["used"] is known
    begun = found["state"]["unused"]
    assert {kind: type(value) for kind, value in begun.items()} == {kind: type(known[kind]) for kind in known}
    assert float(begun["step"]) == 0
    assert torch.equal(begun["exp_avg"], torch.zeros(4, dtype=torch.bfloat16))
    assert torch.equal(begun["exp_avg_sq"], torch.zeros(4))
    assert float(step) == 5, "the known state is as it was"


def test_an_optimiser_without_any_state_stays_so() -> None:
    groups = [{"lr": 1e-3, "params": [0]}]
    assert _named({"state": {}, "param_groups": groups}, {"a": torch.Size([1])})["state"] == {}


def test_a_training_in_16_bits_finds_what_it_would_read_anyway(tmp_path: Path) -> None:
    """Reading rounds to the type of the weights; Adam's count of steps is no such number."""
    write(tmp_path, 2)

    make_whole(tmp_path, torch.bfloat16)

    assert {each.dtype for each in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    for values in torch.load(tmp_path / "optimizer.pt", weights_only=True)["state"].values():
        assert (values["exp_avg"].dtype, values["step"].dtype) == (torch.bfloat16, torch.float32)


def test_an_adapters_weights_are_where_peft_looks_for_them(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    make_whole(tmp_path)
    assert torch.equal(load_file(tmp_path / "adapter_model.safetensors")["a"], tensors(WEIGHTS)["a"])


def test_a_pod_reads_its_own_rows_from_its_own_files(tmp_path: Path) -> None:
    """Where each pod keeps what its processes wrote, no other rows are there, and none are needed."""
    write(tmp_path, 3, ranks=[1])
    shards = Shards(tmp_path, WEIGHTS)
    assert torch.equal(shards._rows("a", 3, 6), tensors(WEIGHTS)["a"][3:6])
    with pytest.raises(StageError) as raised:
        shards.whole("a")
    assert_says(raised.value.message, "lacks weights of a, row 0 of 7", "delete this checkpoint")


def test_rows_that_are_lost_are_not_taken_for_a_weight_without_state(tmp_path: Path) -> None:
    """The last of three processes holds no row of the short vector; its file says that there is one."""
    write(tmp_path, 3, ranks=[2])
    assert sorted(Shards(tmp_path, "exp_avg").names) == ["a", "b"]
    with pytest.raises(StageError, match="lacks exp_avg of b, row 0 of 2"):
        Shards(tmp_path, "exp_avg").whole("b")
