"""Stage publish: the gates, the artifact that AdapterDeployments serve, and the pointer of its output name.

An artifact that misses a goal is not published, or only as a candidate, to which nothing points that is served.
The weights stay where export put them; the artifact names them by digest and adds what a reader needs to trust them:
golden prompts, a sample of the test with the artifact's own answers, a record of how likely it finds given texts, a
model card.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_api.artifact_source import Channel
from finetune_api.gates import GateOutcome, GoalStatus, OnFail, blocking, packed
from finetune_api.goals import Metric
from finetune_api.hashing import canonical_json
from finetune_api.judging import JudgeStatus
from finetune_api.layout import REVIEW_PAGE, ChannelPointer, channel_object, output_folder
from finetune_api.reasons import Reason
from finetune_api.review import HumanReview, ReviewStatus
from finetune_api.stages import PublishParams, Stage, StageResult
from finetune_jobs.artifacts import artifact, bom
from finetune_jobs.artifacts import model_card as modelcard
from finetune_jobs.artifacts.ancestry import require_standing_base
from finetune_jobs.artifacts.artifact import Answer, Metrics
from finetune_jobs.artifacts.channel import channel_of, claim_name, read_channel
from finetune_jobs.artifacts.exported_model import model_ref, published_facts
from finetune_jobs.artifacts.folders import describe_folder, fetch_folder, require_manifest
from finetune_jobs.artifacts.formats import ExportedFormat
from finetune_jobs.artifacts.gates import record_gates
from finetune_jobs.artifacts.golden import choose_golden, in_stable_order
from finetune_jobs.artifacts.measurements import Automation, Measurements
from finetune_jobs.artifacts.provenance import attest
from finetune_jobs.artifacts.push import Copies
from finetune_jobs.artifacts.signing import signer_of
from finetune_jobs.artifacts.withdrawal import require_standing
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.evaluation.gates import (
    computes_no_numbers,
    judge,
    lost_by_export,
    no_better_than_base,
    same_as_base,
)
from finetune_jobs.evaluation.judging.stored import judgement_of
from finetune_jobs.evaluation.judging.verdict import Judgement, in_words, spared, status_of
from finetune_jobs.evaluation.prompting import on_prompting
from finetune_jobs.evaluation.review.stored import ReviewState, read_review
from finetune_jobs.evaluation.review.verdict import is_undecided, judge_review, warns
from finetune_jobs.reports.index import write_index
from finetune_jobs.run_report.stored import write_run_report
from finetune_jobs.run_report.verdict import RunVerdict
from finetune_jobs.runtime.runner import Context, StageOutput, now, run_stage
from finetune_jobs.store.s3 import Store
from finetune_jobs.verification.checks import unprovable
from finetune_jobs.verification.tolerance import measured_tolerance, tolerance


def publish(context: Context) -> StageOutput:
    """The stage, and the page of a run of which nothing is published; after an artifact, ``sign_move_and_push`` writes
    it. Raises StageError: GateFailed, ArtifactNotFound, ArtifactCorrupt, as signer_of, judgement_of and Store."""
    try:
        made = _publish(context)
    except StageError as error:
        if error.reason is Reason.GATE_FAILED:
            _report(context, RunVerdict(error.scalars, why=error.message))
        raise
    if made.waits_for:
        _report(context, RunVerdict(made.scalars, why=made.message, waits=True))
    return made


def _publish(context: Context) -> StageOutput:
    upstream = context.input.upstream
    signer_of(require(context.input.output, "output"))  # first: a bad key publishes nothing
    asked, metrics = _read_evaluation(context)
    params = require(context.input.params.publish, "params.publish")
    # Servers render tools each in their own way: such a prompt is sent as text, which an evaluation of an earlier
    # version did not write down.
    answers = [answer for answer in asked if answer.prompt or not answer.tools]
    if not answers:
        raise StageError(
            Reason.DATASET_INVALID,
            "Every test example has tools, and an earlier version evaluated them, without the prompts as text by which "
            "a server is asked. Set spec.rerun to a new value to evaluate again.",
        )
    served = _served(context, metrics)
    recorded = context.scratch / "evaluation" / artifact.REFERENCE
    faults = _faults(metrics, _unprovable(answers, recorded, served.format))
    compared = _compared(context, params, ask=not _stops_anyway(params, metrics, faults))
    verdict = _judged(params, metrics, compared, faults)
    if verdict.channel is Channel.STABLE and params.reviewing.human_review is HumanReview.REQUIRED:
        state = read_review(context.store, upstream.evaluation)
        said = judge_review(params.reviewing.review, state, warns=warns(params))
        if is_undecided(said, params):
            return _awaiting(context, params, verdict, said, state)
        verdict = _with_review(verdict, said, params)
    export = require_manifest(context.store, output_folder(Stage.EXPORT, served.digest))
    dataset = require_manifest(context.store, output_folder(Stage.PREPARE, upstream.dataset))
    adapter = require_manifest(context.store, output_folder(Stage.TRAIN, upstream.adapter))
    model = model_ref(context.store, served, export, context.input.base_model_uri, metrics.task)
    golden = choose_golden(answers, metrics.golden_prompts)
    max_tokens = max(answer.max_tokens for answer in answers)
    folder = context.scratch / "artifact"
    folder.mkdir()
    artifact.write_answers(folder / artifact.GOLDEN, golden)
    artifact.write_answers(folder / artifact.SAMPLE, in_stable_order(answers))
    if recorded.exists():  # an evaluation of an earlier version has none
        shutil.copyfile(recorded, folder / artifact.REFERENCE)
    if params.answer_schema:
        (folder / artifact.SCHEMA).write_text(params.answer_schema, encoding="utf-8")
    if levels := _levels(metrics):
        table = artifact.AutomationTable(levels=levels)
        (folder / artifact.AUTOMATION).write_text(table.model_dump_json(by_alias=True, indent=1) + "\n")
    (folder / artifact.MODEL_REF).write_text(model.model_dump_json(by_alias=True, indent=1) + "\n")
    card = modelcard.render(context.input, model, dataset.facts, adapter.facts, metrics, max_tokens)
    (folder / artifact.MODEL_CARD).write_text(card, encoding="utf-8")
    facts = published_facts(context.store, model, golden)
    made = {Stage.PREPARE: dataset, Stage.TRAIN: adapter, Stage.EXPORT: export}
    bill = bom.bill_of_materials(context.input, model, made, metrics, facts.get("architecture", ""))
    (folder / bom.BOM).write_text(json.dumps(bill, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    digest = describe_folder(folder, Stage.PUBLISH).content_digest()
    uri = context.store.uri(output_folder(Stage.PUBLISH, digest))
    telling = sum(answer.distinguishes_base for answer in golden)
    return StageOutput(
        folder=folder,
        reusable=verdict.is_final,
        decided={"channel": verdict.channel, **verdict.scalars},
        scalars={
            "artifactUri": uri,
            **facts,
            "goldenPrompts": str(len(golden)),
        },
        message=f"Published {verdict.how}{uri}; {telling} of {len(golden)} golden prompts distinguish it from its base "
        f"model. {verdict.text}",
    )


@dataclass(frozen=True)
class _Verdict:
    """What the gates say, and where the artifact belongs."""

    found: Sequence[GoalStatus]
    channel: Channel
    text: str
    review: ReviewStatus | None = None
    """What people said; None: they were not asked."""
    judge: JudgeStatus | None = None
    """What another model said; None: none was asked."""
    prompting: str = ""
    """Whether prompting would have been enough; empty: no prompt was tried."""

    @property
    def scalars(self) -> dict[str, str]:
        """For the status."""
        asked = {"review": self.review, "judge": self.judge}
        said = {name: each.model_dump_json(by_alias=True) for name, each in asked.items() if each}
        if self.prompting:
            said["prompting"] = self.prompting
        return {"goals": packed(self.found), **said}

    @property
    def is_final(self) -> bool:
        """Whether it follows from the input. Votes are no part of that: while they have not passed the artifact, later
        ones may decide otherwise. A judge that gave no verdict is asked again."""
        unheard = self.judge is not None and not self.judge.win_rate
        return not unheard and (self.review is None or self.review.outcome is GateOutcome.PASS)

    @property
    def how(self) -> str:
        return "as a candidate " if self.channel is Channel.CANDIDATE else ""


@dataclass(frozen=True)
class _Compared:
    """What the judge said of the answers, and whether people agree."""

    judgement: Judgement | None
    """None: it was not asked."""
    status: JudgeStatus
    text: str


def _compared(context: Context, params: PublishParams, *, ask: bool) -> _Compared | None:
    """Raises StageError as judgement_of: what it has answered so far is kept, and so is the evaluation."""
    if params.judge is None:
        return None
    review = read_review(context.store, context.input.upstream.evaluation)
    found = judgement_of(context, params.judge, review, ask=ask)
    if found is None:
        status = spared(params.judge.endpoint.model)
        return _Compared(None, status, status.message)
    voted = review.tally.means
    return _Compared(found, status_of(found, voted), in_words(found, voted))


def _stops_anyway(params: PublishParams, metrics: Metrics, faults: Sequence[str]) -> bool:
    """Whether nothing is published, whatever the judge says: then it is not paid for. What becomes a candidate is
    judged, since people decide about that. Raises StageError (GateFailed) as ``judge``."""
    gates, measurements = params.gates, metrics.measurements or Measurements(rows=0)
    if gates.on_fail is not OnFail.STOP:
        return False
    known = [each for each in judge(gates, measurements, metrics.task, asked=False) if each.value]
    return bool(faults or blocking(known, gates.on_inconclusive))


def _faults(metrics: Metrics, unproved: str) -> list[str]:
    """What keeps an artifact from being published whatever the goals."""
    measurements = metrics.measurements or Measurements(rows=0)
    others = [each for each in metrics.formats if not each.served]
    found = (
        computes_no_numbers(measurements) or same_as_base(measurements, metrics.task) or unproved,
        lost_by_export(measurements, metrics.task, others),
    )
    return [each for each in found if each]


def _unprovable(answers: Sequence[Answer], recorded: Path, format_: str) -> str:
    """Why every rollout would end with AdapterInactive; empty if none has to. An evaluation of an earlier version has
    no record, and is judged as before."""
    if not recorded.exists():
        return ""
    with recorded.open(encoding="utf-8") as lines:
        references = artifact.read_references(lines, artifact.REFERENCE)
    return unprovable(answers, references, measured_tolerance(references, tolerance("", format_)))


def _judged(params: PublishParams, metrics: Metrics, compared: _Compared | None, faults: Sequence[str]) -> _Verdict:
    """Raises StageError (GateFailed) if the artifact is not good enough, and is not to be published all the same."""
    gates, measurements = params.gates, metrics.measurements or Measurements(rows=0)
    status = compared.status if compared else None
    if compared and compared.judgement:
        wanted = any(goal.metric is Metric.JUDGE_WIN_RATE for goal in gates.goals)
        if wanted and status and not status.win_rate:
            scalars = {"judge": status.model_dump_json(by_alias=True)}
            text = f"A goal is about judgeWinRate, which was not measured. {compared.text} Nothing was published."
            raise StageError(Reason.GATE_FAILED, text, scalars=scalars)
        measured = [*measurements.measured, *compared.judgement.measured]
        measurements = measurements.model_copy(update={"measured": measured})
    unheard = compared is not None and compared.judgement is None
    found = judge(gates, measurements, metrics.task, asked=not unheard)
    missed = blocking(found, gates.on_inconclusive)
    shown = [each for each in missed or found if each.value]  # the others wait for the judge
    told = [each.sentence for each in shown if missed or each.outcome is not GateOutcome.PASS or gates.goals]
    told = [*faults, *told, *([compared.text] if compared else [])]
    blocked = bool(missed or faults)
    if not blocked and not gates.goals and (said := no_better_than_base(measurements, metrics.task)):
        told.append(said)
    channel, prompting = Channel.CANDIDATE if blocked else Channel.STABLE, on_prompting(measurements, metrics.task)
    verdict = _Verdict(found, channel, " ".join(told), judge=status, prompting=prompting)
    if blocked and gates.on_fail is OnFail.STOP:
        raise StageError(Reason.GATE_FAILED, f"{verdict.text} Nothing was published.", scalars=verdict.scalars)
    return verdict


def _with_review(verdict: _Verdict, said: ReviewStatus, params: PublishParams) -> _Verdict:
    """The verdict with what people said. Raises StageError (GateFailed) as ``_judged``."""
    failed = said.outcome is GateOutcome.FAIL
    text = " ".join(filter(None, (verdict.text, said.sentence(params.reviewing.review))))
    channel = Channel.CANDIDATE if failed else verdict.channel
    judged = replace(verdict, text=text, review=said, channel=channel)
    if failed and params.gates.on_fail is OnFail.STOP:
        raise StageError(Reason.GATE_FAILED, f"{text} Nothing was published.", scalars=judged.scalars)
    return judged


def _awaiting(
    context: Context, params: PublishParams, verdict: _Verdict, said: ReviewStatus, state: ReviewState
) -> StageOutput:
    """Nothing is published until people have voted: the stage is to run again."""
    page = f"{output_folder(Stage.EVALUATE, context.input.upstream.evaluation)}/{REVIEW_PAGE}"
    told = [said.sentence(params.reviewing.review), f"The page: {context.store.uri(page)}", *state.problems]
    return StageOutput(
        waits_for=Reason.AWAITING_REVIEW, scalars=replace(verdict, review=said).scalars, message=" ".join(told)
    )


def move_channel(context: Context, digest: str, channel: Channel = Channel.STABLE) -> None:
    """Point the output name to an artifact, unless the name belongs to another FineTuneJob.

    Raises StageError: OutputNameConflict, S3Unreachable (retriable) when another run of this one was faster.
    """
    store, run = context.store, context.input.run
    name = require(context.input.output, "output").name
    claim_name(store, name, run, now())
    content = canonical_json(ChannelPointer(artifact_digest=digest, owner=run, updated_at=now()))
    path = channel_object(name, channel)
    found = read_channel(store, name, channel)
    if found is None:
        moved = store.put_if_absent(path, content)
    else:
        standing, etag = found
        moved = standing.artifact_digest == digest or store.replace(path, content, etag)
    if not moved and not _points_to(store, name, channel, digest):
        raise StageError(Reason.S3_UNREACHABLE, f"{store.uri(path)} was changed by another writer.", retriable=True)


def _points_to(store: Store, name: str, channel: Channel, digest: str) -> bool:
    """Whether an output name points to an artifact. The write that did it may have arrived without an answer: then the
    client has made it again, and the store refused that."""
    found = read_channel(store, name, channel)
    return found is not None and found[0].artifact_digest == digest


def sign_move_and_push(context: Context, result: StageResult) -> StageResult:
    """What follows the artifact. First what its gates said, so that whoever finds it finds that too. Its name points to
    it only once it is signed, and never once it is withdrawn; in the channel to which it belongs. Copies follow last:
    only who owns the name makes any.

    Raises StageError, also as attest, move_channel and Copies.make: if a copy fails, it says that the artifact is
    published, and has its scalars.
    """
    given, digest = context.input, result.output_digest
    require_standing(context.store, digest)
    if given.base_model_storage is None and given.storage == given.results_storage:
        # Again, since hours have passed; a base in another store has its keys in the pod of resolve only.
        require_standing_base(context.store.at, context.store, given.base_model_uri)
    output, channel = require(given.output, "output"), channel_of(result.scalars)
    record_gates(context.store, require(given.params.publish, "params.publish"), result)
    signer = signer_of(output)
    attest(context.store, given, digest, signer)
    move_channel(context, digest, channel)
    _report(context, RunVerdict(result.scalars, digest))
    scalars = result.scalars | ({"signedBy": signer.public_key.keyid} if signer else {})  # the result's may be older
    try:
        pushed = Copies(context.store, output, digest, channel).make(given.run, now(), context.progress)
    except StageError as error:
        text = (
            f"Published {context.store.uri(output_folder(Stage.PUBLISH, digest))}, but a copy failed. {error.message}"
        )
        raise StageError(error.reason, text, retriable=error.retriable, scalars=scalars) from error
    return result.model_copy(update={"scalars": scalars | pushed})


def _report(context: Context, said: RunVerdict) -> None:
    """Write the page of the run, and then the index, which links it."""
    write_run_report(context, context.input.upstream, said)
    write_index(context, context.input.upstream, said.artifact)


def _read_evaluation(context: Context) -> tuple[list[Answer], Metrics]:
    folder = context.scratch / "evaluation"
    place = output_folder(Stage.EVALUATE, context.input.upstream.evaluation)
    report = context.progress.part(0, 0.5, "downloading the evaluation")
    fetch_folder(context.store, place, folder, report=report)
    with (folder / artifact.ANSWERS).open(encoding="utf-8") as lines:
        answers = artifact.read_answers(lines, context.store.uri(f"{place}/{artifact.ANSWERS}"))
    return answers, read_json(folder / artifact.METRICS, Metrics)


def _levels(metrics: Metrics) -> list[Automation]:
    """The precisions that have a threshold."""
    measured = metrics.measurements.automation if metrics.measurements else []
    return [each for each in measured if each.threshold is not None]


def _served(context: Context, metrics: Metrics) -> ExportedFormat:
    """The format that the evaluation found to hold what was trained."""
    given = context.input
    only = ExportedFormat(format=require(given.params.publish, "params.publish").format, digest=given.upstream.export)
    return next((each for each in metrics.formats if each.served), only)


def main() -> None:
    """``python -m finetune_jobs.publish``"""
    run_stage(Stage.PUBLISH, publish, after=sign_move_and_push)


if __name__ == "__main__":
    main()
