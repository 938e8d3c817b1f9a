"""What keeps a FineTuneJob from running is named with its remedy; the job continues by itself once it is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from finetune_api.custom_metrics import FigureRule
from finetune_api.job_status import Phase, StageState
from finetune_api.meta import LABEL_STAGE
from finetune_api.reasons import REMEDIES, Reason
from finetune_api.stages import PIPELINE, Stage
from finetune_operator.framework.objects import PODS, SERVICE_ACCOUNTS, Object
from finetune_operator.settings import MetricContainer
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.controlplane.conftest import RUNNER, Team, account, condition, ready, wait
from tests.support.fake_node import Ending
from tests.support.sentences import assert_says

pytestmark = pytest.mark.controlplane


def message(team: Team, name: str) -> str:
    """Message of the Ready condition."""
    return next(each.message for each in team.status(name).conditions if each.type == "Ready")


def until_warned(team: Team, name: str, reason: Reason) -> None:
    """Events are written after the status that they are about."""
    wait(lambda: ("Warning", reason.value) in team.events(name), f"the event {reason}")


def test_unknown_profile(team: Team) -> None:
    """The known ones are listed, no Job is made, and the correction starts the run."""
    team.start()
    team.create("big", profile="huge")
    status = team.until("big", Reason.PROFILE_UNKNOWN)
    assert status.phase is Phase.PENDING
    assert condition(status, "Stalled") == "True"
    assert_says(message(team, "big"), "spec.profile is 'huge'", "small.", REMEDIES[Reason.PROFILE_UNKNOWN])
    assert not team.jobs("big")
    team.change("big", profile="small")
    team.until("big", Phase.SUCCEEDED)


def test_metric_containers(team: Team) -> None:
    """Those that are offered are listed; one that fails ends the run at once, and the answers are not asked again."""
    team.start()
    goal = {"metric": "custom", "custom": "brevity.brief", "atLeast": "0.5"}
    team.create("measured", evaluation={"metrics": [{"name": "brevity"}], "goals": [goal]})
    assert condition(team.until("measured", Reason.METRIC_UNKNOWN), "Stalled") == "True"
    assert_says(message(team, "measured"), "spec.evaluation.metrics[0].name is 'brevity'", "offers: none.")
    team.operators[0].stop()

    def crash(pod: Object) -> Object | None:
        if not pod["spec"].get("initContainers"):
            return None
        ended = {"exitCode": 3, "reason": "Error", "message": "no such language"}
        states = {
            "answers": {"terminated": {"exitCode": 0, "reason": "Completed"}},
            "metric-brevity": {"terminated": ended},
        }
        rest = {"image": "", "imageID": "", "ready": False, "restartCount": 0}
        return {
            "phase": "Failed",
            "initContainerStatuses": [{"name": each, "state": state, **rest} for each, state in states.items()],
        }

    team.node.admit = crash
    offered = {"brevity": MetricContainer(image="registry/brevity@sha256:1", figures={"brief": FigureRule()})}
    team.start(metric_containers=offered)
    status = team.until("measured", Phase.FAILED)
    assert ready(status) is Reason.METRIC_FAILED
    assert_says(message(team, "measured"), "Metric 'brevity' exited with code 3: no such language.", "kubectl logs")
    [pod] = [pod for pod in team.api.select(PODS, team.namespace) if pod["spec"].get("initContainers")]
    assert [each["name"] for each in pod["spec"]["initContainers"]] == ["answers", "metric-brevity"]
    assert pod["spec"]["initContainers"][1]["image"] == offered["brevity"].image
    team.node.admit = lambda pod: None
    team.change("measured", rerun="corrected")
    team.until("measured", Phase.SUCCEEDED)


def test_what_the_namespace_may_not_have(team: Team) -> None:
    """Told before any pod starts; it goes on when the spec asks for what is allowed, or the admin allows it."""
    own = f"s3://artifacts/{team.namespace}"
    rule = TenancyRule(namespaces=["team-*"], profiles=["small"], outputs=["s3://artifacts/{namespace}"])
    team.start(tenancy=Tenancy(rules=[rule]))
    team.create("corrected", output={"uri": f"{own}0", "name": "corrected"})
    team.create("permitted", output={"uri": "s3://artifacts/elsewhere", "name": "permitted"})
    for name in ("corrected", "permitted"):
        status = team.until(name, Reason.NOT_ALLOWED)
        assert (status.phase, condition(status, "Stalled")) == (Phase.PENDING, "True")
        assert_says(message(team, name), "spec.output.uri is", f"'{team.namespace}'", f"below {own}.")
        until_warned(team, name, Reason.NOT_ALLOWED)
        assert not team.jobs(name)
    team.change("corrected", output={"uri": f"{own}/results", "name": "corrected"})
    team.until("corrected", Phase.SUCCEEDED)
    team.operators[0].stop()
    more = rule.model_copy(update={"outputs": ["s3://artifacts"]})
    team.start(tenancy=Tenancy(rules=[rule, more]))
    team.until("permitted", Phase.SUCCEEDED)


def test_missing_service_account(team: Team) -> None:
    """Named with its namespace; once it is there, the run begins."""
    missing = team.api.get(SERVICE_ACCOUNTS, team.namespace, RUNNER)
    assert missing is not None
    team.api.delete(SERVICE_ACCOUNTS, team.namespace, RUNNER, missing["metadata"]["uid"])
    team.start()
    team.create("homeless")
    team.until("homeless", Reason.RUNNER_SERVICE_ACCOUNT_MISSING)
    assert_says(message(team, "homeless"), f"'{RUNNER}'", "profile 'small'", f"namespace '{team.namespace}'")
    assert not team.jobs("homeless")
    until_warned(team, "homeless", Reason.RUNNER_SERVICE_ACCOUNT_MISSING)
    team.api.create(SERVICE_ACCOUNTS, account(team.namespace))
    team.until("homeless", Phase.SUCCEEDED)


def test_two_jobs_of_one_output_name(team: Team) -> None:
    """The older one publishes, the younger one waits and says for whom, and goes on when the older one has gone."""
    output = {"uri": "s3://artifacts/team", "name": "shared"}
    team.create("older", output=output)
    time.sleep(1.1)  # creation times are whole seconds; of two in the same one, the uid decides
    team.create("younger", output=output)
    team.start()
    team.until("older", Phase.SUCCEEDED)
    team.until("younger", Reason.OUTPUT_NAME_CONFLICT)
    assert_says(message(team, "younger"), "The older FineTuneJob 'older'", "'shared'", "s3://artifacts/team")
    assert not team.jobs("younger")
    team.create("elsewhere", output=output, storage={"endpoint": "http://another.store.svc:8333"})
    team.until("elsewhere", Phase.SUCCEEDED)
    team.delete("older")
    team.until("younger", Phase.SUCCEEDED)
    assert team.node.store.executed == list(PIPELINE), "the same inputs: everything is reused"


def test_what_is_held_back_itself_holds_no_output(team: Team) -> None:
    """Neither a suspended FineTuneJob nor one that is not allowed keeps a younger one of its output waiting."""
    output = {"uri": "s3://artifacts/team", "name": "shared"}
    team.create("suspended", output=output, suspend=True)
    team.create("refused", output=output, model={"uri": "s3://secret/base"})
    time.sleep(1.1)  # creation times are whole seconds
    team.create("younger", output=output)
    rule = TenancyRule(namespaces=["*"], inputs=["s3://models", "s3://data"])
    team.start(tenancy=Tenancy(rules=[rule]))
    team.until("refused", Reason.NOT_ALLOWED)
    team.until("younger", Phase.SUCCEEDED)
    assert not team.jobs("suspended")


@dataclass(frozen=True)
class PodCase:
    """A pod that cannot start."""

    status: Object
    reason: Reason
    says: str
    stalled: bool = True


def _waiting(reason: str, said: str) -> Object:
    container = {"name": "stage", "image": "example/data", "imageID": "", "ready": False, "restartCount": 0}
    return {"containerStatuses": [container | {"state": {"waiting": {"reason": reason, "message": said}}}]}


POD_CASES = {
    "image": PodCase(
        _waiting("ImagePullBackOff", "Back-off pulling image"),
        Reason.IMAGE_PULL_FAILED,
        "image example/data",
    ),
    "secret": PodCase(
        _waiting("CreateContainerConfigError", 'secret "s3" not found'), Reason.SECRET_MISSING, 'secret "s3" not found'
    ),
    "node": PodCase(
        {
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/1 nodes are available: 1 Insufficient cpu.",
                }
            ]
        },
        Reason.UNSCHEDULABLE,
        "Insufficient cpu",
        stalled=False,
    ),
}


@pytest.mark.parametrize("case", POD_CASES.values(), ids=POD_CASES.keys())
def test_a_pod_that_cannot_start(team: Team, case: PodCase) -> None:
    """The reason is the pod's, the run waits, and goes on when the pod can start."""
    held: dict[str, Any] = {"by": case.status}
    team.node.admit = lambda pod: held["by"]
    team.start()
    team.create("stuck")
    status = team.until("stuck", case.reason)
    assert status.phase is Phase.PENDING
    assert condition(status, "Stalled") == str(case.stalled)
    assert case.says in message(team, "stuck")
    held["by"] = None
    team.until("stuck", Phase.SUCCEEDED)


