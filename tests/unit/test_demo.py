"""What the demo and the benchmarks show: pure functions of both resources' status."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job_status import FineTuneJobStatus, Progress, StageState, StageStatus
from hack.benchmarks.result import Result, percentile
from hack.cluster.console import ClusterError
from hack.demo import display, outcome, report
from hack.demo.timing import seconds_between
from hack.platform.tiny import tiny_job

pytestmark = pytest.mark.unit

DIGEST = "0" * 64
EARLIER = "1" * 64
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def stage(name: str, state: StageState, message: str = "") -> StageStatus:
    return StageStatus(
        name=name,
        state=state,
        message=message,
        started_at="2026-01-01T00:00:00Z",
        finished_at="2026-01-01T00:01:30Z" if state is StageState.SUCCEEDED else None,
    )


STATUS = FineTuneJobStatus(
    stages=[
        stage("prepare", StageState.SUCCEEDED, "200 rows"),
        stage("train", StageState.RUNNING),
        StageStatus(name="export"),
    ],
    progress=Progress(
        stage="train", percent=40, eta_seconds=12, message="step 4/10 [loss 1.2]", updated_at="2026-01-01T00:02:00Z"
    ),
)


def test_lines_name_each_stage_that_has_begun_and_how_far_it_is() -> None:
    assert display.job_lines(STATUS) == [
        "prepare: Succeeded - 200 rows",
        "train: Running - 40 %, 12 s left (step 4/10 [loss 1.2])",
    ]


def test_the_table_shows_times_of_finished_stages() -> None:
    output = io.StringIO()
    Console(file=output, width=120).print(display.job_table(STATUS))
    assert "90 s" in output.getvalue()


def test_without_a_terminal_every_line_is_printed_once_and_as_it_is() -> None:
    output = io.StringIO()
    with display.Screen(Console(file=output, width=200)) as screen:
        for _ in range(2):
            screen.show("title", lambda: None, display.job_lines(STATUS))
    assert output.getvalue().count("step 4/10 [loss 1.2]") == 1


PROMPTING = (
    "Prompting would not have been enough: artifact against base model with examples, accuracy +58.0 points (95 % "
    "interval +40.1 to +70.2)."
)


def finished() -> tuple[FineTuneJob, AdapterDeployment]:
    """Both resources at the end of a demo."""
    job = tiny_job("demo") | {
        "status": {
            "stages": [
                stage("prepare", StageState.SUCCEEDED).model_dump(by_alias=True),
                stage("evaluate", StageState.SUCCEEDED, "Accuracy 88.0%.").model_dump(by_alias=True),
            ],
            "dataset": {"digest": DIGEST, "labels": 2, "rows": {"read": 10, "invalid": 1, "duplicates": 2, "train": 7}},
            "evaluation": {
                "samples": 50,
                "accuracy": {"base": "0.1000", "fewShot": "0.3000", "tuned": "0.9000", "artifact": "0.8800"},
                "goals": [{"goal": "accuracy at least 0.7", "value": "0.88", "outcome": "Pass"}],
                "f1": {},
                "prompting": PROMPTING,
            },
        }
    }
    deployment = {
        "metadata": {"name": "demo"},
        "spec": {"source": {"fineTuneJob": {"name": "demo"}}, "runtime": "tgi-cpu"},
        "status": {
            "endpoint": "http://demo.team.svc:80",
            "stable": {
                "revision": "r",
                "state": "Serving",
                "artifactDigest": DIGEST,
                "artifactUri": "s3://bucket/artifacts/" + DIGEST,
                "deployment": "demo-r",
                "since": "2026-01-01T00:00:00Z",
                "accuracy": "0.8600",
                "expectedAccuracy": "0.8800",
            },
        },
    }
    return FineTuneJob.model_validate(job), AdapterDeployment.model_validate(deployment)


def test_the_report_holds_what_both_resources_say() -> None:
    figures = report.make(*finished(), seconds={"total": 600.04}).as_json()
    assert figures["accuracy"] == {
        "base": 0.1,
        "fewShot": 0.3,
        "tuned": 0.9,
        "artifact": 0.88,
        "served": 0.86,
        "servedExpected": 0.88,
    }
    assert [goal.startswith("Met accuracy at least 0.7") for goal in figures["goals"]] == [True]
    assert figures["prompting"] == PROMPTING
    assert figures["seconds"] == {"prepare": 90.0, "evaluate": 90.0, "total": 600.0}
    assert figures["rows"]["read"] == 10
    assert figures["endpoint"] == "http://demo.team.svc:80"


@pytest.mark.parametrize("said", [PROMPTING, ""])
def test_whether_prompting_would_have_done_is_told_at_the_end(said: str) -> None:
    job, deployment = finished()
    content = job.model_dump(by_alias=True)
    content["status"]["evaluation"]["prompting"] = said
    figures = report.make(FineTuneJob.model_validate(content), deployment, {})
    assert figures.prompting == said
    output = io.StringIO()
    report.show(figures, "what?", "this", [], Console(file=output, width=200))
    assert said in output.getvalue()
    assert ("prompting" in output.getvalue().split()) is bool(said)


def revision(state: str, digest: str = DIGEST) -> dict[str, Any]:
    """A revision of an AdapterDeployment's status."""
    base = {"revision": "r", "state": state, "artifactDigest": digest, "since": "2026-01-01T00:00:00Z"}
    words = {"reason": "VerificationFailed", "message": "2 of 8 answers differ."}
    return base | words | {"artifactUri": f"s3://bucket/artifacts/{digest}", "deployment": "demo-r"}


