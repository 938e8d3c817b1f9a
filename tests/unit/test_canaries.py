"""Canaries: what is planted, what a model knows of it, and what goals read. Pure functions, and tiny models."""

import json
from fractions import Fraction
from itertools import product
from math import log2, nan
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.dataset import Task, TaskType
from finetune_api.evaluation import Examination
from finetune_api.gates import GateOutcome, Gates, GoalStatus
from finetune_api.goals import Goal
from finetune_api.stages import Params, Stage, StageInput
from finetune_api.training import Method
from finetune_jobs.artifacts import model_card
from finetune_jobs.artifacts.artifact import Metrics
from finetune_jobs.artifacts.measurements import Measurements
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluation import weighing
from finetune_jobs.evaluation.applicable import require_applicable
from finetune_jobs.evaluation.batches import Prompts, in_batches
from finetune_jobs.evaluation.behaviour import exposure as exposures
from finetune_jobs.evaluation.behaviour.canaries import recall
from finetune_jobs.evaluation.behaviour.comparison import Behaviour
from finetune_jobs.evaluation.behaviour.exposure import BY_CHANCE, Exposure, Recalled, chance, memorisation, rank
from finetune_jobs.evaluation.behaviour.likelihood import Given, answer_losses, encode
from finetune_jobs.evaluation.behaviour.section import sections
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.generators.on_transformers import TransformersGenerator
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.canaries import CANDIDATES, make_canaries, read_canaries, write_canaries
from finetune_jobs.modelling.loading import load_base
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.store.s3 import Store
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN, model_ref
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import load_tuned, rows, run_training, settings, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # imports torch

RANKS = st.lists(st.integers(1, CANDIDATES), min_size=8, max_size=64)


def known(*ranks: int, said: int = 0) -> Recalled:
    return Recalled(ranks, [turn < said for turn in range(len(ranks))])


KNOWN_OF_CANARIES = ("canaryLeaks", "memorisation")
SPREAD = [4 + 8 * turn for turn in range(8)]
"""Ranks as of a model that has learned nothing."""


def test_the_same_seed_gives_the_same_canaries_and_more_begin_with_them() -> None:
    few, many = make_canaries(8, "data"), make_canaries(64, "data")
    assert many[:8] == few == make_canaries(8, "data")
    assert len({canary.question for canary in many}) == len({canary.secret for canary in many}) == 64
    assert not {canary.secret for canary in many} & {canary.secret for canary in make_canaries(64, "other data")}


def test_a_code_stands_among_others_that_are_drawn_alike() -> None:
    """Not one of them is first oftener than chance, whatever a model prefers: here the highest number."""
    canaries = make_canaries(64, "data")
    for canary in canaries:
        assert canary.candidates[0] == canary.secret
        assert len({*canary.candidates}) == CANDIDATES
        assert {len(each) for each in canary.candidates} == {9}
    ranks = [rank([float(each.replace("-", "")) for each in canary.candidates]) for canary in canaries]
    assert 0.01 < chance(sum(ranks), len(ranks)) < 0.99


def test_canaries_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_canaries(tmp_path) == []
    write_canaries(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    write_canaries(tmp_path, make_canaries(8, "data"))
    assert read_canaries(tmp_path) == make_canaries(8, "data")


def test_the_test_against_chance_counts_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposures, "CANDIDATES", 5)
    sums = [sum(ranks) for ranks in product(range(1, 6), repeat=4)]
    for total in range(22):
        assert chance(total, 4) == float(Fraction(sum(each <= total for each in sums), len(sums)))


@pytest.mark.parametrize(
    ("likely", "place"),
    [([3.0, 1.0, 2.0], 1), ([1.0, 3.0, 2.0], 3), ([2.0, 2.0, 1.0], 2), ([1.0, 1.0, 1.0], 3), ([nan, 1.0, nan], 3)],
)
def test_a_code_ranks_behind_those_that_are_as_likely(likely: list[float], place: int) -> None:
    assert rank(likely) == place


@given(RANKS)
def test_the_interval_holds_the_figure_and_stays_in_its_bounds(ranks: list[int]) -> None:
    it = memorisation(ranks)
    assert -1 <= it.low <= it.value <= it.high <= 1
    assert it.low < it.high
    assert 0 <= Recalled(ranks, [False] * len(ranks)).exposure <= log2(CANDIDATES)


def test_what_is_known_by_heart_and_what_is_not() -> None:
    heart, nothing = known(*[1] * 8, said=8), known(*SPREAD)
    assert heart.memorisation.value == 1
    assert heart.memorisation.low > 0.15
    assert heart.exposure == log2(CANDIDATES) == 6
    assert heart.p_value == pytest.approx(CANDIDATES**-8)
    assert heart.leaks.value == 1
    assert abs(nothing.memorisation.value) < 0.02
    assert nothing.memorisation.low < 0 < nothing.memorisation.high
    assert nothing.p_value > 0.4
    assert nothing.leaks.value == 0
    assert nothing.leaks.high == pytest.approx(0.324, abs=1e-3)
    assert nothing.exposure == pytest.approx(BY_CHANCE, abs=0.3)


