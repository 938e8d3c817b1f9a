"""The stage publish: an artifact, its card and its golden prompts, the goals it must meet, and its channel."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.artifact_source import Channel
from finetune_api.dataset import TaskType
from finetune_api.finetunejob import Output
from finetune_api.gates import GateOutcome, Gates, unpacked
from finetune_api.layout import Manifest, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Params, Stage, StageInput, StageResult, Upstream
from finetune_jobs.artifacts import model_card
from finetune_jobs.artifacts.artifact import AUTOMATION as THRESHOLDS
from finetune_jobs.artifacts.artifact import (
    GOLDEN,
    REFERENCE,
    SAMPLE,
    SCHEMA,
    Answer,
    AutomationTable,
    BaseRef,
    Metrics,
    ModelRef,
    ReferenceText,
    write_answers,
    write_references,
)
from finetune_jobs.artifacts.bom import BOM
from finetune_jobs.artifacts.channel import read_channel
from finetune_jobs.artifacts.folders import fetch_folder, publish_folder
from finetune_jobs.artifacts.golden import choose_golden
from finetune_jobs.artifacts.measurements import Distances, Measurements
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.estimates import METRICS, measure
from finetune_jobs.evaluation.report import Evaluated, Probabilities
from finetune_jobs.evaluation.texts import Likelihoods
from finetune_jobs.fetch import fetch
from finetune_jobs.publish import move_channel, publish, sign_move_and_push
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.verification.promise import read_promise
from tests.support.publishing import (
    ANSWERS,
    AUTOMATION,
    CONFIG,
    MEASUREMENTS,
    WEIGHTS,
    answer,
    deployment_input,
    measured,
    publish_input,
)
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN, context, model_ref, pipeline_params, stage_input

pytestmark = pytest.mark.unit

TAGS = ["finetune-operator", "INT8"]


@pytest.mark.slow
def test_an_artifact_has_the_schema_of_its_answers(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path
) -> None:
    """As the spec has it, since engines let a model write fields in its order only."""
    given = publish_input(s3, store, upstream)
    assert given.params.publish
    schema = '{"type": "object", "properties": {"to": {}, "sum": {}}}\n'
    params = given.params.publish.model_copy(update={"answer_schema": schema})
    given = given.model_copy(update={"params": Params(publish=params)})
    made = execute(context(given, tmp_path), publish)
    folder = tmp_path / "fetched"
    fetch_folder(store, output_folder(Stage.PUBLISH, made.output_digest), folder)
    assert read_promise(folder, "here").answer_schema == schema
    (folder / SCHEMA).unlink()
    assert read_promise(folder, "here").answer_schema == ""


@pytest.mark.slow
def test_publish_writes_the_artifact_and_moves_the_channel(
    store: Store, published: StageResult, upstream: Upstream
) -> None:
    digest = published.output_digest
    [goal] = unpacked(published.scalars["goals"], ["the gate"])
    assert goal.outcome is GateOutcome.PASS
    assert published.scalars == {
        "channel": "stable",
        "goals": published.scalars["goals"],
        "artifactUri": store.uri(f"artifacts/{digest}"),
        "format": "INT8",
        "architecture": "llama",
        "sizeBytes": str(len(WEIGHTS) + len(CONFIG)),
        "goldenPrompts": "8",
        "goldenPromptTokens": "30",
        "answerTokens": "8",
    }
    assert "beyond chance" not in published.message
    folder = store.below(f"artifacts/{digest}")
    manifest = Manifest.model_validate_json(folder.get("manifest.json") or b"")
    assert sorted(file.path for file in manifest.files) == ["README.md", THRESHOLDS, BOM, GOLDEN, "model.json", SAMPLE]
    assert len((folder.get(SAMPLE) or b"").splitlines()) == len(ANSWERS)
    card = (folder.get("README.md") or b"").decode()
    assert "| accuracy | 0.25 | – | 0.95 |" in card
    hub = yaml.safe_load(card.split("---")[1])
    assert (hub["license"], hub["model-index"][0]["name"], hub["tags"]) == ("mit", "transactions", TAGS)
    [result] = hub["model-index"][0]["results"]
    assert result["task"] == {"type": "text-classification"}
    assert (result["dataset"]["split"], result["dataset"]["revision"]) == ("test", upstream.dataset)
    assert [metric["type"] for metric in result["metrics"]] == hub["metrics"] == list(METRICS)
    found = Measurements.model_validate(MEASUREMENTS).of("accuracy")
    assert found is not None
    assert result["metrics"][0]["value"] == round(found.models["artifact"].value, 4)
    assert result["metrics"][0]["args"]["interval95"][0] == round(found.models["artifact"].low, 4)
    assert "320 examples for training" in card
    assert "| 98% | -0.100001 | 75.0% (59.8% to 85.8%) | 30 of 30, 100.0% (88.6% to 100.0%) |" in card
    assert "| 99% |" not in card, "60 validation examples are too few for it"
    levels = AutomationTable.model_validate_json(folder.get(THRESHOLDS) or b"").levels
    assert levels == [each for each in AUTOMATION if each.threshold is not None]
    assert {0.5, 0.98} <= {each.precision for each in levels}
    channel = read_channel(store, "transactions")
    assert channel is not None
    assert (channel[0].artifact_digest, channel[0].owner) == (digest, RUN)


def test_the_card_of_a_text_names_what_texts_are_measured_by() -> None:
    truth = [f"restart the router number {n}" for n in range(20)]
    said = {"base": ["no"] * 20, "tuned": truth, "artifact": truth}
    losses = {"base": [18.0] * 20, "tuned": [9.0] * 20, "artifact": [9.0] * 20}
    evaluated = Evaluated.of(
        TaskType.TEXT, truth, said, [], probabilities=Probabilities(expected=Likelihoods([9] * 20, losses))
    )
    metrics = Metrics.model_validate(evaluated.metrics() | {"goldenPrompts": 2, "task": "Text"})
    given = StageInput(stage=Stage.PUBLISH, run=RUN, params=Params())
    served = model_ref()
    card = model_card.render(given, served, {}, {}, metrics, 8)
    assert "| chrf | 0.0" in card
    assert "| perplexity | 7.3891 | 2.7183 | 2.7183 |" in card
    assert "accuracy" not in card
    [result] = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert [each["type"] for each in result["metrics"]] == [
        *("exact_match", "chrf", "perplexity", "precision", "recall", "f1"),
    ]


def test_the_card_of_an_adapter_says_how_it_is_served() -> None:
    """The manifest in it is one that the API server takes, however long the FineTuneJob's name is."""
    name = "payments-of-the-whole-department-x-2026"
    given = StageInput(stage=Stage.PUBLISH, run=RUN.model_copy(update={"name": name}), params=Params())
    base = BaseRef(digest="6" * 64, rank=16)
    served = model_ref(format="Adapter", base=base)
    card = model_card.render(given, served, {}, {}, Metrics(golden_prompts=2, scalars={}), 8)
    assert_says(card, "the adapter alone (0.0 MB, rank 16)", "base model `666666666666` in 16 bits")
    manifest = yaml.safe_load(card.split("```yaml")[-1].split("```")[0])
    AdapterDeploymentSpec.model_validate(manifest["spec"])


