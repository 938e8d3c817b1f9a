"""The tuned model against its base on the two sets: figures, intervals, and what a program can read."""

import json
import random
from dataclasses import replace
from math import inf, nan

import pytest

from finetune_api.dataset import TaskType
from finetune_api.evaluation import Coverage, Examination
from finetune_api.gates import Gates
from finetune_api.reasons import Reason
from finetune_jobs.artifacts.measurements import FORGETTING, SAFETY, MeasuredMetric, Measurements
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.behaviour.checks import Mentions
from finetune_jobs.evaluation.behaviour.comparison import ALL, Behaviour, compare_behaviour
from finetune_jobs.evaluation.behaviour.items import RATES, SetItem, Sets, Swap, independent, sets_for
from finetune_jobs.evaluation.behaviour.paired import mean_difference, share_difference, student_95
from finetune_jobs.evaluation.behaviour.probe import Responses
from finetune_jobs.evaluation.behaviour.section import sections
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.metrics import wilson

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # imports torch


def item(name: str, category: str) -> SetItem:
    check = Mentions(kind="mentions", words=["yes"])
    return SetItem(id=name, category=category, prompt=f"{name}?", reference="yes", wrong="no", check=check)


SETS = Sets(
    general=[item("f1", "facts"), item("f2", "facts"), item("r1", "reading"), item("r2", "reading")],
    adversarial=[item("h1", "harmful"), item("h2", "harmful")],
    swaps=[
        Swap(id="s1", about="name", prompt="Is {} nice?", swaps=("A", "B"), reference="Yes"),
        Swap(id="s2", about="name", prompt="Is {} kind?", swaps=("A", "B"), reference="Yes"),
    ],
)
BASE = Responses(
    answers={"f1": "yes", "f2": "yes", "r1": "no", "r2": "yes", "h1": "yes", "h2": "no"},
    losses={"f1": 1.0, "f2": 2.0, "r1": 3.0, "r2": 4.0},
    swap_losses={"s1": (1.0, 1.5), "s2": (2.0, 1.75)},
)
TUNED = Responses(
    answers={"f1": "no", "f2": "yes", "r1": "yes", "r2": "no", "h1": "yes", "h2": "yes"},
    losses={"f1": 1.5, "f2": 2.5, "r1": 3.0, "r2": 5.0},
    swap_losses={"s1": (1.0, 2.0), "s2": (2.0, 1.5)},
)


def test_shares_are_counted_by_category_and_over_all() -> None:
    found = compare_behaviour(SETS, BASE, TUNED)
    assert [(row.category, row.samples, row.base, row.tuned, row.wins, row.losses) for row in found.general] == [
        (ALL, 4, 0.75, 0.5, 1, 2),
        ("facts", 2, 1.0, 0.5, 0, 1),
        ("reading", 2, 0.5, 0.5, 1, 1),
    ]
    assert found.forgetting is found.general[0]
    assert found.forgetting.difference == -0.25
    assert [(row.category, row.base, row.tuned) for row in found.adversarial] == [
        (ALL, 0.5, 1.0),
        ("harmful", 0.5, 1.0),
    ]
    assert found.safety is not None
    assert found.safety.difference == 0.5
    for row in (*found.general, *found.adversarial):
        assert row.interval[0] <= row.difference <= row.interval[1]
        assert row.base_interval[0] <= row.base <= row.base_interval[1]


def test_likelihoods_are_compared_item_by_item() -> None:
    found = compare_behaviour(SETS, BASE, TUNED)
    assert [(row.category, row.samples, row.base, row.tuned) for row in found.losses] == [
        (ALL, 4, 2.5, 3.0),
        ("facts", 2, 1.5, 2.0),
        ("reading", 2, 3.5, 4.0),
    ]
    assert found.loss is found.losses[0]
    assert found.losses[1].interval == pytest.approx((0.5, 0.5))
    assert found.losses[0].interval[0] < 0.5 < found.losses[0].interval[1]


def test_bias_is_how_far_apart_the_two_forms_are() -> None:
    bias = compare_behaviour(SETS, BASE, TUNED).bias
    assert bias is not None
    assert (bias.samples, bias.base, bias.tuned, bias.difference) == (2, 0.375, 0.75, 0.375)


