"""FineTuneJob's plan: tables from what was observed to what is done and said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from finetune_api import meta
from finetune_api.finetunejob import Reuse
from finetune_api.job_status import FineTuneJobStatus, Phase, RunStatus
from finetune_api.reasons import REMEDIES, Reason
from finetune_api.stages import PIPELINE, Found, Stage
from finetune_operator.finetunejob.kind import with_conflict
from finetune_operator.finetunejob.observe import ObservedJob, UnplannedJob, spec_hash
from finetune_operator.finetunejob.plan import plan
from finetune_operator.framework.actions import Create, Delete
from finetune_operator.framework.apply import NameTaken
from finetune_operator.framework.objects import JOBS, SERVICES
from finetune_operator.framework.reading import Unplanned
from finetune_operator.outcome.job import State, Verdict
from finetune_operator.resources.stage_job import QUEUE_LABEL
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.support.runs import (
    METADATA,
    NOW,
    RESOLVED,
    RUN,
    SETTINGS,
    SPEC,
    THEN,
    conditions,
    done,
    ended,
    job,
    observed,
    started,
    told,
)
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Case:
    """What is observed, and the stage that is started for it, if any, or what is said."""

    observed: ObservedJob | UnplannedJob
    starts: Stage | None = None
    says: tuple[Phase, Reason] | None = None
    in_words: str = ""
    """Parts of Ready's message."""


