"""FineTuneJobs under faults. The oracle: the end is the one of the run without the fault.

The operator dies after each of its writes, is replaced by another version, meets API errors at each call, and finds its
children tampered with.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

import finetune_api
from finetune_api import meta
from finetune_api.job_status import Phase, StageState
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Stage, StageInput
from finetune_operator.framework.client import StreamClient
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, PODS, Object
from finetune_operator.kinds import FINETUNEJOBS
from hack.cluster.controlplane import ControlPlane
from tests.controlplane.conftest import Team, prepared_team, wait
from tests.support.fake_node import Ending
from tests.support.operator_process import CRASH_EXIT, NEWER_VERSION, Fault

pytestmark = pytest.mark.controlplane

TIMES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
HASHES = re.compile(r"-[0-9a-f]{10}\b")


def end_state(team: Team, name: str) -> dict[str, Any]:
    """All that is left of a run: children by kind and stage, and the status, without what is new in every run."""
    found = team.api.get(FINETUNEJOBS, team.namespace, name)
    assert found is not None
    owned = f"{meta.LABEL_OWNER_NAME}={name}"
    children = [
        (resource.kind, child["metadata"]["labels"][meta.LABEL_STAGE])
        for resource in (CONFIG_MAPS, JOBS)
        for child in team.api.select(resource, team.namespace, owned)
    ]
    return {"children": sorted(children), "status": _normal(found["status"], found["status"]["run"]["id"])}


SEEN_AT_WORK = ("earlierSeconds", "workingSince")
"""Times too; missing where the operator was away while a pod was at work."""


def _normal(value: Any, run: str) -> Any:
    if isinstance(value, dict):
        return {key: _normal(each, run) for key, each in value.items() if key not in SEEN_AT_WORK}
    if isinstance(value, list):
        return [_normal(each, run) for each in value]
    return HASHES.sub("-HASH", TIMES.sub("TIME", value.replace(run, "RUN"))) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def undisturbed(
    plane: ControlPlane, api: StreamClient, operator_kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The end state of a run without a fault."""
    with prepared_team(plane, api, operator_kubeconfig, tmp_path_factory.mktemp("undisturbed")) as calm:
        calm.start()
        create(calm)
        calm.until("storm", Phase.SUCCEEDED)
        return end_state(calm, "storm")


def create(team: Team) -> Object:
    """The same resource for each test."""
    return team.create("storm")


def test_killed_after_every_write(team: Team, undisturbed: dict[str, Any]) -> None:
    """Each operator process dies right after its first write, from the first ConfigMap to the last event.

    A stage goes on until the status tells of it: otherwise the next process would find it done, and write one less.
    """

    def run(given: StageInput) -> Ending | None:
        rows = team.status("storm").stages
        told = any(row.name == given.stage and row.state is StageState.RUNNING for row in rows)
        return team.node.store.run(given) if told else None

    team.node.scripts = dict.fromkeys(Stage, run)
    create(team)
    deaths = 0
    while team.status("storm").phase is not Phase.SUCCEEDED:
        operator = team.start(crash_after_writes=1)
        wait(lambda op=operator: op.process.exitcode is not None or _ended(team), "a write")  # type: ignore[misc]
        deaths += operator.process.exitcode == CRASH_EXIT
        operator.stop()
        assert deaths < 60, "the operator makes no progress"
    assert deaths >= 18, "two children and a status a stage"
    assert end_state(team, "storm") == undisturbed
    assert team.node.store.executed == list(PIPELINE)
    assert len(team.node.started) == 1 + len(PIPELINE)


def _ended(team: Team) -> bool:
    return team.status("storm").phase is Phase.SUCCEEDED


CALLS = [
    Fault("create", "ConfigMap", 500),
    Fault("create", "ConfigMap", 504, applied=True),
    Fault("create", "Job", 429, retry_after=1),
    Fault("create", "Job", 0, applied=True),
    Fault("create", "Job", 409),
    Fault("patch_status", "FineTuneJob", 409),
    Fault("patch_status", "FineTuneJob", 500),
    Fault("patch_status", "FineTuneJob", 0, applied=True),
    Fault("patch_status", "FineTuneJob", 403),
    Fault("create", "Event", 500),
    Fault("get", "ServiceAccount", 503),
]


def test_every_call_fails(team: Team, undisturbed: dict[str, Any]) -> None:
    """Conflicts, throttling, server errors, lost answers: at each kind of call, several times in one run."""
    team.start(faults=tuple(CALLS * 3), workers=1)
    create(team)
    team.until("storm", Phase.SUCCEEDED)
    assert end_state(team, "storm") == undisturbed
    assert team.node.store.executed == list(PIPELINE)