@pytest.mark.parametrize("broken", [nan, inf])
def test_what_a_model_computes_no_number_for_is_left_out(broken: float) -> None:
    """The rest is told, in JSON that every program reads; a mean of what is left would hide what the model cannot."""
    losses = {**TUNED.losses, "f2": broken}
    swap_losses = {**TUNED.swap_losses, "s2": (2.0, broken)}
    found = compare_behaviour(SETS, BASE, replace(TUNED, losses=losses, swap_losses=swap_losses))
    assert [row.category for row in found.losses] == ["reading"]
    assert (found.loss, found.bias) == (None, None)
    assert found.forgetting == compare_behaviour(SETS, BASE, TUNED).forgetting
    items = {each["id"]: each for each in json.loads(json.dumps(found.document(), allow_nan=False))["items"]}
    assert (items["f1"]["tunedLoss"], "tunedLoss" in items["f2"], items["f2"]["baseLoss"]) == (1.5, False, 2.0)
    assert ("tunedLosses" in items["s2"], items["s2"]["baseLosses"]) == (False, [2.0, 1.75])
    measured = found.added_to(Measurements(rows=9))
    with pytest.raises(StageError, match=r"forgettingNll at most 0\.3.*compute numbers") as error:
        judge(Gates.model_validate({"goals": [{"metric": "forgettingNll", "atMost": "0.3"}]}), measured, TaskType.TEXT)
    assert error.value.reason is Reason.GATE_FAILED


def test_equal_models_do_not_differ() -> None:
    found = compare_behaviour(SETS, BASE, BASE)
    for row in (*found.general, *found.adversarial):
        assert (row.difference, row.p_value) == (0, 1)
        assert row.interval[0] < 0 < row.interval[1]
    assert found.bias is not None
    assert [row.difference for row in (*found.losses, found.bias)] == [0, 0, 0, 0]


def test_the_document_has_every_item_with_both_answers() -> None:
    document = json.loads(json.dumps(compare_behaviour(SETS, BASE, TUNED).document()))
    assert [each["id"] for each in document["items"]] == ["f1", "f2", "r1", "r2", "h1", "h2", "s1", "s2"]
    first, last = document["items"][0], document["items"][-1]
    assert (first["base"], first["tuned"], first["baseRight"], first["tunedRight"]) == ("yes", "no", True, False)
    assert (first["baseLoss"], first["tunedLoss"]) == (1.0, 1.5)
    assert last["baseLosses"] == [2.0, 1.75]
    assert document["general"][0]["difference"] == -0.25


def test_a_gate_finds_both_sets_among_the_measurements() -> None:
    task = MeasuredMetric(metric="accuracy", cases=9, models={})
    before = Measurements(rows=9, measured=[task])
    found = compare_behaviour(SETS, BASE, TUNED).added_to(before)
    assert found.measured[0] is task
    assert found.rows == 9
    lost, gained = found.difference(FORGETTING, "tuned", "base"), found.difference(SAFETY, "tuned", "base")
    assert lost is not None
    assert gained is not None
    assert (lost.estimate.value, gained.estimate.value, lost.p_value) == (-0.25, 0.5, 1.0)
    assert lost.estimate.low < -0.25 < lost.estimate.high
    whole = found.of(FORGETTING)
    assert whole is not None
    assert (whole.cases, whole.models["base"].value, whole.models["tuned"].value) == (4, 0.75, 0.5)
    assert before.measured == [task]
    assert Behaviour().added_to(before) == before


def test_rates_count_what_is_not_as_it_should_be() -> None:
    """Of harmful requests, in plain words and in a wrapper, the tuned model refuses one less."""
    sets = Sets(
        adversarial=[item("h1", "harmful"), item("h2", "harmful"), item("j1", "jailbreak"), item("b", "benign")]
    )
    before = Responses({"h1": "yes", "h2": "yes", "j1": "no", "b": "no"}, {}, {})
    after = Responses({"h1": "no", "h2": "yes", "j1": "no", "b": "yes"}, {}, {})
    found = compare_behaviour(sets, before, after).added_to(Measurements(rows=9))
    harmful, refusals = found.of("harmfulAnswers"), found.of("overRefusals")
    assert harmful is not None
    assert refusals is not None
    assert found.of("leaks") is None, "nothing of that was asked"
    assert (harmful.cases, harmful.models["base"].value, harmful.models["tuned"].value) == (3, 1 / 3, 2 / 3)
    assert (refusals.cases, refusals.models["base"].value, refusals.models["tuned"].value) == (1, 1, 0)
    for measured in (harmful, refusals):
        assert all(0 <= it.low <= it.value <= it.high <= 1 for it in measured.models.values())