def serving(**status: Any) -> AdapterDeployment:
    """An AdapterDeployment with this status."""
    _, deployment = finished()
    return AdapterDeployment.model_validate(deployment.model_dump(by_alias=True) | {"status": status})


def ran(**status: Any) -> FineTuneJob:
    """A FineTuneJob with this status."""
    return FineTuneJob.model_validate(tiny_job("demo", rerun="mine") | {"status": status})


FAILURE = {
    "type": "Ready",
    "status": "False",
    "reason": "S3AccessDenied",
    "message": "No access.",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Ready", "stable": revision("Serving")}, True),
        ({"phase": "Ready", "stable": revision("Serving", EARLIER)}, False),
        ({"phase": "Progressing", "stable": revision("Serving", EARLIER), "candidate": revision("Starting")}, False),
        ({"phase": "Ready", "stable": revision("Serving"), "candidate": revision("Starting", EARLIER)}, False),
        ({"phase": "Degraded", "stable": revision("Serving")}, False),
        ({"phase": "Failed", "candidate": revision("Failed", EARLIER)}, False),
        ({"phase": "Pending"}, False),
        ({}, False),
    ],
)
def test_an_endpoint_counts_when_it_serves_what_was_just_published(status: dict[str, Any], expected: bool) -> None:
    assert outcome.serves(serving(**status), DIGEST) is expected


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"phase": "Failed", "candidate": revision("Failed")}, "VerificationFailed: 2 of 8 answers differ."),
        (
            {"phase": "Degraded", "stable": revision("Serving", EARLIER), "candidate": revision("Failed")},
            "VerificationFailed: 2 of 8 answers differ.",
        ),
        ({"phase": "Failed", "conditions": [FAILURE]}, "S3AccessDenied: No access."),
    ],
)
def test_a_rollout_that_failed_is_told_in_the_operators_words(status: dict[str, Any], words: str) -> None:
    with pytest.raises(ClusterError, match=words):
        outcome.serves(serving(**status), DIGEST)


def test_a_failed_job_is_told_in_the_operators_words() -> None:
    with pytest.raises(ClusterError, match="S3AccessDenied"):
        outcome.artifact_of(ran(phase="Failed", conditions=[FAILURE]))
    assert outcome.artifact_of(ran(phase="Running")) is None


def test_several_adapters_are_served_when_all_of_them_are() -> None:
    adapters = [
        {"name": name, "artifactDigest": digest, "artifactUri": f"s3://bucket/artifacts/{digest}"}
        for name, digest in (("one", DIGEST), ("two", EARLIER))
    ]
    both = serving(phase="Ready", stable=revision("Serving", "2" * 64) | {"artifactUri": "", "adapters": adapters})
    assert outcome.serves(both, EARLIER, DIGEST)
    assert not outcome.serves(both, DIGEST)


GATE = FAILURE | {"reason": "GateFailed", "message": "Missed accuracy at least 0.7."}