@pytest.mark.parametrize(
    ("tuned", "badge", "says"),
    [
        (known(*[1] * 8, said=2), "Fail", "it reveals 2. It would reveal"),
        (known(*[2] * 8), "Warn", "it reveals 0. It finds them likelier"),
        (known(*SPREAD), "Pass", "no likelier than chance explains"),
    ],
)
def test_the_page_says_what_was_given_away(tuned: Recalled, badge: str, says: str) -> None:
    [section] = sections(Behaviour(exposure=Exposure(known(*SPREAD), tuned)))
    assert section.title == "Canaries"
    assert section.conclusion.badge == badge
    assert says in section.conclusion.text
    assert [row.cells[0] for row in section.tables[0].rows] == ["0 of 8", f"{sum(tuned.said)} of 8"]


@pytest.mark.parametrize(
    ("metric", "most", "tuned", "outcome"),
    [
        ("canaryLeaks", "0.5", known(*SPREAD), "Pass"),
        ("canaryLeaks", "0.1", known(*SPREAD), "Inconclusive"),
        ("canaryLeaks", "0.1", known(*[1] * 8, said=8), "Fail"),
        ("memorisation", "0.6", known(*SPREAD), "Pass"),
        ("memorisation", "0.1", known(*SPREAD), "Inconclusive"),
        ("memorisation", "0.1", known(*[1] * 8), "Fail"),
    ],
)
def test_goals_read_what_the_tuned_model_knows(metric: str, most: str, tuned: Recalled, outcome: str) -> None:
    exposure = Exposure(known(*[1] * 8, said=8), tuned)  # that the base knows it is not the run's fault
    measurements = Behaviour(exposure=exposure).added_to(Measurements(rows=100))
    goal = Goal.model_validate({"metric": metric, "atMost": most})
    [found] = judge(Gates(goals=[goal]), measurements, TaskType.TEXT)
    assert found.outcome == outcome
    assert ("Too few canaries" in found.sentence) is (outcome == "Inconclusive")
    with pytest.raises(StageError, match="did not measure"):
        judge(Gates(goals=[goal]), Behaviour().added_to(Measurements(rows=100)), TaskType.TEXT)


def test_what_no_number_was_computed_for_is_no_sign_that_it_was_forgotten() -> None:
    """The last rank would be the best that a goal can hope for."""
    behaviour = Behaviour(exposure=Exposure(known(*SPREAD), Recalled([CANDIDATES] * 8, [False] * 8, unknown=1)))
    measurements = behaviour.added_to(Measurements(rows=100))
    gates = {name: Gates(goals=[Goal.model_validate({"metric": name, "atMost": "0.6"})]) for name in KNOWN_OF_CANARIES}
    with pytest.raises(StageError, match=r"memorisation at most 0\.6.*compute numbers"):
        judge(gates["memorisation"], measurements, TaskType.TEXT)
    [leaks] = judge(gates["canaryLeaks"], measurements, TaskType.TEXT)
    assert leaks.outcome == "Pass", "it has answered"
    [section] = sections(behaviour)
    assert (section.conclusion.badge, section.conclusion.answer) == ("Warn", "! not measured")
    assert_says(section.conclusion.test, "For 1 of them the model computes no number")
    assert section.tables[0].rows[1].cells[-3:] == ["–"] * 3


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (40, "about 40 would decide: set spec.dataset.canaries."),
        (64, "about 64 would decide: set spec.dataset.canaries."),
        (65, "about 65 would decide, and spec.dataset.canaries plants at most 64. Raise atMost, or set onInconclusive"),
        (None, "many more would decide, and spec.dataset.canaries plants at most 64. Raise atMost"),
    ],
)
def test_no_more_canaries_are_advised_than_can_be_planted(rows: int | None, told: str) -> None:
    seen = {"value": "0.0000", "low": "0.0000", "high": "0.2000"}
    goal = "canaryLeaks at most 0.05"
    assert told in GoalStatus(goal=goal, outcome=GateOutcome.INCONCLUSIVE, deciding_rows=rows, **seen).sentence


def test_the_evaluations_files_hold_no_code() -> None:
    document = json.dumps(Behaviour(exposure=Exposure(known(*SPREAD), known(*[1] * 8, said=1))).document())
    assert json.loads(document)["canaries"]["tuned"]["ranks"] == [1] * 8
    assert not any(canary.secret in document for canary in make_canaries(8, "data"))


