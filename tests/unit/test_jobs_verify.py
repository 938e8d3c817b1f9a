"""The stage verify asks a server: is it the artifact, and does it answer as evaluated."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ChatCompletionOutputMessage

from finetune_api.endpoint_stages import VerifyParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome
from finetune_api.stages import Stage, StageResult
from finetune_jobs.artifacts.artifact import Answer, Marks
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime.runner import execute
from finetune_jobs.verification.connection import answer_in
from finetune_jobs.verification.engine import Limits
from finetune_jobs.verify import verify
from tests.support.closed_port import closed_port
from tests.support.publishing import ANSWERS, answer, deployment_input
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import context

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("own_client")]


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
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
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
    assert_says(
        result.message, "5 checks passed, 8 skipped", "of 20 test examples", "earlier version", "publish it again"
    )
    assert (result.scalars["samples"], result.scalars["agreementPercent"]) == ("20", "100")
    assert result.scalars["accuracy"] == result.scalars["expectedAccuracy"]
    assert len(seen) == 36
    assert sum(bool(r.get("stream")) for r in seen) == 8
    assert all((r["path"], r["temperature"], r["max_tokens"]) == ("/v1/chat/completions", 0.0, 8) for r in seen)


def test_an_artifact_without_a_record_is_not_promoted_where_probabilities_are_required(
    s3: SeaweedFS, published: StageResult, tmp_path: Path
) -> None:
    """It is known before the server is asked anything."""
    served = server(f"/models/{published.output_digest}/model", ANSWERS)
    with served as (endpoint, seen), pytest.raises(StageError) as error:
        run_verify(s3, published, tmp_path, endpoint, require_probabilities=True)
    assert (error.value.reason, error.value.retriable) == (Reason.VERIFICATION_FAILED, False)
    parts = (endpoint, "logProbabilities", "spec.verification.requireProbabilities", "no record of them")
    assert_says(error.value.message, *parts)
    assert [(each.name, each.outcome) for each in error.value.checks] == [
        ("digest", CheckOutcome.PASSED),
        ("logProbabilities", CheckOutcome.FAILED),
    ]
    assert not seen


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
    with closed_port() as port, pytest.raises(StageError, match=r"/health .* within 1 s") as error:
        run_verify(s3, published, tmp_path, f"http://127.0.0.1:{port}", seconds=1)
    assert error.value.reason is Reason.CANDIDATE_FAILED