def test_another_version_takes_over(team: Team, undisturbed: dict[str, Any]) -> None:
    """A newer operator, with another StageInput and another recipe of a stage that is done, finishes what was begun.

    No stage gets a second Job: neither the one that is under way, nor the one whose input would have another key now.
    """
    held: list[StageInput] = []

    def hold(given: StageInput) -> Ending | None:
        held.append(given)
        return None

    team.node.scripts[Stage.TRAIN] = hold
    old = team.start()
    create(team)
    wait(lambda: held, "train to run")
    old.stop()
    team.start(newer=True)
    del team.node.scripts[Stage.TRAIN]
    team.until("storm", Phase.SUCCEEDED)
    assert end_state(team, "storm") == undisturbed
    assert team.node.store.executed == list(PIPELINE)
    assert len(team.node.started) == 1 + len(PIPELINE)
    before, after = _input(team, Stage.TRAIN), _input(team, Stage.EXPORT)
    assert (before["operatorVersion"], before.get("addedLater")) == (finetune_api.__version__, None)
    assert (after["operatorVersion"], after["addedLater"]) == (NEWER_VERSION, "by the newer version")
    assert after["storage"]["addedLater"] == "by the newer version"


def _input(team: Team, stage: Stage) -> dict[str, Any]:
    selector = f"{meta.LABEL_OWNER_NAME}=storm,{meta.LABEL_STAGE}={stage}"
    [found] = team.api.select(CONFIG_MAPS, team.namespace, selector)
    given: dict[str, Any] = json.loads(found["data"]["input.json"])
    return given


def test_deleted_in_the_middle_and_applied_again(team: Team, undisturbed: dict[str, Any]) -> None:
    """The training's pod takes its time to end: until then nothing of the next life may write to the same place."""
    together: list[str] = []

    def admit(pod: Object) -> Object | None:
        """Every pod starts; one that starts beside another is noted."""
        pods = team.api.select(PODS, team.namespace, f"{meta.LABEL_OWNER_NAME}=storm")
        alive = [each["metadata"]["name"] for each in pods if each["status"].get("phase") == "Running"]
        together.extend(f"{name} beside {pod['metadata']['name']}" for name in alive)
        return None

    team.node.admit = admit
    team.start()
    first = create(team)
    uid = first["metadata"]["uid"]
    team.node.scripts[Stage.TRAIN] = lambda given: None if given.run.uid == uid else team.node.store.run(given)
    wait(lambda: _running(team, Stage.TRAIN), "train to run")
    pod = _running(team, Stage.TRAIN)[0]["metadata"]
    lingers = {"metadata": {"finalizers": [*pod.get("finalizers", []), "finetune.dev/saving-a-checkpoint"]}}
    team.api.patch(PODS, team.namespace, pod["name"], lingers)
    team.api.delete(FINETUNEJOBS, team.namespace, "storm", uid)
    create(team)
    wait(lambda: f"pod {pod['name']}" in _message(team), "the new run to say what it waits for")
    wait(lambda: not team.jobs("storm"), "the Jobs of the first life to go")
    time.sleep(2)
    assert not team.jobs("storm"), "something was started while the old pod could still write"
    team.api.patch(PODS, team.namespace, pod["name"], {"metadata": {"finalizers": []}})
    team.until("storm", Phase.SUCCEEDED)
    assert together == []
    assert team.node.store.executed == list(PIPELINE), "what the first life finished is reused"
    status = end_state(team, "storm")["status"]
    for result in ("artifact", "dataset", "evaluation"):
        assert status[result] == undisturbed["status"][result]


def _running(team: Team, stage: Stage) -> list[Object]:
    pods = team.api.select(PODS, team.namespace, f"{meta.LABEL_OWNER_NAME}=storm,{meta.LABEL_STAGE}={stage}")
    return [pod for pod in pods if pod["status"].get("phase") == "Running"]


def _message(team: Team) -> str:
    """What the Ready condition says."""
    return next((each.message for each in team.status("storm").conditions if each.type == "Ready"), "")


