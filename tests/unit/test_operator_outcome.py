"""Root causes: what a Job, its pods and its events together mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import meta
from finetune_api.reasons import REMEDIES, Reason, remedy
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_operator.framework.objects import Object
from finetune_operator.outcome.job import State, judge
from finetune_operator.outcome.pod import read_result
from tests.support.sentences import assert_says
from tests.support.stage_objects import (
    CREATED,
    disrupted,
    ended,
    failed_create,
    failure,
    job,
    pod,
    success,
    terminated,
    unschedulable,
    waiting,
)

pytestmark = pytest.mark.unit

COMPLETE = job(**ended("Complete"))
FAILED = job(**ended("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"))
LATE = job(**ended("Failed", "DeadlineExceeded", "Job was active longer than specified deadline"))
ACTIVE = job(active=1)
EARLIER, LATER = "2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"


@dataclass(frozen=True)
class Case:
    """What is observed, and what it means."""

    job: Object
    pods: tuple[Object, ...]
    state: State
    reason: Reason
    says: str = ""
    events: tuple[Object, ...] = ()


INDEXED: Object = {"spec": {"completionMode": "Indexed", "completions": 2}}
RESTART_GROUP = terminated(76, message=failure(Reason.PEER_LOST, "another process was lost"))


def numbered(index: int, phase: str, **more: Any) -> Object:
    """One of several pods that work together."""
    made = pod(phase, name=f"pod-{index}-{more.get('created', CREATED)}", **more)
    made["metadata"]["labels"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    return made


CASES = {
    "the result of the first of two pods": Case(
        job(**INDEXED, **ended("Complete")),
        (
            numbered(0, "Succeeded", **terminated(0, message=success())),
            numbered(1, "Succeeded", **terminated(0)),
        ),
        State.SUCCEEDED,
        Reason.STAGE_SUCCEEDED,
    ),
    "both pods train": Case(
        job(**INDEXED, active=2),
        (numbered(1, "Running", podIP="10.0.0.2"), numbered(0, "Running", podIP="10.0.0.1")),
        State.RUNNING,
        Reason.STAGE_STARTED,
    ),
    "one of two pods has no node": Case(
        job(**INDEXED, active=2),
        (numbered(0, "Running"), numbered(1, "Pending", **unschedulable("0/3 nodes are available"))),
        State.WAITING,
        Reason.UNSCHEDULABLE,
        "pod-1",
    ),
    "one of two pods starts": Case(
        job(**INDEXED, active=2),
        (numbered(0, "Running"), numbered(1, "Pending")),
        State.WAITING,
        Reason.WAITING,
        "pod-1",
    ),
    "both begin again after one was lost": Case(
        job(**INDEXED, active=2),
        (
            numbered(0, "Failed", created=EARLIER, **RESTART_GROUP),
            numbered(1, "Failed", created=EARLIER, **terminated(137, "Error")),
            numbered(0, "Running", created=LATER),
            numbered(1, "Running", created=LATER),
        ),
        State.RUNNING,
        Reason.STAGE_STARTED,
        "earlier attempt … Pod pod-1",
    ),
    "the pod that is the cause, not the one that followed": Case(
        job(**INDEXED, **ended("Failed", "PodFailurePolicy")),
        (
            numbered(
                1, "Failed", created=EARLIER, **terminated(65, message=failure(Reason.S3_ACCESS_DENIED, "refused"))
            ),
            numbered(0, "Failed", created=LATER, **RESTART_GROUP),
        ),
        State.FAILED,
        Reason.S3_ACCESS_DENIED,
        "refused",
    ),
    "a result": Case(
        COMPLETE, (pod("Succeeded", **terminated(0, message=success())),), State.SUCCEEDED, Reason.STAGE_SUCCEEDED
    ),
    "the result of a second attempt": Case(
        COMPLETE,
        (
            pod("Succeeded", name="b", created=LATER, **terminated(0, message=success())),
            pod("Failed", name="a", created=EARLIER, **terminated(1)),
        ),
        State.SUCCEEDED,
        Reason.STAGE_SUCCEEDED,
    ),
    "a result that the Job has not counted yet": Case(
        ACTIVE, (pod("Succeeded", **terminated(0, message=success())),), State.SUCCEEDED, Reason.STAGE_SUCCEEDED
    ),
    "a result of a pod that still holds its node": Case(
        ACTIVE, (pod("Running", **terminated(0, message=success())),), State.RUNNING, Reason.STAGE_STARTED
    ),
    "no result, not counted yet": Case(
        ACTIVE, (pod("Succeeded", **terminated(0, message="done!")),), State.WAITING, Reason.WAITING
    ),
    "the first of two pods is done": Case(
        job(**INDEXED, active=2),
        (numbered(0, "Succeeded", **terminated(0, message=success())), numbered(1, "Running")),
        State.RUNNING,
        Reason.STAGE_STARTED,
    ),
    "a failure for good that the Job has not counted yet": Case(
        ACTIVE,
        (pod("Failed", **terminated(65, message=failure(Reason.DATASET_INVALID, "row 3: no label"))),),
        State.FAILED,
        Reason.DATASET_INVALID,
        "row 3: no label",
    ),
    "a failure for good of a pod that was evicted": Case(
        ACTIVE,
        (pod("Failed", **terminated(65, message=failure(Reason.DATASET_INVALID, "no")), **disrupted("a drain")),),
        State.WAITING,
        Reason.STAGE_RETRIED,
    ),
    "a result, and the Job is suspended": Case(
        job(spec={"suspend": True}, active=1),
        (pod("Succeeded", **terminated(0, message=success())),),
        State.SUSPENDED,
        Reason.SUSPENDED,
    ),
    "complete, pod gone": Case(COMPLETE, (), State.LOST, Reason.RESULT_LOST, "the pod with its result is gone"),
    "complete, message not a result": Case(
        COMPLETE, (pod("Succeeded", **terminated(0, message="done!")),), State.LOST, Reason.RESULT_LOST
    ),
    "complete, result of another stage": Case(
        COMPLETE,
        (pod("Succeeded", **terminated(0, message=success(Stage.EXPORT))),),
        State.LOST,
        Reason.RESULT_LOST,
    ),
    "complete, digest that is none": Case(
        COMPLETE, (pod("Succeeded", **terminated(0, message=success(output="../x"))),), State.LOST, Reason.RESULT_LOST
    ),
    "complete, a look that reports no address": Case(
        COMPLETE,
        (pod("Succeeded", **terminated(0, message=success(Stage.FOLLOW, output="../x"))),),
        State.LOST,
        Reason.RESULT_LOST,
    ),
    "the stage's own reason": Case(
        FAILED,
        (pod("Failed", **terminated(65, message=failure(Reason.DATASET_INVALID, "row 3: no label"))),),
        State.FAILED,
        Reason.DATASET_INVALID,
        "row 3: no label",
    ),
    "the newest pod counts": Case(
        FAILED,
        (
            pod("Failed", name="b", created=LATER, **terminated(137, "OOMKilled")),
            pod("Failed", name="a", created=EARLIER, **terminated(75, message=failure(Reason.S3_UNREACHABLE, "no"))),
        ),
        State.FAILED,
        Reason.OUT_OF_MEMORY,
        "more memory than its limit",
    ),
    "a crash": Case(FAILED, (pod("Failed", **terminated(139)),), State.FAILED, Reason.STAGE_CRASHED, "code 139"),
    "failed, pods gone": Case(FAILED, (), State.FAILED, Reason.STAGE_CRASHED, "backoff limit; its pods are gone"),
    "too late while training": Case(
        LATE, (pod("Running"),), State.FAILED, Reason.DEADLINE_EXCEEDED, "longer than its profile allows"
    ),
    "too late because no node fits": Case(
        LATE,
        (pod(**unschedulable("0/3 nodes are available")),),
        State.FAILED,
        Reason.DEADLINE_EXCEEDED,
        "0/3 nodes are available",
    ),
    "a pod that was too late": Case(
        ACTIVE,
        (
            pod(
                "Failed",
                reason="DeadlineExceeded",
                **terminated(
                    75, message=failure(Reason.PREEMPTED, f"Step 5 is saved. {REMEDIES[Reason.PREEMPTED]} Log: s3")
                ),
            ),
        ),
        State.FAILED,
        Reason.DEADLINE_EXCEEDED,
        "The stage took longer than its profile allows. Step 5 is saved. Log: s3",
    ),
    "a pod that was too late, and its Job has begun another": Case(
        ACTIVE,
        (pod("Failed", name="a", created=EARLIER, reason="DeadlineExceeded"), pod("Running", name="b", created=LATER)),
        State.FAILED,
        Reason.DEADLINE_EXCEEDED,
        "longer than its profile allows",
    ),
    "a pod that was too late, and others that train with it": Case(
        job(**INDEXED, active=2),
        (numbered(0, "Failed", **RESTART_GROUP), numbered(1, "Failed", reason="DeadlineExceeded", **terminated(137))),
        State.FAILED,
        Reason.DEADLINE_EXCEEDED,
        "longer than its profile allows",
    ),
    "a pod that was too late to get its image": Case(
        ACTIVE,
        (pod("Failed", reason="DeadlineExceeded", **waiting("ImagePullBackOff")),),
        State.FAILED,
        Reason.DEADLINE_EXCEEDED,
        "image example/jobs:1",
    ),
    "too late at every attempt": Case(
        FAILED,
        (pod("Failed", reason="DeadlineExceeded", **terminated(137)),),
        State.FAILED,
        Reason.DEADLINE_EXCEEDED,
        "longer than its profile allows",
    ),
    "too late, but the next attempt was not": Case(
        job(**ended("Complete")),
        (
            pod("Failed", name="a", created=EARLIER, reason="DeadlineExceeded"),
            pod("Succeeded", name="b", created=LATER, **terminated(0, message=success())),
        ),
        State.SUCCEEDED,
        Reason.STAGE_SUCCEEDED,
    ),
    "no pod yet": Case(ACTIVE, (), State.WAITING, Reason.WAITING),
    "quota": Case(
        ACTIVE,
        (),
        State.WAITING,
        Reason.QUOTA_EXCEEDED,
        "exceeded quota: gpus",
        (failed_create('pods "x" is forbidden: exceeded quota: gpus, requested: 1'),),
    ),
    "no service account": Case(
        ACTIVE,
        (),
        State.WAITING,
        Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
        'serviceaccount "runner" not found',
        (failed_create('pods "x" is forbidden: error looking up service account: serviceaccount "runner" not found'),),
    ),
    "pod security": Case(
        ACTIVE,
        (),
        State.WAITING,
        Reason.POD_REJECTED,
        "violates PodSecurity",
        (failed_create('pods "x" is forbidden: violates PodSecurity "restricted:latest"'),),
    ),
    "the newest refusal counts": Case(
        ACTIVE,
        (),
        State.WAITING,
        Reason.POD_REJECTED,
        "denied by policy",
        (failed_create("exceeded quota: a", EARLIER), failed_create("denied by policy", LATER)),
    ),
    "a quota has no room for the next attempt": Case(
        ACTIVE,
        (pod("Failed", created=EARLIER, **terminated(75, message=failure(Reason.S3_UNREACHABLE, "no answer"))),),
        State.WAITING,
        Reason.QUOTA_EXCEEDED,
        "exceeded quota: gpus",
        (failed_create('pods "x" is forbidden: exceeded quota: gpus', LATER),),
    ),
    "a quota had no room for the attempt before": Case(
        ACTIVE,
        (pod("Failed", created=LATER, **terminated(75, message=failure(Reason.S3_UNREACHABLE, "no answer"))),),
        State.WAITING,
        Reason.STAGE_RETRIED,
        "no answer",
        (failed_create('pods "x" is forbidden: exceeded quota: gpus', EARLIER),),
    ),
    "image": Case(ACTIVE, (pod(**waiting("ErrImagePull")),), State.WAITING, Reason.IMAGE_PULL_FAILED, "example/jobs:1"),
    "secret": Case(
        ACTIVE,
        (pod(**waiting("CreateContainerConfigError", 'secret "s3" not found')),),
        State.WAITING,
        Reason.SECRET_MISSING,
        'secret "s3" not found',
    ),
    "key of the secret": Case(
        ACTIVE,
        (pod(**waiting("CreateContainerConfigError", "couldn't find key AWS_ACCESS_KEY_ID in Secret team/s3")),),
        State.WAITING,
        Reason.SECRET_MISSING,
        "AWS_ACCESS_KEY_ID",
    ),
    "no node": Case(
        ACTIVE, (pod(**unschedulable("Insufficient cpu")),), State.WAITING, Reason.UNSCHEDULABLE, "Insufficient cpu"
    ),
    "starting": Case(ACTIVE, (pod(**waiting("ContainerCreating")),), State.WAITING, Reason.WAITING, "is starting"),
    "running": Case(ACTIVE, (pod("Running"),), State.RUNNING, Reason.STAGE_STARTED),
    "running again": Case(
        ACTIVE,
        (pod("Running", name="b", created=LATER), pod("Failed", name="a", created=EARLIER, **terminated(1))),
        State.RUNNING,
        Reason.STAGE_STARTED,
        "earlier attempt … Pod a … code 1",
    ),
    "between two attempts": Case(
        ACTIVE,
        (pod("Failed", **terminated(75, message=failure(Reason.S3_UNREACHABLE, "no answer from s3"))),),
        State.WAITING,
        Reason.STAGE_RETRIED,
        "no answer from s3",
    ),
    "preempted": Case(
        ACTIVE,
        (pod("Failed", **disrupted("preempting to accommodate a higher priority pod")),),
        State.WAITING,
        Reason.STAGE_RETRIED,
        "was evicted: preempting",
    ),
    "evicted for good": Case(
        FAILED,
        (pod("Failed", reason="Evicted", message="The node was low on resource: memory."),),
        State.FAILED,
        Reason.PREEMPTED,
        "low on resource: memory",
    ),
    "evicted for its own limit": Case(
        FAILED,
        (pod("Failed", reason="Evicted", message='Usage of EmptyDir volume "scratch" exceeds the limit "20Gi". '),),
        State.FAILED,
        Reason.SCRATCH_FULL,
        'more scratch space than its limit: Usage of EmptyDir volume "scratch" exceeds',
    ),
    "suspended": Case(job(spec={"suspend": True}), (), State.SUSPENDED, Reason.SUSPENDED),
}


REPORTED: dict[State, set[Outcome | None]] = {
    State.SUCCEEDED: {Outcome.SUCCEEDED},
    State.FAILED: {Outcome.FAILED, None},
}
"""What a result says that a verdict of this state holds; one of any other state holds none."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_root_cause(case: Case) -> None:
    """State, reason and the words that matter, whatever the order of the pods."""
    for pods in (case.pods, case.pods[::-1]):
        verdict = judge(case.job, pods, case.events)
        assert (verdict.state, verdict.reason) == (case.state, case.reason)
        assert_says(verdict.message, *case.says.split(" … "))
        told = verdict.result.outcome if verdict.result else None
        assert told in REPORTED.get(case.state, {None})


