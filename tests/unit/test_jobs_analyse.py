"""The stage analyse reads the metrics of servers that fail, or are slow, as planned."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.compatibility import TGI, VLLM
from finetune_api.endpoint_stages import AnalyseParams
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome, Params, Stage, StageInput, StageResult
from finetune_jobs.analyse import analyse
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime.runner import execute
from finetune_jobs.verification.engine import ANSWERED, FAILED, FIRST_TOKEN_SECONDS, REQUEST_SECONDS
from finetune_jobs.verification.servers import client_of
from tests.support.closed_port import closed_port
from tests.support.model_metrics import MetricsServer, Traffic, serving
from tests.support.seaweedfs import User
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT, context, run_process

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ENGINES = [VLLM, TGI]
FINE = Traffic(answered=60)
TWO_LOOKS_S = 3
"""Enough for a second look on a busy machine, without which there is no verdict."""


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same readings, ten times as often."""
    monkeypatch.setattr("finetune_jobs.analyse._SHORTEST", 0.1)


def given(canary: list[MetricsServer], stable: list[MetricsServer], seconds: float, **fields: Any) -> StageInput:
    """The input for these servers, with so many seconds until the verdict."""
    params: dict[str, Any] = {
        "engine": canary[0].engine if canary else VLLM,
        "stable_engine": stable[0].engine if stable else VLLM,
        "canary": [each.url for each in canary],
        "stable": [each.url for each in stable],
        "until": f"{datetime.now(UTC) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S.%fZ}",
        "min_requests": 50,
        "max_error_increase": 0.01,
        "max_latency_increase": 0.5,
    }
    return StageInput(
        stage=Stage.ANALYSE,
        run=DEPLOYMENT,
        artifact_uri=f"s3://models/artifacts/{'a' * 64}",
        artifact_digest="a" * 64,
        params=Params(analyse=AnalyseParams(**params | fields)),
    )


def run(asked: StageInput, folder: Path) -> StageResult:
    return execute(context(asked, folder), analyse)


def run_all(asked: Sequence[StageInput], folder: Path) -> list[StageResult]:
    """Several at the same time, since each waits until it may judge."""
    contexts = [context(each, folder) for each in asked]
    with ThreadPoolExecutor(len(contexts)) as threads:
        return list(threads.map(lambda each: execute(each, analyse), contexts))


@pytest.mark.parametrize("engine", ENGINES)
def test_each_engines_own_counts_are_read(engine: str) -> None:
    server = MetricsServer(engine, Traffic(answered=10, failed=4, refused=7, aborted=3, seconds=0.4))
    with serving(server):
        client = client_of(engine, server.url)
        assert not any(client.counts().values())
        found = client.counts()
    assert found[ANSWERED, ""] == 10
    assert max(value for (count, _), value in found.items() if count == FAILED) == 4
    times = [REQUEST_SECONDS, FIRST_TOKEN_SECONDS] if engine == VLLM else [REQUEST_SECONDS]
    assert {count for count, _ in found} - {ANSWERED, FAILED} == set(times)
    for time in times:
        counted = {float(part): value for (count, part), value in found.items() if count == time}
        assert counted[float("inf")] == 10
        assert min(bound for bound, value in counted.items() if value == 10) >= 0.4
        assert max(bound for bound, value in counted.items() if value == 0) < 0.4


