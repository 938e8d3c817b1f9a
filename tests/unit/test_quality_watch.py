"""The quality watch: when a server that has proved itself is asked, what counts as a change, and who decides."""

import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from finetune_api.endpoint_stages import SelfCheckLimits
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_api.stages import StageResult
from finetune_jobs.artifacts.artifact import (
    GOLDEN,
    MODEL_REF,
    REFERENCE,
    SAMPLE,
    Answer,
    ModelRef,
    ReferenceText,
    write_answers,
    write_references,
)
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification.engine import Forced, Reply
from finetune_jobs.verification.proof import Proof
from finetune_jobs.verification.vllm import VllmServer
from finetune_jobs.verification.watch import AGAIN_SECONDS, QualityWatch, answer_moved, text_moved
from hack.cluster.layout import free_port
from tests.support import forked
from tests.support.sentences import assert_says
from tests.support.vllm_server import VllmContract, running

pytestmark = pytest.mark.unit

A = TypeVar("A")
EVERY = SelfCheckLimits(watch_seconds=300)
OFF = SelfCheckLimits()
PASSED = VerificationCheck(name="digest", outcome=CheckOutcome.PASSED)
SLOW = StageError(Reason.CANDIDATE_FAILED, "it did not answer", retriable=True)
GONE = StageError(Reason.CANDIDATE_FAILED, "it names no model", retriable=False)


@dataclass
class Server:
    """What a test says that a proved server does; and how often it was asked."""

    queue: int | None = 0
    moves: str | StageError = ""
    checks: Sequence[VerificationCheck] | StageError = (PASSED,)
    asked: list[str] = field(default_factory=list)

    def waiting(self) -> int | None:
        return self.queue

    def moved(self, turn: int) -> str:
        self.asked.append(f"question {turn}")
        return _said(self.moves)

    def whole(self, limits: SelfCheckLimits) -> Sequence[VerificationCheck]:
        self.asked.append("all")
        return _said(self.checks)


def _said(what: A | StageError) -> A:
    if isinstance(what, StageError):
        raise what
    return what


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestTurns:
    def test_a_question_each_interval(self, clock: Clock) -> None:
        server = Server()
        watch = QualityWatch(server, clock)
        for _ in range(900):
            clock.now += 1
            if watch.is_due(EVERY):
                assert watch.ask(EVERY) == ()
        assert server.asked == ["question 0", "question 1", "question 2"]

    def test_none_without_an_interval_and_one_at_once_with_a_shorter(self, clock: Clock) -> None:
        watch = QualityWatch(Server(), clock)
        clock.now += 100
        assert not watch.is_due(OFF)
        assert not watch.is_due(EVERY)
        assert watch.is_due(SelfCheckLimits(watch_seconds=60))

    @pytest.mark.parametrize(
        ("server", "asked"),
        [
            pytest.param(Server(queue=1), [], id="others wait"),
            pytest.param(Server(queue=None), ["question 0"], id="it does not say who waits"),
            pytest.param(Server(moves=SLOW), ["question 0"], id="it did not answer"),
            pytest.param(Server(moves="otherwise", checks=SLOW), ["question 0", "all"], id="nor to all"),
            pytest.param(Server(moves="otherwise"), ["question 0", "all"], id="it answers otherwise"),
            pytest.param(Server(moves=GONE), ["question 0", "all"], id="it will never answer"),
        ],
    )
    def test_what_is_asked(self, clock: Clock, server: Server, asked: list[str]) -> None:
        made = QualityWatch(server, clock).ask(EVERY)
        assert server.asked == asked
        assert made == ((PASSED,) if "all" in asked and server.checks is not SLOW else ())

    def test_a_skipped_question_is_asked_a_little_later(self, clock: Clock) -> None:
        server = Server(queue=3)
        watch = QualityWatch(server, clock)
        clock.now += 300
        watch.ask(EVERY)
        clock.now += AGAIN_SECONDS
        assert watch.is_due(EVERY)
        server.queue = 0
        watch.ask(EVERY)
        assert server.asked == ["question 0"]
        clock.now += AGAIN_SECONDS
        assert not watch.is_due(EVERY), "once it was asked, the interval counts again"

    def test_what_all_the_checks_could_not_decide_is_not_forgotten(self, clock: Clock) -> None:
        server = Server(moves="otherwise", checks=SLOW)
        watch = QualityWatch(server, clock)
        watch.ask(EVERY)
        server.moves, server.checks = "", (PASSED,)
        clock.now += AGAIN_SECONDS
        assert watch.is_due(EVERY)
        assert watch.ask(EVERY) == (PASSED,)
        assert server.asked == ["question 0", "all", "all"]
        assert watch.ask(EVERY) == (), "they have passed"

    def test_a_server_that_will_never_answer_has_failed(self, clock: Clock) -> None:
        server = Server(moves=GONE, checks=GONE)
        with pytest.raises(StageError, match="names no model") as error:
            QualityWatch(server, clock).ask(EVERY)
        assert not error.value.retriable


