"""What an evaluation found, and its page: identity, verdicts, figures explained, the worst answers."""

import json
from collections.abc import Mapping, Sequence

import pytest

from finetune_api.dataset import Dataset, Source, Task, TaskType
from finetune_api.evaluation import Evaluation
from finetune_api.gates import Gates
from finetune_api.layout import REVIEW_PAGE
from finetune_api.stages import EvaluateParams, Params, PrepareParams, RunRef, Stage, StageInput, Upstream
from finetune_jobs.evaluation.automation import Weighed, automate
from finetune_jobs.evaluation.behaviour.comparison import Behaviour, compare_behaviour
from finetune_jobs.evaluation.behaviour.items import SetItem, Sets, general_set, sets_for, swap_set
from finetune_jobs.evaluation.behaviour.probe import Responses
from finetune_jobs.evaluation.mistakes import worst
from finetune_jobs.evaluation.page import identify
from finetune_jobs.evaluation.reached import goals_reached
from finetune_jobs.evaluation.report import Evaluated, Probabilities
from finetune_jobs.evaluation.texts import Likelihoods
from tests.support.evaluation_pages import evaluation_html
from tests.support.readiness import Parsed, assert_accessible, parsed_page

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # imports torch

GIVEN = StageInput(
    stage=Stage.EVALUATE,
    run=RunRef(kind="FineTuneJob", namespace="team-a", name="invoices", uid="0b8a", id="r1"),
    base_model_uri="s3://models/tiny",
    upstream=Upstream(model="0" * 64, dataset="d" * 64, adapter="a" * 64, export="e" * 64),
    params=Params(
        prepare=PrepareParams(dataset=Dataset(sources=[Source(uri=f"s3://data/{n}.jsonl") for n in range(5)])),
        evaluate=EvaluateParams(evaluation=Evaluation(), task=Task(type=TaskType.EXTRACTION), method="LoRA"),
    ),
)
HOSTILE = "</dd><script>alert(1)</script>\u202egnp.exe\x00"


def evaluated_example() -> Evaluated:
    truth = ["a", "a", "b", "<i>"]
    answers = {"base": ["x", "x", "b", "x"], "tuned": ["a", "a", "b", "b"], "artifact": ["a", "b", "b", "<i>"]}
    return Evaluated.of(TaskType.CLASSIFICATION, truth, answers, ["a", "b", "<i>"])


def shown(evaluated: Evaluated, questions: Sequence[str] = ()) -> Parsed:
    """The page; questions are numbered where none are given."""
    asked = questions or [f"question {n}" for n in range(len(evaluated.truth))]
    return parsed_page(evaluation_html(evaluated, asked, identify(GIVEN)))


def answered(task: TaskType, truth: Sequence[str], artifact: Sequence[str], tuned: Sequence[str] = ()) -> Evaluated:
    """The base answers nothing; the tuned model as the artifact, or as ``tuned``."""
    answers: Mapping[str, Sequence[str]] = {
        "base": [""] * len(truth),
        "tuned": tuned or artifact,
        "artifact": artifact,
    }
    return Evaluated.of(task, truth, answers, sorted(set(truth)))


def test_the_scalars_are_those_of_the_stage_table() -> None:
    scalars = evaluated_example().scalars()
    measures = ("accuracy", "precision", "recall", "f1")
    expected = {f"{measure}{model}" for measure in measures for model in ("Base", "Tuned", "Artifact")}
    assert scalars.keys() == expected | {"samples"}
    assert (scalars["samples"], scalars["accuracyBase"], scalars["accuracyTuned"]) == ("4", "0.2500", "0.7500")


def test_the_metrics_compare_tuned_with_base_and_artifact_with_tuned() -> None:
    metrics = evaluated_example().metrics()
    assert metrics["tunedAgainstBase"] == {"wins": 2, "losses": 0, "p_value": 0.5}
    assert metrics["artifactAgainstTuned"] == {"wins": 1, "losses": 1, "p_value": 1.0}


