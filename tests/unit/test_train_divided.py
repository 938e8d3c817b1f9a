"""Processes that divide a model among them: real ones, over gloo (``test_train_together`` has whole models)."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore

from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.training import Method
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.train import train
from finetune_jobs.training.team import Team
from hack.cluster.layout import free_port
from tests.support import forked
from tests.support.divided_train import PLAIN, PROGRAM
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.stages import Ended, context, run_process
from tests.support.steered_train import STOPPED_AT
from tests.support.tiny_model import build_tiny_llama, edit_json
from tests.support.together import (  # noqa: F401 - one_thread is a fixture
    HELD,
    assert_close_to,
    comparable,
    losses,
    newest_step,
    one_thread,
    train_input,
    train_log,
    two_processes,
    uneven_dataset,
    weights,
)
from tests.support.training import run_training

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.timeout(1800)]
LAYERS = 8
"""Of a model that is large enough to be seen in a process's memory."""
_LAYER = re.compile(r"layers\.0\.")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("divided") / "base")


@pytest.fixture(scope="module")
def large(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 MiB of weights in float32, the largest of which has 4."""
    path = build_tiny_llama(tmp_path_factory.mktemp("large") / "base")
    size = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    edit_json(path / "config.json", **size, head_dim=64, num_hidden_layers=LAYERS)
    small = load_file(base / "model.safetensors")
    sides = {64: 512, 32: 512, 128: 2048}
    grown: dict[str, torch.Tensor] = {}
    for name, tensor in small.items():
        shape = [sides.get(side, side) for side in tensor.shape]
        names = [_LAYER.sub(f"layers.{n}.", name) for n in range(LAYERS)] if "layers.0." in name else [name]
        if "layers.1." not in name:
            grown |= {each: torch.full(shape, 0.01) for each in names}
    save_file(grown, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_the_others_wait_for_what_the_first_process_does_alone() -> None:
    """Loading a model may take far longer than a process waits for a message."""
    port, passed = free_port(), threading.Event()
    server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def second() -> None:
        Team(rank=1, size=2).wait_for_first("model loaded", place)
        passed.set()

    waiting = threading.Thread(target=second, daemon=True)
    waiting.start()
    assert not passed.wait(0.3)
    Team(rank=0, size=2).wait_for_first("model loaded", place)
    assert passed.wait(60)
    del server


def outputs_of_two(commands: Sequence[Sequence[str]], home: Path) -> list[str]:
    """What two processes that train together print until they end well."""
    port = str(free_port())
    processes = [
        forked.start(
            command,
            {
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank, command in enumerate(commands)
    ]
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=580)
        assert process.returncode == 0, (output + errors).decode()
        found.append(output.decode())
    return found


def test_the_others_wait_for_a_large_checkpoint(tmp_path: Path) -> None:
    """Of a whole model with its optimiser, which takes the first process longer than others wait for a message."""
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3/trainer_state.json").write_text("{}")
    found = outputs_of_two([["tests.support.slow_restore", str(tmp_path)]] * 2, tmp_path)
    assert [line.strip() for line in found] == [str(tmp_path / "checkpoint-3")] * 2


def test_only_the_first_process_ever_has_the_whole_model(base: Path, large: Path, tmp_path: Path) -> None:
    """The most that each takes while it loads: of two, the second one its half and a few weights in passing."""
    whole = (large / "model.safetensors").stat().st_size
    found = [tmp_path / "0", tmp_path / "1"]
    load = ["tests.support.divided_load", str(large), Method.FULL.value]
    outputs_of_two([[*load, str(result), str(base)] for result in found], tmp_path)

    first, second = (int(result.read_text()) for result in found)

    assert first > whole
    assert whole / 2 < second < 0.7 * whole


@dataclass(frozen=True)
class Together:
    """A training of two processes that nothing disturbs."""

    dataset: Path
    place: Store
    ended: Ended


@pytest.fixture(scope="module")
def together(base: Path, s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Method], Together]:
    """One of each method, made once. Layers are computed again whole, or, with QLoRA, in part."""

    @cache
    def run(method: Method) -> Together:
        folder = tmp_path_factory.mktemp("together")
        place = Store.connect(s3.storage, f"s3://data/divided-{method}")
        dataset, plain = uneven_dataset(folder / "dataset"), {PLAIN: "1"} if method is Method.LORA else {}
        given = train_input(base, dataset, place, s3, comparable(method))
        ended = run_process(given, folder, ADMIN, *two_processes(), program=PROGRAM, variables=plain)
        assert ended.code == ExitCode.OK, ended.log
        return Together(dataset, place, ended)

    return run


@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
def test_an_adapter_is_trained_on_a_divided_base_as_by_one_process(
    method: Method, together: Callable[[Method], Together], base: Path, store: Store, tmp_path: Path
) -> None:
    """The same losses, gradients and weights; each holds half of the base, in 4 bits too, and half of the adapter."""
    made = together(method)
    alone = run_training(base, made.dataset, tmp_path, comparable(method), store)

    scalars = made.ended.result.scalars
    assert scalars["trainableParameters"] == str(alone.trainable_parameters)
    told = [held for entry in made.ended.log if (held := HELD.fullmatch(entry["message"]))]
    shares = [int(held[2]) for held in told]
    whole = {int(re.findall(r"\d+", held[0])[-1]) for held in told}
    assert [sum(shares)] == list(whole)
    assert shares[0] == shares[1]
    log = train_log(made.place, made.ended.result)
    reference = (tmp_path / "adapter/train_log.jsonl").read_text()
    for figure, tolerance in (("loss", 2e-3), ("eval_loss", 2e-3), ("grad_norm", 0.02)):
        assert losses(log, figure) == pytest.approx(losses(reference, figure), rel=tolerance), figure
    assert_close_to(tmp_path / "adapter", weights(made.place, made.ended.result))


def test_a_divided_adapter_resumes_bit_for_bit_and_with_another_number_of_processes(
    together: Callable[[Method], Together], base: Path, store: Store, s3: SeaweedFS, tmp_path: Path
) -> None:
    """Two that are told to stop leave what one process would: two go on as if nothing had been, and one too."""
    undisturbed, training, stopped = together(Method.QLORA), comparable(Method.QLORA), store.below("stopped")
    given = train_input(base, undisturbed.dataset, stopped, s3, training)
    left = run_process(given, tmp_path, ADMIN, *two_processes(), program=PROGRAM, variables={STOPPED_AT: "8"})
    assert left.result.reason is Reason.PREEMPTED, left.log
    assert newest_step(stopped) == 9, "the step that ends next, amid the last epoch"
    alone = train_input(base, undisturbed.dataset, store.below("alone"), s3, training)
    for entry in stopped.below("runs").list():
        store.below("alone/runs").put(entry.key, stopped.below("runs").get(entry.key) or b"")

    again = run_process(given, tmp_path, ADMIN, *two_processes(), program=PROGRAM)
    ended = execute(context(alone, tmp_path), train)

    assert again.code == ExitCode.OK, again.log
    wanted = weights(undisturbed.place, undisturbed.ended.result)
    for name, tensor in weights(stopped, again.result).items():
        assert torch.equal(tensor, wanted[name]), name
    for name, tensor in weights(store.below("alone"), ended).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0.05, atol=0.05 * float(wanted[name].abs().max()))
