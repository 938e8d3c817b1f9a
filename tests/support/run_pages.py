"""Every page that a run writes, with plenty on each: long labels, foreign text, all sections."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Final

from finetune_api.budget import HardwareFacts
from finetune_api.dataset import Dataset, Source, Task, TaskType
from finetune_api.evaluation import Evaluation
from finetune_api.finetunejob import Output
from finetune_api.gates import Gates, packed
from finetune_api.layout import Lineage, Manifest, output_folder
from finetune_api.review import ReviewTerms
from finetune_api.stages import EvaluateParams, Params, PrepareParams, RunRef, Stage, StageInput, Upstream
from finetune_api.usage import usage_of
from finetune_jobs.evaluation.automation import Weighed, automate
from finetune_jobs.evaluation.behaviour.comparison import compare_behaviour
from finetune_jobs.evaluation.behaviour.items import sets_for
from finetune_jobs.evaluation.behaviour.probe import Responses
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.judging.comparison import Preference
from finetune_jobs.evaluation.judging.page import render_judgement
from finetune_jobs.evaluation.judging.verdict import Judgement, status_of
from finetune_jobs.evaluation.page import identify, lay_out
from finetune_jobs.evaluation.page_parts import PageParts, render_page
from finetune_jobs.evaluation.reached import goals_reached
from finetune_jobs.evaluation.report import Evaluated, Probabilities
from finetune_jobs.evaluation.review.page import render_review
from finetune_jobs.readiness import page
from finetune_jobs.readiness.checklist import check
from finetune_jobs.readiness.curve_page import render_curve
from finetune_jobs.readiness.forecast import forecast
from finetune_jobs.readiness.learning_curve import Point, PowerLaw
from finetune_jobs.reports.index import render_index, reports_of
from finetune_jobs.reports.page import Fact
from finetune_jobs.run_report.data import DataReport
from finetune_jobs.run_report.page import RunFacts, render_run
from finetune_jobs.run_report.training import History
from finetune_jobs.run_report.verdict import RunVerdict, ending_of, goals_of, verdicts_of
from tests.support.readiness import GOOD, by_part
from tests.support.reviewing import sheet_of

RUN: Final = RunRef(
    kind="FineTuneJob", namespace="payments-of-the-department", name="transactions", uid="0b8a", id="r1"
)
CHAIN: Final = Upstream(model="0" * 64, dataset="d" * 64, adapter="a" * 64, export="e" * 64, evaluation="f" * 64)
ARTIFACT: Final = "b" * 64
LABELS: Final = [
    "card_payment_fee_charged",
    "cash_withdrawal_not_recognised",
    "Refund",
    "日本語のラベル",
    "<i>exotic</i>",
]
ROWS: Final = 60
REPORT: Final = {
    "rows": {
        "read": 1070,
        "invalid": 10,
        "duplicates": 30,
        "nearDropped": 10,
        "outsidePilot": 0,
        "added": 0,
        "train": 800,
        "validation": 100,
        "test": 100,
    },
    "filters": {"empty": 10, "language": 20},
    "pii": {"mode": "Mask", "counts": {"EMAIL_ADDRESS": 7, "IBAN_CODE": 2}},
    "secrets": {"mode": "Mask", "counts": {}},
    "languages": {"en": 990, "und": 80},
}
GOALS: Final = Gates.model_validate(
    {
        "goals": [
            {"metric": "f1", "atLeast": "0.7"},
            {"metric": "f1", "atLeast": "0.9"},
            {"metric": "f1", "improveOverBase": "0.15"},
        ]
    }
)


def given(task: TaskType = TaskType.CLASSIFICATION) -> StageInput:
    """What the last stage of the run is asked."""
    sources = [Source(uri=f"s3://data-of-the-department/exports/2026/transactions-{n}.jsonl") for n in range(5)]
    return StageInput(
        stage=Stage.PUBLISH,
        run=RUN,
        base_model_uri="s3://models/smollm2-135m-instruct",
        upstream=CHAIN,
        output=Output(uri="s3://results/team", name="transactions"),
        params=Params(
            prepare=PrepareParams(dataset=Dataset(sources=sources)),
            evaluate=EvaluateParams(evaluation=Evaluation(), task=Task(type=task), method="LoRA"),
        ),
    )


@cache
def evaluated(task: TaskType) -> Evaluated:
    """An artifact that is right in most rows, a base that seldom is."""
    if task is TaskType.CLASSIFICATION:
        truth = [LABELS[n % len(LABELS)] for n in range(ROWS)]
        answers = _answers(truth, [LABELS[(n + 1) % len(LABELS)] for n in range(ROWS)])
        sure, unsure = Weighed(-0.01, right=True), Weighed(-2.0, right=False)
        seen = Probabilities(automate([sure] * 60, [sure] * 50 + [unsure] * 10))
        return Evaluated.of(task, truth, answers, LABELS, probabilities=seen)
    if task is TaskType.EXTRACTION:
        truth = [
            json.dumps({"supplier": f"Ünïcode & Sons {n}", "total": n, "dueDate": "2026-01-01"}) for n in range(ROWS)
        ]
        wrong = [json.dumps({"supplier": "?", "total": n}) for n in range(ROWS)]
        return Evaluated.of(task, truth, _answers(truth, wrong), [])
    truth = [
        f"Your parcel {n} is paid back within five working days, once the carrier confirms it." for n in range(ROWS)
    ]
    wrong = [f"Hello! {'I am an assistant and glad to help. ' * 12}" for _ in range(ROWS)]
    return Evaluated.of(task, truth, _answers(truth, wrong), [])


def _answers(truth: Sequence[str], wrong: Sequence[str]) -> dict[str, Sequence[str]]:
    some = [right if n % 6 else other for n, (right, other) in enumerate(zip(truth, wrong, strict=True))]
    few = [right if n % 2 else other for n, (right, other) in enumerate(zip(truth, wrong, strict=True))]
    return {"base": wrong, "fewShot": few, "tuned": some, "artifact": some}


def evaluation_page(task: TaskType) -> str:
    """The evaluation of a task, with goals, shots and what tuning did beside the task."""
    return render_page(evaluation_parts(task), goals_reached(GOALS, evaluated(task).measurements, task))


@cache
def evaluation_parts(task: TaskType) -> PageParts:
    """Its parts."""
    found, sets = evaluated(task), sets_for(Evaluation())
    questions = [
        f"{n}: what was the payment of 12.50 EUR to a{'b' * 90} <script>alert(1)</script>?" for n in range(ROWS)
    ]
    base, worse = ({item.id: item.reference for item in [*sets.general, *sets.adversarial]} for _ in range(2))
    worse |= {item.id: item.wrong for item in sets.general[::3]}
    losses = {item.id: 1.0 + n % 3 for n, item in enumerate(sets.general)}
    swaps = {swap.id: (1.0, 1.0 + n / 10) for n, swap in enumerate(sets.swaps)}
    behaviour = compare_behaviour(sets, Responses(base, losses, swaps), Responses(worse, losses, swaps))
    return lay_out(found, questions, identify(given(task)), behaviour, [("Where is it?", LABELS[0])])


def history() -> History:
    """Losses of 600 steps, validated six times; the last validations say that it learns by heart."""
    steps = [json.dumps({"loss": 3 * math.exp(-n / 120) + 0.2 + n % 7 / 40, "step": n}) for n in range(1, 601)]
    checks = [
        json.dumps({"eval_loss": value, "step": 100 * n}) for n, value in enumerate((1.9, 1.2, 0.9, 0.8, 0.84, 0.9), 1)
    ]
    return History.read("\n".join([*steps, *checks]).encode())


def run_facts(task: TaskType = TaskType.CLASSIFICATION) -> RunFacts:
    """A run that published a candidate: it missed a goal, and both a judge and people were asked."""
    gpu = HardwareFacts(profile="gpu-large", name="NVIDIA H100 80GB HBM3", count=2, memory_gib=80, usd_per_hour=2.5)
    cpu = HardwareFacts(profile="small", cpus=2, memory_gib=4)
    seconds = {Stage.PREPARE: 31.2, Stage.TRAIN: 4210.4, Stage.EXPORT: 64.0, Stage.EVALUATE: 380.0, Stage.PUBLISH: 4.1}
    digests = dict(zip(seconds, (CHAIN.dataset, CHAIN.adapter, CHAIN.export, CHAIN.evaluation, ARTIFACT), strict=True))
    on_gpu = (Stage.TRAIN, Stage.EVALUATE)
    earlier = RUN.model_copy(update={"id": "r0"})
    manifests = {
        stage: Manifest(
            stage=stage,
            files=[],
            facts={"steps": "600", "tokens": "1234567", "trainableParameters": "4884480", "validationLoss": "0.8"},
            lineage=Lineage(
                run=earlier if stage is Stage.PREPARE else RUN,
                usage=usage_of(gpu if stage in on_gpu else cpu, took, took * 1.7),
            ),
        )
        for stage, took in seconds.items()
    }
    found = evaluated(task)
    scalars = {
        "channel": "candidate",
        "goals": packed(judge(GOALS, found.measurements, task)),
        "judge": status_of(judgement(), {}).model_dump_json(by_alias=True),
        "review": json.dumps(
            {"outcome": "Pass", "votes": 40, "reviewers": 2, "winRate": "0.8", "low": "0.6", "high": "0.9"}
        ),
    }
    return RunFacts(
        ending=ending_of(RunVerdict(scalars, ARTIFACT), f"s3://results/team/{output_folder(Stage.PUBLISH, ARTIFACT)}"),
        manifests=manifests,
        folders={stage: output_folder(stage, digest) for stage, digest in digests.items()},
        goals=goals_of(scalars, GOALS.texts(task)),
        verdicts=verdicts_of(scalars, ReviewTerms()),
        data=DataReport.model_validate(REPORT),
        history=history(),
        evaluation=evaluation_parts(task),
        reports=reports_of(CHAIN, ARTIFACT),
    )


SHEET: Final = sheet_of([f"old {n} {'word ' * 40}" for n in range(12)], [f"new {n}" for n in range(12)])


def judgement() -> Judgement:
    """Nine pairs for the artifact, two against it, one tie."""
    kinds = [Preference.ARTIFACT] * 9 + [Preference.BASE] * 2 + [Preference.TIE]
    said = {pair.id: kind for pair, kind in zip(SHEET.pairs, kinds, strict=True)}
    return Judgement(digest=SHEET.address, model="large", url="http://judge/v1", baseline="base", preferences=said)


def every_page() -> dict[str, str]:
    """The HTML of each, by a name for people."""
    law = PowerLaw(0.1, 2, 0.5)
    curve = forecast([Point(size, law.at(size)) for size in (250, 500, 750, 1000)])
    labels = {f"{label}_{n}": by_part(80 + n, 10, 10) for n in range(8) for label in LABELS}
    facts = replace(GOOD, labels=labels, sources=[f"s3://data/{'long-name-' * 8}{n}.csv" for n in range(4)])
    faults: list[dict[str, str | int]] = [
        {"file": "s3://data/good.csv", "line": n, "field": "label", "kind": "empty"} for n in range(1, 12)
    ]
    identity = [Fact("Job", [f"{RUN.namespace}/{RUN.name}"])]
    voted = {pair.id: 1.0 for pair in SHEET.pairs[:5]}
    return {
        **{f"run-{task.value}": render_run(given(task), run_facts(task)) for task in TaskType},
        **{f"evaluation-{task.value}": evaluation_page(task) for task in TaskType},
        "readiness": page.render(facts, check(facts), faults),
        "index": render_index(given(), reports_of(CHAIN, ARTIFACT, "judge")),
        "judged": render_judgement(judgement(), voted, identity),
        "learning-curve": render_curve(curve, identity),
        "review": render_review(SHEET, identity),
    }