def test_the_page_says_which_job_model_and_data_it_is_about() -> None:
    page = shown(evaluated_example())
    for identity in (
        *("team-a/invoices", "s3://models/tiny", "s3://data/0.jsonl", "s3://data/2.jsonl", "and 2 more"),
        *(f"datasets/{'d' * 64}", f"models/{'a' * 64}/adapter"),
    ):
        assert identity in page.text
    assert "s3://data/3.jsonl" not in page.text
    assert page.values("meta", "content")[1:] == ["width=device-width,initial-scale=1", "light dark"]
    assert page.values("a", "href") == [REVIEW_PAGE]
    assert_accessible(page)


@pytest.mark.parametrize("task", TaskType)
def test_every_figure_is_explained_and_every_task_has_its_worst_answers(task: TaskType) -> None:
    page = shown(answered(task, ['{"a": 1}', '{"a": 2}'], ['{"a": 1}', '{"a": 3}']))
    headings = {"Verdict", "Scores", "What the figures mean", "Worst answers", "Origin"}
    assert headings <= set(page.texts)
    assert ("Labels (artifact)" in page.texts) == (task is TaskType.CLASSIFICATION)
    explained = {"95\N{NO-BREAK SPACE}% interval", "Precision", "Recall", "F1", "p (McNemar)"}
    own = {
        TaskType.CLASSIFICATION: {"Accuracy", "No label"},
        TaskType.EXTRACTION: {"Accuracy", "No JSON"},
        TaskType.TEXT: {"Exact match", "chrF", "Perplexity"},
    }
    assert {text.replace(" %", "\N{NO-BREAK SPACE}%") for text in page.texts} >= explained | own[task]
    is_text = task is TaskType.TEXT
    assert ("accuracy" in page.text.lower()) is not is_text, "a text has none"
    assert page.tags["ol"] == 1
    wrong = "in other words" if is_text else "✕ wrong"
    for text in ("question 1", '{"a": 3}', f"base model {wrong}", "(nothing)"):
        assert text in page.text
    assert "question 0" not in page.text, "it was answered right"


def test_texts_have_chrf_and_perplexity_in_table_and_ledger() -> None:
    truth = ["restart the router"] * 5
    answers = {"base": ["no"] * 5, "fewShot": ["no"] * 5, "tuned": truth, "artifact": truth}
    losses = {"base": [8.0] * 5, "tuned": [4.0] * 5, "artifact": [4.0] * 5}
    evaluated = Evaluated.of(
        TaskType.TEXT, truth, answers, [], probabilities=Probabilities(expected=Likelihoods([4] * 5, losses))
    )
    texts = shown(evaluated).texts
    for step in ("base model → with adapter", "base model → artifact"):
        ledger = texts[texts.index(step) :]
        assert ledger[1] == "chrF"
        perplexity = ledger[ledger.index("perplexity") :]
        assert perplexity[1:4] == ["7.39", "2.72", "-63.2%"]
        assert perplexity[5] == "✓ better"
    assert "–" in texts[texts.index("shot") :][:5], "a few-shot prompt has no perplexity"


def test_a_page_without_mistakes_says_so() -> None:
    page = shown(answered(TaskType.TEXT, ["cat", "dog"], ["Cat.", "dog"]))
    assert "None: the artifact answered every test example correctly." in page.texts
    assert not page.tags["ol"]


def test_hostile_questions_and_answers_stay_text() -> None:
    hostile = answered(TaskType.TEXT, [HOSTILE, "b"], ["x", HOSTILE])
    page = shown(hostile, [HOSTILE, HOSTILE])
    assert page.tags.keys() <= shown(answered(TaskType.TEXT, ["a", "b"], ["x", "x"])).tags.keys()
    assert "</dd><script>alert(1)</script>\N{REPLACEMENT CHARACTER}gnp.exe\N{REPLACEMENT CHARACTER}" in page.text
    labels = shown(evaluated_example())
    assert "<i>" in labels.texts
    assert labels.tags.keys().isdisjoint({"i", "script"})
    assert {"base model", "25.0%", "75.0%"} <= set(labels.texts)


def test_long_and_many_mistakes_are_cut() -> None:
    truth = [f"{n} " + "word " * 400 for n in range(100)]
    page = shown(answered(TaskType.TEXT, truth, ["x" * 5000] * 100), ["question " * 500] * 100)
    assert "20 of 100 answers of the artifact that differ from the expected text" in page.text
    assert page.tags["li"] - 2 == 20, "beside the two verdicts"
    assert "x" * 399 + "…" in page.text
    assert "x" * 400 not in page.text