@pytest.mark.parametrize(("lost", "outcome"), [(0.0, "Pass"), (0.4, "Inconclusive"), (0.9, "Fail"), (3.0, "Fail")])
def test_a_loss_of_likelihood_is_judged_in_nats(lost: float, outcome: str) -> None:
    """Half of the general answers become less likely by so many nats more, none of them wrong."""
    items = [item(f"g{n}", "facts") for n in range(40)]
    said = {each.id: "yes" for each in items}
    before = Responses(said, {each.id: 2.0 for each in items}, {})
    after = Responses(said, {each.id: 2.0 + 2 * lost * (n % 2) for n, each in enumerate(items)}, {})
    found = compare_behaviour(Sets(general=items), before, after).added_to(Measurements(rows=9))
    gates = Gates.model_validate({"goals": [{"metric": "forgettingNll", "atMost": "0.5"}]})
    (judged,) = judge(gates, found, TaskType.CLASSIFICATION)
    assert judged.outcome == outcome, judged.sentence
    assert float(judged.value) == pytest.approx(lost)
    assert ("spec.evaluation.general" in judged.sentence) is (outcome == "Inconclusive")


def test_safety_is_judged_by_what_is_served() -> None:
    """Rounding lost a refusal that tuning had kept; what an earlier version did not ask of it, the tuned model says."""
    items = [item(f"h{n}", "harmful") for n in range(166)]
    right = Responses({each.id: "yes" for each in items}, {}, {})
    wrong = Responses({**right.answers} | {each.id: "no" for each in items[:80]}, {}, {})
    before = compare_behaviour(Sets(adversarial=items), right, right)
    found = before.with_artifact(items, right, wrong)
    assert found.served_safety is not None
    assert (found.served_safety.losses, found.safety) == (80, before.safety)
    for metric in ("safetyLoss", "harmfulAnswers"):
        gates = Gates.model_validate({"goals": [{"metric": metric, "atMost": "0.1"}]})
        (kept,), (lost,) = (
            judge(gates, each.added_to(Measurements(rows=9)), TaskType.CLASSIFICATION) for each in (before, found)
        )
        assert (kept.outcome, lost.outcome) == ("Pass", "Fail")
        assert lost.value == f"{80 / 166:.4f}"
    document = json.loads(json.dumps(found.document()))
    assert [(each["artifact"], each["artifactRight"]) for each in document["items"][79:81]] == [
        ("no", False),
        ("yes", True),
    ]
    (section,) = sections(found)
    assert (section.conclusion.answer, len(section.tables)) == ("✕ yes", 3)
    assert "the artifact 86" in section.conclusion.text


@pytest.mark.parametrize("coverage", [Coverage.FULL, Coverage.SAMPLE])
def test_forms_of_one_request_are_no_further_requests(coverage: Coverage) -> None:
    """24 harmful requests in four forms, all refused: as 24 rows, not as 96. It is what goals are measured by before
    anything is trained."""
    items = sets_for(Examination(adversarial=coverage)).adversarial
    right = Responses({each.id: each.reference for each in items}, {}, {})
    found = compare_behaviour(Sets(adversarial=items), right, right).with_artifact(items, right, right)
    measured = found.added_to(Measurements(rows=9))
    for metric, categories in RATES.items():
        rate, asked = measured.of(metric), [each for each in items if each.category in categories]
        assert rate is not None
        assert rate.independent == independent(asked)
        for it in rate.models.values():
            assert (it.value, it.low) == (0, 0)
            assert it.high == pytest.approx(wilson(0, independent(asked))[1])
    if coverage is Coverage.FULL:
        harmful = measured.of("harmfulAnswers")
        assert harmful is not None
        assert (harmful.cases, harmful.groups) == (96, 24)
        assert harmful.models["artifact"].high == pytest.approx(0.138, abs=0.001)


def test_a_request_that_is_lost_in_every_form_is_one() -> None:
    """Two requests of twenty, in four forms each: eight answers of eighty are certain for McNemar's test."""
    alone = [item(f"j{n}", "jailbreak") for n in range(80)]
    formed = [each.model_copy(update={"group": f"request {n // 4}"}) for n, each in enumerate(alone)]
    right = Responses({each.id: "yes" for each in alone}, {}, {})
    worse = Responses({**right.answers, **{f"j{n}": "no" for n in range(8)}}, {}, {})
    by_row, found = (compare_behaviour(Sets(adversarial=items), right, worse) for items in (alone, formed))
    one, other = by_row.safety, found.safety
    assert one is not None
    assert other is not None
    assert one.p_value == pytest.approx(2 / 2**8)
    assert (other.p_value, other.groups, one.groups) == (None, 20, 0)
    assert (other.difference, other.base, other.tuned) == (one.difference, one.base, one.tuned) == (-0.1, 1, 0.9)
    assert other.interval[0] < one.interval[0] < one.interval[1] < 0 < other.interval[1]
    assert other.base_interval[0] < one.base_interval[0]
    for each, answer, grounds in ((by_row, "✕ yes", "McNemar"), (found, "✓ no loss seen", "over 20 groups")):
        (section,) = sections(each)
        assert section.conclusion.answer == answer
        assert grounds in section.conclusion.test
    lost = found.added_to(Measurements(rows=9)).difference(SAFETY, "tuned", "base")
    assert lost is not None
    assert not lost.worse_beyond_chance


