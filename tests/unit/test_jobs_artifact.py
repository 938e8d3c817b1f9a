"""Artifacts: published with their pointer, fetched with every byte verified, and proved at a server."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ChatCompletionOutputMessage

from finetune_api.dataset import TaskType
from finetune_api.finetunejob import Output
from finetune_api.goals import GateOutcome, Gates, unpacked
from finetune_api.layout import Channel, Manifest, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Params, Stage, StageInput, StageResult, Upstream, VerifyParams
from finetune_jobs.artifacts import model_card
from finetune_jobs.artifacts.artifact import AUTOMATION as THRESHOLDS
from finetune_jobs.artifacts.artifact import (
    GOLDEN,
    SAMPLE,
    Answer,
    AutomationTable,
    Marks,
    Metrics,
    ModelRef,
    write_answers,
)
from finetune_jobs.artifacts.bom import BOM
from finetune_jobs.artifacts.channel import read_channel
from finetune_jobs.artifacts.folders import publish_folder
from finetune_jobs.artifacts.measurements import Measurements
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.automation import Weighed, automate
from finetune_jobs.evaluation.estimates import METRICS, measure
from finetune_jobs.evaluation.report import Evaluated, Probabilities
from finetune_jobs.evaluation.texts import Likelihoods
from finetune_jobs.fetch import fetch
from finetune_jobs.publish import choose_golden, move_channel, publish, sign_move_and_push
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.verification.connection import answer_in
from finetune_jobs.verification.engine import Limits
from finetune_jobs.verify import verify
from hack.cluster.layout import free_port
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT, RUN, context, pipeline_params, stage_input

pytestmark = pytest.mark.unit

WEIGHTS = bytes(range(256)) * 512
CONFIG = b'{"model_type": "llama", "torch_dtype": "bfloat16"}'


def answer(text: str, label: str, base: str, artifact: str, tokens: int = 30) -> Answer:
    messages = [{"role": "user", "content": text}]
    texts = {"label": label, "base": base, "tuned": artifact, "artifact": artifact}
    return Answer(messages=messages, **texts, max_tokens=8, prompt_tokens=tokens)


ANSWERS = [
    answer(f"payment {n}", "ab"[n % 2], base="a" if n % 4 else "I cannot say", artifact="ab"[n % 2] if n % 10 else "b")
    for n in range(40)
]


def measured(answers: Sequence[Answer]) -> dict[str, Any]:
    """What evaluate measures of recorded answers."""
    said = {model: [getattr(each, model) for each in answers] for model in ("base", "tuned", "artifact")}
    found = measure(TaskType.CLASSIFICATION, [each.label for each in answers], said, ["a", "b"])
    return found.model_dump(mode="json", by_alias=True)


TAGS = ["finetune-operator", "INT8"]
AUTOMATION = automate(
    [Weighed(-0.1, right=True)] * 60, [Weighed(-0.1, right=True)] * 30 + [Weighed(-3, right=False)] * 10
)
MEASUREMENTS = measured(ANSWERS) | {"automation": [each.model_dump(mode="json", by_alias=True) for each in AUTOMATION]}


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Store:
    return Store.connect(s3.storage, place)


@pytest.fixture
def upstream(store: Store, tmp_path: Path) -> Upstream:
    """Outputs of all stages before publish."""

    def put(stage: Stage, files: dict[str, bytes], **facts: str) -> str:
        folder = tmp_path / f"made-{stage}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return publish_folder(store, folder, stage, facts=facts)

    scalars = {"samples": "40", "accuracyBase": "0.25", "accuracyArtifact": "0.95"}
    metrics = {"goldenPrompts": 8, "scalars": scalars, "measurements": MEASUREMENTS, "baseLicense": "mit"}
    answers = tmp_path / "answers.jsonl"
    write_answers(answers, ANSWERS)
    return Upstream(
        source="s",
        model="m",
        dataset=put(Stage.PREPARE, {"train.jsonl": b"{}\n"}, rowsTrain="320", labels="2"),
        adapter=put(Stage.TRAIN, {"adapter_model.safetensors": b"adapter"}, steps="60"),
        export=put(Stage.EXPORT, {"config.json": CONFIG, "model.safetensors": WEIGHTS}),
        evaluation=put(
            Stage.EVALUATE, {"answers.jsonl": answers.read_bytes(), "metrics.json": json.dumps(metrics).encode()}
        ),
    )


def publish_input(s3: SeaweedFS, store: Store, upstream: Upstream, **fields: Any) -> StageInput:
    output = Output(uri=store.uri(), name="transactions")
    params = pipeline_params([store.uri("rows.csv")], output)
    return stage_input(Stage.PUBLISH, s3.storage, output, params, upstream, **fields)


@pytest.fixture
def published(s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path) -> StageResult:
    return execute(context(publish_input(s3, store, upstream), tmp_path), publish, after=sign_move_and_push)


def deployment_input(s3: SeaweedFS, uri: str, stage: Stage, verify_params: VerifyParams | None = None) -> StageInput:
    return StageInput(
        stage=stage, run=DEPLOYMENT, storage=s3.storage, artifact_uri=uri, params=Params(verify=verify_params)
    )


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
    served = ModelRef(digest="5" * 64, folder="models/5", format="INT8", size_bytes=9, base_model_uri="s3://m/tiny")
    card = model_card.render(given, served, {}, {}, metrics, 8)
    assert "| chrf | 0.0" in card
    assert "| perplexity | 7.3891 | 2.7183 | 2.7183 |" in card
    assert "accuracy" not in card
    [result] = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert [each["type"] for each in result["metrics"]] == [
        *("exact_match", "chrf", "perplexity", "precision", "recall", "f1"),
    ]


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
    assert_says(error.value.message, "transactions/stable.json", "FineTuneJob team-a/transactions")


def test_golden_prompts_tell_and_cover_the_labels() -> None:
    chosen = choose_golden(ANSWERS, 8)
    assert all(a.distinguishes_base for a in chosen)
    assert {a.label for a in chosen} == {"a", "b"}
    assert choose_golden(list(reversed(ANSWERS)), 8) == chosen
    same = [answer(f"text {n}", "a", "a", "a") for n in range(5)]
    assert [a.distinguishes_base for a in choose_golden([*same, ANSWERS[0]], 3)] == [True, False, False]


def test_fetch_puts_the_model_where_the_server_reads_it(s3: SeaweedFS, published: StageResult, tmp_path: Path) -> None:
    asked = deployment_input(s3, published.scalars["artifactUri"], Stage.FETCH)
    result = execute(context(asked, tmp_path), fetch)
    home = tmp_path / "models" / published.output_digest
    assert (home / "model" / "model.safetensors").read_bytes() == WEIGHTS
    assert (result.output_digest, result.scalars) == (
        published.output_digest,
        {"sizeBytes": str(len(WEIGHTS) + len(CONFIG))},
    )
    first = (home / "model" / "model.safetensors").stat().st_ino
    execute(context(asked, tmp_path), fetch)
    assert (home / "model" / "model.safetensors").stat().st_ino == first


def test_fetch_finds_one_flipped_byte(
    s3: SeaweedFS, store: Store, upstream: Upstream, published: StageResult, tmp_path: Path
) -> None:
    path = f"{output_folder(Stage.EXPORT, upstream.export)}/model.safetensors"
    store.put(path, WEIGHTS[:1000] + b"\x00" + WEIGHTS[1001:])
    with pytest.raises(StageError) as error:
        execute(context(deployment_input(s3, published.scalars["artifactUri"], Stage.FETCH), tmp_path), fetch)
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert_says(error.value.message, store.uri(path), "SHA-256")
    assert not (tmp_path / "models" / published.output_digest / "model").exists()


def test_fetch_takes_safetensors_only(s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"x")
    pickled = upstream.model_copy(update={"export": publish_folder(store, folder, Stage.EXPORT)})
    made = execute(context(publish_input(s3, store, pickled), tmp_path), publish)
    with pytest.raises(StageError, match=r"/quantized .*pytorch_model\.bin, .* run code; only safetensors") as error:
        execute(context(deployment_input(s3, made.scalars["artifactUri"], Stage.FETCH), tmp_path), fetch)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED


THINKING = Marks(begin="<think>", end="</think>")


@pytest.mark.parametrize(
    ("message", "answered"),
    [
        ({"content": "<think>\nwell\n</think>\n\na"}, "a"),
        ({"content": "<think>\nwell"}, ""),
        ({"content": "\n\na", "reasoning_content": "well"}, "a"),
        ({"content": "a", "reasoning": "well"}, "a"),
        ({"content": None, "reasoning": "well"}, ""),
    ],
)
def test_a_servers_thoughts_are_no_part_of_its_answer(message: dict[str, Any], answered: str) -> None:
    said = ChatCompletionOutputMessage.parse_obj_as_instance({"role": "assistant"} | message)
    asked = ANSWERS[0].model_copy(update={"thoughts": THINKING})
    assert answer_in(said, asked).strip() == answered


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


@contextmanager
def server(
    model_id: str, answers: Sequence[Answer], status: int = 200, said: str = "", **limits: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A model server as far as verify can see it, answering as recorded; also gives the requests that it got."""
    known = {json.dumps(a.messages): a.artifact for a in answers}
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"model_id": model_id, **limits} if self.path == "/info" else {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path} | body)
            message = {"role": "assistant", "content": known[json.dumps(body["messages"])] + "\n"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            if body.get("stream") and status == 200:
                event = json.dumps({"choices": [{"index": 0, "delta": message, "finish_reason": "stop"}]})
                self.send_response(200)
                self.end_headers()
                self.wfile.write(f"data: {event}\n\ndata: [DONE]\n\n".encode())
                return
            self._answer(status, {"error": said, "id": "", "created": 0, "model": "", "choices": [choice]})

        def _answer(self, code: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}", seen
    finally:
        running.shutdown()
        running.server_close()


def run_verify(
    s3: SeaweedFS, published: StageResult, folder: Path, endpoint: str, seconds: int = 30, **fields: Any
) -> StageResult:
    given: dict[str, Any] = {"samples": 20, "min_agreement_percent": 75, "timeout_seconds": seconds} | fields
    params = VerifyParams(endpoint=endpoint, **given)
    asked = deployment_input(s3, published.scalars["artifactUri"], Stage.VERIFY, params)
    return execute(context(asked, folder), verify)


def test_verify_asks_the_server(s3: SeaweedFS, published: StageResult, tmp_path: Path) -> None:
    with server(f"/models/{published.output_digest}/model", ANSWERS) as (endpoint, seen):
        result = run_verify(s3, published, tmp_path, endpoint)
    outcomes = {check.name: check.outcome for check in result.checks}
    assert outcomes == {
        "digest": "Passed",
        "modelName": "Skipped",
        "promptTokens": "Skipped",
        "differsFromBase": "Passed",
        "logProbabilities": "Skipped",
        "longPrompts": "Skipped",
        "positions": "Skipped",
        "finishReason": "Skipped",
        "goldenTexts": "Passed",
        "concurrentStreams": "Passed",
        "testSample": "Passed",
        "timeToFirstToken": "Skipped",
        "timePerOutputToken": "Skipped",
    }
    assert_says(result.message, "5 of 13 checks", "of 20 test examples", "earlier version", "publish it again")
    assert (result.scalars["samples"], result.scalars["agreementPercent"]) == ("20", "100")
    assert result.scalars["accuracy"] == result.scalars["expectedAccuracy"]
    assert len(seen) == 36
    assert sum(bool(r.get("stream")) for r in seen) == 8
    assert all((r["path"], r["temperature"], r["max_tokens"]) == ("/v1/chat/completions", 0.0, 8) for r in seen)


@pytest.mark.parametrize(("drop", "samples", "said"), [(0.4, 31, "show a drop of 0.40"), (0.2, 40, "too few for 0.20")])
def test_a_sample_is_as_large_as_the_drop_that_it_is_to_show(
    s3: SeaweedFS, published: StageResult, tmp_path: Path, drop: float, samples: int, said: str
) -> None:
    """Of the 40 test examples, of which the artifact got 36 right."""
    with server(f"/models/{published.output_digest}/model", ANSWERS) as (endpoint, _):
        result = run_verify(s3, published, tmp_path, endpoint, samples=1000, detect_drop=drop)
    assert result.scalars["samples"] == str(samples)
    [check] = [each for each in result.checks if each.name == "testSample"]
    assert_says(check.expected, f"of {samples} right, as evaluated", said)


def test_verify_asks_no_server_that_takes_no_prompts_of_this_length(
    s3: SeaweedFS, published: StageResult, tmp_path: Path
) -> None:
    model = f"/models/{published.output_digest}/model"
    served = server(model, ANSWERS, max_input_tokens=16, max_total_tokens=24)
    with served as (endpoint, seen), pytest.raises(StageError) as error:
        run_verify(s3, published, tmp_path, endpoint)
    assert not seen
    assert (error.value.reason, error.value.retriable) == (Reason.PROMPTS_TOO_LONG, False)
    parts = "28 of 28 … too long … 30 tokens, … 8; … 16 for a prompt … maxInputTokens … 24 … maxTotalTokens"
    assert_says(error.value.message, *parts.split(" … "))


@pytest.mark.parametrize(
    ("limits", "tokens", "takes"),
    [
        (Limits(30, 38), 30, True),
        (Limits(29, 38), 30, False),
        (Limits(30, 37), 30, False),
        (Limits(), 30, True),
        (Limits(16, 24), 0, True),
    ],
)
def test_what_a_server_takes(limits: Limits, tokens: int, takes: bool) -> None:
    """Where a length is not known, of the question or of the server, the server is asked."""
    assert limits.take(answer("x", "a", "a", "a", tokens)) is takes


def test_a_prompt_that_the_server_finds_too_long(s3: SeaweedFS, published: StageResult, tmp_path: Path) -> None:
    """Nobody counted its tokens, or the server counts otherwise."""
    said = "Input validation error: `inputs` must have less than 16 tokens. Given: 30"
    served = server(f"/models/{published.output_digest}/model", ANSWERS, 422, said)
    with served as (endpoint, _), pytest.raises(StageError) as error:
        run_verify(s3, published, tmp_path, endpoint)
    assert (error.value.reason, error.value.retriable) == (Reason.PROMPTS_TOO_LONG, False)
    assert_says(error.value.message, "too long", f"{endpoint},", "422", said)


@pytest.mark.parametrize(
    ("model", "status", "reason", "parts", "retriable"),
    [
        (
            "/models/other/model",
            200,
            Reason.VERIFICATION_FAILED,
            "digest … expected artifact {digest} … seen /models/other/model",
            False,
        ),
        ("/models/{digest}/model", 503, Reason.CANDIDATE_FAILED, "answered 503", True),
        (
            "/models/{digest}/model",
            422,
            Reason.CANDIDATE_FAILED,
            "answered 422 (Template error: template not found)",
            False,
        ),
    ],
)
def test_verify_refuses_a_server(
    s3: SeaweedFS,
    published: StageResult,
    tmp_path: Path,
    model: str,
    status: int,
    reason: Reason,
    parts: str,
    retriable: bool,
) -> None:
    served = server(model.format(digest=published.output_digest), ANSWERS, status, "Template error: template not found")
    with served as (endpoint, _), pytest.raises(StageError) as error:
        run_verify(s3, published, tmp_path, endpoint)
    assert (error.value.reason, error.value.retriable) == (reason, retriable)
    said = parts.format(digest=published.output_digest[:12])
    assert_says(error.value.message, endpoint, *said.split(" … "))


def test_verify_gives_up_on_a_server_that_never_starts(s3: SeaweedFS, published: StageResult, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StageError, match=r"/health .* within 1 s") as error:
        run_verify(s3, published, tmp_path, endpoint, seconds=1)
    assert error.value.reason is Reason.CANDIDATE_FAILED
