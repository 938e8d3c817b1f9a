"""The stage train as its container runs it."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_api.budget import HardwareFacts
from finetune_api.finetunejob import Output
from finetune_api.layout import output_folder, run_folder
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome, Stage, StageInput, StageResult, TrainParams
from finetune_api.storage import Encryption, EncryptionAlgorithm
from finetune_api.training import LearningCurve, Method, Quantization
from finetune_jobs.artifacts import folders
from finetune_jobs.artifacts.folders import read_manifest, read_record
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluate import evaluate
from finetune_jobs.modelling import device
from finetune_jobs.modelling.device import precision, require_kernels, require_promised
from finetune_jobs.modelling.tuning import Tuning, write_tuning
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.train import train
from tests.support.seaweedfs import ADMIN, KMS_KEY, SeaweedFS
from tests.support.sentences import Saying
from tests.support.stages import RUN, context, pipeline_params, run_process, stage_input
from tests.support.steered_train import PROGRAM, STOPPED_AT
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import BASE, publish_inputs, rows, settings, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]

MISSING = r"^Profile 'gpu-l4' .* 1 × NVIDIA L4, .* CUDA cannot be used .*: .+\.$"
ENCRYPTION = Encryption(algorithm=EncryptionAlgorithm.KMS, kms_key_id=KMS_KEY)


@pytest.fixture
def given(s3: SeaweedFS, store: Store, tmp_path: Path) -> StageInput:
    """A training of twelve steps, whose first checkpoint comes before its end; the store encrypts what it writes."""
    storage = s3.storage.model_copy(update={"encryption": ENCRYPTION})
    upstream = publish_inputs(store, build_tiny_llama(tmp_path / "base"), write_dataset(tmp_path / "dataset"))
    output = Output(uri=store.uri(), name="transactions")
    training = settings(epochs=1, batch_size=1, checkpoint_steps=5)
    params = pipeline_params([], output).model_copy(update={"train": TrainParams(training=training)})
    return stage_input(Stage.TRAIN, storage, output, params, upstream, base_model_uri=store.uri(BASE))


def test_sigterm_saves_a_checkpoint_and_the_next_pod_goes_on(given: StageInput, store: Store, tmp_path: Path) -> None:
    first = run_process(given, tmp_path, ADMIN, program=PROGRAM, variables={STOPPED_AT: "6"})

    assert first.code == ExitCode.RETRIABLE
    assert (first.result.outcome, first.result.reason) == (Outcome.FAILED, Reason.PREEMPTED)
    assert "step 7 of 12 is saved" in first.result.message

    second = run_process(given, tmp_path, ADMIN)

    assert second.code == ExitCode.OK, second.log
    assert any("training resumes from checkpoint-7" in line["message"] for line in second.log)
    record = read_record(store, Stage.TRAIN, given.input_key)
    assert record is not None
    assert record.result == second.result
    folder = output_folder(Stage.TRAIN, second.result.output_digest)
    manifest = read_manifest(store, folder)
    assert manifest is not None
    assert manifest.facts == second.result.scalars
    figures = {"steps", "trainLoss", "validationLoss", "tokens", "trainableParameters", "learningRate"}
    assert set(manifest.facts) == figures | {"batchSize", "gradientAccumulation", "ended"}
    assert manifest.lineage.tools.keys() == {"torch", "transformers", "peft", "trl", "bitsandbytes", "liger-kernel"}
    config = json.loads(store.get(f"{folder}/adapter_config.json") or b"")
    assert config["base_model_name_or_path"] == store.uri(BASE)
    written = [entry.key for entry in store.list() if entry.key.startswith(("keys/", "models/", "runs/"))]
    kinds = ("/checkpoints/", "/logs/", "/tracking/", "/adapter/", "keys/")
    assert all(any(kind in key for key in written) for kind in kinds)
    assert {store.algorithm(key) for key in written} == {ENCRYPTION.algorithm}


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE])
def test_a_pod_without_its_gpu_ends_at_once(given: StageInput, stage: Stage, tmp_path: Path) -> None:
    """Before it fetches anything; as several processes would, and as export's image does."""
    hardware = HardwareFacts(profile="gpu-l4", name="NVIDIA L4", count=1, memory_gib=22)
    asked = given.model_copy(update={"hardware": hardware, "stage": stage, "base_model_uri": "s3://data/nowhere"})
    work = {Stage.TRAIN: train, Stage.EVALUATE: evaluate}.get(stage, lambda made: require_promised(made.input.hardware))
    with pytest.raises(StageError, match=MISSING) as error:
        work(context(asked, tmp_path))
    assert (error.value.reason, error.value.retriable) == (Reason.GPU_UNUSABLE, False)