def gated(
    s3: SeaweedFS, store: Store, upstream: Upstream, answers: Sequence[Answer], folder: Path, **gates: Any
) -> StageInput:
    """What publish is asked for an evaluation with these answers and gates."""
    evaluation = folder / "evaluation"
    evaluation.mkdir()
    write_answers(evaluation / "answers.jsonl", answers)
    metrics = {"goldenPrompts": 8, "scalars": {}, "measurements": measured(answers)}
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    chain = upstream.model_copy(update={"evaluation": publish_folder(store, evaluation, Stage.EVALUATE)})
    params = pipeline_params([store.uri("rows.csv")], Output(uri=store.uri(), name="transactions"))
    assert params.publish
    publish_params = params.publish.model_copy(update={"gates": Gates.model_validate(gates)})
    params = params.model_copy(update={"publish": publish_params})
    return stage_input(Stage.PUBLISH, s3.storage, publish_params.output, params, chain)


@pytest.mark.slow
def test_the_format_that_held_what_was_trained_is_published(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path
) -> None:
    """The evaluation chose it; its weights have a folder of their own, which serving finds by its digest."""
    other, evaluation = tmp_path / "merged", tmp_path / "evaluation"
    for each in (other, evaluation):
        each.mkdir()
    (other / "config.json").write_bytes(CONFIG)
    (other / "model.safetensors").write_bytes(WEIGHTS * 2)
    digest = publish_folder(store, other, Stage.EXPORT)
    found = measured(ANSWERS)
    loss = next(each for each in found["differences"] if (each["model"], each["against"]) == ("artifact", "tuned"))
    formats = [
        {"format": "Merged", "digest": digest, "served": True, "accuracy": 0.9, "f1": 0.9, "loss": loss},
        {"format": "INT4", "digest": upstream.export, "served": False, "accuracy": 0.1, "f1": 0.1, "loss": loss},
    ]
    write_answers(evaluation / "answers.jsonl", ANSWERS)
    metrics = {"goldenPrompts": 8, "scalars": {}, "measurements": found, "formats": formats}
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    chain = upstream.model_copy(update={"evaluation": publish_folder(store, evaluation, Stage.EVALUATE)})
    result = execute(context(publish_input(s3, store, chain), tmp_path), publish, after=sign_move_and_push)
    assert (result.scalars["format"], result.scalars["sizeBytes"]) == ("Merged", str(2 * len(WEIGHTS) + len(CONFIG)))
    model = ModelRef.model_validate_json(store.get(f"artifacts/{result.output_digest}/model.json") or b"")
    assert (model.digest, model.folder, model.format) == (digest, output_folder(Stage.EXPORT, digest), "Merged")
    card = (store.get(f"artifacts/{result.output_digest}/README.md") or b"").decode()
    assert digest in card
    assert upstream.export not in card

    fetched = context(deployment_input(s3, result.scalars["artifactUri"], Stage.FETCH), tmp_path)
    execute(fetched, fetch)
    [weights] = fetched.models.rglob("model.safetensors")
    assert weights.read_bytes() == WEIGHTS * 2


