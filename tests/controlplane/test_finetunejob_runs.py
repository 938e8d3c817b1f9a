"""FineTuneJobs from creation to artifact on a real API server, undisturbed."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.gates import GateOutcome, GoalStatus, packed
from finetune_api.job_status import Phase, StageState
from finetune_api.reasons import REMEDIES, Reason
from finetune_api.stages import PIPELINE, Stage, StageInput
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, PODS, Object
from finetune_operator.kinds import FINETUNEJOBS
from tests.controlplane.conftest import ADDED_LATER, Team, condition, newer_crds, ready, wait
from tests.support.fake_node import Ending, failed

pytestmark = pytest.mark.controlplane


@contextmanager
def metrics_page(address: str, page: str) -> Iterator[None]:
    """The metrics endpoint of a pod, on the loopback address that the fake node gives to its pods."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer((address, meta.METRICS_PORT), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield
        server.shutdown()


def test_main_job(team: Team) -> None:
    """Six Jobs in order, each once; the status holds data, scores and artifact; events tell the edges."""
    team.start()
    team.create("main")
    status = team.until("main", Phase.SUCCEEDED)
    assert [stage for stage, _ in team.node.started] == [Stage.RESOLVE, *PIPELINE]
    assert [row.state for row in status.stages] == [StageState.SUCCEEDED] * 6
    assert status.stages_done == "5/5"
    assert status.dataset is not None
    assert status.dataset.rows.train == 472
    assert status.evaluation is not None
    assert status.evaluation.accuracy.artifact == "0.94"
    assert status.artifact is not None
    assert status.artifact.uri == f"s3://artifacts/team/artifacts/{status.artifact.digest}"
    assert {kind: condition(status, kind) for kind in ("Ready", "Complete", "Reconciling", "Stalled", "Failed")} == {
        "Ready": "True",
        "Complete": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "Failed": "False",
    }
    wait(lambda: ("Normal", "RunSucceeded") in team.events("main"), "the last event")
    events = team.events("main")
    assert events[0] == ("Normal", "RunStarted")
    assert [reason for _, reason in events].count("StageSucceeded") == 6


def test_the_log_has_json_lines_only_and_no_probes(team: Team) -> None:
    operator = team.start()
    operator.wait_ready()
    for _ in range(3):
        operator.healthz()
    logged = [json.loads(line) for line in (team.directory / "operator.log").read_text().splitlines()]
    assert not [line for line in logged if "probe" in str(line) or "healthz" in str(line) or "_seconds" in str(line)]


def test_results_survive_the_resource(team: Team) -> None:
    """Deleted and applied again, without status: everything is reused, and only resolve gets a Job."""
    team.start()
    team.create("again")
    first = team.until("again", Phase.SUCCEEDED)
    team.delete("again")
    team.create("again")
    second = team.until("again", Phase.SUCCEEDED)
    assert len(team.node.store.executed) == len(PIPELINE)
    assert [job["metadata"]["labels"][meta.LABEL_STAGE] for job in team.jobs("again")] == [Stage.RESOLVE]
    assert [row.state for row in second.stages] == [StageState.SUCCEEDED] + [StageState.REUSED] * 5
    assert second.artifact == first.artifact
    assert second.evaluation == first.evaluation


def test_wrong_credentials_then_rerun(team: Team) -> None:
    """A failed run names the root cause and stays; a new value of rerun starts another, and the first is history."""
    team.node.scripts[Stage.RESOLVE] = lambda given: failed(given.stage, Reason.S3_ACCESS_DENIED, "s3://artifacts: 403")
    team.start()
    team.create("keys")
    status = team.until("keys", Phase.FAILED)
    assert ready(status) is Reason.S3_ACCESS_DENIED
    assert condition(status, "Stalled") == condition(status, "Failed") == "True"
    message = next(each.message for each in status.conditions if each.type == "Ready")
    assert message.startswith("resolve: s3://artifacts: 403")
    assert REMEDIES[Reason.S3_ACCESS_DENIED] in message
    assert len(team.node.started) == 1, "what cannot succeed is not tried again"
    del team.node.scripts[Stage.RESOLVE]
    team.change("keys", rerun="with-new-keys")
    status = team.until("keys", Phase.SUCCEEDED)
    assert status.run is not None
    assert status.run.number == 2
    assert [(run.number, run.outcome, run.reason) for run in status.runs] == [(1, Phase.FAILED, "S3AccessDenied")]