def test_kernels_that_cannot_be_compiled_end_a_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here there is no driver to link with."""
    require_kernels(Quantization.NF4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(StageError, match=r"kernels cannot be compiled.*libcuda") as error:
        require_kernels(None)
    assert (error.value.reason, error.value.retriable) == (Reason.GPU_UNUSABLE, False)


@pytest.fixture
def seen_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that torch lists, and that computes nothing: there is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = SimpleNamespace(name="NVIDIA L4", total_memory=22 << 30, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: card)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_86"])


@pytest.mark.usefixtures("seen_card")
@pytest.mark.parametrize("own", [0, 1])
def test_a_card_that_computes_nothing_ends_a_stage_at_once(own: int) -> None:
    """Another pod may have another one."""
    with pytest.raises(StageError, match=r"^Nothing can be computed on 2 × NVIDIA L4: .+[^.]\.$") as error:
        require_promised(HardwareFacts(profile="gpu-l4", count=2, name="NVIDIA L4", memory_gib=22), own)
    assert (error.value.reason, error.value.retriable) == (Reason.GPU_UNUSABLE, True)


@pytest.mark.usefixtures("seen_card")
@pytest.mark.parametrize(("found", "wrong"), [(64, False), (63, True), (float("nan"), True)])
def test_a_card_that_multiplies_wrongly_ends_a_stage_at_once(
    found: float, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.full((64, 64), found / 64).sqrt())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    hardware = HardwareFacts(profile="gpu-l4", count=2, name="NVIDIA L4", memory_gib=22)
    if wrong:
        with pytest.raises(StageError, match=r"2 × NVIDIA L4 multiplies wrongly: (63|nan), not 64") as error:
            require_promised(hardware, 1)
        assert (error.value.reason, error.value.retriable) == (Reason.GPU_UNUSABLE, True)
    else:
        require_promised(hardware, 1)
    assert asked == [1], "a process takes no memory of another one's GPU"


@pytest.mark.usefixtures("seen_card")
def test_a_library_without_kernels_for_the_card_ends_a_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.nvidia import driver

    monkeypatch.setattr(driver, "CudaUtils", lambda: None)
    require_kernels(None)  # LoRA and Full do without them
    with pytest.raises(StageError, match=r"^bitsandbytes cannot compute in NF4 on this GPU: .+") as error:
        require_kernels(Quantization.NF4)
    assert (error.value.reason, error.value.retriable) == (Reason.GPU_UNUSABLE, False)


@pytest.mark.usefixtures("seen_card")
def test_a_card_without_products_of_8_bits_ends_a_training_in_8_bits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes multiplies them by a library of its own; nothing of that is asked of a base in 4 bits."""
    from bitsandbytes import functional
    from triton.backends.nvidia import driver

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("cublasLt ran into an error!\n\tshapeA=torch.Size([64, 64])")

    monkeypatch.setattr(driver, "CudaUtils", lambda: None)
    monkeypatch.setattr(device, "device", lambda: "cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for each in Quantization:
        require_kernels(each)
    monkeypatch.setattr(functional, "int8_linear_matmul", refuse)
    require_kernels(Quantization.NF4)
    with pytest.raises(StageError, match=r"^bitsandbytes cannot compute in INT8 on this GPU: cublasLt") as error:
        require_kernels(Quantization.INT8)
    assert (error.value.reason, error.value.retriable) == (Reason.GPU_UNUSABLE, False)


@pytest.mark.usefixtures("seen_card")
def test_an_evaluation_whose_card_cannot_compute_the_base_ends_before_its_download(
    given: StageInput, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A training that is reused may have run on another card."""

    def fetched(_store: Store, _folder: str, destination: Path) -> None:
        destination.mkdir(parents=True)
        write_tuning(destination, Tuning(method=Method.QLORA, quantization=Quantization.INT8))

    monkeypatch.setattr(folders, "fetch_folder", fetched)
    monkeypatch.setattr("finetune_jobs.evaluate.require_promised", lambda _hardware: None)
    asked = given.model_copy(update={"stage": Stage.EVALUATE, "base_model_uri": "s3://data/nowhere"})
    with pytest.raises(StageError, match=r"^bitsandbytes cannot compute in INT8 on this GPU: .+") as error:
        evaluate(context(asked, tmp_path))
    assert (error.value.reason, error.value.retriable) == (Reason.GPU_UNUSABLE, False)


@pytest.mark.usefixtures("seen_card")
def test_a_card_whose_memory_others_have_taken_is_not_called_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds no room then says how much it needs."""

    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    from triton.backends.nvidia import driver

    monkeypatch.setattr(driver, "CudaUtils", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _number: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch, "ones", full)
    require_promised(HardwareFacts(profile="gpu-l4", count=2, name="NVIDIA L4", memory_gib=22))
    require_kernels(Quantization.NF4)


@pytest.mark.usefixtures("seen_card")
def test_the_log_says_what_gpus_models_run_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(device, "_require_answer", lambda *_: None)
    require_promised(HardwareFacts(profile="gpu-l4", count=2, name="NVIDIA L4", memory_gib=22))
    require_promised(HardwareFacts(profile="cheap", count=2, name="NVIDIA A10G", memory_gib=16))
    with pytest.raises(StageError, match=r"promises 1 × NVIDIA L4 with 39 GiB.*22\.0 GiB") as error:
        require_promised(HardwareFacts(profile="gpu-l4", count=1, name="NVIDIA L4", memory_gib=39))
    assert (error.value.reason, error.value.retriable) == (Reason.GPU_UNUSABLE, False)
    assert caplog.messages == [
        *[f"models run on 2 × NVIDIA L4, with CUDA {torch.version.cuda}"] * 2,
        Saying("driver calls the GPU NVIDIA L4", "'cheap' calls it NVIDIA A10G", "time and cost"),
        Saying("22.0 GiB", "more than the 16 of profile 'cheap'"),
    ]


def test_the_log_says_how_a_cpu_computes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kind = "bfloat16" if precision() is torch.bfloat16 else "float32 (this CPU would have to emulate bfloat16)"
    for hardware in (None, HardwareFacts(profile="cpu")):
        require_promised(hardware)
    assert caplog.messages == [f"models run on the CPU, in {torch.get_num_threads()} threads and {kind}"] * 2


def test_a_learning_curve_is_part_of_the_result(given: StageInput, s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """In the message, the scalars, the folder, and the parts in the run's own state."""
    dataset, output = write_dataset(tmp_path / "more", train=rows(40)), Output(uri=store.uri(), name="transactions")
    training = settings(epochs=1, learning_curve=LearningCurve(percents=[30, 60]))
    params = given.params.model_copy(update={"train": TrainParams(training=training)})
    upstream = publish_inputs(store, tmp_path / "base", dataset)
    changed = stage_input(Stage.TRAIN, s3.storage, output, params, upstream, base_model_uri=store.uri(BASE))

    done = run_process(changed, tmp_path, ADMIN)

    assert done.code == ExitCode.OK, done.log
    folder = output_folder(Stage.TRAIN, done.result.output_digest)
    curve = json.loads(store.get(f"{folder}/learning_curve.json") or b"")
    assert [point["examples"] for point in curve["points"]] == [12, 24, 40]
    assert done.result.scalars["moreExamples"] == curve["moreExamples"]
    assert done.result.message.endswith(curve["sentence"])
    assert (store.get(f"{folder}/learning_curve.html") or b"").startswith(b"<!doctype html>")
    assert f"{folder}/learning_curve.html".encode() in (store.get(f"{run_folder(RUN)}/index.html") or b"")
    parts = [entry.key for entry in store.below(f"{run_folder(RUN)}/curves/{changed.input_key[:16]}").list()]
    assert parts == ["30.json", "60.json"]


def test_a_training_that_its_budget_ended_is_not_paid_for_twice_and_a_higher_budget_goes_on(
    given: StageInput, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    params = given.params.model_copy(update={"train": TrainParams(training=settings(epochs=1, checkpoint_steps=2))})

    def run(name: str, **budget: Any) -> StageResult:
        run = RUN.model_copy(update={"id": name})
        asked = given.model_copy(update={"run": run, "params": params} | budget)
        return execute(context(asked, tmp_path), train)

    cut = run("r1", time_budget_seconds=0, max_cost="4.00")
    assert (cut.reused, cut.scalars["ended"], cut.scalars["steps"]) == (False, Reason.BUDGET_EXCEEDED, "1")
    assert read_record(store, Stage.TRAIN, given.input_key) is None
    for name, budget in (("r2", "4"), ("r3", "3.50")):
        again = run(name, time_budget_seconds=0, max_cost=budget)
        assert (again.reused, again.output_digest, again.scalars) == (True, cut.output_digest, cut.scalars)
    whole = run("r4", time_budget_seconds=3600, max_cost="400.00")
    assert (whole.reused, whole.scalars["ended"]) == (False, Reason.TRAINING_COMPLETED)
    assert "training resumes from checkpoint-1" in caplog.messages
    for name, limits in (("r5", {}), ("r6", {"time_budget_seconds": 0, "max_cost": "4.00"})):
        assert (run(name, **limits).reused, run(name, **limits).output_digest) == (True, whole.output_digest)


def test_a_run_that_reuses_nothing_trains_again(
    given: StageInput, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The training and the parts of its learning curve; the same run's next pod goes on where it was."""
    caplog.set_level(logging.INFO)
    training = settings(batch_size=1, max_steps=2, learning_curve=LearningCurve(percents=[30, 60]))
    params = given.params.model_copy(update={"train": TrainParams(training=training)})
    part = f"{run_folder(RUN)}/curves/{given.input_key[:16]}/60.json"
    for name, goes_on in (("r1", False), ("r2", False), ("r2", True)):
        caplog.clear()
        run = RUN.model_copy(update={"id": name})
        asked = given.model_copy(update={"run": run, "params": params, "reuse": name == "r1"})
        assert not execute(context(asked, tmp_path), train).reused
        assert ("training resumes from checkpoint-2" in caplog.messages) is goes_on
        assert json.loads(store.get(part) or b"")["run"] == name


def test_what_ended_by_a_budget_without_a_name_is_kept_for_nobody(
    given: StageInput, store: Store, tmp_path: Path
) -> None:
    """An input by hand, or by an operator that knew no maxCost."""
    cut = execute(context(given.model_copy(update={"time_budget_seconds": 0}), tmp_path), train)
    assert read_manifest(store, output_folder(Stage.TRAIN, cut.output_digest)) is not None
    assert list(store.list("keys")) == []
