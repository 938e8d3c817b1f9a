"""The suite for GPUs: what it says without one, and that a part runs through in a rehearsal.

One test starts the program; the others call its entry point, in a process that has imported torch."""

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml

from finetune_api.budget import HardwareFacts
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_api.training import Training
from finetune_jobs.fit import steps as fit_steps
from finetune_jobs.fit.duration import pace
from finetune_jobs.fit.memory import GIB, _steps, gpu_step, peak_memory
from finetune_jobs.fit.shapes import read_shape
from finetune_jobs.fit.steps import KEPT
from finetune_jobs.modelling import device
from finetune_jobs.modelling.cards import Card, Found
from finetune_jobs.modelling.device import log_peak
from finetune_jobs.runtime.commandline import example_input
from finetune_jobs.runtime.results import failure
from hack.benchmarks.train_throughput import CHAT, Throughput, Workload
from hack.cluster.layout import REPOSITORY
from hack.gpu import bench, serving, setting, steps, throughput, training
from hack.gpu.__main__ import PARTS, checks_of, main, part
from hack.gpu.bench import Bench
from hack.gpu.check import Check, table, write
from hack.gpu.machine import allocator, find, numbers
from hack.gpu.model import SIZES, WORDS
from hack.gpu.setting import other_versions
from tests.support.fit import SMOLLM, shape_of
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import Ended

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert_says(capsys.readouterr().out, "cannot be used here", "nvidia-smi", "--rehearse")


def test_a_driver_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`nvidia-smi` shows the GPU all the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "reported", lambda: Found(cuda="13.0", driver="12.4"))
    assert main(["train"]) == 2
    assert_says(capsys.readouterr().out, "CUDA 13.0", "driver supports CUDA 12.4", "580 or newer")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_the_machine_has_is_asked_by_another_process() -> None:
    found = find()
    assert (found.cards, found.cuda) == ((), torch.version.cuda or "")
    assert found.why_not