def test_a_canary_as_good_as_what_serves_passes(tmp_path: Path) -> None:
    canaries = [MetricsServer(engine, FINE) for engine in ENGINES]
    restarting = Traffic(answered=60, restarts=True)
    stable = [[MetricsServer(engine, FINE), MetricsServer(engine, restarting)] for engine in ENGINES]
    with serving(*canaries, *stable[0], *stable[1]):
        asked = [given([one], others, TWO_LOOKS_S) for one, others in zip(canaries, stable, strict=True)]
        results = run_all(asked, tmp_path)
    for engine, canary, result in zip(ENGINES, canaries, results, strict=True):
        assert (result.outcome, result.scalars["analysis"]) == (Outcome.SUCCEEDED, "Passed"), result
        # Between two readings each pod answers sixty; a server that starts again loses none.
        readings = canary.readings - 1
        assert result.scalars["requests"] == str(60 * readings)
        assert result.scalars["stableRequests"] == str(120 * readings)
        assert_says(result.message, f"0 of {60 * readings}", "95 %")
        outcomes = ["Passed", "Passed", "Passed" if engine == VLLM else "Skipped"]
        assert [check.outcome for check in result.checks] == outcomes


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("traffic", "check", "said"),
    [
        (Traffic(answered=40, failed=20), "failedRequests", ["requests failed", "maxErrorIncrease"]),
        (Traffic(answered=60, seconds=4), "requestSeconds", ["requests were slow", "maxLatencyIncrease"]),
    ],
    ids=["errors", "slow"],
)
def test_a_worse_canary_fails_long_before_the_time_is_over(
    engine: str, traffic: Traffic, check: str, said: list[str], tmp_path: Path
) -> None:
    canary, stable = [MetricsServer(engine, traffic)], [MetricsServer(engine, Traffic(answered=200))]
    with serving(*canary, *stable), pytest.raises(StageError) as caught:
        run(given(canary, stable, 3600), tmp_path)
    assert caught.value.reason is Reason.ANALYSIS_FAILED
    assert not caught.value.retriable
    assert_says(caught.value.message, *said)
    assert next(each for each in caught.value.checks if each.name == check).outcome == "Failed"


def test_what_a_client_asks_wrongly_or_gives_up_is_no_failure(tmp_path: Path) -> None:
    canaries = [MetricsServer(engine, Traffic(answered=60, refused=50, aborted=50)) for engine in ENGINES]
    stable = [MetricsServer(engine, FINE) for engine in ENGINES]
    with serving(*canaries, *stable):
        asked = [given([one], [other], TWO_LOOKS_S) for one, other in zip(canaries, stable, strict=True)]
        results = run_all(asked, tmp_path)
    assert [result.scalars["analysis"] for result in results] == ["Passed", "Passed"]


def test_few_requests_are_no_verdict(tmp_path: Path) -> None:
    canary, stable = [MetricsServer(TGI, Traffic(answered=2))], [MetricsServer(TGI, FINE)]
    with serving(*canary, *stable):
        result = run(given(canary, stable, 1), tmp_path)
    assert (result.outcome, result.scalars["analysis"]) == (Outcome.SUCCEEDED, "Inconclusive")
    assert_says(result.message, f"had {result.scalars['requests']} requests", "50 of each", "minRequests")


def test_metrics_that_cannot_be_read_are_no_verdict_and_say_why(tmp_path: Path) -> None:
    stable, gone = MetricsServer(VLLM, FINE), MetricsServer(VLLM)
    with serving(stable), closed_port() as port:
        gone.url = f"http://127.0.0.1:{port}"
        result = run(given([gone], [stable], 0), tmp_path)
        empty = run(given([], [stable], 0), tmp_path)
    assert (result.scalars["analysis"], empty.scalars["analysis"]) == ("Inconclusive", "Inconclusive")
    assert_says(result.message, "No metrics were read", "canary", gone.url, "did not answer")
    assert_says(empty.message, "canary: It has no pods")


def test_one_pod_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    canary, stable, gone = MetricsServer(TGI, FINE), MetricsServer(TGI, FINE), MetricsServer(TGI)
    with serving(canary, stable), closed_port() as port:
        gone.url = f"http://127.0.0.1:{port}"
        result = run(given([canary, gone], [stable], TWO_LOOKS_S), tmp_path)
    assert result.scalars["analysis"] == "Passed"


def test_as_a_process_without_any_credentials(tmp_path: Path) -> None:
    canary, stable = [MetricsServer(VLLM, Traffic(failed=30))], [MetricsServer(VLLM, FINE)]
    with serving(*canary, *stable):
        ended = run_process(given(canary, stable, 3600), tmp_path, User("", "", ()), fresh=True)
    assert ended.code == meta.ExitCode.FATAL
    assert (ended.result.stage, ended.result.reason) == (Stage.ANALYSE, Reason.ANALYSIS_FAILED)
    assert_says(ended.result.message, "30 of 30 (100.0 %)", "maxErrorIncrease")
    assert ended.result.checks[0].name == "failedRequests"


def test_an_engine_that_this_image_does_not_know_is_said_at_once(tmp_path: Path) -> None:
    server = MetricsServer(VLLM)
    with serving(server), pytest.raises(StageError) as caught:
        run(given([server], [server], 3600, engine="sglang"), tmp_path)
    assert_says(caught.value.message, "sglang", "images.data")