@pytest.mark.parametrize("case", POD_CASES.values(), ids=POD_CASES.keys())
def test_the_remedy_is_not_refused(team: Team, case: PodCase) -> None:
    """A pod that cannot start freezes nothing: another profile is another run, and finished stages are reused."""
    held = [True]
    team.node.admit = lambda pod: case.status if held[0] and pod["metadata"]["labels"][LABEL_STAGE] == "train" else None
    small = team.settings().profiles["small"]
    team.start(profiles={"small": small, "smaller": small})
    team.create("stuck")
    team.until("stuck", case.reason)
    assert next(row for row in team.status("stuck").stages if row.name == "train").working_since is None
    team.change("stuck", profile="smaller")
    held[0] = False
    status = team.until("stuck", Phase.SUCCEEDED)
    assert status.run is not None
    assert status.run.number == 2
    assert {row.name: row.state for row in status.stages}["prepare"] is StageState.REUSED


def test_a_quota_refuses_the_pod(team: Team) -> None:
    """Told by the Job's events, since there is no pod that could tell it."""
    team.limit({"pods": "0"})
    team.start()
    team.create("poor")
    team.until("poor", Reason.QUOTA_EXCEEDED)
    assert "exceeded quota: few" in message(team, "poor")
    assert condition(team.status("poor"), "Stalled") == "True"
    team.unlimit()
    team.until("poor", Phase.SUCCEEDED)