def test_a_missed_goal_then_another_goal(team: Team) -> None:
    """Nothing is published, the status says what was reached, and with other goals only publish runs again."""
    found = packed([GoalStatus(goal="", value="0.9400", low="0.84", high="0.98", outcome=GateOutcome.FAIL)])
    missed = failed(Stage.PUBLISH, Reason.GATE_FAILED, "Missed accuracy at least 0.99: 0.9400.")
    assert missed.result
    result = missed.result.model_copy(update={"scalars": {"goals": found}})
    team.node.scripts[Stage.PUBLISH] = lambda given: (
        replace(missed, result=result)
        if given.params.publish and given.params.publish.gates.goals[0].at_least == "0.99"
        else team.node.store.run(given)
    )
    team.start()
    team.create("goals", evaluation={"goals": [{"metric": "accuracy", "atLeast": "0.99"}]})
    status = team.until("goals", Phase.FAILED)
    assert ready(status) is Reason.GATE_FAILED
    message = next(each.message for each in status.conditions if each.type == "Ready")
    assert message.startswith("publish: Missed accuracy at least 0.99: 0.9400.")
    assert REMEDIES[Reason.GATE_FAILED] in message
    assert status.artifact is None
    assert status.evaluation is not None
    [goal] = status.evaluation.goals
    assert (goal.goal, packed([goal])) == ("accuracy at least 0.99", found)
    assert status.evaluation.goals_met == "0/1"
    team.node.store.executed.clear()
    team.change("goals", evaluation={"goals": [{"metric": "accuracy", "atLeast": "0.80"}]})
    status = team.until("goals", Phase.SUCCEEDED)
    assert team.node.store.executed == [Stage.PUBLISH]
    assert status.artifact is not None


def test_a_changed_spec_after_the_end_starts_a_run_that_reuses_what_is_the_same(team: Team) -> None:
    """Only the stages whose input changed are done again."""
    team.start()
    team.create("tuned")
    team.until("tuned", Phase.SUCCEEDED)
    team.change("tuned", training={"epochs": 5})
    wait(lambda: (run := team.status("tuned").run) is not None and run.number == 2, "run 2")
    status = team.until("tuned", Phase.SUCCEEDED)
    assert team.node.store.executed.count(Stage.PREPARE) == 1
    assert team.node.store.executed.count(Stage.TRAIN) == 2
    assert [row.state for row in status.stages][:3] == [
        StageState.SUCCEEDED,
        StageState.REUSED,
        StageState.SUCCEEDED,
    ]


def test_objects_of_runs_that_are_over_go(team: Team) -> None:
    """Of two runs: Jobs, pods and inputs, after their time. The status keeps both, and nothing is done again."""
    keep = 2
    team.start(keep_ended_seconds=keep, resync_seconds=10)
    team.create("tidy")
    team.until("tidy", Phase.SUCCEEDED)
    team.change("tidy", training={"epochs": 5})
    wait(lambda: (run := team.status("tidy").run) is not None and run.number == 2, "run 2")
    status = team.until("tidy", Phase.SUCCEEDED)
    owned = f"{meta.LABEL_OWNER_NAME}=tidy"
    wait(lambda: not any(team.api.select(kind, team.namespace, owned) for kind in (JOBS, PODS, CONFIG_MAPS)), "it")
    assert status.run is not None
    assert datetime.now(UTC) - parse_timestamp(status.run.finished_at or "") >= timedelta(seconds=keep)
    started = len(team.node.started)
    time.sleep(12)
    assert team.status("tidy") == status
    assert [run.number for run in status.runs] == [1]
    assert len(team.node.started) == started


def working(team: Team, name: str, stage: Stage) -> bool:
    """Whether the status says that a stage's pod is at work."""
    return any(row.name == stage and row.working_since for row in team.status(name).stages)


def test_a_running_spec_is_frozen(team: Team) -> None:
    """The API server refuses the change, in words that say what to do."""
    team.node.scripts[Stage.RESOLVE] = lambda given: None
    team.start()
    team.create("frozen")
    wait(lambda: working(team, "frozen", Stage.RESOLVE), "resolve to work")
    with pytest.raises(ApiError, match=r"set spec\.suspend to true first") as refused:
        team.change("frozen", training={"epochs": 5})
    assert refused.value.status == 422