def test_a_card_that_models_cannot_use_is_no_card(one_card: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the driver is told."""
    old = Found((Card("Tesla T4", 14.6, (7, 5)),), "13.0", "13.2", ("sm_75",))
    monkeypatch.setattr(setting, "find", lambda: old)
    cards, cuda, _ = setting.described(one_card)
    assert_says(cards.found, "Tesla T4 (14.6 GiB, sm_75)", "bfloat16")
    assert (cards.passed, cuda.found) == (False, f"{torch.version.cuda} of torch, 13.2 of the driver")
    monkeypatch.setattr(setting, "find", lambda: replace(old, cards=tuple(one_card.cards), kernels=("sm_90",)))
    assert next(setting.described(one_card)).passed


def test_parts_run_through_in_a_rehearsal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in ADMIN.environment().items():
        monkeypatch.setenv(name, value)  # as the suite does itself, and undone
    code = main(["--rehearse", "resume", "steps", "oom"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "resumed, the same bytes" in said
    assert "a part kept: losses 0.0% apart" in said
    found = json.loads((REPOSITORY / "build" / "gpu-rehearsal.json").read_text())
    assert [(each["part"], each["passed"]) for each in found["checks"]] == [
        ("resume", True),
        ("steps", True),
        *[("oom", None)] * len(training.OVERFULL),
    ]


@pytest.mark.parametrize("gib", [15.0, 23.0, 79.2])
@pytest.mark.parametrize("name", training.OVERFULL)
def test_the_memory_that_is_left_holds_the_small_pass_and_not_the_large_one(name: str, gib: float) -> None:
    """Of tensors, packed as on a GPU; also where fused kernels keep a third less than is estimated."""
    shape = read_shape({"model_type": "qwen3", "vocab_size": WORDS, "tie_word_embeddings": True, **SIZES})
    large = Training(batch_size=training.LARGE, max_length=256, dropout="0", **training.METHODS[name])
    room, mean = training.small_pass(shape, large, longest=34, gib=gib), {"max_length": 30}
    step = replace(gpu_step(shape, large.model_copy(update={"max_length": 34}), gib).with_least(), padded=False)
    needs = peak_memory(shape, large.model_copy(update=mean), step)
    assert room < needs.weights + needs.state + 2 / 3 * needs.activations
    small = large.model_copy(update={**mean, "batch_size": training.SMALL})
    assert peak_memory(shape, small, step).tensors < room


@pytest.fixture
def one_card(tmp_path: Path) -> Bench:
    """A machine with one GPU, of which nothing is asked."""
    return Bench(tmp_path, SeaweedFS("http://127.0.0.1:9"), (Card("NVIDIA H100", 79.2, (9, 0)),))


def test_a_part_that_breaks_has_failed_and_the_next_has_its_turn(
    one_card: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Bench) -> Iterator[Check]:
        yield Check("oom", "first", "found", "wanted", True)
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(training, "out_of_memory", broken)
    first, second = checks_of("oom", one_card)
    assert first.passed
    assert (second.passed, second.found) == (False, "RuntimeError: no such kernel")


def test_a_stage_that_left_no_result_is_a_failure_with_its_last_words(
    one_card: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "LOGS", tmp_path)
    folder = tmp_path / "fetch-1"
    folder.mkdir()
    program = [sys.executable, "-c", "raise SystemExit('ImportError: libcudart')"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    ended = one_card.wait(example_input(Stage.FETCH), process, folder)

    assert ended.code != ExitCode.OK
    assert_says(ended.result.message, "ended with 1", "without a result", "ImportError: libcudart")
    assert "libcudart" in (tmp_path / "gpu-check-fetch-1.log").read_text()


def test_one_gpu_is_too_few_to_train_together(one_card: Bench) -> None:
    (only,) = checks_of("several", one_card)
    assert only.passed is None
    assert "it takes two" in only.found


@pytest.mark.parametrize(
    ("cards", "visible", "found"),
    [(2, None, ["0", "1"]), (2, "", ["0", "1"]), (2, "3, 5", ["3", "5"]), (1, "MIG-7,GPU-2", ["MIG-7"])],
)
def test_gpus_are_known_by_the_names_that_the_environment_gives(
    cards: int, visible: str | None, found: list[str]
) -> None:
    assert numbers(cards, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == found


def test_each_side_of_a_comparison_sees_one_gpu(tmp_path: Path, s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own trainer would divide its batches among all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    monkeypatch.setattr(Bench, "model", tmp_path)
    seen = []

    def measured(_function: object, _side: str, workload: Workload, _model: Path) -> Throughput:
        assert workload.training.batch_size == throughput.BATCH
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return Throughput(100.0, [10.0, 4.0], 10.0)

    monkeypatch.setattr(throughput, "fresh_process", measured)
    cards = [Card("card", 80.0, (9, 0))] * 2
    stock, plain, forecast = islice(throughput.compare(Bench(tmp_path, s3, cards)), 3)
    assert stock.found == "100 against 100 tokens/s: 1.0 ×, loss 10.00 → 4.00, 0.0% from TRL's"
    assert (plain.passed, plain.found) == (True, "100 against 100 tokens/s: 1.0 ×")
    assert (forecast.passed, forecast.found) == (None, "left out: what card reaches is in no table (fit/cards.py)")
    assert seen == ["GPU-a"] * 3


@pytest.mark.parametrize(
    ("name", "share", "passed"),
    [
        ("NVIDIA H100", 1.0, True),
        ("NVIDIA H100", 0.6, False),
        ("NVIDIA H100", 1.4, False),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 1.0, None),
        ("NVIDIA R200", 1.0, None),
    ],
)
def test_the_speed_is_that_of_the_forecast(
    name: str, share: float, passed: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of passes of 64 × 150 tokens: what they take to compute, and to launch."""
    card, workload = Card(name, 79.2, (9, 0)), replace(CHAT, steps=24, batch=64)
    monkeypatch.setattr(Bench, "shape", shape_of(SMOLLM))
    hardware = HardwareFacts(name="NVIDIA H100", count=1, memory_gib=79.2, peak_tflops=989)
    expected = pace(shape_of(SMOLLM), Training(max_length=150), KEPT, hardware)
    assert expected
    seconds = math.hypot(expected.pass_seconds, 64 * 150 / expected.tokens_per_second)
    plain = Throughput(share * 64 * 150 / seconds, [10.0, 4.0], 150.0)
    check = throughput._as_estimated(Bench(tmp_path, SeaweedFS("http://127.0.0.1:9"), [card]), workload, plain)
    assert check.passed is passed
    assert f"{share:.2f} × the" in check.found or "in no table" in check.found


@pytest.mark.parametrize(("share", "passed"), [(0.9, True), (0.7, False), (1.1, False)])
def test_memory_is_that_of_tensors_in_passes_without_padding(
    share: float, passed: bool, one_card: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a stage says it; whatever the process has beside them."""
    shape, given = shape_of(SMOLLM), one_card.training(**training.MEASURED, method="LoRA")
    for name, value in {"shape": shape, "longest": 40, "mean": 32}.items():
        monkeypatch.setattr(Bench, name, value)
    estimate = peak_memory(shape, given.model_copy(update={"max_length": 32}), replace(KEPT, padded=False))
    tensors, whole = int(share * estimate.tensors), 79 * GIB
    said = {"max_memory_allocated": tensors, "max_memory_reserved": tensors, "memory_reserved": tensors}
    for name, answer in {**said, "is_available": True, "mem_get_info": (whole - tensors, whole)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    with caplog.at_level("INFO"):
        log_peak()

    ended = Ended(ExitCode.OK, failure(Stage.TRAIN, Reason.STAGE_CRASHED, ""), [{"message": caplog.messages[-1]}])
    assert training._memory(one_card, "LoRA", given, ended).passed is passed


@pytest.mark.parametrize(
    ("step", "factor", "tensors", "more", "passed"),
    [
        ("SELECTIVE", 1.0, 3.0, "", True),
        ("SELECTIVE", 1.03, 3.0, "", False),
        ("ROUNDED", 1.03, 3.0, "", True),
        ("ROUNDED", 1.06, 3.0, "", False),
        ("SELECTIVE", 1.0, 4.0, "", False),
        ("SELECTIVE", 1.0, 3.0, "again in the backward pass: this model allows no selection", False),
    ],
)
def test_a_smaller_step_has_the_losses_of_the_largest_and_takes_less(
    step: str, factor: float, tensors: float, more: str, passed: bool, one_card: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(gib: float, *said: str) -> Ended:
        lines = (f"the GPU's memory: at most 9.00 GiB of 79.0 were taken, {gib:.2f} by tensors", *said)
        return Ended(ExitCode.OK, failure(Stage.TRAIN, Reason.STAGE_CRASHED, ""), [{"message": each} for each in lines])

    whole, smaller = ended(4.0), ended(tensors, more)
    losses = {id(whole): [10.0, 8.0, 6.0], id(smaller): [10.0 * factor, 8.0 * factor, 6.0 * factor]}
    monkeypatch.setattr(Bench, "losses", lambda _, each: losses[id(each)])
    check = steps._compared(one_card, "Full", step, smaller, whole)
    assert (check.passed, check.mark) == (passed, "✓" if passed else "✗")
    assert f"tensors {tensors:.2f} GiB instead of 4.00" in check.found


def test_smaller_steps_are_those_that_fit_may_choose() -> None:
    for name, ways in steps.SMALLER.items():
        known = _steps(Training(**training.METHODS[name]), 1)
        assert {getattr(fit_steps, way) for way in (steps.ALL, *ways)} <= set(known)


def test_libraries_other_than_the_locked_ones_are_named() -> None:
    lock = "".join(f'[[package]]\nname = "{n}"\nversion = "{v}"\n' for n, v in (("torch", "2.13.0"), ("trl", "1.16.0")))
    assert other_versions(lock, {"torch": "2.13.0+cu130", "trl": "1.16.0"}) == []
    assert other_versions(lock, {"torch": "2.11.0+cu130", "trl": ""}) == [
        "torch 2.11.0+cu130 (locked: 2.13.0)",
        "trl is missing (locked: 1.16.0)",
    ]


def test_trainings_have_the_allocator_of_their_image() -> None:
    assert allocator() == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def test_environments_of_its_own_have_the_versions_that_matter() -> None:
    """vLLM's is that of the chart's runtime, and Unsloth computes with the torch that it is compared on."""
    values = yaml.safe_load((REPOSITORY / "charts/finetune-operator/values.yaml").read_text())
    assert f"v{locked(serving.PROJECT)['vllm']}" == values["runtimes"]["vllm"]["image"]["tag"]
    assert locked(throughput.PROJECT)["torch"] == locked(REPOSITORY)["torch"]


def locked(project: Path) -> dict[str, str]:
    packages = tomllib.loads((project / "uv.lock").read_text())["package"]
    return {each["name"]: each.get("version", "") for each in packages}


def test_every_part_can_be_run() -> None:
    assert all(callable(part(name)) for name in PARTS)


def test_an_unknown_part_is_refused_with_those_there_are() -> None:
    """Before anything is imported that takes seconds."""
    program = [sys.executable, "-X", "importtime", "-m", "hack.gpu", "--rehearse", "fly"]
    ended = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=580, check=False)
    assert ended.returncode == 2
    assert all(name in ended.stderr.splitlines()[-1] for name in PARTS)
    assert not re.search(r"\| +torch$", ended.stderr, re.MULTILINE)


def test_a_failed_check_is_seen(tmp_path: Path) -> None:
    checks = [Check("train", "LoRA", "no end", "an end", False), Check("oom", "all", "needs a GPU", "", None)]
    path = tmp_path / "gpu-check.json"
    write(checks, "a card", {"train": 1.5}, path)
    found = json.loads(path.read_text())
    assert (found["seconds"], found["checks"][0]["passed"]) == ({"train": 1.5}, False)
    assert table(checks).row_count == 2
    assert [each.mark for each in checks] == ["✗", "–"]