class TestMoved:
    @pytest.mark.parametrize(
        ("ids", "log_probs", "moved"),
        [
            pytest.param([1, 5, 6], [-1.0, -0.25], "", id="the same"),
            pytest.param([1, 5, 6], [-1.04, -0.21], "", id="computed with others"),
            pytest.param([1, 5, 6], [-2.0, -0.25], "0.500 nats a token", id="another weight"),
            pytest.param([1, 5, 6], [float("nan"), -0.25], "nan nats a token", id="not a number"),
            pytest.param([1, 5, 7], [-1.0, -0.25], "other tokens", id="another tokenizer"),
            pytest.param([1, 5, 6], [], "no probabilities any more", id="no probabilities"),
        ],
    )
    def test_texts(self, ids: list[int], log_probs: list[float], moved: str) -> None:
        said = text_moved(Forced([1, 5, 6], [-1.0, -0.25]), Forced(ids, log_probs), 0.55)
        assert said.startswith(moved)
        assert bool(said) is bool(moved)

    @pytest.mark.parametrize(
        ("now", "moved"),
        [
            (Reply("a", True, 30), ""),
            (Reply(" a\n", True, 30), ""),
            (Reply("b", True, 30), "another answer than before"),
            (Reply("a", False, 30), "it ends otherwise than before"),
            (Reply("a", True, 31), "other tokens than before"),
        ],
    )
    def test_answers(self, now: Reply, moved: str) -> None:
        assert answer_moved(Reply("a", True, 30), now) == moved


DIGEST = "a" * 64
ROOT = f"/models/{DIGEST}/model"
ANSWERS = [
    Answer(
        messages=[{"role": "user", "content": f"question {number}"}],
        label="a",
        base="b",
        tuned="a",
        artifact="a",
        prompt_tokens=30,
        stopped=True,
    )
    for number in range(3)
]
TEXTS = [
    ReferenceText(text=f"<|im_start|>text {n}", ids=[1, 5, n], base=[-3.0, -4.0], artifact=[-1.0, -0.25])
    for n in range(2)
]


def wrong(texts: Sequence[ReferenceText]) -> list[ReferenceText]:
    """As another model finds them: further from the artifact than another engine, and not like the base."""
    return [text.model_copy(update={"artifact": [-0.1, -1.35]}) for text in texts]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """The files of an artifact that a pod proves its server by."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    write_answers(folder / GOLDEN, ANSWERS)
    write_answers(folder / SAMPLE, ANSWERS)
    write_references(folder / REFERENCE, TEXTS)
    model = ModelRef(
        digest=DIGEST,
        folder=f"models/{DIGEST}/quantized",
        format="int8",
        size_bytes=1,
        base_model_uri="s3://models/base",
    )
    (folder / MODEL_REF).write_text(model.model_dump_json(by_alias=True))
    return folder


def contract(texts: Sequence[ReferenceText] = TEXTS) -> VllmContract:
    return VllmContract(ROOT, answers=ANSWERS, references=texts)


@pytest.mark.slow
class TestAsked:
    """One request a turn, to a server that keeps vLLM's contract."""

    def test_texts_in_turn(self, artifact: Path) -> None:
        with running(contract()) as server:
            proof = Proof(VllmServer(server.url), artifact, DIGEST)
            proof.whole(OFF)
            server.seen.clear()
            assert [proof.moved(turn) for turn in range(3)] == ["", "", ""]
            assert [each["prompt"] for each in server.seen] == [TEXTS[n].text for n in (0, 1, 0)]
            server.references = [TEXTS[0], *wrong(TEXTS[1:])]
            assert proof.moved(0) == ""
            assert_says(proof.moved(1), "reference text 2", "1.000 nats a token")
            server.root = "/models/base"
            assert proof.moved(0) == "it serves /models/base"

    def test_a_pod_without_a_record_where_probabilities_are_required(self, artifact: Path) -> None:
        """It never becomes ready, and need not be asked anything for that."""
        asked = SelfCheckLimits(require_probabilities=True)
        with running(contract()) as server:
            recorded = Proof(VllmServer(server.url), artifact, DIGEST)
            assert {each.outcome for each in recorded.whole(asked)} == {CheckOutcome.PASSED, CheckOutcome.SKIPPED}
            (artifact / REFERENCE).unlink()
            server.seen.clear()
            proof = Proof(VllmServer(server.url), artifact, DIGEST)
            made = {each.name: each.outcome for each in proof.whole(asked)}
            assert made == {"digest": CheckOutcome.PASSED, "logProbabilities": CheckOutcome.FAILED}
            assert not server.seen
            assert CheckOutcome.FAILED not in {each.outcome for each in proof.whole(OFF)}

    def test_golden_prompts_where_there_are_no_texts(self, artifact: Path) -> None:
        (artifact / REFERENCE).unlink()
        with running(contract()) as server:
            proof = Proof(VllmServer(server.url), artifact, DIGEST)
            proof.whole(OFF)
            assert [proof.moved(turn) for turn in range(4)] == [""] * 4
            server.answers = [each.model_copy(update={"artifact": "b"}) for each in ANSWERS]
            assert proof.moved(4) == "golden prompt 2: another answer than before"

    @pytest.mark.parametrize(("queue", "waiting"), [(0, 0), (7, 7), (None, None), (math.nan, None), (math.inf, None)])
    def test_the_queue_is_that_of_the_servers_metrics(self, queue: float | None, waiting: int | None) -> None:
        with running(contract()) as server:
            server.waiting = queue
            assert VllmServer(server.url).waiting() == waiting
        assert VllmServer(server.url).waiting() is None, "it is gone"