TENANCY = Tenancy(rules=[TenancyRule(namespaces=["*"], outputs=["s3://models/{namespace}"])])
UNSHARED = SPEC.model_copy(update={"reuse": Reuse.NEVER})
CASES = {
    "new": Case(observed(), Stage.RESOLVE),
    "resolving": Case(observed(jobs=(job(Stage.RESOLVE),)), says=(Phase.RUNNING, Reason.STAGE_STARTED)),
    "resolved": Case(observed(jobs=(RESOLVED,)), Stage.PREPARE),
    "next in Kueue's queue": Case(
        observed(labels={QUEUE_LABEL: "gpus"}, jobs=(RESOLVED,)),
        Stage.PREPARE,
        says=(Phase.PENDING, Reason.QUEUED),
        in_words="prepare … queued … Kueue",
    ),
    "prepared": Case(observed(jobs=(RESOLVED, done(Stage.PREPARE))), Stage.TRAIN),
    "evaluated": Case(observed(jobs=(RESOLVED, *map(done, PIPELINE[:4]))), Stage.PUBLISH),
    "published": Case(observed(jobs=(RESOLVED, *map(done, PIPELINE))), says=(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED)),
    "two of five found": Case(
        observed(jobs=(done(Stage.RESOLVE, found=[Found(stage=s, output_digest="7" * 64) for s in PIPELINE[:2]]),)),
        Stage.EXPORT,
    ),
    "all found": Case(
        observed(jobs=(done(Stage.RESOLVE, found=[Found(stage=s, output_digest="7" * 64) for s in PIPELINE]),)),
        says=(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED),
    ),
    "found, but not from the first on": Case(
        observed(jobs=(done(Stage.RESOLVE, found=[Found(stage=Stage.TRAIN, output_digest="7" * 64)]),)), Stage.PREPARE
    ),
    "found, but not wanted": Case(
        observed(
            UNSHARED,
            status=FineTuneJobStatus(
                phase=Phase.RUNNING, run=RunStatus(id=RUN, number=1, spec_hash=spec_hash(UNSHARED), started_at=THEN)
            ),
            jobs=(done(Stage.RESOLVE, found=[Found(stage=Stage.PREPARE, output_digest="7" * 64)]),),
        ),
        Stage.PREPARE,
    ),
    "failed": Case(
        observed(jobs=(job(Stage.RESOLVE, verdict=Verdict(State.FAILED, Reason.BUCKET_NOT_FOUND, "s3://x: none")),)),
        says=(Phase.FAILED, Reason.BUCKET_NOT_FOUND),
        in_words=f"resolve: s3://x: none {REMEDIES[Reason.BUCKET_NOT_FOUND]}",
    ),
    "unschedulable": Case(
        observed(jobs=(job(Stage.RESOLVE, verdict=Verdict(State.WAITING, Reason.UNSCHEDULABLE, "no node.")),)),
        says=(Phase.PENDING, Reason.UNSCHEDULABLE),
        in_words=f"resolve: no node. {REMEDIES[Reason.UNSCHEDULABLE]}",
    ),
    "invalid": Case(
        Unplanned(METADATA, FineTuneJobStatus(), Reason.SPEC_INVALID, "spec.profile: Field required"),
        says=(Phase.PENDING, Reason.SPEC_INVALID),
        in_words="spec.profile: Field required.",
    ),
    "unknown profile": Case(
        observed(SPEC.model_copy(update={"profile": "huge"})),
        says=(Phase.PENDING, Reason.PROFILE_UNKNOWN),
        in_words="spec.profile is 'huge' … small",
    ),
    "not for this namespace": Case(
        replace(observed(), settings=SETTINGS.model_copy(update={"tenancy": TENANCY})),
        says=(Phase.PENDING, Reason.NOT_ALLOWED),
        in_words="spec.output.uri is 's3://artifacts/team' … 'team' … below s3://models/team. … "
        f"{REMEDIES[Reason.NOT_ALLOWED]}",
    ),
    "no longer for this namespace": Case(
        replace(observed(jobs=(RESOLVED,)), settings=SETTINGS.model_copy(update={"tenancy": TENANCY})),
        says=(Phase.PENDING, Reason.NOT_ALLOWED),
    ),
    "what runs may end though it is no longer for this namespace": Case(
        replace(observed(jobs=(job(Stage.RESOLVE),)), settings=SETTINGS.model_copy(update={"tenancy": TENANCY})),
        says=(Phase.RUNNING, Reason.STAGE_STARTED),
    ),
    "no service account": Case(
        observed(service_account=False),
        says=(Phase.PENDING, Reason.RUNNER_SERVICE_ACCOUNT_MISSING),
        in_words="'finetune-runner' … profile 'small' … namespace 'team'",
    ),
    "another job publishes to the output": Case(
        observed(conflicting_job="first"),
        says=(Phase.PENDING, Reason.OUTPUT_NAME_CONFLICT),
        in_words="The older FineTuneJob 'first' … 'ft' … s3://artifacts/team",
    ),
    "refused by a quota on Jobs": Case(
        observed(refusal='jobs.batch "x" is forbidden: exceeded quota: few'),
        says=(Phase.PENDING, Reason.QUOTA_EXCEEDED),
        in_words="exceeded quota: few",
    ),
    "refused by a policy": Case(
        observed(refusal='admission webhook "policy" denied the request'), says=(Phase.PENDING, Reason.POD_REJECTED)
    ),
    "suspended from the start": Case(
        observed(SPEC.model_copy(update={"suspend": True})), says=(Phase.SUSPENDED, Reason.SUSPENDED)
    ),
    "blocked in the middle": Case(
        observed(jobs=(RESOLVED,), service_account=False),
        says=(Phase.PENDING, Reason.RUNNER_SERVICE_ACCOUNT_MISSING),
    ),
    "a pod of an earlier Job still runs": Case(
        observed(orphan_pods=("ft-train-1-abc",)),
        says=(Phase.PENDING, Reason.WAITING),
        in_words="resolve waits … pod ft-train-1-abc",
    ),
    "succeeded, Jobs gone": Case(
        observed(status=ended(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED)), says=(Phase.SUCCEEDED, Reason.RUN_SUCCEEDED)
    ),
    "failed before": Case(
        observed(status=ended(Phase.FAILED, Reason.S3_ACCESS_DENIED)), says=(Phase.FAILED, Reason.S3_ACCESS_DENIED)
    ),
    "rerun": Case(
        observed(SPEC.model_copy(update={"rerun": "2"}), status=ended(Phase.FAILED, Reason.S3_ACCESS_DENIED)),
        Stage.RESOLVE,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_step(case: Case) -> None:
    """One stage is started, or nothing is; a run's first stage is told of in the next turn."""
    result = plan(case.observed, NOW)
    assert [given.stage for given in started(result)] == ([case.starts] if case.starts else [])
    assert result.defer_status is (case.starts is Stage.RESOLVE)
    if case.says:
        assert told(result) == case.says
        ready = next(each.message for each in result.status.conditions if each.type == "Ready")
        assert_says(ready, *case.in_words.split(" … "))
        assert result.status.observed_generation == 3


def test_a_started_stage_knows_its_place_in_the_chain() -> None:
    """Upstream addresses, input key and run are in its input; labels and names follow from it."""
    result = plan(observed(jobs=(RESOLVED, done(Stage.PREPARE))), NOW)
    given = started(result)[0]
    assert (given.upstream.source, given.upstream.dataset) == ("5" * 64, "0" * 64)
    assert len(given.input_key) == 64
    assert given.run.id == RUN
    again = plan(observed(jobs=(RESOLVED, done(Stage.PREPARE))), NOW + timedelta(hours=1))
    assert result.actions == again.actions, "a crash repeats itself"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_status_says_what_is_in_progress_and_whether_it_has_ended(case: Case) -> None:
    """``Finished`` is what a script can wait for: it is reached whether the run succeeds or fails."""
    made = plan(case.observed, NOW)
    if made.defer_status:
        return
    told = conditions(made)
    ended = made.status.phase in (Phase.SUCCEEDED, Phase.FAILED)
    assert told["Finished"] == str(ended)
    assert (told["Complete"], told["Failed"]) == (
        str(made.status.phase is Phase.SUCCEEDED),
        str(made.status.phase is Phase.FAILED),
    )
    reconciling = next(each for each in made.status.conditions if each.type == "Reconciling")
    assert reconciling.message


def test_the_queue_label_goes_through() -> None:
    """To the Job alone: pods and ConfigMaps are not Kueue's business."""
    result = plan(observed(labels={QUEUE_LABEL: "gpus", "other": "x"}), NOW)
    config_map, made = (action.object for action in result.actions if isinstance(action, Create))
    assert made["metadata"]["labels"][QUEUE_LABEL] == "gpus"
    assert "other" not in made["metadata"]["labels"]
    for labels in (config_map["metadata"]["labels"], made["spec"]["template"]["metadata"]["labels"]):
        assert QUEUE_LABEL not in labels


def test_a_conflicting_object_blocks_until_it_is_gone() -> None:
    """What an action ran into becomes part of what was observed."""
    result = plan(with_conflict(observed(), NameTaken(JOBS, "ft-resolve-1")), NOW)
    assert told(result) == (Phase.PENDING, Reason.NAME_TAKEN)
    assert result.actions == ()
    assert result.blocked


def test_the_input_that_somebody_deleted_is_made_again() -> None:
    """Of our own version; a Job of another version cannot start without its own, so it starts anew with ours."""
    name = next(each.object["metadata"]["name"] for each in plan(observed(), NOW).actions if isinstance(each, Create))
    waiting = Verdict(State.WAITING, Reason.WAITING, "starting")
    ours = plan(observed(jobs=(job(Stage.RESOLVE, verdict=waiting, name=name, input_missing=True),)), NOW)
    assert [action.object["kind"] for action in ours.actions if isinstance(action, Create)] == ["ConfigMap"]
    theirs = plan(observed(jobs=(job(Stage.RESOLVE, verdict=waiting, name="other", input_missing=True),)), NOW)
    assert [type(action) for action in theirs.actions] == [Delete]


@pytest.mark.parametrize("state", [State.WAITING, State.RUNNING])
def test_the_service_of_pods_that_train_together_is_made_again(state: State) -> None:
    """Of any version's Job, which goes on: the Service follows from its name."""
    verdict = Verdict(state, Reason.STAGE_STARTED, attempts=1, started_at=THEN)
    training = job(Stage.TRAIN, verdict=verdict, name="of-another-version", peers_missing=True)
    [action] = plan(observed(jobs=(RESOLVED, done(Stage.PREPARE), training)), NOW).actions
    assert isinstance(action, Create)
    assert (action.resource, action.object["metadata"]["name"]) == (SERVICES, "of-another-version")
    assert action.object["spec"]["selector"] == {meta.LABEL_JOB: "of-another-version"}