def test_a_job_that_somebody_deletes_is_made_again(team: Team, undisturbed: dict[str, Any]) -> None:
    """And a finished run does not start again when its Jobs are deleted. The operator may delete its last one too: the
    run can end before the controller of Jobs has said that this one is complete."""

    def writes() -> list[str]:
        return [each for each in team.writes() if each != "delete Job"]

    team.node.scripts[Stage.TRAIN] = lambda given: None
    operator = team.start()
    create(team)
    first = wait(lambda: team.jobs("storm", Stage.TRAIN), "train")[0]["metadata"]
    wait(lambda: team.node.started[-1][0] is Stage.TRAIN, "train's pod")
    team.api.delete(JOBS, team.namespace, first["name"], first["uid"])
    second = wait(
        lambda: [job for job in team.jobs("storm", Stage.TRAIN) if job["metadata"]["uid"] != first["uid"]], "a new Job"
    )[0]["metadata"]
    assert second["name"] == first["name"]
    del team.node.scripts[Stage.TRAIN]
    team.until("storm", Phase.SUCCEEDED)
    assert end_state(team, "storm") == undisturbed
    operator.wait_idle()
    for job in team.jobs("storm"):
        team.api.delete(JOBS, team.namespace, job["metadata"]["name"], job["metadata"]["uid"])
    before = writes()
    wait(lambda: not team.jobs("storm"), "the Jobs to go")
    team.start(resync_seconds=10).wait_ready()
    assert team.status("storm").phase is Phase.SUCCEEDED
    assert writes() == before
    assert not team.jobs("storm")


@pytest.mark.parametrize("found", [True, False])
def test_a_result_that_is_lost_is_looked_up(team: Team, found: bool) -> None:
    """The pod is gone before its result was read: resolve is asked once more; what it does not find is lost."""
    _lose_the_result(team, Stage.TRAIN)
    if not found:
        team.node.store.made.clear()
    team.start()
    status = team.until("storm", Phase.SUCCEEDED if found else Phase.FAILED)
    assert status.run is not None
    assert status.run.reason == (Reason.RUN_SUCCEEDED if found else Reason.RESULT_LOST)
    assert len(team.jobs("storm", Stage.RESOLVE)) == 2
    assert len(team.jobs("storm", Stage.TRAIN)) == 1
    assert status.stages[2].state is (StageState.SUCCEEDED if found else StageState.FAILED)


def test_a_publish_whose_result_is_lost_runs_once_more(team: Team, undisturbed: dict[str, Any]) -> None:
    """Only it can tell whether all is signed and copied. It finds what it has published."""
    _lose_the_result(team, Stage.PUBLISH)
    team.start()
    status = team.until("storm", Phase.SUCCEEDED)
    assert (len(team.jobs("storm", Stage.RESOLVE)), len(team.jobs("storm", Stage.PUBLISH))) == (1, 2)
    assert team.node.store.executed == list(PIPELINE), "nothing is published twice"
    assert status.stages[-1].state is StageState.REUSED
    assert end_state(team, "storm")["status"]["artifact"] == undisturbed["status"]["artifact"]


def _lose_the_result(team: Team, stage: Stage) -> None:
    """A stage's pod ends, and is gone, while there is no operator."""
    operator = team.start()
    held = {"go": False}
    team.node.scripts[stage] = lambda given: team.node.store.run(given) if held["go"] else None
    create(team)
    wait(lambda: team.node.started and team.node.started[-1][0] is stage, f"{stage} to run")
    operator.stop()
    held["go"] = True
    wait(lambda: _complete(team.jobs("storm", stage)[0]), f"{stage} to end")
    for pod in team.api.select(PODS, team.namespace, f"{meta.LABEL_STAGE}={stage}"):
        team.api.delete(PODS, team.namespace, pod["metadata"]["name"], pod["metadata"]["uid"])


def _complete(job: Object) -> bool:
    conditions = job["status"].get("conditions") or []
    return any(each["type"] == "Complete" and each["status"] == "True" for each in conditions)


def test_a_conflicting_object_has_the_name(team: Team) -> None:
    """An object of somebody else is never taken over; when it goes, the run goes on by itself."""
    team.node.scripts[Stage.PREPARE] = lambda given: None
    operator = team.start()
    create(team)
    job = wait(lambda: team.jobs("storm", Stage.PREPARE), "prepare")[0]["metadata"]
    operator.stop()
    ours = team.api.get(CONFIG_MAPS, team.namespace, job["name"])
    assert ours is not None
    team.api.delete(JOBS, team.namespace, job["name"], job["uid"])
    team.api.delete(CONFIG_MAPS, team.namespace, job["name"], ours["metadata"]["uid"])
    wait(lambda: not team.api.select(PODS, team.namespace, f"{meta.LABEL_STAGE}={Stage.PREPARE}"), "the pod to go")
    metadata = {"name": job["name"], "namespace": team.namespace, "labels": ours["metadata"]["labels"]}
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mine": "yes"}}
    stored = team.api.create(CONFIG_MAPS, foreign)
    del team.node.scripts[Stage.PREPARE]
    team.start()
    assert team.until("storm", Reason.NAME_TAKEN).phase is Phase.PENDING
    assert not team.jobs("storm", Stage.PREPARE)
    assert team.api.get(CONFIG_MAPS, team.namespace, job["name"]) == stored
    team.api.delete(CONFIG_MAPS, team.namespace, job["name"], stored["metadata"]["uid"])
    team.until("storm", Phase.SUCCEEDED)
