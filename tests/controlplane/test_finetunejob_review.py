"""A FineTuneJob that waits for people's votes, on a real API server: without a pod, until they decide."""

from __future__ import annotations

import pytest

from finetune_api import meta
from finetune_api.gates import GateOutcome
from finetune_api.job_status import Phase, StageState
from finetune_api.reasons import Reason
from finetune_api.review import ReviewStatus
from finetune_api.stages import Outcome, Stage, StageInput, StageResult
from finetune_operator.framework.objects import PODS
from finetune_operator.kinds import FINETUNEJOBS
from tests.controlplane.conftest import Team, condition, wait
from tests.support.fake_node import Ending

pytestmark = pytest.mark.controlplane

REQUIRED = {"humanReview": "Required", "review": {"votes": 5}}


class Votes:
    """What people have said, and a publish that counts it."""

    def __init__(self, team: Team) -> None:
        self.found = ReviewStatus(outcome=GateOutcome.INCONCLUSIVE)
        self.looks = 0
        self._team = team
        team.node.scripts[Stage.PUBLISH] = self.count

    def count(self, given: StageInput) -> Ending:
        """The stage."""
        self.looks += 1
        scalars = {"review": self.found.model_dump_json(by_alias=True)}
        if self.found.outcome is GateOutcome.PASS:
            ending = self._team.node.store.run(given)
            assert ending.result
            merged = ending.result.model_copy(update={"scalars": ending.result.scalars | scalars})
            return Ending(merged)
        waits = {"reason": Reason.AWAITING_REVIEW, "message": f"{self.found.votes} votes.", "scalars": scalars}
        return Ending(StageResult(stage=Stage.PUBLISH, outcome=Outcome.SUCCEEDED, **waits))

    def ask(self, name: str, value: str) -> None:
        """Have them counted now."""
        body = {"metadata": {"annotations": {meta.ANNOTATION_REVIEW: value}}}
        self._team.api.patch(FINETUNEJOBS, self._team.namespace, name, body)


def test_a_run_waits_for_votes_without_a_pod_and_goes_on_with_them(team: Team) -> None:
    votes = Votes(team)
    first = team.start()
    team.create("voted", evaluation=REQUIRED)
    status = team.until("voted", Reason.AWAITING_REVIEW)
    assert (status.phase, condition(status, "Stalled"), status.at_work) == (Phase.PENDING, "False", False)
    assert status.stages[-1].state is StageState.PENDING
    wait(lambda: ("Normal", "AwaitingReview") in team.events("voted"), "the event")
    phases = {pod["status"]["phase"] for pod in team.api.select(PODS, team.namespace, meta.LABEL_STAGE)}
    assert phases == {"Succeeded"}, "nothing runs meanwhile"

    first.stop()
    votes.found = ReviewStatus(outcome=GateOutcome.INCONCLUSIVE, votes=3, reviewers=1, win_rate="0.6667")
    team.start().wait_ready()
    assert votes.looks == 1, "a restart is no reason to look"
    votes.ask("voted", "one")
    wait(lambda: votes.looks == 2 and _votes(team) == 3, "the second look")
    assert [event for event in team.events("voted") if event[1] == "AwaitingReview"] == [("Normal", "AwaitingReview")]
    [job] = team.jobs("voted", Stage.PUBLISH)
    assert job["metadata"]["annotations"][meta.ANNOTATION_REVIEW] == "one"

    votes.found = ReviewStatus(outcome=GateOutcome.PASS, votes=40, reviewers=2, win_rate="0.8000")
    votes.ask("voted", "two")
    status = team.until("voted", Phase.SUCCEEDED)
    assert (votes.looks, status.stages_done) == (3, "5/5")
    assert status.artifact
    assert _votes(team) == 40


def test_a_look_whose_pod_was_lost_is_done_again(team: Team) -> None:
    votes = Votes(team)
    team.start()
    team.create("lost", evaluation=REQUIRED)
    team.until("lost", Reason.AWAITING_REVIEW)
    [job] = team.jobs("lost", Stage.PUBLISH)
    wait(lambda: (job := team.jobs("lost", Stage.PUBLISH)) and job[0]["status"].get("succeeded"), "the Job's own end")
    [pod] = team.api.select(PODS, team.namespace, f"{meta.LABEL_STAGE}={Stage.PUBLISH}")
    team.api.delete(PODS, team.namespace, pod["metadata"]["name"], pod["metadata"]["uid"])
    votes.ask("lost", "again")  # without asking, it is done when the Job is five minutes old
    wait(lambda: votes.looks == 2, "another look")
    wait(lambda: _is_settled(team, job["metadata"]["uid"]), "the wait to go on")
    votes.found = ReviewStatus(outcome=GateOutcome.PASS, votes=40)
    votes.ask("lost", "now")
    team.until("lost", Phase.SUCCEEDED)


def test_who_does_not_want_to_wait_changes_the_spec(team: Team) -> None:
    votes = Votes(team)
    team.start()
    team.create("off", evaluation=REQUIRED)
    team.until("off", Reason.AWAITING_REVIEW)
    del team.node.scripts[Stage.PUBLISH]
    team.change("off", evaluation={"humanReview": "Off"})
    status = team.until("off", Phase.SUCCEEDED)
    assert status.run
    assert (status.run.number, votes.looks) == (2, 1)
    assert [row.state for row in status.stages[1:-1]] == [StageState.REUSED] * 4


def _votes(team: Team) -> int:
    evaluation = team.status("voted").evaluation
    return evaluation.review.votes if evaluation and evaluation.review else 0


def _is_settled(team: Team, before: str) -> bool:
    """Whether the second Job's result is in the status."""
    jobs = team.jobs("lost", Stage.PUBLISH)
    row = team.status("lost").stages[-1]
    return bool(jobs) and jobs[0]["metadata"]["uid"] != before and row.state is StageState.PENDING