def test_what_may_change_ends_no_run(team: Team) -> None:
    """The training goes on in its pod; the stages after it use what the spec says by then."""
    held = threading.Event()
    seen: list[str] = []

    def export(given: StageInput) -> Ending | None:
        seen.append(given.storage.secret_ref.name if given.storage.secret_ref else "")
        return team.node.store.run(given)

    team.node.scripts[Stage.TRAIN] = lambda given: team.node.store.run(given) if held.is_set() else None
    team.node.scripts[Stage.EXPORT] = export
    team.start()
    team.create("live", budget={"maxCost": "5"}, storage={"secretRef": {"name": "old"}})
    wait(lambda: working(team, "live", Stage.TRAIN), "train to work")
    team.change("live", storage={"secretRef": {"name": "new"}}, budget={"maxCost": "9"})
    team.change("live", retention={"checkpoints": 0}, tracking={"mlflow": {"url": "http://mlflow:5000"}})
    wait(lambda: team.status("live").observed_generation == 3, "both changes to be seen")
    held.set()
    status = team.until("live", Phase.SUCCEEDED)
    assert status.run is not None
    assert (status.run.number, status.runs) == (1, [])
    assert [row.attempts for row in status.stages] == [1] * 6
    assert seen == ["new"]
    team.change("live", storage={"secretRef": {"name": "newer"}})
    wait(lambda: team.status("live").observed_generation == 4, "the change to be seen")
    assert team.status("live").run == status.run.model_copy(update=newest(team, "live"))


def newest(team: Team, name: str) -> dict[str, Any]:
    """What of a run follows the spec."""
    run = team.status(name).run
    assert run is not None
    return {"generation": run.generation, "means_hash": run.means_hash}


def test_suspend_and_resume(team: Team) -> None:
    """The running stage's pod goes, finished stages stay, and the same Job goes on."""
    held = threading.Event()
    team.node.scripts[Stage.TRAIN] = lambda given: team.node.store.run(given) if held.is_set() else None
    team.start()
    team.create("pause")
    wait(lambda: team.node.started and team.node.started[-1][0] is Stage.TRAIN, "train to run")
    team.until("pause", Reason.STAGE_STARTED)
    team.change("pause", suspend=True)
    team.until("pause", Phase.SUSPENDED)
    pods = f"{meta.LABEL_STAGE}={Stage.TRAIN}"
    wait(lambda: not team.api.select(PODS, team.namespace, pods), "the pod to go")
    assert team.jobs("pause", Stage.TRAIN)[0]["spec"]["suspend"] is True
    assert condition(team.status("pause"), "Suspended") == "True"
    held.set()
    team.change("pause", suspend=False)
    team.until("pause", Phase.SUCCEEDED)
    assert len(team.jobs("pause", Stage.TRAIN)) == 1
    assert [reason for _, reason in team.events("pause") if reason in ("Suspended", "Resumed")] == [
        "Suspended",
        "Resumed",
    ]


def test_somebody_elses_suspension_is_left_alone(team: Team) -> None:
    """Told with the Job's name; the run goes on when they resume it, and our own suspension is still ours to end."""
    held = threading.Event()
    team.node.scripts[Stage.TRAIN] = lambda given: team.node.store.run(given) if held.is_set() else None
    team.start()
    team.create("theirs")
    team.until("theirs", Reason.STAGE_STARTED)
    job = wait(lambda: team.jobs("theirs", Stage.TRAIN), "train")[0]["metadata"]["name"]
    wait(lambda: team.node.started and team.node.started[-1][0] is Stage.TRAIN, "train to run")
    team.api.patch(JOBS, team.namespace, job, {"spec": {"suspend": True}})
    status = team.until("theirs", Reason.JOB_SUSPENDED)
    assert (status.phase, condition(status, "Stalled")) == (Phase.PENDING, "True")
    assert f"Job {job}" in next(each.message for each in status.conditions if each.type == "Stalled")
    team.change("theirs", suspend=True)
    team.until("theirs", Phase.SUSPENDED)
    team.change("theirs", suspend=False)
    team.until("theirs", Reason.JOB_SUSPENDED)
    assert team.jobs("theirs", Stage.TRAIN)[0]["spec"]["suspend"] is True
    held.set()
    team.api.patch(JOBS, team.namespace, job, {"spec": {"suspend": False}})
    team.until("theirs", Phase.SUCCEEDED)
    assert len(team.jobs("theirs", Stage.TRAIN)) == 1


