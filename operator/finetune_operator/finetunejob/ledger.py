"""What is known of a run: its stage table, the outputs so far, and the facts that the status shows."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from finetune_api.artifact_source import Channel
from finetune_api.budget import FitStatus, Verdict
from finetune_api.dataset import TaskType
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.gates import GateOutcome, GoalStatus, blocking, unpacked
from finetune_api.job_status import (
    MAX_PROMPTING,
    ArtifactStatus,
    ArtifactTokens,
    DatasetStatus,
    EvaluationStatus,
    FineTuneJobStatus,
    Rows,
    RunStatus,
    Scores,
    StageState,
    StageStatus,
)
from finetune_api.judging import JudgeStatus
from finetune_api.layout import READINESS_PAGE, output_folder
from finetune_api.push import COPY_DIGEST, PushStatus
from finetune_api.readiness import MAX_SUMMARY, completed
from finetune_api.review import ReviewStatus
from finetune_api.stages import PIPELINE, Found, Stage, Upstream
from finetune_operator.finetunejob.observe import StageJob
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.outcome.artifact import artifact_of
from finetune_operator.outcome.job import State
from finetune_operator.outcome.pod import count_of
from finetune_operator.tenancy.places import lies_below

MAX_IDENTITY: Final = 64
"""Characters of a digest in ``status.run``."""
MAX_URI: Final = 1024
"""Characters of an artifact's URI."""
_NUMBER: Final = re.compile(r"[0-9]{1,10}(\.[0-9]{1,4})?", re.ASCII)
_COPY_DIGEST: Final = re.compile(COPY_DIGEST)
STAGES: Final = (Stage.RESOLVE, *PIPELINE)
DONE: Final = frozenset({StageState.SUCCEEDED, StageState.REUSED})