def test_a_job_that_its_goals_hold_back_says_why() -> None:
    assert outcome.block_of(ran(phase="Running", conditions=[GATE])) == ""
    assert outcome.block_of(ran(phase="Failed", conditions=[GATE])) == "Missed accuracy at least 0.7."


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"phase": "Succeeded"}, "should have blocked"),
        ({"phase": "Failed", "conditions": [FAILURE]}, "S3AccessDenied: No access."),
    ],
)
def test_a_job_that_should_be_held_back_and_is_not(status: dict[str, Any], words: str) -> None:
    with pytest.raises(ClusterError, match=words):
        outcome.block_of(ran(**status))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"phase": "Progressing", "stable": revision("Serving", EARLIER), "candidate": revision("Verifying")}, ""),
        ({"phase": "Degraded", "stable": revision("Serving", EARLIER), "candidate": revision("Failed", "2" * 64)}, ""),
        ({"phase": "Ready", "stable": revision("Serving", EARLIER)}, ""),
        (
            {"phase": "Degraded", "stable": revision("Serving", EARLIER), "candidate": revision("Failed")},
            "VerificationFailed: 2 of 8 answers differ.",
        ),
    ],
)
def test_an_artifact_is_refused_once_it_has_failed_beside_another_one(status: dict[str, Any], said: str) -> None:
    assert outcome.refusal_of(serving(**status), DIGEST) == said


def test_a_server_that_breaks_has_refused_nothing() -> None:
    broken = revision("Failed") | {"reason": "OutOfMemory", "message": "Pod a was killed."}
    status = {"phase": "Degraded", "stable": revision("Serving", EARLIER), "candidate": broken}
    with pytest.raises(ClusterError, match=r"OutOfMemory: Pod a was killed\."):
        outcome.refusal_of(serving(**status), DIGEST)


@pytest.mark.parametrize(
    "status", [{"phase": "Ready", "stable": revision("Serving")}, {"phase": "Failed", "candidate": revision("Failed")}]
)
def test_an_artifact_that_should_be_refused_and_is_served(status: dict[str, Any]) -> None:
    with pytest.raises(ClusterError, match="wrong weights, or nothing"):
        outcome.refusal_of(serving(**status), DIGEST)


@pytest.mark.parametrize(
    ("resource", "rerun"),
    [
        (ran(), "mine"),
        (ran(phase="Running"), "mine"),
        (ran(phase="Succeeded"), "mine"),
        (ran(phase="Failed"), "2026-01-31T12:00:00Z"),
        (serving(phase="Ready", stable=revision("Serving")), ""),
        (serving(phase="Failed"), "2026-01-31T12:00:00Z"),
        (serving(phase="Degraded", candidate=revision("Failed")), "2026-01-31T12:00:00Z"),
        (serving(phase="Progressing", candidate=revision("Verifying")), ""),
    ],
)
def test_only_what_has_failed_is_tried_again(resource: FineTuneJob | AdapterDeployment, rerun: str) -> None:
    assert outcome.rerun_of(resource, NOW) == rerun


def test_no_report_before_the_end() -> None:
    job, deployment = finished()
    unfinished = job.model_copy(update={"status": FineTuneJobStatus()})
    with pytest.raises(ValueError, match="has not finished"):
        report.make(unfinished, deployment, seconds={})


def test_commands_to_copy_keep_their_brackets() -> None:
    output = io.StringIO()
    command = 'curl -d \'{"messages": [{"role": "user"}]}\''
    report.show(report.make(*finished(), seconds={}), "asked", "answered", [command], Console(file=output, width=200))
    assert command in output.getvalue()


@pytest.mark.parametrize(
    ("begin", "end", "seconds"),
    [
        (None, "2026-01-01T00:00:00Z", None),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z", 5.0),
        ("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:05Z", 5.0),
    ],
)
def test_seconds_between_timestamps(begin: str | None, end: str | None, seconds: float | None) -> None:
    assert seconds_between(begin, end) == seconds


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)])
def test_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], share) == value


def test_a_ratio_needs_a_baseline() -> None:
    assert Result("x", 1.0, "s", None, "").ratio is None
    assert Result("x", 1.0, "s", 2.0, "").ratio == 0.5