def test_a_spec_changed_while_suspended_starts_a_new_run(team: Team) -> None:
    """Nothing of the old run goes on: its Job is deleted, and its end is in the history."""
    team.node.scripts[Stage.TRAIN] = lambda given: (
        team.node.store.run(given) if given.params.train and given.params.train.training.epochs == 5 else None
    )
    team.start()
    team.create("swap")
    wait(lambda: team.node.started and team.node.started[-1][0] is Stage.TRAIN, "train to run")
    team.change("swap", suspend=True)
    team.until("swap", Phase.SUSPENDED)
    team.change("swap", training={"epochs": 5}, suspend=False)
    status = team.until("swap", Phase.SUCCEEDED)
    assert [(run.outcome, run.reason) for run in status.runs] == [(Phase.FAILED, "SpecChanged")]
    assert len(team.jobs("swap", Stage.TRAIN)) == 1


def test_an_operator_that_is_older_than_the_crds(team: Team) -> None:
    """As after its rollback: what has ended stays, what runs goes on and stays frozen, what is new is made."""
    held = threading.Event()
    team.node.scripts[Stage.TRAIN] = lambda given: (
        team.node.store.run(given) if given.run.name != "running" or held.is_set() else None
    )
    newer = team.start()
    team.create("finished")
    team.until("finished", Phase.SUCCEEDED)
    team.create("running", reuse="Never")
    wait(lambda: working(team, "running", Stage.TRAIN), "train to work")
    newer.stop()
    unknown = {"status": {"artifact": {"format": "FP8"}}}
    team.api.patch_status(FINETUNEJOBS, team.namespace, "finished", unknown)
    finished = team.status("finished")
    with newer_crds(team.plane):
        wait(lambda: ADDED_LATER in _spec(team, "finished")["storage"], "the CRDs")
        assert all(ADDED_LATER in source for source in _spec(team, "running")["dataset"]["sources"])
        team.start()
        team.create("new", storage={"region": "eu-west-1", ADDED_LATER: False}, reuse="Never")
        team.until("new", Phase.SUCCEEDED)
        assert team.status("finished") == finished
        with pytest.raises(ApiError, match="spec is frozen"):
            team.change("running", rerun="2")
        team.change("running", suspend=True)
        team.until("running", Phase.SUSPENDED)
        held.set()
        team.change("running", suspend=False)
        team.until("running", Phase.SUCCEEDED)
        assert len(team.jobs("running", Stage.TRAIN)) == 1
    log = (team.directory / "operator.log").read_text()
    assert log.count("FineTuneJob: spec.storage.addedLater is ignored: the CRDs are newer") == 1


def _spec(team: Team, name: str) -> Object:
    found = team.api.get(FINETUNEJOBS, team.namespace, name)
    assert found is not None
    spec: Object = found["spec"]
    return spec


def test_progress_is_read_from_the_pod(team: Team) -> None:
    """Percent, time left and a message, from the pod's metrics."""
    team.node.scripts[Stage.RESOLVE] = lambda given: None
    gauges = ("progress_ratio 0.42", "eta_seconds 77.0", 'info{message="step 5"} 1.0')
    page = "".join(f"finetune_stage_{gauge}\n" for gauge in gauges)
    with metrics_page(team.node.address, page):
        team.start()
        team.create("bar")
        progress = wait(lambda: found if (found := team.status("bar").progress) and found.percent else None, "progress")
    assert (progress.stage, progress.percent) == ("resolve", 42)
    assert (progress.eta_seconds, progress.message) == (77, "step 5")


def test_nothing_is_written_at_rest(team: Team) -> None:
    """A finished, a failed, a suspended, a waiting and a running job, resynced meanwhile: no write, no event."""
    team.node.scripts[Stage.RESOLVE] = lambda given: (
        failed(given.stage, Reason.BUCKET_NOT_FOUND, "no bucket")
        if given.run.name == "failed"
        else None
        if given.run.name == "running"
        else team.node.store.run(given)
    )
    operator = team.start(resync_seconds=10)
    team.create("running")
    team.create("failed")
    team.create("finished")
    team.create("suspended", suspend=True)
    team.create("waiting", profile="unknown")
    team.until("finished", Phase.SUCCEEDED)
    team.until("failed", Phase.FAILED)
    team.until("suspended", Phase.SUSPENDED)
    team.until("waiting", Reason.PROFILE_UNKNOWN)
    wait(lambda: working(team, "running", Stage.RESOLVE), "resolve to work")
    operator.wait_idle()
    before = team.writes()
    time.sleep(12)
    assert team.writes()[len(before) :] == []