@pytest.mark.parametrize("why", ["exceeded quota: few, requested: pods=1, used: pods=2", "violates PodSecurity"])
def test_every_try_to_create_a_pod_says_the_same(why: str) -> None:
    """A controller tries again with another name: in the message it would change the status each time."""
    first, second = (judge(ACTIVE, (), (failed_create(f'pods "{name}" is forbidden: {why}'),)) for name in ("x", "y"))
    assert first.message == second.message
    assert why in first.message


@pytest.mark.parametrize("older", [True, False])
def test_the_remedy_is_left_to_the_conditions(older: bool) -> None:
    """Images of earlier versions appended it to their results themselves."""
    said = "s3://b/x: access denied."
    for reason in (Reason.S3_ACCESS_DENIED, Reason("AddedLater")):
        advice = f" {REMEDIES[reason]}" if older and reason in REMEDIES else ""
        left = failure(reason, f"{said}{advice} Log: s3://b/log")
        verdict = judge(job(**ended("Failed")), [pod("Failed", **terminated(2, message=left))])
        assert (verdict.reason, verdict.message) == (reason, f"{said} Log: s3://b/log")


@pytest.mark.parametrize("phases", [("Failed",), ("Failed", "Running")], ids=["before the next pod", "next to it"])
@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.VERIFY])
def test_a_retried_stage_says_what_to_do(phases: tuple[str, ...], stage: Stage) -> None:
    """No condition has the reason of the attempt that failed until the Job fails."""
    kind = meta.ADAPTERDEPLOYMENT if stage is Stage.VERIFY else meta.FINETUNEJOB
    left = failure(Reason.S3_UNREACHABLE, "http://s3: no answer. Log: s3://b/log", stage)
    retried = job(stage, failed=1)
    retried["metadata"]["labels"][meta.LABEL_OWNER_KIND] = kind
    pods = [pod(phase, name=phase, **(terminated(75, message=left) if phase == "Failed" else {})) for phase in phases]
    said = f"http://s3: no answer. Log: s3://b/log {remedy(Reason.S3_UNREACHABLE, kind)}"
    assert judge(retried, pods).message.endswith(f"attempt failed: {said}")