WORSE = [answer(f"payment {n}", "a", base="a", artifact="a" if n % 2 else "b") for n in range(40)]
"""An artifact that unlearned half of what its base model can do."""
UNTRAINED = [answer(f"payment {n}", "ab"[n % 2], base="a", artifact="a") for n in range(40)]
"""An artifact that is its base model."""
LOST = [
    each.model_copy(update={"tuned": each.label, "artifact": each.label if n % 3 else "c"})
    for n, each in enumerate(ANSWERS)
]
"""An artifact far better than its base model, that lost a third of what was trained when it was rounded."""
BETTER_BY_A_QUARTER = {"goals": [{"metric": "accuracy", "improveOverBase": "0.25"}]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "gates", "parts"),
    [
        (WORSE, {}, "Missed accuracy not worse than the base model's: -0.5000 … 95 % interval … Nothing was published"),
        (UNTRAINED, BETTER_BY_A_QUARTER, "Missed accuracy better than the base model's by 0.25: 0.0000"),
        (
            ANSWERS,
            {"goals": [{"metric": "accuracy", "atLeast": "0.95"}]},
            "Too few test examples for accuracy at least 0.95: 0.9000 … would decide … Nothing was published",
        ),
        (
            LOST,
            {"goals": [{"metric": "accuracy", "atLeast": "0.90"}], "onInconclusive": "Warn"},
            "The export cost accuracy -0.3500 … against the tuned model … FallBack … Missed … published",
        ),
    ],
    ids=["worse", "untrained", "too few rows", "lost by the export"],
)
def test_an_artifact_that_misses_its_goals_is_not_published(
    s3: SeaweedFS,
    store: Store,
    upstream: Upstream,
    published: StageResult,
    tmp_path: Path,
    answers: Sequence[Answer],
    gates: dict[str, Any],
    parts: str,
) -> None:
    """What was published before stays, and the status is told what was found."""
    asked = gated(s3, store, upstream, answers, tmp_path, **gates)
    with pytest.raises(StageError) as error:
        execute(context(asked, tmp_path), publish, after=sign_move_and_push)
    assert error.value.reason is Reason.GATE_FAILED
    assert_says(error.value.message, *parts.split(" … "))
    [goal] = unpacked(error.value.scalars["goals"], ["the goal"])
    assert goal.outcome in (GateOutcome.FAIL, GateOutcome.INCONCLUSIVE)
    channel = read_channel(store, "transactions")
    assert channel is not None
    assert channel[0].artifact_digest == published.output_digest
    assert read_channel(store, "transactions", Channel.CANDIDATE) is None


