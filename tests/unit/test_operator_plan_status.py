"""What FineTuneJob's plan writes into the status: progress, times, messages, the artifact, advice, readiness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.dataset import Task, TaskType
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.gates import GateOutcome, GoalStatus, packed
from finetune_api.job_status import MAX_PROMPTING, FineTuneJobStatus, Phase, StageState
from finetune_api.push import PushStatus, PushTarget
from finetune_api.reasons import REMEDIES, Reason
from finetune_api.stages import FOUND_SCALARS, PIPELINE, Found, Outcome, Stage, StageResult
from finetune_api.storage import Encryption, EncryptionAlgorithm, Storage
from finetune_operator.finetunejob.ledger import RunLedger
from finetune_operator.finetunejob.observe import StageJob
from finetune_operator.finetunejob.plan import current_run, plan
from finetune_operator.finetunejob.progress import Sample
from finetune_operator.outcome.job import State, Verdict
from tests.support.runs import IDENTITY, NOW, RESOLVED, SPEC, THEN, done, job, observed
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("before", "sample", "percent"),
    [(None, None, 0), (None, 7, 7), (7, 7, 7), (7, 8, 8), (7, None, 7), (50, 3, 3)],
)
def test_progress_moves_by_whole_percents(before: int | None, sample: int | None, percent: int) -> None:
    """A reading of the same percent changes nothing, not even the time."""
    running = (job(Stage.RESOLVE),)
    reading: Callable[[int], Sample] = lambda value: Sample("resolve", value, 60, "step")  # noqa: E731
    status = FineTuneJobStatus()
    if before is not None:
        status = plan(observed(jobs=running, sample=reading(before)), NOW - timedelta(minutes=1)).status
    later = observed(jobs=running, status=status, sample=None if sample is None else reading(sample))
    progress = plan(later, NOW).status.progress
    assert progress is not None
    assert progress.percent == percent
    assert (progress == status.progress) is (sample is None or sample == before) or before is None


def test_times_move_on_transitions_only() -> None:
    """The same observation an hour later gives the same status and no event."""
    first = plan(observed(jobs=(job(Stage.RESOLVE),)), NOW)
    second = plan(observed(jobs=(job(Stage.RESOLVE),), status=first.status), NOW + timedelta(hours=1))
    assert second.status == first.status
    assert second.events == ()
    assert [event.reason for event in first.events] == [Reason.RUN_STARTED]


def test_long_messages_fit() -> None:
    """The API server refuses more than 1 KiB."""
    verdict = Verdict(State.FAILED, Reason.DATASET_INVALID, "x" * 5000)
    status = plan(observed(jobs=(job(Stage.RESOLVE, verdict=verdict),)), NOW).status
    assert status.run is not None
    messages = [each.message for each in status.conditions] + [row.message for row in status.stages]
    assert max(map(len, [*messages, status.run.message])) <= 1024
    assert next(each.message for each in status.conditions).endswith(REMEDIES[Reason.DATASET_INVALID])


def test_the_artifact_keeps_the_storage_with_which_it_was_published() -> None:
    """A run that begins with another store, or fails, has published nothing there; how to encrypt, no reader needs."""
    storage = Storage(
        endpoint="http://s3.storage.svc:8333", encryption=Encryption(algorithm=EncryptionAlgorithm.AES256)
    )
    stored = SPEC.model_copy(update={"storage": storage})
    run = current_run(observed(stored), NOW).id
    jobs = tuple(replace(each, run=run) for each in (RESOLVED, *map(done, PIPELINE)))
    status = plan(observed(stored, jobs=jobs), NOW).status
    assert status.artifact is not None
    assert status.artifact.storage == Storage(endpoint="http://s3.storage.svc:8333")
    moved = stored.model_copy(update={"storage": Storage(endpoint="http://other.svc:1")})
    again = current_run(observed(moved, generation=4, status=status), NOW).id
    begun = plan(observed(moved, generation=4, status=status, jobs=(job(Stage.RESOLVE, run=again),)), NOW).status
    assert begun.phase is Phase.RUNNING
    assert begun.artifact == status.artifact


@pytest.mark.parametrize(
    ("prepared", "published", "tokens"),
    [
        ({"longest": "300"}, {"goldenPromptTokens": "270", "answerTokens": "12"}, (270, 12, 300)),
        ({"longest": "9000"}, {}, (None, None, SPEC.training.max_length)),  # longer ones were cut or left out
    ],
)
def test_the_artifact_knows_how_long_it_is_asked(
    prepared: dict[str, str], published: dict[str, str], tokens: tuple[int | None, ...]
) -> None:
    scalars = {Stage.PREPARE: prepared, Stage.PUBLISH: published}
    jobs = (RESOLVED, *(done(stage, scalars=scalars.get(stage, {})) for stage in PIPELINE))
    artifact = plan(observed(jobs=jobs), NOW).status.artifact
    assert artifact is not None
    assert artifact.tokens is not None
    assert (artifact.tokens.golden_prompt, artifact.tokens.answer, artifact.tokens.example) == tokens


def reached(outcome: str) -> dict[str, str]:
    """What publish reports of the gates, beside what evaluate does."""
    found = GoalStatus(goal="", value="0.9000", low="0.8500", high="0.9300", outcome=GateOutcome(outcome))
    return {"goals": packed([found])}


def after_evaluation(publish: StageJob) -> FineTuneJobStatus:
    jobs = (RESOLVED, *map(done, PIPELINE[:-1]), publish)
    return plan(observed(jobs=jobs), NOW).status


def test_a_missed_goal_fails_the_run_and_stands_in_the_status() -> None:
    message = "Missed accuracy at least 0.95: 0.9000. Nothing was published."
    reason, base = Reason.GATE_FAILED, {"message": message, "scalars": reached("Fail")}
    result = StageResult(stage=Stage.PUBLISH, outcome=Outcome.FAILED, reason=reason, **base)
    status = after_evaluation(job(Stage.PUBLISH, verdict=Verdict(State.FAILED, reason, message, result, 1, THEN, THEN)))
    assert status.phase is Phase.FAILED
    assert status.run is not None
    assert (status.run.reason, status.run.message) == ("GateFailed", f"publish: {message}")
    assert status.evaluation is not None
    assert [(goal.outcome, goal.value) for goal in status.evaluation.goals] == [("Fail", "0.9000")]
    assert status.evaluation.goals_met == "0/1"
    assert status.artifact is status.candidate is None


def test_a_candidate_is_no_artifact_and_the_run_has_failed() -> None:
    """An AdapterDeployment that follows the job goes on serving status.artifact."""
    scalars = reached("Inconclusive") | {"channel": "candidate", "artifactUri": "s3://artifacts/team/artifacts/4"}
    status = after_evaluation(done(Stage.PUBLISH, scalars=scalars))
    assert status.phase is Phase.FAILED
    assert status.run is not None
    assert status.run.reason == "GateFailed"
    assert_says(status.run.message, "Too few test examples for accuracy not worse", "candidate only", "artifacts/4")
    assert status.artifact is None
    assert status.candidate is not None
    assert status.candidate.uri.endswith("artifacts/4")
    accepted = after_evaluation(done(Stage.PUBLISH, scalars=reached("Pass") | {"channel": "stable"}))
    assert (accepted.phase, accepted.candidate) == (Phase.SUCCEEDED, None)
    assert accepted.artifact is not None
    assert accepted.evaluation is not None
    assert accepted.evaluation.goals_met == "1/1"


def test_whether_prompting_would_have_done_is_told_of_an_evaluation_that_is_reused_too() -> None:
    """By publish, whether it ran again, with other goals, or was reused itself."""
    said = "Prompting would not have been enough: artifact against base model with few-shot examples."
    spec = observed().spec
    ledger = RunLedger(spec, FineTuneJobStatus(), current_run(observed(), NOW), NOW)
    for number, stage in enumerate(PIPELINE, 1):
        scalars = {"channel": "stable", "prompting": said + "x" * 500} if stage is Stage.PUBLISH else {}
        ledger.reuse(Found(stage=stage, output_digest=str(number) * 64, scalars=scalars), "key", None)
    assert ledger.evaluation
    assert ledger.evaluation.prompting.startswith(said)
    assert len(ledger.evaluation.prompting) == MAX_PROMPTING
    ran = after_evaluation(done(Stage.PUBLISH, scalars=reached("Pass") | {"channel": "stable", "prompting": said}))
    assert ran.evaluation
    assert ran.evaluation.prompting == said


TWO = '[["Pass", "1", "1", "1", null], ["Pass", "1", "1", "1", null]]'
"""One more than was asked."""


@pytest.mark.parametrize("told_", ["", "[", "[3]", '[["Pass", "0.9"]]', TWO, "{}"])
def test_outcomes_that_cannot_be_read_are_not_shown(told_: str) -> None:
    status = after_evaluation(done(Stage.PUBLISH, scalars={"goals": told_}))
    assert status.evaluation is not None
    assert status.evaluation.goals == []


def test_the_artifact_knows_its_architecture() -> None:
    jobs = (RESOLVED, *(done(stage, scalars={"architecture": "llama"}) for stage in PIPELINE))
    artifact = plan(observed(jobs=jobs), NOW).status.artifact
    assert artifact is not None
    assert (artifact.format, artifact.architecture, artifact.signed_by) == ("INT8", "llama", None)


def test_the_artifact_knows_its_signer() -> None:
    jobs = (RESOLVED, *(done(stage, scalars={"signedBy": "f" * 64}) for stage in PIPELINE))
    artifact = plan(observed(jobs=jobs), NOW).status.artifact
    assert artifact is not None
    assert artifact.signed_by == "f" * 64


def test_the_artifact_knows_its_copies() -> None:
    """In the order of the spec; one that is not there, or that a pod made up, is left out."""
    targets: list[dict[str, Any]] = [{"oci": {"registry": f"https://r{n}", "repository": "a/b"}} for n in range(3)]
    targets += [{"huggingFace": {"repository": "a/b", "tag": "v1", "secretKeyRef": {"name": "hub", "key": "k"}}}]
    spec = SPEC.model_copy(update={"output": SPEC.output.model_copy(update={"push_to": _targets(targets)})})
    digest = f"sha256:{'7' * 64}"

    def shown(scalars: dict[str, str]) -> list[PushStatus] | None:
        ledger = RunLedger(spec, FineTuneJobStatus(), current_run(observed(spec=spec), NOW), NOW)
        ledger.reuse(Found(stage=Stage.PUBLISH, output_digest="5" * 64, scalars=scalars), "key", None)
        assert ledger.artifact is not None
        return ledger.artifact.pushed

    to = {"r0/a/b:555555555555": digest, "huggingface.co/a/b@v1": "7" * 40}
    copies = [PushStatus(to=each, digest=known) for each, known in to.items()]
    assert shown({"pushed": f"{digest} - nonsense {'7' * 40}"}) == copies
    assert shown({}) is None


def _targets(given: list[dict[str, Any]]) -> list[PushTarget]:
    return [PushTarget.model_validate(each) for each in given]


def test_what_preflight_warns_of_is_said_once_and_stays() -> None:
    warning = "Runtime 'tgi' cannot serve the artifact: it has no qwen3."
    resolved = done(Stage.RESOLVE, scalars={**IDENTITY, "fitVerdict": "Fits", "fitWarning": warning})
    first = plan(observed(jobs=(resolved,)), NOW)
    assert first.status.fit is not None
    assert first.status.fit.warning == warning
    [advice] = [each for each in first.status.conditions if each.type == "Discouraged"]
    assert (advice.reason, advice.message) == (Reason.SETTINGS_DISCOURAGED, warning)
    assert [e.message for e in first.events if e.reason is Reason.SETTINGS_DISCOURAGED] == [warning]
    second = plan(observed(status=first.status, jobs=(resolved, job(Stage.PREPARE))), NOW)
    assert warning in {each.message for each in second.status.conditions}
    assert not [e for e in second.events if e.reason is Reason.SETTINGS_DISCOURAGED]


def test_what_was_not_counted_is_absent() -> None:
    """As after an older image. Of placeholders there may be none; of tokens or bytes there is always one."""
    silent = plan(observed(jobs=(RESOLVED, *map(done, PIPELINE))), NOW).status
    shown = silent.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert shown["dataset"].keys() == {"digest", "rows", "readiness", "reportUri"}
    assert shown["artifact"].keys() == {"digest", "uri", "format", "storage"}
    scalars = {
        Stage.PREPARE: {"labels": "0", "tokens": "9", "rowsTestMasked": "0", "answersMasked": "0"},
        Stage.PUBLISH: {"sizeBytes": "7", "baseSizeBytes": "9"},
    }
    jobs = (RESOLVED, *(done(stage, scalars=scalars.get(stage, {})) for stage in PIPELINE))
    told = plan(observed(jobs=jobs), NOW).status.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert told["dataset"].items() >= {"tokens": 9, "testMasked": 0, "answersMasked": 0}.items()
    assert "labels" not in told["dataset"]
    assert told["artifact"].items() >= {"sizeBytes": 7, "baseSizeBytes": 9}.items()


@pytest.mark.parametrize("told", [str(2**63), "9" * 3800])
def test_a_count_that_the_api_server_cannot_store_is_none(told: str) -> None:
    """It would refuse the whole status."""
    jobs = (RESOLVED, done(Stage.PREPARE, scalars={"tokens": told, "longest": str(2**63 - 1)}), job(Stage.TRAIN))
    dataset = plan(observed(jobs=jobs), NOW).status.dataset
    assert dataset
    assert (dataset.tokens, dataset.longest) == (None, 2**63 - 1)


def test_reused_and_done_stages_count() -> None:
    """The table says who did what."""
    found = [Found(stage=stage, output_digest="7" * 64) for stage in PIPELINE[:2]]
    status = plan(observed(jobs=(done(Stage.RESOLVE, found=found), job(Stage.EXPORT))), NOW).status
    assert status.stages_done == "2/5"
    assert [row.state for row in status.stages] == [
        StageState.SUCCEEDED,
        StageState.REUSED,
        StageState.REUSED,
        StageState.RUNNING,
        StageState.PENDING,
        StageState.PENDING,
    ]


@pytest.mark.parametrize(("task", "masked", "told"), [("Extraction", "7", 1), ("Extraction", "0", 0), ("Text", "7", 0)])
def test_records_with_placeholders_are_discouraged(task: str, masked: str, told: int) -> None:
    asked = FineTuneJobSpec.model_validate(SPEC.model_dump(by_alias=True) | {"task": {"type": task}})
    run = current_run(observed(asked), NOW).id
    prepared = done(Stage.PREPARE, scalars={"answersMasked": masked, "rowsTestMasked": "3"})
    status = plan(observed(asked, jobs=tuple(replace(each, run=run) for each in (RESOLVED, prepared))), NOW).status
    advice = [each.message for each in status.conditions if each.type == "Discouraged"]
    assert len(advice) == told
    assert status.dataset is not None
    assert (status.dataset.answers_masked, status.dataset.test_masked) == (int(masked), 3)
    for message in advice:
        assert_says(
            message, "7 records", "placeholders", "spec.dataset.pii.mode to Report", "spec.dataset.pii.entities"
        )


def test_settings_that_do_badly_are_taken_and_said_once() -> None:
    training = {"learningRate": "3e-5", "targetModules": ["q_proj", "v_proj"]}
    asked = FineTuneJobSpec.model_validate(SPEC.model_dump(by_alias=True) | {"training": training})
    jobs = (job(Stage.RESOLVE, run=current_run(observed(asked), NOW).id),)
    first = plan(observed(asked, jobs=jobs), NOW)
    [advice] = [each for each in first.status.conditions if each.type == "Discouraged"]
    assert (advice.status, advice.reason) == ("True", Reason.SETTINGS_DISCOURAGED)
    assert "spec.training.learningRate 3e-5" in advice.message
    assert "(q_proj, v_proj)" in advice.message
    assert [e.message for e in first.events if e.reason is Reason.SETTINGS_DISCOURAGED] == [advice.message]
    second = plan(observed(asked, status=first.status, jobs=jobs), NOW)
    assert not [e for e in second.events if e.reason is Reason.SETTINGS_DISCOURAGED]
    assert all(each.type != "Discouraged" for each in plan(observed(jobs=(job(Stage.RESOLVE),)), NOW).status.conditions)


@pytest.mark.parametrize(
    ("ended", "told"), [("Overfitting", True), ("BudgetExceeded", True), ("TrainingCompleted", False)]
)
def test_an_early_end_of_the_training_is_an_event(ended: str, told: bool) -> None:
    before = plan(observed(jobs=(done(Stage.RESOLVE), done(Stage.PREPARE), job(Stage.TRAIN))), NOW).status
    jobs = (done(Stage.RESOLVE), done(Stage.PREPARE), done(Stage.TRAIN, scalars={"ended": ended}))
    after = plan(observed(jobs=jobs, status=before), NOW)
    assert next(row for row in after.status.stages if row.name == "train").ended == ended
    assert any(event.reason == ended and event.type == "Warning" for event in after.events) is told


def test_a_reused_training_says_how_it_ended_but_that_is_no_news() -> None:
    results = {Stage.TRAIN: {"ended": "Overfitting"}}
    found = [Found(stage=s, output_digest="7" * 64, scalars=results.get(s, {})) for s in PIPELINE[:2]]
    made = plan(observed(jobs=(done(Stage.RESOLVE, found=found),)), NOW)
    assert [row.ended for row in made.status.stages if row.ended] == ["Overfitting"]
    assert not any(event.reason == "Overfitting" for event in made.events)


PENDING_BASELINE = "8 passed, 2 warnings (balance, baseline), 0 failed"


@pytest.mark.parametrize(
    ("task", "told", "scalars", "expected"),
    [
        pytest.param(
            TaskType.CLASSIFICATION,
            PENDING_BASELINE,
            {"accuracyBase": "0.1200", "samples": "200"},
            "9 passed, 1 warning (balance), 0 failed; base model: accuracy 12.0 % on 200 test examples",
            id="measured",
        ),
        pytest.param(
            TaskType.CLASSIFICATION,
            PENDING_BASELINE,
            {"accuracyBase": "0.9700", "samples": "1200"},
            "8 passed, 2 warnings (balance, baseline), 0 failed; base model: accuracy 97.0 % on 1,200 test examples",
            id="little left to win",
        ),
        pytest.param(
            TaskType.TEXT,
            "9 passed, 1 warning (baseline), 1 failed (leakage)",
            {"accuracyBase": "0.0000", "f1Base": "0.2140", "samples": "60"},
            "10 passed, 0 warnings, 1 failed (leakage); base model: F1 21.4 % on 60 test examples",
            id="free text",
        ),
        pytest.param(TaskType.TEXT, PENDING_BASELINE, {}, PENDING_BASELINE, id="nothing measured"),
        pytest.param(TaskType.EXTRACTION, PENDING_BASELINE, {"accuracyBase": "nan"}, PENDING_BASELINE, id="no number"),
        pytest.param(
            TaskType.CLASSIFICATION, "all is well", {"accuracyBase": "0.5"}, "all is well", id="no summary of ours"
        ),
    ],
)
def test_the_evaluation_completes_the_readiness(
    task: TaskType, told: str, scalars: dict[str, str], expected: str
) -> None:
    """By a Job that ends, in later turns, and where all results are found in the store."""
    spec = SPEC.model_copy(update={"task": Task(type=task)})
    run = current_run(observed(spec), NOW).id
    prepared = replace(done(Stage.PREPARE, scalars={"readiness": told}), run=run)
    jobs = [replace(RESOLVED, run=run), prepared]
    before = plan(observed(spec, jobs=tuple(jobs)), NOW).status
    assert before.dataset is not None
    assert before.dataset.readiness == told

    jobs += [replace(done(stage), run=run) for stage in (Stage.TRAIN, Stage.EXPORT)]
    jobs += [replace(done(Stage.EVALUATE, scalars=scalars), run=run)]
    evaluated = plan(observed(spec, status=before, jobs=tuple(jobs)), NOW).status
    again = plan(observed(spec, status=evaluated, jobs=tuple(jobs)), NOW).status
    results = {Stage.PREPARE: {"readiness": told}, Stage.EVALUATE: scalars}
    found = [Found(stage=s, output_digest="7" * 64, scalars=results.get(s, {})) for s in PIPELINE]
    reused = plan(observed(spec, jobs=(replace(done(Stage.RESOLVE, found=found), run=run),)), NOW).status

    for status in (evaluated, again, reused):
        assert status.dataset is not None
        assert status.dataset.readiness == expected


@pytest.mark.parametrize(
    ("scalars", "name", "gate"),
    [
        ({"chrfArtifact": "0.6000", "perplexityArtifact": "3.5"}, "chrf", "chrf"),
        ({"accuracyArtifact": "0.1000", "f1Artifact": "0.5000"}, "accuracy", "f1"),
    ],
    ids=["texts", "texts of an earlier version"],
)
def test_texts_have_scores_of_their_own(scalars: dict[str, str], name: str, gate: str) -> None:
    """And the one gate that stands without goals is named by what was measured."""
    spec = SPEC.model_copy(update={"task": Task(type=TaskType.TEXT)})
    ledger = RunLedger(spec, FineTuneJobStatus(), current_run(observed(spec=spec), NOW), NOW)
    ledger.reuse(Found(stage=Stage.EVALUATE, output_digest="5" * 64, scalars=scalars), "key", None)
    ledger.judged({"goals": packed([GoalStatus(goal="", value="0.5", outcome=GateOutcome.PASS)])})
    found = ledger.evaluation
    assert found is not None
    assert found.goals[0].goal == f"{gate} not worse than the base model's"
    told = {"accuracy": found.accuracy, "chrf": found.chrf, "perplexity": found.perplexity}
    given = {key.removesuffix("Artifact") for key in scalars} - {"f1"}
    assert {key for key, scores in told.items() if scores and scores.artifact} == given
    assert name in given


class Read(dict[str, str]):
    """Scalars that remember which of them were asked for."""

    def __init__(self, given: dict[str, str]) -> None:
        super().__init__(given)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("task", [TaskType.CLASSIFICATION, TaskType.TEXT])
def test_resolve_tells_of_what_it_finds_all_that_is_read(task: TaskType) -> None:
    """And no more: its result is short. Of an artifact the URI need not be told, since it follows from the digest; nor
    who signed it or where its copies are, since publish itself runs where that is asked for."""
    spec = SPEC.model_copy(update={"task": Task(type=task)})
    seen = observed(spec=spec)
    ledger = RunLedger(spec, FineTuneJobStatus(), current_run(seen, NOW), NOW)
    for number, stage in enumerate(PIPELINE, 1):
        scalars = Read({"channel": "stable", "accuracyBase": "0.5", "f1Base": "0.5"})
        found = Found.model_construct(stage=stage, output_digest=str(number) * 64, scalars=scalars)
        ledger.reuse(found, "key", None)
        assert scalars.names - FOUND_SCALARS[stage] <= {"artifactUri", "ended", "pushed", "signedBy"}
        assert FOUND_SCALARS[stage] <= scalars.names
    assert ledger.artifact is not None
    assert ledger.artifact.uri == f"{spec.output.uri}/artifacts/{'5' * 64}"