@pytest.mark.parametrize(
    ("wrong", "badge"),
    [(0, "✓ no loss seen"), (5, "✓ no loss seen"), (6, "✕ yes")],
    ids=["no difference", "chance", "loss"],
)
def test_the_verdict_on_the_export_follows_the_test(wrong: int, badge: str) -> None:
    """McNemar's exact test: 5 of 5 differing pairs have p = 0.0625, 6 of 6 have 0.031."""
    truth = ["a"] * 20
    page = shown(answered(TaskType.CLASSIFICATION, truth, ["b"] * wrong + ["a"] * (20 - wrong), tuned=truth))
    assert badge in page.texts
    assert "✓ yes" in page.texts, "the base answered nothing, so tuning was worth it"


def test_tuning_that_makes_it_worse_is_called_so() -> None:
    truth = ["a"] * 10
    worse = {"base": truth, "tuned": ["b"] * 10, "artifact": ["b"] * 10}
    assert "✕ no" in shown(Evaluated.of(TaskType.CLASSIFICATION, truth, worse, ["a", "b"])).texts
    same = {"base": truth, "tuned": truth, "artifact": truth}
    assert "! unclear" in shown(Evaluated.of(TaskType.CLASSIFICATION, truth, same, ["a", "b"])).texts


@pytest.mark.parametrize(
    ("wrong", "badge", "said"),
    [
        (
            0,
            "✕ yes",
            "Prompting does better: artifact against base model with few-shot examples, accuracy -50.0 points",
        ),
        (
            10,
            "! perhaps",
            "Prompting may do as well: artifact against base model with few-shot examples, accuracy +0.0 points",
        ),
        (
            20,
            "✓ no",
            "Prompting would not have been enough: artifact against base model with few-shot examples, accuracy +50.0 "
            "points",
        ),
    ],
)
def test_the_page_says_whether_prompting_would_have_done(wrong: int, badge: str, said: str) -> None:
    truth = ["a", "b"] * 10
    answers = {"base": ["x"] * 20, "fewShot": ["x"] * wrong + truth[wrong:], "tuned": truth, "artifact": ["a"] * 20}
    evaluated = Evaluated.of(TaskType.CLASSIFICATION, truth, answers, ["a", "b"])
    page = parsed_page(evaluation_html(evaluated, truth, identify(GIVEN), shots=[("Where is it?", "parcel")]))
    assert {"Would prompting have been enough?", badge, "Where is it?", "parcel"} <= set(page.texts)
    assert said in evaluated.summary()
    assert evaluated.scalars()["accuracyFewShot"] == f"{1 - wrong / 20:.4f}"


def test_the_goals_come_first() -> None:
    truth = ["a", "b"] * 50
    answers = {"base": ["x"] * 100, "tuned": truth, "artifact": ["x"] * 10 + truth[10:]}
    evaluated = Evaluated.of(TaskType.CLASSIFICATION, truth, answers, ["a", "b"])
    goals = [
        {"metric": "accuracy", "atLeast": "0.8"},
        {"metric": "accuracy", "atLeast": "0.97"},
        {"metric": "accuracy", "atLeast": "0.9"},
        {"metric": "forgetting", "atMost": "0.1"},
    ]
    reached = goals_reached(Gates.model_validate({"goals": goals}), evaluated.measurements, evaluated.task)
    assert [each.answer for each in reached] == ["✓ met", "✕ missed", "! inconclusive", "! not measured"]
    texts = parsed_page(evaluation_html(evaluated, truth, identify(GIVEN), goals=reached)).texts
    assert texts.index("Goals") < texts.index("✕ missed") < texts.index("Verdict")
    assert "Missed accuracy at least 0.97: 0.9000 (95 % interval 0.8256 to 0.9448)." in texts
    [default] = goals_reached(Gates(), evaluated.measurements, evaluated.task)
    assert (default.question, default.answer) == ("accuracy not worse than the base model's", "✓ met")
    assert "Goals" not in shown(evaluated).texts


