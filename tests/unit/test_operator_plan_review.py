"""FineTuneJob's plan where people must vote: it waits without a pod, looks again, and takes what publish says."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.gates import GateOutcome
from finetune_api.job_status import FineTuneJobStatus, Phase, StageState
from finetune_api.reasons import Reason
from finetune_api.review import ReviewStatus
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_operator.finetunejob.observe import StageJob
from finetune_operator.finetunejob.pipeline import REVIEW_INTERVAL
from finetune_operator.finetunejob.plan import current_run, plan
from finetune_operator.framework.actions import Create, Delete, Plan
from finetune_operator.framework.objects import JOBS
from finetune_operator.outcome.job import State, Verdict
from tests.support.runs import GIVEN, METADATA, NOW, RESOLVED, THEN, conditions, done, job, observed, started, told
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

SPEC = FineTuneJobSpec.model_validate(GIVEN | {"evaluation": {"humanReview": "Required"}})
RUN = current_run(observed(SPEC), NOW).id
BEFORE = tuple(
    replace(each, run=RUN)
    for each in (RESOLVED, done(Stage.PREPARE), done(Stage.TRAIN), done(Stage.EXPORT), done(Stage.EVALUATE))
)
AWAITING = (Phase.PENDING, Reason.AWAITING_REVIEW)


def said(outcome: GateOutcome = GateOutcome.INCONCLUSIVE, votes: int = 3) -> dict[str, str]:
    """The scalars of publish."""
    review = ReviewStatus(outcome=outcome, votes=votes, reviewers=1, win_rate="0.6667", low="0.3", high="0.9")
    return {"goals": '[["Pass","0.1","0.0","0.2",null]]', "review": review.model_dump_json(by_alias=True)}


def looked(message: str = "3 votes.", **more: Any) -> StageJob:
    """The Job of a publish that has looked at the votes and waits."""
    result = StageResult(
        stage=Stage.PUBLISH,
        outcome=Outcome.SUCCEEDED,
        reason=Reason.AWAITING_REVIEW,
        message=message,
        scalars=said(),
    )
    verdict = Verdict(State.SUCCEEDED, Reason.AWAITING_REVIEW, message, result, 1, THEN, THEN)
    return job(Stage.PUBLISH, verdict=verdict, **({"run": RUN} | more))


def planned(*publish: StageJob, spec: FineTuneJobSpec = SPEC, asked: str = "", **more: Any) -> Plan[FineTuneJobStatus]:
    seen = observed(spec, jobs=(*BEFORE, *publish), **more)
    annotations = {meta.ANNOTATION_REVIEW: asked} if asked else {}
    metadata = METADATA.model_copy(update={"annotations": annotations})
    return plan(replace(seen, metadata=metadata), NOW)


def test_it_waits_and_says_what_for() -> None:
    result = planned(looked())
    assert told(result) == AWAITING
    found = conditions(result)
    assert (found["Stalled"], found["Reconciling"], found["Failed"]) == ("False", "True", "False")
    ready = next(each for each in result.status.conditions if each.type == "Ready")
    assert_says(
        ready.message, "publish: 3 votes.", "review.html", "python -m finetune_jobs.review", meta.ANNOTATION_REVIEW
    )
    assert result.actions == ()
    assert result.requeue_after == REVIEW_INTERVAL.total_seconds()
    assert result.status.evaluation
    assert result.status.evaluation.review == ReviewStatus.model_validate_json(said()["review"])
    assert result.status.evaluation.goals_met == "1/1"
    row = result.status.stages[-1]
    assert (row.name, row.state, row.job, row.started_at) == ("publish", StageState.PENDING, "ft-publish-1", None)
    assert not result.status.at_work, "the spec may be changed"
    assert [(event.type, event.reason) for event in result.events][-1] == ("Normal", Reason.AWAITING_REVIEW)


def test_while_nothing_changes_nothing_is_written() -> None:
    first = planned(looked())
    again = planned(looked(age=timedelta(minutes=20)), status=first.status)
    assert (again.status, again.events, again.actions) == (first.status, (), ())
    assert again.requeue_after == 40 * 60


@pytest.mark.parametrize(
    ("age", "asked", "before", "again"),
    [
        (0, "", "", False),
        (59, "", "", False),
        (60, "", "", True),
        (600, "now", "now", True),
        (1, "now", "", True),
        (1, "later", "now", True),
        (1, "now", "now", False),
        (1, "", "now", True),
    ],
)
def test_it_looks_again_once_an_hour_and_whenever_somebody_asks(age: int, asked: str, before: str, again: bool) -> None:
    it = looked(age=timedelta(minutes=age), asked=before)
    result = planned(it, asked=asked)
    assert result.actions == ((Delete(JOBS, it.name, it.uid),) if again else ())
    assert told(result) == AWAITING


def test_the_next_look_is_a_new_job_that_knows_what_was_asked() -> None:
    waiting = planned(looked()).status
    result = planned(status=waiting, asked="2026-01-01")
    assert [given.stage for given in started(result)] == [Stage.PUBLISH]
    [made] = [action.object for action in result.actions if isinstance(action, Create) and action.resource == JOBS]
    assert made["metadata"]["annotations"] == {meta.ANNOTATION_REVIEW: "2026-01-01"}
    assert told(result) == AWAITING, "to look is a part of waiting"
    assert not [event for event in result.events if event.type == "Warning"]
    running = planned(job(Stage.PUBLISH, run=RUN), status=result.status, asked="2026-01-01")
    assert told(running) == AWAITING
    back = planned(looked(asked="2026-01-01"), status=running.status, asked="2026-01-01")
    assert (told(back), back.events) == (AWAITING, ())
    assert back.status.stages[-1].earlier_seconds is None


def test_what_keeps_a_look_from_its_votes_is_told() -> None:
    waiting = planned(looked()).status
    held = Verdict(State.WAITING, Reason.IMAGE_PULL_FAILED, "no such image")
    result = planned(job(Stage.PUBLISH, run=RUN, verdict=held), status=waiting)
    assert told(result) == (Phase.PENDING, Reason.IMAGE_PULL_FAILED)


@pytest.mark.parametrize(
    ("minutes", "asked", "again"), [(0, "", False), (4, "", False), (5, "", True), (9000, "", True), (1, "now", True)]
)
def test_a_look_whose_pod_is_gone_is_done_again(minutes: int, asked: str, again: bool) -> None:
    """A run waits for days, and nodes go. Where its pods always go, it makes a pause in between."""
    verdict = Verdict(State.LOST, Reason.RESULT_LOST, "gone", None, 1, THEN, THEN)
    lost = job(Stage.PUBLISH, run=RUN, verdict=verdict, age=timedelta(minutes=minutes))
    result = planned(lost, status=planned(looked()).status, asked=asked)
    assert result.actions == ((Delete(JOBS, lost.name, lost.uid),) if again else ())
    assert told(result) == AWAITING
    assert again or result.requeue_after == 300 - 60 * minutes


@pytest.mark.parametrize(
    ("reason", "minutes", "again"),
    [(Reason.S3_UNREACHABLE, 1, False), (Reason.S3_UNREACHABLE, 5, True), (Reason.NODE_LOST, 9, True)],
)
def test_a_look_that_fails_ends_no_run_that_waits(reason: Reason, minutes: int, again: bool) -> None:
    """Some minutes without the store would otherwise end a wait of days, and somebody has to begin it again."""
    it = failed_look(reason, minutes)
    result = planned(it, status=planned(looked()).status)
    assert told(result) == AWAITING
    assert result.actions == ((Delete(JOBS, it.name, it.uid),) if again else ())
    ready = next(each for each in result.status.conditions if each.type == "Ready")
    assert_says(ready.message, "last look", "failed: Away.")


def test_a_look_that_fails_for_good_ends_the_run() -> None:
    result = planned(failed_look(Reason.S3_ACCESS_DENIED, 9), status=planned(looked()).status)
    assert told(result) == (Phase.FAILED, Reason.S3_ACCESS_DENIED)


def test_before_it_waits_a_failure_is_one() -> None:
    assert told(planned(failed_look(Reason.S3_UNREACHABLE, 9))) == (Phase.FAILED, Reason.S3_UNREACHABLE)


def failed_look(reason: Reason, minutes: int) -> StageJob:
    """The Job of a publish whose retries are used up."""
    verdict = Verdict(State.FAILED, reason, "Away.", None, 1, THEN, THEN)
    return job(Stage.PUBLISH, run=RUN, verdict=verdict, age=timedelta(minutes=minutes))


def test_a_suspended_run_does_not_look() -> None:
    spec = SPEC.model_copy(update={"suspend": True})
    result = planned(looked(age=timedelta(hours=9)), spec=spec, asked="now")
    assert (told(result), result.actions) == ((Phase.SUSPENDED, Reason.SUSPENDED), ())


def test_votes_that_pass_let_it_publish() -> None:
    it = done(Stage.PUBLISH, scalars=said(GateOutcome.PASS, 40) | {"channel": "stable"})
    result = planned(replace(it, run=RUN), status=planned(looked()).status)
    assert told(result) == (Phase.SUCCEEDED, Reason.RUN_SUCCEEDED)
    assert result.status.evaluation
    assert result.status.evaluation.review
    assert result.status.evaluation.review.outcome is GateOutcome.PASS


@pytest.mark.parametrize(("given", "trusted"), [({"wins": 60, "winRate": "0.7"}, True), ({"wins": "many"}, False)])
def test_what_a_judge_said_is_in_the_status(given: dict[str, Any], trusted: bool) -> None:
    it = done(Stage.PUBLISH, scalars=said(GateOutcome.PASS, 40) | {"channel": "stable", "judge": json.dumps(given)})
    result = planned(replace(it, run=RUN), status=planned(looked()).status)
    assert result.status.evaluation
    judge = result.status.evaluation.judge
    assert (judge.wins if judge else None) == (60 if trusted else None)


def test_votes_that_fail_end_the_run_like_any_gate() -> None:
    told_by_pod = StageResult(
        stage=Stage.PUBLISH,
        outcome=Outcome.FAILED,
        reason=Reason.GATE_FAILED,
        message="Human review failed.",
        scalars=said(GateOutcome.FAIL, 40),
    )
    verdict = Verdict(State.FAILED, Reason.GATE_FAILED, "Human review failed.", told_by_pod, 1, THEN, THEN)
    result = planned(job(Stage.PUBLISH, run=RUN, verdict=verdict), status=planned(looked()).status)
    assert told(result) == (Phase.FAILED, Reason.GATE_FAILED)
    assert result.status.evaluation
    assert result.status.evaluation.review
    assert result.status.evaluation.review.votes == 40


def test_a_candidate_that_people_rejected_is_no_success() -> None:
    it = done(Stage.PUBLISH, scalars=said(GateOutcome.FAIL, 40) | {"channel": "candidate"})
    result = planned(replace(it, run=RUN))
    assert told(result) == (Phase.FAILED, Reason.GATE_FAILED)
    ready = next(each for each in result.status.conditions if each.type == "Ready")
    assert_says(ready.message, "Human review failed: 40 votes of 1 reviewer", "win rate 0.6667", "candidate only")


def test_without_a_review_the_annotation_means_nothing() -> None:
    plain = FineTuneJobSpec.model_validate(GIVEN)
    result = plan(
        observed(
            plain,
            jobs=(RESOLVED, done(Stage.PREPARE), done(Stage.TRAIN), done(Stage.EXPORT), done(Stage.EVALUATE)),
        ),
        NOW,
    )
    [made] = [action.object for action in result.actions if isinstance(action, Create) and action.resource == JOBS]
    assert "annotations" not in made["metadata"]


def test_what_a_pod_claims_of_votes_is_not_trusted() -> None:
    it = looked()
    assert it.verdict.result
    wild = it.verdict.result.model_copy(update={"scalars": {"review": '{"outcome": 7}'}})
    verdict = Verdict(State.SUCCEEDED, Reason.AWAITING_REVIEW, "", wild, 1, THEN, THEN)
    result = planned(job(Stage.PUBLISH, run=RUN, verdict=verdict))
    assert told(result) == AWAITING
    assert result.status.evaluation
    assert result.status.evaluation.review is None