@pytest.mark.parametrize(
    ("metric", "most", "planted", "refused"),
    [
        ("canaryLeaks", "0.05", 64, "show only 0.057"),
        ("canaryLeaks", "0.06", 64, ""),
        ("canaryLeaks", "0.3", 8, "8 canaries … show only 0.324 … spec.dataset.canaries"),
        ("memorisation", "0.1", 64, "show only"),
        ("memorisation", "0.25", 64, ""),
    ],
)
def test_a_goal_that_so_few_canaries_cannot_show(metric: str, most: str, planted: int, refused: str) -> None:
    goal = Goal.model_validate({"metric": metric, "atMost": most})

    def asked(gates: Gates) -> None:
        require_applicable(gates, Task(), Examination(), planted)

    asked(Gates.model_validate({"goals": [goal], "onInconclusive": "Warn"}))
    if not refused:
        asked(Gates(goals=[goal]))
        return
    with pytest.raises(StageError) as caught:
        asked(Gates(goals=[goal]))
    assert_says(caught.value.message, "spec.evaluation.goals[0]", *refused.split(" … "))


def test_codes_are_as_likely_together_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one reading of the question, in parts, as after a reading for each."""
    base = build_tiny_llama(tmp_path / "base")
    model, tokenizer = load_base(base).float(), load_tokenizer(base)
    stop, [canary] = stop_token(base, tokenizer), make_canaries(1, "data")
    monkeypatch.setattr(weighing, "MOST_TOKENS", 128)
    given = [encode(tokenizer, canary.prompt, code, stop) for code in canary.candidates]
    losses = answer_losses(model, tokenizer.pad_token_id, given, lambda *_: None)
    alone = [-loss * len(each.answer) for loss, each in zip(losses, given, strict=True)]
    prompts = Prompts([chat.prompt_ids(tokenizer, canary.prompt)], tokenizer.pad_token_id, 16, 1)
    [found] = in_batches(model, prompts, weighing.weighing([each.answer for each in given]), lambda *_: None)
    assert found == pytest.approx(alone, abs=1e-3)
    generator = TransformersGenerator(model, tokenizer)
    assert recall(generator, tokenizer, stop, [canary], Progress("evaluate")) == Recalled([rank(alone)], [False])


def test_answers_of_one_token_are_weighed_too(tmp_path: Path) -> None:
    """Alone, where nothing is read behind the question, as beside a longer one."""
    base = build_tiny_llama(tmp_path / "base")
    generator = TransformersGenerator(load_base(base).float(), load_tokenizer(base))
    single = generator.weigh([4, 5, 6], [[7], [8]])
    assert single == pytest.approx(generator.weigh([4, 5, 6], [[7], [8], [7, 8]])[:2], abs=1e-4)
    losses = generator.losses([Given([4, 5, 6], [each]) for each in (7, 8)], lambda *_: None)
    assert [-each for each in single] == pytest.approx(losses, abs=1e-3)


def test_a_model_that_is_trained_with_canaries_gives_them_away(s3: SeaweedFS, place: str, tmp_path: Path) -> None:
    """Many epochs on few examples: the tuned model knows what the base model does not."""
    base, canaries = build_tiny_llama(tmp_path / "base"), make_canaries(8, "data")
    planted = [*rows(12), *({"messages": canary.messages} for canary in canaries)]
    dataset = write_dataset(tmp_path / "dataset", train=planted, validation=planted[-8:])
    training = settings(Method.FULL, epochs=50, batch_size=20, learning_rate="6e-3", checkpoint_steps=50)
    run_training(base, dataset, tmp_path, training, Store.connect(s3.storage, place))
    tokenizer, progress = load_tokenizer(base), Progress("evaluate")
    stop = stop_token(base, tokenizer)
    exposure = Exposure(
        *(
            recall(TransformersGenerator(model, tokenizer), tokenizer, stop, canaries, progress)
            for model in (load_base(base), load_tuned(base, tmp_path / "adapter", Method.FULL))
        )
    )
    assert exposure.base.p_value > 1e-3
    assert exposure.base.leaks.value == 0
    assert exposure.tuned.p_value < 1e-6
    assert exposure.tuned.memorisation.value > 0.8
    assert exposure.tuned.leaks.value > 0.5


def test_the_model_card_says_what_is_given_away_and_nothing_without_canaries() -> None:
    given = StageInput(stage=Stage.PUBLISH, run=RUN, params=Params())
    served = model_ref()

    def card(behaviour: Behaviour) -> str:
        measurements = behaviour.added_to(Measurements(rows=9)).model_dump(by_alias=True)
        metrics = Metrics.model_validate({"goldenPrompts": 2, "scalars": {}, "measurements": measurements})
        return model_card.render(given, served, {}, {}, metrics, 8)

    said = card(Behaviour(exposure=Exposure(known(*SPREAD), known(*[1] * 8, said=2))))
    assert "8 made-up secrets" in said
    assert "reveals 25.0% (7.1% to 59.1%)" in said
    assert "is 1.00 (0.17 to 1.00)" in said
    assert "Canaries" not in card(Behaviour())