class RunLedger:
    """Starts from what the status says of the run, and records what its Jobs report."""

    def __init__(self, spec: FineTuneJobSpec, status: FineTuneJobStatus, run: RunStatus, now: datetime) -> None:
        same = status.run is not None and status.run.id == run.id
        self._spec = spec
        self._now = now
        self.run = run
        written = {row.name: row for row in status.stages} if same else {}
        self.rows = {stage: written.get(stage.value, StageStatus(name=stage.value)) for stage in STAGES}
        self.fit = status.fit if same else None
        self.dataset = status.dataset if same else None
        self.evaluation = status.evaluation if same else None
        self.artifact = status.artifact
        self.candidate = status.candidate

    @property
    def upstream(self) -> Upstream:
        """The digests of the finished stages' outputs."""
        run = self.run
        chain = Upstream(source=run.source_digest, model=run.model_digest, metrics=run.metrics_digest)
        for stage in PIPELINE:
            if self.done(stage):
                chain = chain.with_output(stage, self.rows[stage].output_digest)
        return chain

    @property
    def stages_done(self) -> str:
        """Finished stages out of those with an output, e.g. 3/5."""
        return f"{sum(self.done(stage) for stage in PIPELINE)}/{len(PIPELINE)}"

    @property
    def missed_goals(self) -> str:
        """Why the published artifact is a candidate only; empty if it was accepted, or nothing is published yet."""
        published, candidate = self.rows[Stage.PUBLISH].output_digest, self.candidate
        if not candidate or not self.done(Stage.PUBLISH) or candidate.digest != published:
            return ""
        goals = self.evaluation.goals if self.evaluation else []
        missed = [goal.sentence for goal in blocking(goals, self._spec.evaluation.on_inconclusive)]
        review = self.evaluation.review if self.evaluation else None
        if review and review.outcome is GateOutcome.FAIL:
            missed.append(review.sentence(self._spec.evaluation.review))
        return " ".join([*missed, f"It is published as a candidate only: {candidate.uri}"])

    @property
    def awaits_review(self) -> bool:
        """Whether the votes that were counted last decide nothing yet."""
        review = self.evaluation.review if self.evaluation else None
        return review is not None and review.outcome is GateOutcome.INCONCLUSIVE and not self.done(Stage.PUBLISH)

    def done(self, stage: Stage) -> bool:
        """Whether the stage's result is known."""
        return self.rows[stage].state in DONE

    def enter(self, stage: Stage, job: StageJob, state: StageState, message: str, input_key: str = "") -> None:
        """Record the state of a stage's Job."""
        verdict, before = job.verdict, self.rows[stage]
        self.rows[stage] = StageStatus(
            name=stage.value,
            state=state,
            job=job.name,
            input_key=input_key,
            attempts=verdict.attempts,
            started_at=verdict.started_at,
            earlier_seconds=self._gone_seconds(before, verdict.started_at) or None,
            working_since=self._working_since(before, job),
            finished_at=verdict.finished_at,
            message=message[:1024],
        )

    def resolved(self, scalars: Mapping[str, str]) -> None:
        """Record the digests of sources, model and metrics' data, and whether the training fits."""
        identity = {f"{name}_digest": _identity(scalars, f"{name}Digest") for name in ("source", "model", "metrics")}
        self.run = self.run.model_copy(update=identity)
        self.fit = _fit(scalars)

    def wait(self, stage: Stage, job: StageJob, message: str, input_key: str) -> None:
        """Record that a stage has looked and waits for people: no pod of it runs, and none has given a result."""
        self.rows[stage] = StageStatus(
            name=stage.value, job=job.name, input_key=input_key, attempts=job.verdict.attempts, message=message[:1024]
        )

    def judged(self, scalars: Mapping[str, str]) -> None:
        """Record which goals the artifact met, and what is said of it beside them, if that is told."""
        found = _goals(self._spec, self.evaluation, scalars)
        if self.evaluation is not None and (prompting := scalars.get("prompting", "")[:MAX_PROMPTING]):
            self.evaluation = self.evaluation.model_copy(update={"prompting": prompting})
        if self.evaluation is not None and (said := _review(scalars)):
            self.evaluation = self.evaluation.model_copy(update={"review": said})
        if self.evaluation is not None and (preferred := _preferred(scalars)):
            self.evaluation = self.evaluation.model_copy(update={"judge": preferred})
        if self.evaluation is None or not found:
            return
        met = sum(goal.outcome is GateOutcome.PASS for goal in found)
        told = {"goals": found, "goals_met": f"{met}/{len(found)}"}
        self.evaluation = self.evaluation.model_copy(update=told)

    def close(self, stage: Stage, state: StageState, message: str) -> None:
        """Record the end of a stage for a reason that its Job does not know."""
        end = {"state": state, "finished_at": timestamp(self._now), "message": message[:1024]}
        self.rows[stage] = self.rows[stage].model_copy(update=end)

    def finish(self, stage: Stage, output_digest: str, scalars: Mapping[str, str]) -> None:
        """Record the output of a stage that was entered."""
        end = {"output_digest": output_digest, "ended": _ended(scalars)}
        self.rows[stage] = self.rows[stage].model_copy(update=end)
        self._facts(stage, output_digest, scalars)

    def reuse(self, found: Found, input_key: str, moment: str | None) -> None:
        """Record an output that existed before."""
        self.rows[found.stage] = StageStatus(
            name=found.stage.value,
            state=StageState.REUSED,
            input_key=input_key,
            output_digest=found.output_digest,
            started_at=moment,
            finished_at=moment,
            message="A result for this input already exists.",
            ended=_ended(found.scalars),
        )
        self._facts(found.stage, found.output_digest, found.scalars)

    def _gone_seconds(self, before: StageStatus, started_at: str | None) -> int:
        """Seconds of pods that are gone: those that the status lists as gone, and those that it lists as running.

        When the latter ended is not known: they count until the current pods started, or until now.
        """
        known = before.earlier_seconds or 0
        if before.started_at is None:
            return known
        end = parse_timestamp(started_at) if started_at else self._now
        return known + max(0, round((end - parse_timestamp(before.started_at)).total_seconds()))

    def _working_since(self, before: StageStatus, job: StageJob) -> str | None:
        """A Job whose pod restarts or is lost still is at work; one that is suspended is not, or not for long."""
        if self._spec.suspend or job.verdict.state is State.SUSPENDED:
            return None
        known = before.working_since if before.job == job.name else None
        return known or (timestamp(self._now) if job.verdict.state is State.RUNNING else None)

    def _facts(self, stage: Stage, output_digest: str, scalars: Mapping[str, str]) -> None:
        uri = f"{self._spec.output.uri.rstrip('/')}/{output_folder(stage, output_digest)}"
        if stage is Stage.PREPARE:
            self.dataset = _dataset(output_digest, uri, scalars)
        elif stage is Stage.EVALUATE:
            self.evaluation = _evaluation(uri, scalars)
            self.dataset = _with_baseline(self.dataset, self._spec.task.type, scalars)
        elif stage is Stage.PUBLISH:
            longest = self.dataset.longest if self.dataset else None
            published = _artifact(self._spec, output_digest, uri, longest, scalars)
            if scalars.get("channel") == Channel.CANDIDATE:
                self.candidate = published
            else:
                self.artifact, self.candidate = published, None
            self.judged(scalars)
            self.run = self.run.model_copy(update={"artifact_digest": output_digest})