def test_a_job_that_is_being_deleted_is_left_alone() -> None:
    """Until it is gone, its pod may still run."""
    going = job(active=1)
    going["metadata"]["deletionTimestamp"] = EARLIER
    assert judge(going, (pod("Running"),)).state is State.TERMINATING


def test_facts_of_the_stage_table() -> None:
    """Attempts and times come from the Job."""
    verdict = judge(job(failed=2, succeeded=1, **ended("Complete")), (pod("Succeeded"),))
    assert (verdict.attempts, verdict.started_at, verdict.finished_at) == (
        3,
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:10:00Z",
    )


def test_times_are_those_of_pods_since_the_last_suspension() -> None:
    """The Job's controller sets its start anew when it goes on; a failed pod from before may still be there."""
    before = pod("Failed", name="a", created=CREATED, startTime=CREATED, **terminated(1))
    after = pod("Running", name="b", created=LATER, startTime=LATER)
    stopped = job(spec={"suspend": True}, startTime=CREATED)
    assert judge(stopped, (before, pod("Running", startTime=EARLIER))).started_at == CREATED
    assert judge(stopped, (before,)).started_at is None
    assert judge(job(active=1, startTime=EARLIER), (before, after)).started_at == LATER


def test_a_stage_ends_with_its_container_not_when_the_job_has_counted_it() -> None:
    over = terminated(0, message=success())
    over["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = EARLIER
    assert judge(ACTIVE, (pod("Succeeded", **over),)).finished_at == EARLIER


def test_a_job_goes_on_whose_pod_was_too_late() -> None:
    """It has to be deleted; one that has failed itself has not."""
    late = pod("Failed", reason="DeadlineExceeded", **terminated(137))
    assert [judge(each, (late,)).tries_again for each in (ACTIVE, FAILED)] == [True, False]


@given(st.text())
def test_no_termination_message_breaks_the_reader(message: str) -> None:
    """Containers may write what they like; it is a result or nothing."""
    assert read_result(pod("Succeeded", **terminated(0, message=message))) is None


def test_progress_and_attempts_are_those_of_the_first_of_several_pods() -> None:
    """Two pods that were begun twice are two attempts; the first one alone shows how far the training is."""
    earlier = [numbered(index, "Failed", created=EARLIER, **RESTART_GROUP) for index in (0, 1)]
    later = [numbered(index, "Running", created=LATER, podIP=f"10.0.0.{index}") for index in (0, 1)]
    verdict = judge(job(**INDEXED, active=2), [*later, *earlier])
    assert (verdict.pod_ip, verdict.attempts) == ("10.0.0.0", 2)


@pytest.mark.parametrize(("stage", "known"), [(Stage.PUBLISH, True), (Stage.EVALUATE, False)])
def test_publish_alone_may_wait_and_have_made_nothing(stage: Stage, known: bool) -> None:
    waits = StageResult(stage=stage, outcome=Outcome.SUCCEEDED, reason=Reason.AWAITING_REVIEW)
    found = read_result(pod("Succeeded", **terminated(0, message=waits.model_dump_json(by_alias=True))))
    assert (found is not None) is known