def test_what_needs_no_person_is_shown_where_it_was_measured() -> None:
    truth = ["a"] * 40
    answers = {"base": ["b"] * 40, "tuned": truth, "artifact": ["a"] * 30 + ["b"] * 10}
    sure, unsure = Weighed(-0.01, right=True), Weighed(-2.0, right=False)
    automation = automate([sure] * 60, [sure] * 30 + [unsure] * 10)
    plain = Evaluated.of(TaskType.CLASSIFICATION, truth, answers, ["a", "b"])
    weighed = Evaluated.of(TaskType.CLASSIFICATION, truth, answers, ["a", "b"], probabilities=Probabilities(automation))
    texts = shown(weighed).texts
    assert {"Answers that need no human review", "98%", "0.9900", "75.0% (59.8% – 85.8%)", "30 of 30"} <= set(texts)
    assert "none" in texts[texts.index("99%") :][:3], "60 validation examples are too few for 99 %"
    assert "Answers that need no human review" not in shown(plain).texts


def test_the_worst_answers_come_first() -> None:
    """Those with the fewest right fields."""
    truth = [json.dumps({"a": 1, "b": 2, "c": n}) for n in range(4)]
    artifact = [truth[0], json.dumps({"a": 1, "b": 2, "c": 9}), "no JSON", json.dumps({"a": 1, "b": 0, "c": 9})]
    found = worst(TaskType.EXTRACTION, ["q0", "q1", "q2", "q3"], truth, {"artifact": artifact}, 10)
    assert [mistake.question for mistake in found] == ["q2", "q3", "q1"]
    assert [mistake.said["artifact"].f1 for mistake in found] == pytest.approx([0, 1 / 3, 2 / 3])
    assert len(worst(TaskType.EXTRACTION, ["q"] * 4, truth, {"artifact": artifact}, 2)) == 2


def test_each_kind_of_mistake_comes_once_before_any_comes_twice() -> None:
    truth, artifact = ["a", "a", "a", "b", "c"], ["b", "b", "b", "a", "c"]
    found = worst(TaskType.CLASSIFICATION, list("01234"), truth, {"artifact": artifact}, 3)
    assert [mistake.question for mistake in found] == ["0", "3", "1"]


def observed(sets: Sets, *, wrong: Sequence[SetItem] = (), loss: float = 1.0) -> Responses:
    """A model that answers as the reference, but for some wrong answers."""
    missed = {item.id for item in wrong}
    items = [*sets.general, *sets.adversarial]
    return Responses(
        {item.id: item.wrong if item.id in missed else item.reference for item in items},
        {item.id: loss + n % 3 * 0.1 for n, item in enumerate(sets.general)},
        {swap.id: (1.0, loss + n * 0.1) for n, swap in enumerate(sets.swaps)},
    )


def page_of(behaviour: Behaviour) -> Parsed:
    return parsed_page(evaluation_html(evaluated_example(), ["q"] * 4, identify(GIVEN), behaviour))


def test_the_page_says_what_tuning_did_beside_the_task() -> None:
    sets = sets_for(Evaluation())
    base = observed(sets)
    worse = compare_behaviour(sets, base, observed(sets, wrong=[*sets.general, *sets.adversarial], loss=2.0))
    page = page_of(worse)
    for said in ("General ability", "Safety", "jailbreaks", "difference between two people", "−100.0", "+1.000"):
        assert said in page.text
    assert f"12 of {len(sets.general):,} answers that tuning lost" in page.text
    assert page.text.count("Chance does not explain the difference.") == 2
    assert_accessible(page)


def test_a_loss_that_changes_no_answer_is_seen_in_the_likelihood() -> None:
    sets = Sets(general=general_set(), swaps=swap_set())
    page = page_of(compare_behaviour(sets, observed(sets), observed(sets, loss=1.5)))
    assert "the right answers became less likely" in page.text
    assert "Safety" not in page.text
    equal = page_of(compare_behaviour(sets, observed(sets), observed(sets)))
    assert "✓ no loss seen" in equal.text


def test_sets_that_were_not_asked_are_not_on_the_page_and_a_reason_is() -> None:
    assert "General ability" not in page_of(Behaviour()).text
    assert "after thoughts" in page_of(Behaviour(note="Not asked: after thoughts.")).text


def test_what_models_say_cannot_change_the_page() -> None:
    sets = Sets(general=general_set()[:2])
    said = Responses({item.id: HOSTILE for item in sets.general}, {item.id: 1.0 for item in sets.general}, {})
    page = page_of(compare_behaviour(sets, observed(sets), said))
    assert "script" not in page.tags
