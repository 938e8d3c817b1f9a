"""A training over several pods: what the real API server and Job controller make of its objects."""

from __future__ import annotations

import pytest

from finetune_api import meta
from finetune_api.job_status import Phase
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Stage, StageInput
from finetune_operator.finetunejob.observe import LABEL_SERVICE
from finetune_operator.framework.objects import CONFIG_MAPS, ENDPOINT_SLICES, JOBS, PODS, SERVICES, Object
from finetune_operator.settings import PodShape, Profile
from tests.controlplane.conftest import PROFILE, Team, wait
from tests.support.fake_node import Ending, failed
from tests.support.operator_process import CRASH_EXIT

pytestmark = pytest.mark.controlplane

PAIR = {PROFILE: Profile(cpu=PodShape(requests={"cpu": "100m"}), deadline_seconds=600, retries=0, nodes=2)}
NAME = "pair"


def children(team: Team) -> list[tuple[str, str]]:
    """Kind and stage of what the FineTuneJob owns, without pods."""
    return sorted(
        (resource.kind, child["metadata"]["labels"][meta.LABEL_STAGE])
        for resource in (CONFIG_MAPS, JOBS, SERVICES)
        for child in team.api.select(resource, team.namespace, f"{meta.LABEL_OWNER_NAME}={NAME}")
    )


def test_two_pods_train_and_the_operator_dies_after_every_write(team: Team) -> None:
    """From the headless Service on, each object is made once; the second pod's silent end is not taken for a result."""
    team.create(NAME)
    deaths = 0
    while not _ended(team):
        operator = team.start(crash_after_writes=1, profiles=PAIR)
        wait(lambda op=operator: op.process.exitcode is not None or _ended(team), "a write")  # type: ignore[misc]
        deaths += operator.process.exitcode == CRASH_EXIT
        operator.stop()
        assert deaths < 60, "the operator makes no progress"

    stages = [Stage.RESOLVE, *PIPELINE]
    assert children(team) == sorted(
        [*((kind, stage.value) for kind in ("ConfigMap", "Job") for stage in stages), ("Service", "train")]
    )
    (job,) = team.jobs(NAME, Stage.TRAIN)
    (service,) = team.api.select(SERVICES, team.namespace, f"{meta.LABEL_OWNER_NAME}={NAME}")
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    assert job["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert service["spec"]["clusterIP"] == "None"
    pods = team.api.select(PODS, team.namespace, f"{meta.LABEL_STAGE}={Stage.TRAIN}")
    assert {pod["spec"]["subdomain"] for pod in pods} == {service["metadata"]["name"]}
    assert {pod["spec"]["hostname"] for pod in pods} <= {f"{job['metadata']['name']}-{number}" for number in (0, 1)}
    selector = service["spec"]["selector"]
    assert all(selector.items() <= pod["metadata"]["labels"].items() for pod in pods)
    assert team.node.store.executed == list(PIPELINE)


def test_the_service_by_which_pods_find_each_other_comes_back(team: Team) -> None:
    """At once, because its endpoints are watched: the next look at the pods' progress is far away."""
    team.node.scripts[Stage.TRAIN] = lambda _: None
    team.start(profiles=PAIR, progress_seconds=600)
    team.create(NAME)
    wait(lambda: {stage for stage, _ in team.node.started} >= {Stage.TRAIN}, "the training")
    deleted = _service(team)
    assert deleted is not None
    slices = f"{LABEL_SERVICE}={deleted['metadata']['name']}"
    wait(lambda: team.api.select(ENDPOINT_SLICES, team.namespace, slices), "its endpoints")
    team.api.delete(SERVICES, team.namespace, deleted["metadata"]["name"], deleted["metadata"]["uid"])
    restored = wait(lambda: _service(team, apart_from=deleted["metadata"]["uid"]), "the Service")
    for field in ("name", "labels", "ownerReferences"):
        assert restored["metadata"][field] == deleted["metadata"][field]
    assert restored["spec"] == deleted["spec"]
    assert len(team.jobs(NAME, Stage.TRAIN)) == 1


def _service(team: Team, apart_from: str = "") -> Object | None:
    found = team.api.select(SERVICES, team.namespace, f"{meta.LABEL_OWNER_NAME}={NAME}")
    return next((each for each in found if each["metadata"]["uid"] != apart_from), None)


def _ended(team: Team) -> bool:
    return team.status(NAME).phase is Phase.SUCCEEDED


def test_a_pod_that_begins_again_with_another_is_no_failure(team: Team) -> None:
    """No retry is allowed here: an exit that counted would fail the Job."""
    lost: list[StageInput] = []

    def lose_one(given: StageInput) -> Ending | None:
        if lost:
            return team.node.store.run(given)
        lost.append(given)
        ending = failed(given.stage, Reason.PEER_LOST, "Another process of this training was lost.")
        return Ending(ending.result, exit_code=ExitCode.RESTART_GROUP, reason="Error")

    team.node.scripts[Stage.TRAIN] = lose_one
    team.start(profiles=PAIR)
    team.create(NAME)
    status = team.until(NAME, Phase.SUCCEEDED)
    assert status.stages[2].name == Stage.TRAIN
    assert lost
    (job,) = team.jobs(NAME, Stage.TRAIN)
    assert job["spec"]["backoffLimit"] == 0