@pytest.mark.slow
def test_what_is_its_base_model_is_not_published(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path
) -> None:
    """Though it is not worse, which is all that is asked of it without goals."""
    with pytest.raises(StageError) as error:
        execute(context(gated(s3, store, upstream, UNTRAINED, tmp_path), tmp_path), publish)
    assert error.value.reason is Reason.GATE_FAILED
    assert_says(error.value.message, "Nothing distinguishes the artifact from its base model", "Nothing was published")
    [goal] = unpacked(error.value.scalars["goals"], ["not worse"])
    assert goal.outcome is GateOutcome.PASS


@pytest.mark.slow
def test_what_computes_no_numbers_is_not_published(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path
) -> None:
    """However good its answers are: no server is asked the text for which it does not."""
    asked = gated(s3, store, upstream, ANSWERS, tmp_path)
    folder = tmp_path / "evaluation"
    found = {**measured(ANSWERS), "withoutNumbers": 1}
    (folder / "metrics.json").write_text(json.dumps({"goldenPrompts": 8, "scalars": {}, "measurements": found}))
    evaluation = publish_folder(store, folder, Stage.EVALUATE)
    asked = asked.model_copy(update={"upstream": asked.upstream.model_copy(update={"evaluation": evaluation})})
    with pytest.raises(StageError) as error:
        execute(context(asked, tmp_path), publish)
    assert error.value.reason is Reason.GATE_FAILED
    assert_says(error.value.message, "The artifact is broken", "for 1 of the texts", "Nothing was published")


@pytest.mark.slow
@pytest.mark.parametrize(("apart", "published"), [(0.5, False), (1.5, True)])
def test_what_no_server_could_prove_is_not_published(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path, apart: float, published: bool
) -> None:
    """A training in 16 bits that changed every probability and no answer."""
    asked = gated(s3, store, upstream, UNTRAINED, tmp_path)
    folder = tmp_path / "evaluation"
    near = Distances(long=False, texts=8, tuned_base=apart, artifact_base=apart, artifact_tuned=0.01)
    found = {**measured(UNTRAINED), "distances": [near.model_dump(by_alias=True)]}
    (folder / "metrics.json").write_text(json.dumps({"goldenPrompts": 8, "scalars": {}, "measurements": found}))
    text = ReferenceText(text="pay", ids=[1, 2, 3], base=[-2.0, -2.0], artifact=[-2.0 + apart] * 2)
    write_references(folder / REFERENCE, [text])
    evaluation = publish_folder(store, folder, Stage.EVALUATE)
    asked = asked.model_copy(update={"upstream": asked.upstream.model_copy(update={"evaluation": evaluation})})
    if published:
        made = execute(context(asked, tmp_path), publish)
        assert made.scalars["channel"] == "stable"
        assert_says(made.message, "not better than its base model beyond chance", "set spec.evaluation.goals")
        return
    with pytest.raises(StageError) as error:
        execute(context(asked, tmp_path), publish)
    assert error.value.reason is Reason.GATE_FAILED
    assert_says(error.value.message, "No server could prove", "0.500 nats a token", "1.100", "Nothing was published")


@pytest.mark.slow
@pytest.mark.parametrize(
    "gates", [{}, {"goals": [{"metric": "accuracy", "atLeast": "0.99"}]}], ids=["published", "blocked"]
)
def test_whether_prompting_would_have_done_is_told_by_every_publish(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path, gates: dict[str, Any]
) -> None:
    """Of an evaluation that is reused, too, whose own message is not told again."""
    asked = gated(s3, store, upstream, ANSWERS, tmp_path, **gates)
    said = {model: [getattr(each, model) for each in ANSWERS] for model in ("base", "tuned", "artifact")}
    found = measure(
        TaskType.CLASSIFICATION, [each.label for each in ANSWERS], said | {"fewShot": said["base"]}, ["a", "b"]
    )
    metrics = {"goldenPrompts": 8, "scalars": {}, "measurements": found.model_dump(mode="json", by_alias=True)}
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    evaluation = publish_folder(store, tmp_path / "evaluation", Stage.EVALUATE)
    asked = asked.model_copy(update={"upstream": asked.upstream.model_copy(update={"evaluation": evaluation})})
    try:
        scalars = execute(context(asked, tmp_path), publish).scalars
    except StageError as error:
        scalars = error.scalars
    assert_says(
        scalars["prompting"],
        "Prompting would not have been enough: artifact against base model with few-shot examples, accuracy",
        "points (95 % interval",
    )


