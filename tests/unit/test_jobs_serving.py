"""From evaluate's answers to a verified server: the real stages, real checkpoints, the real stand-in for TGI."""

import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from finetune_api.endpoint_stages import LatencyObjectives, SelfCheckLimits, VerifyParams
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome
from finetune_api.stages import Params, Stage, StageInput, StageResult
from finetune_jobs.base.errors import StageError
from finetune_jobs.fetch import fetch
from finetune_jobs.runtime.runner import execute
from finetune_jobs.self_check import Gate, Options, self_check
from finetune_jobs.verify import verify
from tests.support import forked
from tests.support.artifacts import publish_artifact
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import DEPLOYMENT, context
from tests.support.tgi_process import tgi_cpu
from tests.support.tiny_model import build_tiny_llama

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.usefixtures("own_client")]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is still loading is asked again soon."""
    monkeypatch.setattr("finetune_jobs.verification.connection._POLL_SECONDS", 0.05)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return build_tiny_llama(tmp_path / "base", seed=1)


@pytest.fixture
def published(s3: SeaweedFS, place: str, base: Path, tmp_path: Path) -> StageResult:
    """An artifact whose recorded answers are those of real models."""
    tuned = build_tiny_llama(tmp_path / "tuned", seed=2)
    return publish_artifact(s3.storage, place, tmp_path, base=base, tuned=tuned)


class SelfChecking:
    """The self-check of a pod whose server a test starts and stops."""

    def __init__(self, home: Path, digest: str, work: Path) -> None:
        self._home, self._digest, self._work = home, digest, work
        self._limits = work / "limits.json"
        self._limits.write_text(SelfCheckLimits().model_dump_json(by_alias=True))
        self._gate = Gate(0)
        self._thread: threading.Thread | None = None

    def begin(self, endpoint: str) -> None:
        """Beside a server that may still load its model."""
        assert self.status() == 503
        options = Options(self._home / "artifact", self._digest, "tgi", endpoint, self._limits, "-", 0)
        self._thread = threading.Thread(target=self_check, args=(options, self._gate), daemon=True)
        self._thread.start()

    def status(self) -> int | str:
        """What the kubelet is answered."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._gate.port}/ready", timeout=60) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError:
            return "refused"

    def until_ready(self) -> None:
        """Wait until the pod has proved itself."""
        deadline = time.monotonic() + 180
        while self.status() != 200:
            assert self._thread
            assert self._thread.is_alive(), "it failed"
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def until_ended(self) -> None:
        """It ends by itself, since the server has ended."""
        assert self._thread
        self._thread.join(timeout=180)
        assert not self._thread.is_alive()
        self._gate.close()

    def as_process(self, endpoint: str) -> StageResult:
        """The result of one that fails, as its container leaves it."""
        result = self._work / "result.json"
        options = {"--artifact": self._home / "artifact", "--digest": self._digest, "--engine": "tgi"}
        options |= {"--endpoint": endpoint, "--limits": self._limits, "--result": result, "--port": 0}
        command = ["finetune_jobs.self_check", *(str(p) for pair in options.items() for p in pair)]
        done = forked.run(command, os.environ)
        assert done.returncode == ExitCode.FATAL, done.stderr
        assert [json.loads(line)["stage"] for line in done.stderr.splitlines()][-1] == "self-check"
        return StageResult.model_validate_json(result.read_text())


def test_only_the_artifact_itself_passes(s3: SeaweedFS, published: StageResult, base: Path, tmp_path: Path) -> None:
    def run(stage: Stage, endpoint: str = "", **objectives: float) -> StageResult:
        params = VerifyParams(
            endpoint=endpoint,
            samples=12,
            min_agreement_percent=75,
            timeout_seconds=180,
            objectives=LatencyObjectives(**objectives),
        )
        given = StageInput(
            stage=stage,
            run=DEPLOYMENT,
            storage=s3.storage,
            artifact_uri=published.scalars["artifactUri"],
            params=Params(verify=params),
        )
        return execute(context(given, tmp_path), fetch if stage is Stage.FETCH else verify)

    run(Stage.FETCH)
    model = tmp_path / "models" / published.output_digest / "model"
    recording = {"ENABLE_PREFILL_LOGPROBS": "true"}
    checking = SelfChecking(model.parent, published.output_digest, tmp_path)
    with tgi_cpu(model, tmp_path, env=recording, fresh=False) as server:
        result = run(Stage.VERIFY, server.url, first_token=100)
        with pytest.raises(StageError, match=r"timeToFirstToken: expected at most 0 ms .* ms at p95 of 18 streams"):
            run(Stage.VERIFY, server.url, first_token=1e-6)
        # Not beside a verification, which replaces the process's HTTP client: they are processes of their own in pods.
        checking.begin(server.url)
        checking.until_ready()
    checking.until_ended()
    assert result.scalars == {
        "samples": "12",
        "accuracy": "1.0000",
        "expectedAccuracy": "1.0000",
        "agreementPercent": "100",
    }
    # TGI takes any name; these models answer at random, until the limit, in parts of characters that no stream shows.
    unsure = {"modelName", "finishReason", "positions", "timePerOutputToken"}
    assert {check.name for check in result.checks if check.outcome is not CheckOutcome.PASSED} <= unsure
    assert len(result.checks) == 13
    with (
        tgi_cpu(model, tmp_path, env=recording | {"MAX_CONCURRENT_REQUESTS": "1"}, fresh=False) as server,
        pytest.raises(StageError, match=r"second attempt: an error in a stream: Model is overloaded") as error,
    ):
        run(Stage.VERIFY, server.url)
    assert (error.value.reason, error.value.retriable) == (Reason.CANDIDATE_FAILED, True)
    with (
        tgi_cpu(model, tmp_path, fresh=False) as server,
        pytest.raises(StageError, match=r"logProbabilities.* no probabilities for 8 of 8 texts") as error,
    ):
        run(Stage.VERIFY, server.url)
    assert error.value.reason is Reason.VERIFICATION_FAILED
    with (
        tgi_cpu(model, tmp_path, env={"MAX_INPUT_TOKENS": "3", "MAX_TOTAL_TOKENS": "20"}, fresh=False) as server,
        pytest.raises(StageError, match=r"3 for a prompt .*maxInputTokens.* 20 .*maxTotalTokens") as error,
    ):
        run(Stage.VERIFY, server.url)
    assert error.value.reason is Reason.PROMPTS_TOO_LONG
    for file in base.iterdir():
        shutil.copyfile(file, model / file.name)
    with tgi_cpu(model, tmp_path, env=recording, fresh=False) as server:
        failed = checking.as_process(server.url)
        with pytest.raises(StageError, match=r"differsFromBase.* 0\.0\d\d from the base model") as error:
            run(Stage.VERIFY, server.url)
    assert failed.reason is Reason.ADAPTER_INACTIVE
    assert failed.message.startswith("Its server fails the check differsFromBase: ")
    assert {check.outcome for check in failed.checks if check.name == "digest"} == {CheckOutcome.PASSED}
    assert error.value.reason is Reason.ADAPTER_INACTIVE
