"""The part of preflight that reads: a real store, a base model's config.json, and what resolve answers of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_api.budget import HardwareFacts
from finetune_api.evaluation import Coverage, Examination
from finetune_api.export import Export
from finetune_api.finetunejob import Output
from finetune_api.layout import MANIFEST, StageRecord, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, ExportParams, Outcome, Stage, StageInput, StageResult, Upstream, input_key
from finetune_api.suitability import ServingFacts
from finetune_jobs.artifacts.folders import publish_record
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.preflight import facts, preflight
from finetune_jobs.modelling.base_model import BaseModel, find_base_model
from finetune_jobs.reading.sources import find_sources, source_digest
from finetune_jobs.resolve import resolve
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.fit import A100, CPU, L4, LLAMA_8B, LLAMA_70B, SMOLLM
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import Lent, context, pipeline_params, stage_input

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(autouse=True)
def with_bfloat16(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with bfloat16, whatever this machine's has: others need more memory (test_fit_disk)."""
    cpuinfo = tmp_path_factory.mktemp("proc") / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n")
    monkeypatch.setattr("finetune_jobs.fit.preflight.CPUINFO", cpuinfo)


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Store:
    """A place with a source."""
    found = Store.connect(s3.storage, place)
    found.put("rows.csv", b"text,label\na,b\n")
    found.put("model/model.safetensors", b"weights")
    return found


def asked(s3: SeaweedFS, store: Store, config: bytes | dict[str, Any], **fields: Any) -> StageInput:
    """Input of resolve for a base model with this config.json."""
    store.put("model/config.json", config if isinstance(config, bytes) else json.dumps(config).encode())
    output = Output(uri=store.uri("out"), name="transactions")
    params = pipeline_params([store.uri("rows.csv")], output)
    return stage_input(Stage.RESOLVE, s3.storage, output, params, base_model_uri=store.uri("model"), **fields)


