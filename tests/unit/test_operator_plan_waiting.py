"""FineTuneJob's plan for Jobs that stand still: suspended by the spec or by others, or waiting for a place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from finetune_api import meta
from finetune_api.evaluation import Generator
from finetune_api.job_status import FineTuneJobStatus, Phase
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_operator.finetunejob.plan import current_run, plan
from finetune_operator.framework.actions import Create, Delete, Patch, Plan
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import JOBS
from finetune_operator.outcome.job import State, Verdict
from finetune_operator.resources.stage_job import QUEUE_LABEL
from tests.support.runs import (
    IDENTITY,
    NOW,
    RESOLVED,
    SETTINGS,
    SPEC,
    conditions,
    done,
    job,
    observed,
    started,
    told,
)
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Hold:
    """A Job, whether the spec suspends the run, and what is done and said."""

    state: State
    suspend: bool = False
    queued: bool = False
    by_us: bool = False
    done: type | None = None
    says: tuple[Phase, Reason] = (Phase.SUSPENDED, Reason.SUSPENDED)


RUNNING = (Phase.RUNNING, Reason.STAGE_STARTED)
HOLDS = {
    "to be suspended": Hold(State.RUNNING, suspend=True, done=Patch),
    "suspended": Hold(State.SUSPENDED, suspend=True, by_us=True),
    "suspended by others too": Hold(State.SUSPENDED, suspend=True),
    "resumed by others against us": Hold(State.RUNNING, suspend=True, by_us=True, done=Delete),
    "queued, and to be suspended": Hold(State.RUNNING, suspend=True, queued=True, done=Delete),
    "being deleted": Hold(State.TERMINATING, suspend=True),
    "to be resumed": Hold(State.SUSPENDED, by_us=True, done=Patch, says=(Phase.RUNNING, Reason.RESUMED)),
    "resumed by others for us": Hold(State.RUNNING, by_us=True, done=Patch, says=RUNNING),
    "running": Hold(State.RUNNING, says=RUNNING),
    "queued": Hold(State.SUSPENDED, queued=True, says=(Phase.PENDING, Reason.QUEUED)),
    "suspended by others": Hold(State.SUSPENDED, says=(Phase.PENDING, Reason.JOB_SUSPENDED)),
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS.keys())
def test_suspend(hold: Hold) -> None:
    """What we suspended is resumed, and nothing else; what others start against us is deleted."""
    reason = Reason.SUSPENDED if hold.state is State.SUSPENDED else Reason.STAGE_STARTED
    spec = SPEC.model_copy(update={"suspend": hold.suspend})
    verdict = Verdict(hold.state, reason)
    found = job(
        Stage.RESOLVE, hold.state, queued=hold.queued, suspended_by_us=hold.by_us, verdict=verdict, name="ft-resolve-1"
    )
    result = plan(observed(spec, jobs=(found,)), NOW)
    assert [type(action) for action in result.actions] == ([hold.done] if hold.done else [])
    assert told(result) == hold.says
    for action in result.actions:
        if isinstance(action, Patch):
            assert action.body["spec"] == {"suspend": hold.suspend}
            assert action.body["metadata"]["annotations"] == {
                meta.ANNOTATION_SUSPENDED: "true" if hold.suspend else None
            }


def test_somebody_elses_suspension_is_told_with_the_job_and_the_remedy() -> None:
    held = job(Stage.RESOLVE, State.SUSPENDED, verdict=Verdict(State.SUSPENDED, Reason.SUSPENDED), name="ft-resolve-1")
    result = plan(observed(jobs=(held,)), NOW)
    stalled = next(each for each in result.status.conditions if each.type == "Stalled")
    assert stalled.status == "True"
    assert_says(stalled.message, "resolve:", "Job ft-resolve-1", "spec.suspend", "false", QUEUE_LABEL)
    assert [(event.type, event.reason) for event in result.events][-1] == ("Warning", Reason.JOB_SUSPENDED)


@pytest.mark.parametrize(
    ("state", "reason", "running", "frozen"),
    [
        (State.RUNNING, Reason.STAGE_STARTED, True, True),
        (State.WAITING, Reason.WAITING, True, False),  # a pod that is starting
        (State.WAITING, Reason.UNSCHEDULABLE, False, False),
        (State.WAITING, Reason.SECRET_MISSING, False, False),
        (State.WAITING, Reason.QUOTA_EXCEEDED, False, False),
        (State.WAITING, Reason.IMAGE_PULL_FAILED, False, False),
        (State.SUSPENDED, Reason.SUSPENDED, False, False),
    ],
)
def test_a_run_that_waits_for_a_place_may_be_changed(state: State, reason: Reason, running: bool, frozen: bool) -> None:
    """The remedies say "choose another profile": then a new run begins, in which finished stages are reused."""
    waiting = job(Stage.TRAIN, state, verdict=Verdict(state, reason, "It waits."))
    first = plan(observed(jobs=(RESOLVED, done(Stage.PREPARE), waiting)), NOW)
    assert (first.status.at_work, first.status.phase is Phase.RUNNING) == (frozen, running)
    changed = SPEC.model_copy(update={"rerun": "2"})
    after = observed(changed, generation=4, status=first.status, jobs=(RESOLVED, done(Stage.PREPARE), waiting))
    run = current_run(after, NOW)
    assert (run.number == 1) is frozen
    if not frozen:
        assert plan(after, NOW).actions == (Delete(JOBS, waiting.name, waiting.uid),)


@pytest.mark.parametrize(
    ("state", "phase", "stalled"), [(State.RUNNING, Phase.RUNNING, "False"), (State.WAITING, Phase.PENDING, "True")]
)
def test_a_lost_node_is_told_and_needs_somebody_once_its_pod_is_given_up(
    state: State, phase: Phase, stalled: str
) -> None:
    lost = job(Stage.RESOLVE, state, verdict=Verdict(state, Reason.NODE_LOST, "Node gpu-7 of pod x does not answer."))
    made = plan(observed(jobs=(lost,)), NOW)
    assert (made.status.phase, conditions(made)["Stalled"], made.blocked) == (phase, stalled, stalled == "True")
    ready = next(each for each in made.status.conditions if each.type == "Ready")
    assert_says(ready.message, "resolve: Node gpu-7", "Check the node", "kubectl delete node")
    assert [(event.type, event.reason) for event in made.events][-1] == ("Warning", Reason.NODE_LOST)


@pytest.mark.parametrize(("minutes", "stalled"), [(0, "False"), (9.9, "False"), (10, "True"), (600, "True")])
def test_a_pod_without_a_node_is_stalled_after_a_while(minutes: float, stalled: str) -> None:
    since = timestamp(NOW - timedelta(minutes=minutes))
    verdict = Verdict(State.WAITING, Reason.UNSCHEDULABLE, "no node.", unschedulable_since=since)
    made = plan(observed(jobs=(job(Stage.RESOLVE, verdict=verdict),)), NOW)
    told = conditions(made)
    assert (told["Stalled"], told["Reconciling"]) == (stalled, "True" if stalled == "False" else "False")
    if stalled == "False":
        assert made.requeue_after is not None
        assert timedelta(seconds=made.requeue_after) <= timedelta(minutes=10 - minutes)


def shared_memory(planned: Plan[FineTuneJobStatus]) -> list[str]:
    """Sizes of /dev/shm in the pods of new Jobs."""
    pods = [
        action.object["spec"]["template"]["spec"]
        for action in planned.actions
        if isinstance(action, Create) and action.object["kind"] == "Job"
    ]
    return [each["emptyDir"]["sizeLimit"] for pod in pods for each in pod["volumes"] if each["name"] == "shared-memory"]


@pytest.mark.parametrize("offered", [True, False])
def test_models_run_in_vllm_where_there_is_an_image_for_it(offered: bool) -> None:
    """Without one, no pod starts; the other stages keep their image."""
    asked = SPEC.evaluation.model_copy(update={"generator": Generator.VLLM})
    images = SETTINGS.images.model_copy(update={"evaluate_vllm": "evaluate-vllm" if offered else ""})
    earlier = [done(each) for each in (Stage.PREPARE, Stage.TRAIN, Stage.EXPORT)]
    found = observed(SPEC.model_copy(update={"evaluation": asked}))
    run = current_run(found, NOW).id
    found = replace(
        found,
        settings=SETTINGS.model_copy(update={"images": images}),
        jobs=tuple(replace(each, run=run) for each in [RESOLVED, *earlier]),
    )
    planned = plan(found, NOW)
    if offered:
        [given] = started(planned)
        assert (given.stage, given.image) == (Stage.EVALUATE, "evaluate-vllm")
        assert not shared_memory(planned), "one GPU's engine has one process"
        fit = {"fitVerdict": "Fits", "fitEvaluationGpus": "2"}
        larger = replace(found, jobs=(replace(done(Stage.RESOLVE, scalars=IDENTITY | fit), run=run), *found.jobs[1:]))
        assert shared_memory(plan(larger, NOW)) == ["2Gi"]
        return
    assert not started(planned)
    assert told(planned) == (Phase.PENDING, Reason.GENERATOR_UNKNOWN)
    message = next(each.message for each in planned.status.conditions if each.type == "Ready")
    assert_says(message, "spec.evaluation.generator is VLLM", "Transformers", "images.evaluateVllm")