@pytest.mark.slow
class TestProcess:
    """The sidecar beside a server whose weights change under it, and one that starts again with wrong ones."""

    def test_a_proved_server_that_changes_is_disproved(self, artifact: Path, tmp_path: Path) -> None:
        with running(contract()) as server, sidecar(server.url, artifact, tmp_path) as pod:
            pod.until(lambda: pod.ready() == 200, "it is ready")
            server.references, server.waiting = wrong(TEXTS), 3
            asked = len(server.seen)
            pod.limits(SelfCheckLimits(watch_seconds=1))  # no process starts anew for this
            pod.until(lambda: server.looked_at >= 2, "it has looked twice")
            assert (pod.ready(), len(server.seen)) == (200, asked), "a busy server is asked nothing"
            server.failure, server.waiting = (503, "overloaded"), 0
            pod.until(lambda: len(server.seen) >= asked + 2, "it has asked twice")
            assert pod.ready() == 200, "no answer is no wrong one"
            server.failure = None
            failed = pod.result()
        assert (pod.code(), failed.reason) == (ExitCode.FATAL, Reason.VERIFICATION_FAILED)
        assert_says(
            failed.message, "Its server, which had passed before, fails the check logProbabilities", "seen 1.000"
        )
        assert {check.name for check in failed.checks if check.outcome is CheckOutcome.FAILED} == {"logProbabilities"}

    def test_a_server_that_starts_again_is_proved_anew(self, artifact: Path, tmp_path: Path) -> None:
        with ExitStack() as servers, sidecar(servers.enter_context(running(contract())).url, artifact, tmp_path) as pod:
            pod.until(lambda: pod.ready() == 200, "it is ready")
            servers.close()
            assert pod.code() == ExitCode.OK
        with running(contract(wrong(TEXTS))) as server, sidecar(server.url, artifact, tmp_path) as pod:
            assert_says(pod.result().message, "Its server fails the check logProbabilities")

    def test_limits_that_cannot_be_read_are_no_fault_of_the_server(self, artifact: Path, tmp_path: Path) -> None:
        with running(contract()) as server, sidecar(server.url, artifact, tmp_path, limits="{") as pod:
            found = pod.result()
        assert (pod.code(), found.reason) == (ExitCode.RETRIABLE, Reason.INTERNAL_ERROR)
        assert_says(found.message, "limits cannot be read", "limits.json")


class Sidecar:
    """A self-check as its container runs it."""

    def __init__(self, endpoint: str, artifact: Path, folder: Path, limits: str) -> None:
        self._port, self._limits, self._result = free_port(), folder / "limits.json", folder / "result.json"
        options = {"--artifact": artifact, "--digest": DIGEST, "--engine": "vllm", "--endpoint": endpoint}
        options |= {"--limits": self._limits, "--result": self._result, "--port": self._port}
        words = [str(part) for pair in options.items() for part in pair]
        self._result.unlink(missing_ok=True)
        self._limits.write_text(limits)
        self.process = forked.start(["finetune_jobs.self_check", *words], os.environ)

    def limits(self, limits: SelfCheckLimits) -> None:
        """Write them as the kubelet does: another file takes the place of the one before."""
        new = self._limits.with_suffix(".new")
        new.write_text(limits.model_dump_json(by_alias=True))
        new.replace(self._limits)

    def ready(self) -> int:
        """What the kubelet is answered; 0: nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/ready", timeout=60) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError:
            return 0

    def until(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 180
        while not reached():
            assert self.process.poll() is None, f"it ended before {what}"
            assert time.monotonic() < deadline, what
            time.sleep(0.05)

    def code(self) -> int:
        return self.process.wait(timeout=180)

    def result(self) -> StageResult:
        """What it leaves in its termination message."""
        self.code()
        return StageResult.model_validate(json.loads(self._result.read_text()))


@contextmanager
def sidecar(
    endpoint: str, artifact: Path, folder: Path, limits: str = OFF.model_dump_json(by_alias=True)
) -> Iterator[Sidecar]:
    started = Sidecar(endpoint, artifact, folder, limits)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()