def _ended(scalars: Mapping[str, str]) -> str:
    """Why a training ended; empty for other stages."""
    return scalars.get("ended", "")[:63]


def _fit(scalars: Mapping[str, str]) -> FitStatus | None:
    verdict = scalars.get("fitVerdict", "")
    if verdict not in set(Verdict):
        return None
    return FitStatus(
        verdict=Verdict(verdict),
        memory_gib=_number(scalars, "fitGib"),
        available_gib=_number(scalars, "fitAvailableGib"),
        tokens_per_second=_number(scalars, "fitTokensPerSecond"),
        pass_seconds=_number(scalars, "fitPassSeconds"),
        load_seconds=_number(scalars, "fitLoadSeconds"),
        answer_seconds=_number(scalars, "fitAnswerSeconds"),
        beside_seconds=_number(scalars, "fitBesideSeconds"),
        transfer_seconds=_number(scalars, "fitTransferSeconds"),
        validation_tokens=count_of(scalars, "fitValidationTokens"),
        evaluation_gpus=count_of(scalars, "fitEvaluationGpus"),
        warning=scalars.get("fitWarning", "")[:1024],
    )


def _dataset(digest: str, uri: str, scalars: Mapping[str, str]) -> DatasetStatus:
    rows = Rows(
        read=count_of(scalars, "rowsRead") or 0,
        invalid=count_of(scalars, "rowsInvalid") or 0,
        duplicates=count_of(scalars, "rowsDuplicates") or 0,
        dropped=count_of(scalars, "rowsDropped") or 0,
        train=count_of(scalars, "rowsTrain") or 0,
        validation=count_of(scalars, "rowsValidation") or 0,
        test=count_of(scalars, "rowsTest") or 0,
    )
    return DatasetStatus(
        digest=digest,
        rows=rows,
        labels=count_of(scalars, "labels"),
        tokens=count_of(scalars, "tokens"),
        longest=count_of(scalars, "longest"),
        test_masked=count_of(scalars, "rowsTestMasked"),
        answers_masked=count_of(scalars, "answersMasked"),
        readiness=scalars.get("readiness", "")[:MAX_SUMMARY],
        report_uri=f"{uri}/{READINESS_PAGE}",
    )


def _with_baseline(dataset: DatasetStatus | None, task: TaskType, scalars: Mapping[str, str]) -> DatasetStatus | None:
    """The data set with the base model's score in its readiness; unchanged where the score is not known."""
    name, measure = ("f1Base", "F1") if task is TaskType.TEXT else ("accuracyBase", "accuracy")
    score = _number(scalars, name)
    if dataset is None or not score:
        return dataset
    readiness = completed(dataset.readiness, measure, float(score), count_of(scalars, "samples") or 0)
    return dataset.model_copy(update={"readiness": readiness[:MAX_SUMMARY]})


