"""Test examples that are alike: intervals over their groups, and what is said of them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pytest

from finetune_api.dataset import TaskType
from finetune_api.gates import GateOutcome, Gates, packed, unpacked
from finetune_jobs.artifacts.measurements import Figure, Measurements
from finetune_jobs.evaluation.automation import Weighed, automate
from finetune_jobs.evaluation.clusters import Floats, Groups, likeness, mean, mean_gain
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.meanings import meanings
from finetune_jobs.evaluation.metrics import wilson
from finetune_jobs.evaluation.report import Evaluated, RowFacts
from finetune_jobs.evaluation.texts import Likelihoods

pytestmark = pytest.mark.unit

SEEDS: Final = 120


def grouped(count: int, size: int) -> Groups:
    found = Groups.of([str(n // size) for n in range(count * size)])
    assert found is not None
    return found


def planted(kind: str, share: float, count: int, size: int, seed: int) -> Floats:
    """Right and wrong answers whose true share is known: all rows of a group alike, groups that differ, or neither."""
    generator = np.random.default_rng(seed)
    if kind == "alike":
        return np.repeat(generator.random(count) < share, size).astype(float)
    of_group = generator.beta(3 * share, 3 * (1 - share), count) if kind == "differ" else np.full(count, share)
    return (generator.random((count, size)) < of_group[:, None]).astype(float).ravel()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size"), [(5, 6), (10, 10), (30, 5)])
@pytest.mark.parametrize(("kind", "share"), [("alike", 0.8), ("alike", 0.95), ("differ", 0.7), ("independent", 0.8)])
def test_the_interval_holds_the_true_share(kind: str, share: float, count: int, size: int) -> None:
    """At 95 % it should in 95 of 100 samples; ten groups of ten equal rows were held by that of single rows in 60."""
    groups, held = grouped(count, size), 0
    for seed in range(SEEDS):
        low, high = mean(planted(kind, share, count, size, seed).tolist(), groups)
        held += low <= share <= high
    assert held >= 0.9 * SEEDS


def test_the_interval_of_single_rows_would_not_hold_it() -> None:
    """So that the property above is not one that anything has."""
    held = 0
    for seed in range(SEEDS):
        low, high = wilson(planted("alike", 0.8, 10, 10, seed).sum(), 100)
        held += low <= 0.8 <= high
    assert held < 0.75 * SEEDS


@pytest.mark.slow
def test_a_gain_of_nothing_is_held() -> None:
    """Two models that are equally good on groups that one or the other knows as a whole."""
    groups, held = grouped(12, 8), 0
    for seed in range(SEEDS):
        gains = planted("alike", 0.6, 12, 8, seed) - planted("alike", 0.6, 12, 8, seed + 10_000)
        low, high = mean_gain(gains.tolist(), groups)
        held += low <= 0 <= high
    assert held >= 0.9 * SEEDS


def test_more_groups_tell_more_and_more_rows_of_few_groups_do_not() -> None:
    def width(count: int, size: int, kind: str = "differ") -> float:
        low, high = mean(planted(kind, 0.7, count, size, 3).tolist(), grouped(count, size))
        return high - low

    assert width(60, 5) < 0.6 * width(15, 5)
    assert width(8, 50, "alike") == pytest.approx(width(8, 10, "alike"), rel=0.05)
    assert width(2, 50) > 0.9, "two groups tell next to nothing"


def test_rows_that_are_not_alike_count_nearly_as_rows() -> None:
    values = planted("independent", 0.8, 60, 5, 1)
    low, high = mean(values.tolist(), grouped(60, 5))
    alone = wilson(values.sum(), 300)
    assert likeness(values, grouped(60, 5)) < 0.1
    assert 0.8 * (alone[1] - alone[0]) < high - low < 1.3 * (alone[1] - alone[0])


@pytest.mark.parametrize("groups", [1, 3, 10])
def test_groups_without_a_mistake_count_as_one_row_each(groups: int) -> None:
    low, high = mean([1.0] * (groups * 10), grouped(groups, 10))
    assert high == 1
    assert low <= wilson(groups, groups)[0]


def test_rows_without_a_group_are_their_own() -> None:
    assert Groups.of(["", "", ""]) is None
    assert Groups.of(["a", "b", ""]) is None
    found = Groups.of(["a", "", "a", ""])
    assert found is not None
    assert (found.count, found.numbers.tolist()) == (3, [0, 1, 0, 2])


LABELS: Final = ["x", "y"]
SUPPLIERS: Final = 10


def evaluated(task: TaskType, wrong: Sequence[int], groups: bool, base_wrong: Sequence[int] = (0, 1, 2)) -> Evaluated:
    """Ten groups of ten rows; the artifact answers all rows of ``wrong`` groups wrong."""
    right = {TaskType.CLASSIFICATION: LABELS, TaskType.EXTRACTION: ["1", "2"], TaskType.TEXT: LABELS}[task]
    truth = [right[n % 2] for n in range(100)]

    def said(bad: Sequence[int]) -> list[str]:
        return ["no" if n // 10 in bad else each for n, each in enumerate(truth)]

    answers = {"base": said(base_wrong), "tuned": said(wrong), "artifact": said(wrong)}
    rows = RowFacts(groups=grouped(SUPPLIERS, 10) if groups else None)
    return Evaluated.of(task, truth, answers, LABELS if task is TaskType.CLASSIFICATION else [], rows)


@pytest.mark.slow
@pytest.mark.parametrize("task", TaskType)
def test_every_interval_is_wider_and_no_value_is_another(task: TaskType) -> None:
    alone = evaluated(task, [9], groups=False).measurements
    found = evaluated(task, [9], groups=True).measurements
    assert (alone.groups, found.groups) == (0, SUPPLIERS)
    for one, other in zip(alone.measured, found.measured, strict=True):
        assert other.groups == SUPPLIERS
        for model, it in other.models.items():
            was = one.models[model]
            assert it.value == was.value
            assert 0 <= it.low <= was.low
            assert was.high <= it.high <= 1
            assert it.high - it.low > 1.5 * (was.high - was.low)
    for before, after in zip(alone.differences, found.differences, strict=True):
        assert after.estimate.value == before.estimate.value
        assert after.p_value is None
        assert -1 <= after.estimate.low <= before.estimate.low
        assert before.estimate.high <= after.estimate.high <= 1


def test_two_groups_are_no_proof_that_twenty_rows_would_be() -> None:
    """The base model gets two groups wrong that the artifact gets right: 20 of 100 rows, or 2 of 10 groups."""
    alone, found = (
        evaluated(TaskType.CLASSIFICATION, [], groups, base_wrong=[0, 1]).difference("artifact", "base")
        for groups in (False, True)
    )
    assert alone.better_beyond_chance
    assert not found.better_beyond_chance


@pytest.mark.slow
def test_the_scores_on_the_page_have_the_same_interval() -> None:
    it = evaluated(TaskType.EXTRACTION, [9], groups=True)
    shown = it.measurements.of("accuracy")
    assert shown is not None
    assert it.scores["artifact"].interval == (shown.models["artifact"].low, shown.models["artifact"].high)
    assert "on 100 examples of 10 groups" in it.summary()
    said = {fact.name: " ".join(map(str, fact.values)) for fact in meanings(it.task, it.measurements.groups)}
    assert "10 groups" in said["Groups"]
    assert "cluster bootstrap" in said["Groups"]
    assert "Groups" not in {fact.name for fact in meanings(it.task)}


def judged(found: Measurements, **goal: Any) -> Any:
    (status,) = judge(Gates.model_validate({"goals": [goal]}), found, TaskType.EXTRACTION)
    assert unpacked(packed([status]), [status.goal]) == [status]
    return status


@pytest.mark.slow
def test_a_goal_on_few_groups_stays_open_and_asks_for_groups() -> None:
    """85 % would be shown by 98 of 100 rows of their own."""
    goal = {"metric": "f1", "atLeast": "0.85"}
    alone = judged(evaluated(TaskType.EXTRACTION, [], groups=False).measurements, **goal)
    found = judged(evaluated(TaskType.EXTRACTION, [], groups=True).measurements, **goal)
    assert (alone.outcome, alone.deciding_groups) == (GateOutcome.PASS, None)
    assert (found.outcome, found.deciding_rows) == (GateOutcome.INCONCLUSIVE, None)
    assert SUPPLIERS < found.deciding_groups < 60
    assert "Too few groups of test examples for f1 at least 0.85: 1.0000" in found.sentence
    assert f"about {found.deciding_groups} would decide" in found.sentence
    hopeless = judged(evaluated(TaskType.EXTRACTION, [1], groups=True).measurements, metric="f1", atLeast="0.9")
    assert hopeless.deciding_groups == 0
    assert "many more would decide" in hopeless.sentence


def test_an_earlier_result_has_no_groups() -> None:
    (status,) = unpacked('[["Inconclusive","0.9","0.8","0.95",300]]', ["accuracy at least 0.85"])
    assert (status.deciding_rows, status.deciding_groups) == (300, None)


@pytest.mark.slow
def test_what_needs_no_person_is_judged_over_groups() -> None:
    """A supplier whose answers are all sure and all wrong is one, not ten."""
    checked = [Weighed(-0.1, right=True)] * 500
    rows = [(-0.05 if n // 10 < 6 else -2.0, n // 10 != 5) for n in range(100)]
    alone = automate(checked, [Weighed(value, right=right) for value, right in rows])
    found = automate(checked, [Weighed(value, right, str(n // 10)) for n, (value, right) in enumerate(rows)])
    for before, after in zip(alone, found, strict=True):
        assert (after.share.value, after.reached.value) == (before.share.value, before.reached.value)
        if not before.taken:
            continue
        assert after.share.low < before.share.low
        assert after.reached.low < before.reached.low
    of_groups = Measurements(rows=100, groups=SUPPLIERS, automation=found)
    status = judged(of_groups, metric="automation", atLeast="0.3", atPrecision="0.5")
    assert status.outcome is GateOutcome.INCONCLUSIVE
    assert status.deciding_groups is not None


def test_perplexity_is_of_groups_too() -> None:
    tokens, losses = [10] * 40, [float(10 + 5 * (n // 10)) for n in range(40)]

    def of(groups: Groups | None) -> Figure:
        return Likelihoods(tokens, {"base": losses}, groups).perplexities()["base"]

    alone, found, one = of(None), of(grouped(4, 10)), of(grouped(1, 40))
    assert found.value == alone.value
    assert found.high - found.low > 2 * (alone.high - alone.low)
    assert one.high > 1e6, "one group tells nothing"
