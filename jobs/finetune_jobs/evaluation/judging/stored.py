"""Where a judgement lies in the store: beside the evaluation, as votes do, since it is about these answers."""

from finetune_api.judging import Judge
from finetune_api.layout import judged_folder, judged_object
from finetune_jobs.base.documents import parse_json
from finetune_jobs.evaluation.judging.asking import answer_source, compare_answers
from finetune_jobs.evaluation.judging.page import render_judgement
from finetune_jobs.evaluation.judging.verdict import Judgement
from finetune_jobs.evaluation.review.sheet import ReviewSheet
from finetune_jobs.evaluation.review.stored import ReviewState
from finetune_jobs.reports.page import Fact
from finetune_jobs.runtime.runner import Context
from finetune_jobs.store.s3 import Store


def judgement_of(context: Context, judge: Judge, review: ReviewState, *, ask: bool = True) -> Judgement | None:
    """What the judge says of the run's evaluation: what is known, or else what it answers now, or None if it is not to
    be asked. Its page is written anew each time, since people may have voted meanwhile.

    Raises StageError: ArtifactCorrupt, as answer_source, compare_answers and Store.
    """
    evaluation, store, run = context.input.upstream.evaluation, context.store, context.input.run
    found = read_judgement(store, evaluation, judge, review.sheet)
    if found is None and not ask:
        return None
    if found is None:
        report = context.progress.part(0.5, 0.7, "asking the judge")
        source = answer_source(store, run, judge, review.sheet)
        found = compare_answers(review.sheet, judge, source, report, context.stopping)
        content = found.model_dump_json(by_alias=True, indent=1)
        store.put(judged_object(evaluation, judge.identity, "json"), f"{content}\n".encode())
    identity = [Fact("Job", [f"{run.namespace}/{run.name}"]), Fact("Evaluation", [evaluation], code=True)]
    page = render_judgement(found, review.tally.means, identity)
    store.put(judged_object(evaluation, judge.identity, "html"), page.encode())
    return found


def read_judgements(store: Store, evaluation: str, sheet: ReviewSheet) -> list[Judgement]:
    """What all judges have said of these pairs."""
    folder, found = judged_folder(evaluation), list[Judgement]()
    for entry in store.list(folder):
        content = store.get(f"{folder}/{entry.key}") if entry.key.endswith(".json") else None
        if content is not None:
            found.append(parse_json(content, Judgement, entry.uri))
    return [each for each in found if each.digest == sheet.address]


def read_judgement(store: Store, evaluation: str, judge: Judge, sheet: ReviewSheet) -> Judgement | None:
    """What the judge has said of these very pairs; None: nothing, or too little for a verdict."""
    path = judged_object(evaluation, judge.identity, "json")
    content = store.get(path)
    if content is None:
        return None
    found = parse_json(content, Judgement, store.uri(path))
    return found if found.digest == sheet.address and not found.no_verdict else None