def _evaluation(uri: str, scalars: Mapping[str, str]) -> EvaluationStatus:
    return EvaluationStatus(
        samples=count_of(scalars, "samples") or 0,
        accuracy=_scores(scalars, "accuracy"),
        f1=_scores(scalars, "f1"),
        chrf=_scores_of_text(scalars, "chrf"),
        perplexity=_scores_of_text(scalars, "perplexity"),
        report_uri=uri,
    )


def _artifact(
    spec: FineTuneJobSpec, digest: str, uri: str, longest: int | None, scalars: Mapping[str, str]
) -> ArtifactStatus:
    published = artifact_of(digest, _where(spec, uri, scalars), scalars)
    example = min(longest, spec.training.max_length) if longest else None
    tokens = (published.tokens or ArtifactTokens()).model_copy(update={"example": example})
    return published.model_copy(
        update={
            "format": published.format or spec.export.format.value,
            "storage": spec.output_storage.for_reading,
            "tokens": tokens if tokens != ArtifactTokens() else None,
            "signed_by": scalars.get("signedBy", "")[:64] or None,
            "pushed": _pushed(spec, digest, scalars) or None,
        }
    )


def _identity(scalars: Mapping[str, str], name: str) -> str:
    """A digest that resolve reports; a pod's report is not trusted to be one that the status can hold."""
    text = scalars.get(name, "")
    return text if len(text) <= MAX_IDENTITY else ""


def _where(spec: FineTuneJobSpec, uri: str, scalars: Mapping[str, str]) -> str:
    """The artifact's folder as publish reports it; a pod's report is not trusted to be below the spec's output."""
    told = scalars.get("artifactUri", "")
    return told if len(told) <= MAX_URI and lies_below(told, spec.output.uri) else uri


def _pushed(spec: FineTuneJobSpec, artifact: str, scalars: Mapping[str, str]) -> list[PushStatus]:
    """The copies that publish reports, in the order of the spec; a pod's report is not trusted to be some."""
    found = zip(spec.output.push_to, scalars.get("pushed", "").split(" "), strict=False)
    return [
        PushStatus(to=target.place.reference(artifact), digest=digest)
        for target, digest in found
        if _COPY_DIGEST.fullmatch(digest)
    ]


def _goals(spec: FineTuneJobSpec, evaluation: EvaluationStatus | None, scalars: Mapping[str, str]) -> list[GoalStatus]:
    """The outcomes that publish reports; a pod's report is not trusted to be some."""
    measured_chrf = evaluation is not None and evaluation.chrf is not None
    try:
        return unpacked(scalars.get("goals", "[]"), spec.evaluation.gates.texts(spec.task.type, chrf=measured_chrf))
    except ValueError:
        return []


def _review(scalars: Mapping[str, str]) -> ReviewStatus | None:
    """What publish counted; a pod's report is not trusted to be that."""
    try:
        return ReviewStatus.model_validate_json(scalars.get("review", ""))
    except ValueError:
        return None


def _preferred(scalars: Mapping[str, str]) -> JudgeStatus | None:
    """What publish heard from the judge; a pod's report is not trusted to be that."""
    try:
        return JudgeStatus.model_validate_json(scalars.get("judge", ""))
    except ValueError:
        return None


def _scores(scalars: Mapping[str, str], measure: str) -> Scores:
    return Scores(
        base=scalars.get(f"{measure}Base", ""),
        few_shot=scalars.get(f"{measure}FewShot", ""),
        tuned=scalars.get(f"{measure}Tuned", ""),
        artifact=scalars.get(f"{measure}Artifact", ""),
    )


def _scores_of_text(scalars: Mapping[str, str], measure: str) -> Scores | None:
    """None where it was not measured: of another task, or by an earlier version."""
    found = _scores(scalars, measure)
    return None if found == Scores() else found


def _number(scalars: Mapping[str, str], name: str) -> str:
    """A decimal number as text; a pod's report is not trusted to be one."""
    text = scalars.get(name, "")
    return text if _NUMBER.fullmatch(text) else ""