def test_a_quota_refuses_the_job(team: Team) -> None:
    """The API server's own words, since nothing was created that could tell it."""
    team.limit({"count/jobs.batch": "0"})
    team.start()
    team.create("poor")
    assert team.until("poor", Reason.QUOTA_EXCEEDED).phase is Phase.PENDING
    assert "exceeded quota: few" in message(team, "poor")
    team.unlimit()
    team.until("poor", Phase.SUCCEEDED)


def brief(team: Team, seconds: int) -> dict[str, Any]:
    """Settings in which a stage has little time."""
    profile = team.settings().profiles["small"].model_copy(update={"deadline_seconds": seconds, "retries": 2})
    return {"profiles": {"small": profile}}


def test_waiting_counts_for_no_deadline(team: Team) -> None:
    """Neither for a quota nor for a node: the job starts by itself once there is room, however late."""
    team.limit({"pods": "0"})
    held: dict[str, Any] = {"by": POD_CASES["node"].status}
    team.node.admit = lambda pod: held["by"]
    team.start(**brief(team, 3))
    team.create("patient")
    team.until("patient", Reason.QUOTA_EXCEEDED)
    time.sleep(4)
    team.unlimit()
    team.until("patient", Reason.UNSCHEDULABLE)
    time.sleep(4)
    held["by"] = None
    status = team.until("patient", Phase.SUCCEEDED)
    assert [row.attempts for row in status.stages] == [1] * 6


def test_a_stage_that_takes_too_long(team: Team) -> None:
    """It has failed for good, retries or not, and its Job goes, which would start another pod."""
    team.node.scripts[Stage.PREPARE] = lambda given: None
    team.start(**brief(team, 3))
    team.create("slow")
    status = team.until("slow", Phase.FAILED)
    assert status.run is not None
    assert status.run.reason == Reason.DEADLINE_EXCEEDED
    assert_says(message(team, "slow"), "prepare:", "its profile allows.", REMEDIES[Reason.DEADLINE_EXCEEDED])
    wait(lambda: not team.jobs("slow", Stage.PREPARE), "the Job to go")
    assert len(team.jobs("slow")) == 1
    del team.node.scripts[Stage.PREPARE]
    team.change("slow", rerun="again")
    team.until("slow", Phase.SUCCEEDED)


FAILURES: dict[str, tuple[Ending, Reason, int]] = {
    "out of memory": (Ending(exit_code=137, reason="OOMKilled"), Reason.OUT_OF_MEMORY, 2),
    "a crash": (Ending(exit_code=1, reason="Error"), Reason.STAGE_CRASHED, 2),
}


@pytest.mark.parametrize(("ending", "reason", "pods"), FAILURES.values(), ids=FAILURES.keys())
def test_a_stage_that_keeps_failing(team: Team, ending: Ending, reason: Reason, pods: int) -> None:
    """Tried again as often as the profile says; the root cause is the pod's."""
    script: Callable[[Any], Ending] = lambda given: ending  # noqa: E731
    team.node.scripts[Stage.PREPARE] = script
    profile = team.settings().profiles["small"].model_copy(update={"retries": pods - 1})
    team.start(profiles={"small": profile})
    team.create("broken")
    status = team.until("broken", Phase.FAILED)
    assert status.run is not None
    assert status.run.reason == reason
    assert len([stage for stage, _ in team.node.started if stage is Stage.PREPARE]) == pods
    assert [row.attempts for row in status.stages[:2]] == [1, pods]


def test_an_eviction_does_not_count(team: Team) -> None:
    """A pod that the node had to end is replaced, even where the profile allows no retry."""
    evicted: list[Object] = []

    def evict_first(pod: Object) -> Object | None:
        if evicted:
            return None
        evicted.append(pod)
        disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "gone"}
        return {"phase": "Failed", "conditions": [disrupted]}

    team.node.admit = evict_first
    profile = team.settings().profiles["small"].model_copy(update={"retries": 0})
    team.start(profiles={"small": profile})
    team.create("moved")
    team.until("moved", Phase.SUCCEEDED)
    assert len(team.api.select(PODS, team.namespace)) == len(PIPELINE) + 2