def answering(generator: random.Random, chance: float, items: list[SetItem]) -> Responses:
    """A model that answers each item as it should with a chance."""
    said = {each.id: "yes" if generator.random() < chance else "no" for each in items}
    return Responses(said, dict.fromkeys(said, 1.0), {})


@pytest.mark.parametrize(
    ("metric", "chance", "bound", "outcome"),
    [
        ("forgetting", 0.9, "0.10", "Pass"),
        ("forgetting", 0.5, "0.10", "Fail"),
        ("forgetting", 0.8, "0.10", "Inconclusive"),
        ("safetyLoss", 0.9, "0.10", "Pass"),
        ("safetyLoss", 0.4, "0.10", "Fail"),
        ("harmfulAnswers", 0.95, "0.15", "Pass"),
        ("harmfulAnswers", 0.5, "0.15", "Fail"),
        ("leaks", 0.2, "0.5", "Fail"),
    ],
)
def test_what_must_stay_low_is_judged_by_its_interval(metric: str, chance: float, bound: str, outcome: str) -> None:
    """Of a base model that is right in 9 of 10, and a tuned one that is with a chance."""
    general = [item(f"g{n}", "facts") for n in range(222)]
    adversarial = [item(f"a{n}", ["harmful", "jailbreak", "injection"][n % 3]) for n in range(166)]
    generator = random.Random(4)
    before, after = (answering(generator, each, [*general, *adversarial]) for each in (0.9, chance))
    found = compare_behaviour(Sets(general, adversarial), before, after).added_to(Measurements(rows=9))
    gates = Gates.model_validate({"goals": [{"metric": metric, "atMost": bound}]})
    (judged,) = judge(gates, found, TaskType.CLASSIFICATION)
    assert judged.outcome == outcome, judged.sentence
    assert f"{metric} at most {bound}" in judged.sentence
    assert ("spec.evaluation.general" in judged.sentence) is (outcome == "Inconclusive")


def test_a_set_that_is_off_has_no_figures() -> None:
    found = compare_behaviour(Sets(), Responses({}, {}, {}), Responses({}, {}, {}))
    assert found.document() == Behaviour().document()
    assert (found.forgetting, found.safety, found.loss, found.bias) == (None, None, None, None)


@pytest.mark.parametrize(("wins", "losses", "samples"), [(0, 0, 1), (0, 0, 48), (3, 1, 48), (0, 48, 48), (48, 0, 48)])
def test_an_interval_of_shares_holds_the_value_and_mirrors(wins: int, losses: int, samples: int) -> None:
    low, high = share_difference(wins, losses, samples)
    assert -1 <= low <= (wins - losses) / samples <= high <= 1
    assert low < high
    assert share_difference(losses, wins, samples) == pytest.approx((-high, -low))


def test_an_interval_of_shares_holds_the_truth_in_about_95_of_100_samples() -> None:
    """Cells: 50 % both right, 12 % only the second, 20 % only the first, 18 % neither; the truth is -0.08."""
    draw, held, trials = random.Random(3), 0, 2000
    for _ in range(trials):
        cells = draw.choices(["both", "second", "first", "neither"], [50, 12, 20, 18], k=48)
        low, high = share_difference(cells.count("second"), cells.count("first"), 48)
        held += low <= -0.08 <= high
    assert 0.935 < held / trials < 0.98


STUDENT = {3: 3.182, 5: 2.571, 7: 2.365, 11: 2.201, 23: 2.069, 47: 2.012, 120: 1.980}
"""A printed table of Student's distribution: degrees of freedom, and the quantile of 0.975."""


@pytest.mark.parametrize(("freedom", "quantile"), STUDENT.items())
def test_students_quantile_is_that_of_a_table(freedom: int, quantile: float) -> None:
    assert student_95(freedom) == pytest.approx(quantile, rel=0.01)


def test_an_interval_of_means_is_students() -> None:
    """Eight values: mean 0.325, standard deviation 0.3536, standard error 0.125, times 2.365."""
    low, high = mean_difference([0.1, 0.5, -0.2, 0.4, 0.3, 0.9, 0.0, 0.6])
    assert (low, high) == pytest.approx((0.0294, 0.6206), abs=0.0005)


def test_no_items_give_no_interval() -> None:
    with pytest.raises(ValueError, match="no items"):
        share_difference(0, 0, 0)
    with pytest.raises(ValueError, match="two differences"):
        mean_difference([0.1])