def test_what_fits_is_told(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """Numbers as scalars, a sentence for people."""
    result = execute(context(asked(s3, store, LLAMA_8B, hardware=L4), tmp_path), resolve)
    found = {name: value for name, value in result.scalars.items() if name.startswith("fit")}
    times = ("TokensPerSecond", "PassSeconds", "LoadSeconds", "AnswerSeconds", "BesideSeconds", "TransferSeconds")
    others = {"fitVerdict", "fitGib", "fitAvailableGib", "fitValidationTokens"}
    assert found.keys() == others | {f"fit{name}" for name in times}
    assert (found["fitVerdict"], found["fitAvailableGib"]) == ("Fits", "22.00")
    assert 8 < float(found["fitGib"]) < 22
    assert " GiB of the 22 GiB of NVIDIA L4." in result.message


def test_what_the_spec_has_asked_counts(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """The whole sets take longer than samples of them, and two formats answer each example more often than one."""
    given = asked(s3, store, LLAMA_8B, hardware=L4)
    ready = context(given, tmp_path)
    model = find_base_model(ready.places, given.base_model_uri)
    evaluate = given.params.evaluate
    assert evaluate is not None
    full = Examination(general=Coverage.FULL, adversarial=Coverage.FULL)
    params = given.params.model_copy(update={"evaluate": evaluate.model_copy(update={"evaluation": full})})
    whole, several = given.model_copy(update={"params": params}), exporting(given, alternatives=["FP8"])
    found = [facts(preflight(each, ready.places, model, tmp_path), L4) for each in (given, whole, several)]
    answers, beside = ([float(each[name]) for each in found] for name in ("fitAnswerSeconds", "fitBesideSeconds"))
    assert beside[1] > 4 * beside[0]
    assert answers[0] == answers[1] < answers[2]


def test_a_model_in_32_bits_is_refused_before_it_fills_a_disk(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """As many bytes as the store says, which a config does not tell."""
    given = asked(s3, store, LLAMA_8B, hardware=L4.model_copy(update={"scratch_gib": 30}))
    ready = context(given, tmp_path)
    model = find_base_model(ready.places, given.base_model_uri)
    assert preflight(given, ready.places, model, tmp_path).memory
    with pytest.raises(StageError) as refused:
        preflight(given, ready.places, replace(model, size=32 << 30), tmp_path)
    assert refused.value.reason is Reason.FIT_REFUSED
    assert_says(refused.value.message, "Stage export needs about 41 GiB of scratch", "30 GiB")


def test_evaluation_gets_its_gpus_even_where_the_training_is_reused(
    s3: SeaweedFS, store: Store, tmp_path: Path
) -> None:
    """Such a training is not judged again, but the model is as large as it was."""
    cards = L4.model_copy(update={"memory_gib": 24, "count": 4, "pod_memory_gib": 200})
    given = asked(s3, store, LLAMA_70B, hardware=cards)
    ready = context(given, tmp_path)
    model = find_base_model(ready.places, given.base_model_uri)
    for done in ((), (Stage.PREPARE, Stage.TRAIN)):
        admission = preflight(given, ready.places, model, tmp_path, done=done)
        assert facts(admission, cards)["fitEvaluationGpus"] == "4"
        assert bool(admission.message) is not bool(done)
    everything = preflight(given, ready.places, model, tmp_path, done=PIPELINE)
    assert facts(everything, cards) == {}


def test_a_cpu_without_bfloat16_refuses_no_run_that_may_go_elsewhere(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither before a training nor where one is found: what its CPU has no room for is a warning of resolve."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu avx2\n")
    monkeypatch.setattr("finetune_jobs.fit.preflight.CPUINFO", cpuinfo)
    given = asked(s3, store, LLAMA_8B, hardware=CPU.model_copy(update={"memory_gib": 20}))
    for done in (False, True):
        if done:
            pretend_done(given, store)
        result = execute(context(given, tmp_path), resolve)
        assert_says(result.scalars["fitWarning"], "as this pod's does", "Evaluation needs at least 30.6 GiB")


def test_what_no_runtime_serves_is_refused_and_what_one_does_not_is_told(
    s3: SeaweedFS, store: Store, tmp_path: Path
) -> None:
    tgi, on_cpus = ServingFacts(name="tgi", engine="tgi", gpu=True), ServingFacts(name="vllm-cpu", engine="vllm")
    given = asked(s3, store, LLAMA_8B | {"model_type": "qwen3"}, hardware=L4, runtimes=[tgi, on_cpus])
    result = execute(context(given, tmp_path), resolve)
    assert_says(result.scalars["fitWarning"], "Runtime 'tgi' cannot serve", "qwen3")
    assert result.scalars["fitVerdict"] == "Fits"
    served = asked(s3, store, LLAMA_8B, hardware=L4, runtimes=[tgi])
    result = execute(context(served, tmp_path), resolve)
    assert_says(result.message, "22 GiB of NVIDIA L4.", "Runtime 'tgi' serves it with a difference", "float16")
    assert "fitWarning" not in result.scalars
    given = asked(s3, store, LLAMA_8B | {"model_type": "qwen3"}, hardware=L4, runtimes=[tgi, on_cpus])
    with pytest.raises(StageError, match="No runtime of this platform") as refusal:
        execute(context(given.model_copy(update={"runtimes": [tgi]}), tmp_path), resolve)
    assert refusal.value.reason is Reason.RUNTIME_UNSUITABLE


def exporting(given: StageInput, **export: Any) -> StageInput:
    """The same run with another export."""
    made = ExportParams(export=Export.model_validate(export), method="QLoRA")
    return given.model_copy(update={"params": given.params.model_copy(update={"export": made})})


def test_a_format_that_is_only_compared_needs_no_runtime(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """FallBack may have it served; then what is to be known of it is told, too."""
    old = ServingFacts(name="old", engine="tgi", gpu=True, card="NVIDIA T4")
    new = ServingFacts(name="new", engine="vllm", gpu=True)
    given = asked(s3, store, LLAMA_8B, hardware=L4, runtimes=[old])
    compared = exporting(given, alternatives=["FP8"])
    assert "fitWarning" not in execute(context(compared, tmp_path), resolve).scalars
    served = exporting(given, alternatives=["FP8"], onRegression="FallBack")
    with pytest.raises(StageError, match=r"No runtime of this platform .* FP8 kernel") as refusal:
        execute(context(served, tmp_path), resolve)
    assert refusal.value.reason is Reason.RUNTIME_UNSUITABLE
    both = served.model_copy(update={"runtimes": [old, new]})
    assert_says(
        execute(context(both, tmp_path), resolve).scalars["fitWarning"], "As FP8: Runtime 'old' cannot serve", "Turing"
    )


def test_a_format_that_is_only_compared_must_be_possible(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """It is made, so that the run would fail in it."""
    narrow = LLAMA_8B | {"hidden_size": 2000, "num_attention_heads": 125, "num_key_value_heads": 1}
    given = exporting(asked(s3, store, narrow, hardware=L4), alternatives=["INT4"])
    with pytest.raises(StageError, match="INT4 needs layers") as refusal:
        execute(context(given, tmp_path), resolve)
    assert refusal.value.reason is Reason.MODEL_UNSUPPORTED


def test_what_does_not_fit_is_refused_before_a_gpu_is_asked_for(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """With the reason, the change and the profile that would do."""
    small = L4.model_copy(update={"memory_gib": 11.3})
    advice = r"It fits with batchSize: .* Unchanged, .* profile gpu-a100-40\."
    given = asked(s3, store, LLAMA_8B, hardware=small, alternatives=[A100])
    with pytest.raises(StageError, match=advice) as refusal:
        execute(context(given, tmp_path), resolve)
    assert refusal.value.reason is Reason.FIT_REFUSED


@pytest.mark.parametrize(
    ("config", "hardware", "says"),
    [
        (LLAMA_8B, None, ""),
        (LLAMA_8B | {"model_type": "mamba"}, L4, "model_type 'mamba' is not one of"),
        (b"{", L4, "no readable config.json"),
        (b"[]", L4, "no readable config.json"),
        (b"[" * 100_000, L4, "no readable config.json"),
        (SMOLLM, CPU, "of the pod's 8 GiB."),
    ],
    ids=["older operator", "unknown family", "no JSON", "no object", "too deep", "no GPU"],
)
def test_the_run_goes_on(
    s3: SeaweedFS,
    store: Store,
    tmp_path: Path,
    config: bytes | dict[str, Any],
    hardware: HardwareFacts | None,
    says: str,
) -> None:
    """What is not known costs the estimate only."""
    result = execute(context(asked(s3, store, config, hardware=hardware), tmp_path), resolve)
    assert says in result.message
    verdict = None if hardware is None else "Fits" if hardware is CPU else "Unknown"
    assert result.scalars.get("fitVerdict") == verdict


def test_a_training_that_is_done_is_not_judged(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """Its result is reused, even if it would no longer fit, as long as what follows does."""
    given = asked(s3, store, LLAMA_8B, hardware=L4.model_copy(update={"memory_gib": 11.3}))
    with pytest.raises(StageError, match="QLoRA with batchSize 8"):
        execute(context(given, tmp_path), resolve)
    pretend_done(given, store)
    result = execute(context(given, tmp_path), resolve)
    assert [entry.stage for entry in result.found] == [Stage.PREPARE, Stage.TRAIN]
    assert "fitVerdict" not in result.scalars


LLAMA_13B: Final = LLAMA_8B | {
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "intermediate_size": 13824,
    "vocab_size": 32000,
}
CARD: Final = L4.model_copy(update={"memory_gib": 24})
FALL_BACK: Final = {"onRegression": "FallBack"}


@pytest.mark.parametrize(
    ("hardware", "export", "says"),
    [
        (
            CARD,
            FALL_BACK,
            "Evaluation needs about 26.8 GiB … 92% of the 24 GiB of NVIDIA L4 … gpu-l4 … format: INT8 alone … Fail … "
            "gpu-a100-40",
        ),
        (CARD, {"format": "Merged"}, "Evaluation needs about 26.8 GiB … spec.export.format: INT8 … gpu-a100-40"),
        (
            CARD.model_copy(update={"pod_memory_gib": 20}),
            {"format": "INT4"},
            "Export needs about 24.9 GiB of pod memory … 20 GiB … training is done … profile gpu-a100-40",
        ),
        (
            CARD.model_copy(update={"scratch_gib": 60}),
            {"alternatives": ["FP8", "W8A16"]},
            "Stage evaluate needs about 62 GiB of scratch … 60 GiB … INT8 alone: without alternatives",
        ),
        (CARD.model_copy(update={"count": 2}), {"format": "Merged"}, ""),
        (CARD, {"format": "INT4"}, ""),
        (CPU.model_copy(update={"memory_gib": 20}), FALL_BACK, "Export needs about 24.9 GiB of pod memory"),
        (CARD.model_copy(update={"memory_gib": 0}), FALL_BACK, ""),
    ],
    ids=str,
)
def test_what_follows_a_training_that_is_done_must_fit(
    s3: SeaweedFS, store: Store, tmp_path: Path, hardware: HardwareFacts, export: dict[str, Any], says: str
) -> None:
    """A changed export begins with the training that is there; a failed gate sends people to it."""
    given = asked(s3, store, LLAMA_13B, hardware=hardware, alternatives=[A100])
    pretend_done(given, store)
    changed = exporting(given, **export)
    if not says:
        assert [entry.stage for entry in execute(context(changed, tmp_path), resolve).found][-1] is Stage.TRAIN
        return
    with pytest.raises(StageError) as refusal:
        execute(context(changed, tmp_path), resolve)
    assert refusal.value.reason is Reason.FIT_REFUSED
    assert_says(refusal.value.message, *says.split(" … "))
    assert "method" not in refusal.value.message, "another training is no change of what follows it"


@pytest.mark.parametrize(
    ("last", "says"), [(Stage.EXPORT, "Evaluation needs about 26.8 GiB"), (Stage.EVALUATE, ""), (Stage.PUBLISH, "")]
)
def test_what_is_done_needs_nothing(s3: SeaweedFS, store: Store, tmp_path: Path, last: Stage, says: str) -> None:
    """Once the evaluation is there, no stage loads a model."""
    card = CARD.model_copy(update={"pod_memory_gib": 20})
    given = exporting(asked(s3, store, LLAMA_13B, hardware=card), **FALL_BACK)
    pretend_done(given, store, last)
    if says:
        with pytest.raises(StageError, match=says):
            execute(context(given, tmp_path), resolve)
    else:
        assert execute(context(given, tmp_path), resolve).found


def test_a_changed_format_is_looked_at_even_where_the_training_is_reused(
    s3: SeaweedFS, store: Store, tmp_path: Path
) -> None:
    """Refused as in a new run, and told what is told there."""
    old = ServingFacts(name="old", engine="tgi", gpu=True, card="NVIDIA T4")
    new = ServingFacts(name="new", engine="vllm", gpu=True)
    given = asked(s3, store, LLAMA_8B, hardware=L4, runtimes=[old, new])
    pretend_done(given, store)
    result = execute(context(exporting(given, format="FP8"), tmp_path), resolve)
    assert_says(result.scalars["fitWarning"], "Runtime 'old' cannot serve", "Turing")
    alone = exporting(given, format="FP8").model_copy(update={"runtimes": [old]})
    with pytest.raises(StageError, match="No runtime of this platform"):
        execute(context(alone, tmp_path), resolve)
    store.put("model/config.json", b"{")
    pretend_done(given, store)
    assert "fitVerdict" not in execute(context(given, tmp_path), resolve).scalars


@pytest.mark.parametrize(("max_cost", "found"), [("4", True), ("3.99", True), ("4.01", False), ("", False)])
def test_a_training_that_its_budget_ended_is_found_by_no_higher_one(
    s3: SeaweedFS, store: Store, tmp_path: Path, max_cost: str, found: bool
) -> None:
    given = asked(s3, store, SMOLLM, hardware=L4)
    pretend_done(given, store, ended_by="4.00")
    result = execute(context(given.model_copy(update={"max_cost": max_cost}), tmp_path), resolve)
    assert [entry.stage for entry in result.found] == [Stage.PREPARE, *([Stage.TRAIN] if found else [])]


def pretend_done(given: StageInput, store: Store, last: Stage = Stage.TRAIN, ended_by: str = "") -> None:
    """Records of the stages up to ``last``, with a training that a budget ended where one is named."""
    assert given.params.prepare
    sources = source_digest(find_sources(Lent(store), given.params.prepare.dataset))
    upstream = Upstream(source=sources, model=find_base_model(Lent(store), store.uri("model")).digest)
    for number, stage in enumerate(PIPELINE[: PIPELINE.index(last) + 1], 1):
        output = str(number) * 64
        made = StageResult(stage=stage, outcome=Outcome.SUCCEEDED, reason=Reason.STAGE_SUCCEEDED, output_digest=output)
        results = store.below("out")
        results.put(f"{output_folder(stage, output)}/{MANIFEST}", b"{}")
        cut, key = ended_by if stage is Stage.TRAIN else "", input_key(stage, upstream, given.params)
        publish_record(results, stage, key, StageRecord(result=made), ended_by=cut)
        upstream = upstream.with_output(stage, output)


def test_the_hub_is_asked_for_one_file(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the commit that the run began with; a hub that does not answer costs the estimate only."""
    asked_for = []

    def download(_: object, repo: str, name: str, *, revision: str, local_dir: Path) -> str:
        asked_for.append((repo, name, revision))
        path = local_dir / name
        path.write_text(json.dumps(LLAMA_8B))
        return str(path)

    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", download)
    given = asked(s3, store, SMOLLM, hardware=L4)
    model = BaseModel("hf://org/name@main", "d" * 64, ["config.json"], "c" * 40)
    admission = preflight(given, Lent(store), model, tmp_path)
    assert asked_for == [("org/name", "config.json", "c" * 40)]
    assert admission.memory is not None
    assert admission.memory.gib > 8

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", unreachable)
    assert preflight(given, Lent(store), model, tmp_path).memory is None