@pytest.mark.slow
def test_a_candidate_is_published_beside_what_is_stable(
    s3: SeaweedFS, store: Store, upstream: Upstream, published: StageResult, tmp_path: Path
) -> None:
    asked = gated(s3, store, upstream, UNTRAINED, tmp_path, **BETTER_BY_A_QUARTER, onFail="PublishAsCandidate")
    results = [execute(context(asked, tmp_path), publish, after=sign_move_and_push) for _ in range(2)]
    assert [result.reused for result in results] == [False, True]
    assert {result.scalars["channel"] for result in results} == {"candidate"}
    assert_says(results[0].message, "as a candidate", "Missed accuracy better")
    stable, candidate = (read_channel(store, "transactions", channel) for channel in Channel)
    assert stable is not None
    assert candidate is not None
    assert stable[0].artifact_digest == published.output_digest
    assert candidate[0].artifact_digest == results[0].output_digest


@pytest.mark.slow
def test_a_test_that_is_too_small_may_warn(s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path) -> None:
    goals = [{"metric": "accuracy", "atLeast": "0.95"}]
    asked = gated(s3, store, upstream, ANSWERS, tmp_path, goals=goals, onInconclusive="Warn")
    result = execute(context(asked, tmp_path), publish, after=sign_move_and_push)
    assert result.scalars["channel"] == "stable"
    assert_says(result.message, "Too few test examples for accuracy at least 0.95")


def test_a_reused_artifact_moves_the_channel_back(
    s3: SeaweedFS, store: Store, upstream: Upstream, published: StageResult, tmp_path: Path
) -> None:
    asked = publish_input(s3, store, upstream)
    move_channel(context(asked, tmp_path), "1" * 64)
    again = execute(context(asked, tmp_path), publish, after=sign_move_and_push)
    channel = read_channel(store, "transactions")
    assert channel is not None
    assert (again.reused, channel[0].artifact_digest) == (True, published.output_digest)


@pytest.mark.parametrize(
    ("change", "allowed"), [({"uid": "made-again"}, True), ({"name": "cards"}, False), ({"namespace": "team-b"}, False)]
)
def test_an_output_name_has_one_owner(
    s3: SeaweedFS,
    store: Store,
    upstream: Upstream,
    published: StageResult,
    tmp_path: Path,
    change: dict[str, str],
    allowed: bool,
) -> None:
    asked = publish_input(s3, store, upstream, run=RUN.model_copy(update=change))
    if allowed:
        move_channel(context(asked, tmp_path), "1" * 64)
        return
    with pytest.raises(StageError) as error:
        move_channel(context(asked, tmp_path), "1" * 64)
    assert error.value.reason is Reason.OUTPUT_NAME_CONFLICT
    assert_says(error.value.message, "owners/transactions.json", "FineTuneJob team-a/transactions")


def test_golden_prompts_tell_and_cover_the_labels() -> None:
    chosen = choose_golden(ANSWERS, 8)
    assert all(a.distinguishes_base for a in chosen)
    assert {a.label for a in chosen} == {"a", "b"}
    assert choose_golden(list(reversed(ANSWERS)), 8) == chosen
    same = [answer(f"text {n}", "a", "a", "a") for n in range(5)]
    assert [a.distinguishes_base for a in choose_golden([*same, ANSWERS[0]], 3)] == [True, False, False]


@pytest.mark.parametrize(
    ("metrics", "parts"),
    [
        ({}, ""),
        ({"closed": True}, "## Requests … without thoughts … no variable … without a reasoning parser"),
        (
            {"thoughts": {"begin": "", "end": "</think>"}},
            "## Requests … thinks before it answers … `</think>` … reasoning parser … `max_tokens` 8",
        ),
    ],
)
def test_the_card_says_how_a_model_with_thoughts_is_asked(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path, metrics: dict[str, Any], parts: str
) -> None:
    folder = tmp_path / "evaluated"
    folder.mkdir()
    write_answers(folder / "answers.jsonl", ANSWERS)
    asked = {"goldenPrompts": 8, "scalars": {}, "measurements": MEASUREMENTS}
    (folder / "metrics.json").write_text(json.dumps(asked | metrics))
    evaluated = upstream.model_copy(update={"evaluation": publish_folder(store, folder, Stage.EVALUATE)})
    made = execute(context(publish_input(s3, store, evaluated), tmp_path), publish)
    card = (store.get(f"artifacts/{made.output_digest}/README.md") or b"").decode()
    assert ("## Requests" in card) == bool(parts)
    assert_says(" ".join(card.split()), *parts.split(" … "))
