"""The learning curve: parts that are trained on, what their losses say of more examples, and what a restart repeats."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from finetune_api.layout import CURVE_PAGE
from finetune_api.timing import Examples, Pace, training_seconds
from finetune_api.training import LearningCurve, Method, Training
from finetune_jobs.base.errors import StoppedError
from finetune_jobs.base.progress import Progress
from finetune_jobs.modelling.chat import IGNORED
from finetune_jobs.readiness.curve_page import TITLE, render_curve
from finetune_jobs.readiness.forecast import Forecast, Worth, forecast
from finetune_jobs.readiness.learning_curve import Point, PowerLaw
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.learning_curve import CURVE, Parts, divide, measure_curve, proportional
from finetune_jobs.training.time_budget import TimeBudget
from finetune_jobs.training.trainer import Trained, TrainingFiles
from tests.support.readiness import assert_accessible, parsed_page
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import rows, run_training, settings, write_dataset
from tests.unit.test_train_recovery import assert_same_weights

pytestmark = [pytest.mark.unit, pytest.mark.slow]

# What the losses say


def along(law: PowerLaw, *sizes: int) -> list[Point]:
    return [Point(size, law.at(size)) for size in sizes]


STEEP, FLAT = PowerLaw(0.0, 2.0, 0.5), PowerLaw(0.5, 0.02, 0.5)


@pytest.mark.parametrize(
    ("points", "aside", "worth", "said"),
    [
        pytest.param(
            along(STEEP, 100, 250, 500, 1000),
            0,
            Worth.WORTH_IT,
            ["Twice the examples", "2,000", "0.0632", "0.0447", "95 % interval", "): worth it."],
            id="steep",
        ),
        pytest.param(
            along(PowerLaw(0.1, 2.0, 0.5), 100, 250, 500, 1000),
            4000,
            Worth.WORTH_IT,
            ["4,000 of the 5,000 examples", "curve", "0.163"],
            id="more left aside than the curve reaches",
        ),
        pytest.param(
            along(STEEP, 100, 250, 500, 1000),
            500,
            Worth.WORTH_IT,
            ["All 1,500 examples", "pilot", "1,000", "0.0632", "0.0516"],
            id="a pilot",
        ),
        pytest.param(
            along(PowerLaw(0.5, 20.0, 1.0), 100, 250, 500, 1000),
            0,
            Worth.HARDLY_WORTH_IT,
            ["): hardly worth it."],
            id="flat",
        ),
        pytest.param(
            along(PowerLaw(0.3, 2.0, 0.5), 100, 250, 500, 1000),
            0,
            Worth.UNCERTAIN,
            ["):", "interval", "too wide"],
            id="a gain that chance could make",
        ),
        pytest.param(
            along(STEEP, 500, 1000),
            0,
            Worth.UNKNOWN,
            ["No forecast", "2 sizes", "needs 3"],
            id="two sizes",
        ),
        pytest.param(
            [Point(1000, 0.2)],
            0,
            Worth.UNKNOWN,
            ["No forecast", "one size", "needs 3"],
            id="one size",
        ),
        pytest.param(
            [Point(100, 0.4), Point(250, 0.5), Point(500, 0.3)],
            0,
            Worth.UNKNOWN,
            ["No forecast", "not fall", "0.4 with 100, 0.5 with 250, 0.3 with 500", "larger validation part"],
            id="up and down",
        ),
        pytest.param(
            [Point(100, 0.4), Point(250, 0.401), Point(500, 0.402)],
            0,
            Worth.UNKNOWN,
            ["No forecast", "not fall", "0.4 with 100, 0.401 with 250, 0.402 with 500"],
            id="no fall",
        ),
    ],
)
def test_a_verdict(points: Sequence[Point], aside: int, worth: Worth, said: list[str]) -> None:
    made = forecast(points[::-1], aside)
    assert made.worth is worth
    assert_says(made.sentence(), *said)
    assert set(made.scalars()) == (
        {"moreExamples"} if worth is Worth.UNKNOWN else {"moreExamples", "forecastExamples", "forecastLoss"}
    )
    assert json.loads(json.dumps(made.as_json()))["sentence"] == made.sentence()


@given(
    st.lists(
        st.builds(Point, st.integers(1, 10_000), st.floats(0.001, 5)),
        min_size=1,
        max_size=6,
        unique_by=lambda p: p.examples,
    ),
    st.integers(0, 100_000),
)
@checked(max_examples=8, deadline=None)
def test_nothing_is_promised_beyond_the_curve(points: list[Point], aside: int) -> None:
    """And never without an interval around it."""
    made = forecast(points, aside)
    if made.prediction:
        assert made.prediction.examples <= 4 * max(point.examples for point in points)
        assert made.prediction.low <= made.prediction.error <= made.prediction.high
    else:
        assert made.worth is Worth.UNKNOWN
        assert made.why_not in made.sentence()


def test_the_page_shows_points_curve_and_verdict() -> None:
    made = forecast(along(STEEP, 100, 250, 500, 1000), 500)
    parsed = parsed_page(render_curve(made))
    assert {TITLE, "Measured", "Expected"} <= set(parsed.texts)
    assert made.sentence() in parsed.text.replace("\N{NO-BREAK SPACE}", " ")
    assert parsed.values("svg", "role") == ["img"]
    assert parsed.tags["circle"] == 4
    assert_accessible(parsed)


def test_a_page_without_a_curve_says_why() -> None:
    made = forecast([Point(1000, 0.2)])
    parsed = parsed_page(render_curve(made))
    assert made.sentence() in parsed.text
    assert "Expected" not in parsed.texts
    assert not parsed.tags["svg"]


# Which parts are trained on

ROWS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3)), min_size=20, max_size=200)


def tokens(examples: Sequence[tuple[int, int]]) -> Any:
    """Rows whose answer is their label."""
    return pa.table(
        {
            "input_ids": [[text, 90_000 + label] for text, label in examples],
            "labels": [[IGNORED, 90_000 + label] for _, label in examples],
        }
    )


@given(ROWS, st.integers(0, 5))
@checked(max_examples=25, deadline=None)
def test_a_larger_part_holds_the_smaller_ones_and_each_label_its_share(
    examples: list[tuple[int, int]], seed: int
) -> None:
    parts = divide(tokens(examples), [50, 10, 25], seed)
    assert list(parts) == [10, 25, 50]
    smaller: set[int] = set()
    labels = Counter(label for _, label in set(examples))
    for percent, numbers in parts.items():
        assert numbers == sorted(numbers)
        assert smaller <= set(numbers)
        smaller = set(numbers)
        taken = {examples[number] for number in numbers}
        assert len(numbers) == sum(example in taken for example in examples), "equal rows go together"
        assert len(taken) == round(len(set(examples)) * percent / 100)
        for label, whole in labels.items():
            share = sum(each == label for _, each in taken)
            assert abs(share - whole * percent / 100) < 3  # each part is drawn from the next larger one: roundings add


def test_a_part_has_its_share_of_steps_and_validations() -> None:
    whole = settings(max_steps=150, checkpoint_steps=50, learning_curve=LearningCurve())
    part = proportional(whole, 25)
    assert (part.max_steps, part.checkpoint_steps, part.learning_curve) == (38, 13, None)
    assert part.model_copy(update={"max_steps": 150, "checkpoint_steps": 50}) == whole.model_copy(
        update={"learning_curve": None}
    )
    assert proportional(settings(max_steps=None, checkpoint_steps=1), 5).max_steps is None


def test_parts_are_part_of_the_forecast_of_time_and_money() -> None:
    plain, more = (
        Training(max_steps=10),
        Training(max_steps=10, learning_curve=LearningCurve(percents=[10, 25, 50])),
    )
    pace = Pace(tokens_per_second=100, load_seconds=0)
    for examples in (Examples(1000, 50, 90, 100), Examples.at_most(plain)):
        assert examples is not None
        longer, usual = (training_seconds(each, examples, pace) for each in (more, plain))
        assert longer == pytest.approx(1.85 * usual)


def test_a_piece_of_the_work_moves_the_whole_in_its_proportion() -> None:
    shown: list[tuple[float, str]] = []

    class Shown(Progress):
        def report(self, ratio: float, message: str = "") -> None:
            shown.append((ratio, message))

    piece = Shown("train").within(0.5, 0.75, "a quarter: ")
    piece.report(0.0, "begins")
    piece.report(0.5)
    piece.report(2.0, "ends")
    piece.begin(0.5, "goes on")
    assert shown == [(0.5, "a quarter: begins"), (0.625, ""), (0.75, "a quarter: ends"), (0.625, "a quarter: goes on")]


# The trainings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("curve") / "base")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("curve") / "dataset", train=rows(20), validation=rows(6, first=90))


PARTS = LearningCurve(percents=[20, 50])
CURVED = settings(Method.LORA, epochs=1, checkpoint_steps=4, dropout="0.1", learning_curve=PARTS)
"""Five steps of four examples; one and three for the parts."""


class Trainings:
    """Counts the trainings that begin, and may set an event in one of them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        """Examples of each."""
        self.checkpointing: list[bool] = []
        """Whether each computes its activations again."""
        self.act: Callable[[int], object] = lambda _examples: None
        """Told the examples of a training that begins."""


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    seen, original = Trainings(), LabelLossTrainer.train

    def train(self: Any, **options: Any) -> Any:
        seen.sizes.append(len(self.train_dataset))
        seen.checkpointing.append(self.model.is_activation_checkpointing or self.args.activation_checkpointing)
        seen.act(len(self.train_dataset))
        return original(self, **options)

    monkeypatch.setattr(LabelLossTrainer, "train", train)
    return seen


class Attempt:
    """One pod: the training and its curve, below a folder of its own."""

    def __init__(self, base: Path, dataset: Path, folder: Path, store: Store) -> None:
        self.files = TrainingFiles(base, dataset, folder / "adapter", folder / "work", "s3://data/model")
        self.folder, self.store, self.stopping = folder, store, threading.Event()

    def run(self) -> Forecast:
        checkpoints = self.store.below("checkpoints")
        return self.measure(run_training(self.files.base, self.files.dataset, self.folder, CURVED, checkpoints))

    def measure(self, whole: Trained, limit: TimeBudget | None = None) -> Forecast:
        """The curve alone, after a training of which this is known."""
        self.files.out.mkdir(parents=True, exist_ok=True)
        parts = Parts(self.files, CURVED, whole.batch, whole.step, self.store.below("curve"), self.stopping, limit)
        return measure_curve(parts, whole, Progress("train"))


@pytest.fixture(scope="module")
def plain(
    base: Path, dataset: Path, s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], tuple[Trained, Path]]:
    """A training without a curve, made once: what is known of it, and its folder. It asks for the store's keys."""

    @cache
    def run() -> tuple[Trained, Path]:
        folder, training = tmp_path_factory.mktemp("plain"), CURVED.model_copy(update={"learning_curve": None})
        return run_training(base, dataset, folder, training, Store.connect(s3.storage, "s3://data/no-curve")), folder

    return run


def test_a_restart_repeats_no_finished_part_and_changes_nothing(
    plain: Callable[[], tuple[Trained, Path]],
    trainings: Trainings,
    base: Path,
    dataset: Path,
    store: Store,
    tmp_path: Path,
) -> None:
    """The first pod is stopped in the second part. Weights are those of a training without a curve, bit for bit."""
    _, without = plain()
    trainings.sizes.clear()
    whole = Attempt(base, dataset, tmp_path / "whole", store.below("whole"))
    expected = whole.run()
    assert trainings.sizes == [20, 4, 10]
    assert [point.examples for point in expected.points] == [4, 10, 20]

    trainings.sizes.clear()
    first = Attempt(base, dataset, tmp_path / "first", store.below("stopped"))
    trainings.act = lambda examples: first.stopping.set() if examples == 10 else None
    with pytest.raises(StoppedError, match="the learning curve's finished parts are saved"):
        first.run()
    assert trainings.sizes == [20, 4, 10]
    assert [entry.key for entry in store.below("stopped/curve").list()] == ["20.json"]

    trainings.sizes.clear()
    second = Attempt(base, dataset, tmp_path / "second", store.below("stopped"))
    resumed = second.run()
    assert trainings.sizes == [20, 10], "the training itself goes on from its last checkpoint, which is its end"
    assert resumed == expected
    for attempt in (whole, second):
        assert_same_weights(attempt.folder, without)
        assert json.loads((attempt.files.out / CURVE).read_text()) == expected.as_json()
        assert (attempt.files.out / CURVE_PAGE).read_text() == render_curve(expected)
        assert not list(attempt.files.work.glob("curve-*")), "no checkpoints of parts are left"


def test_what_the_budget_does_not_pay_for_is_left_out(
    plain: Callable[[], tuple[Trained, Path]],
    trainings: Trainings,
    base: Path,
    dataset: Path,
    store: Store,
    tmp_path: Path,
) -> None:
    """80 of 100 seconds are spent: a fifth of that is left, a half is not."""
    whole, _ = plain()
    trainings.sizes.clear()
    limit = TimeBudget(100, Checkpoints(store.below("limit")), age=lambda: 80.0)
    made = Attempt(base, dataset, tmp_path, store).measure(whole, limit)
    assert trainings.sizes == [4]
    assert made.worth is Worth.UNKNOWN


def test_a_part_that_cannot_be_trained_costs_the_part_only(
    plain: Callable[[], tuple[Trained, Path]],
    trainings: Trainings,
    base: Path,
    dataset: Path,
    store: Store,
    tmp_path: Path,
) -> None:
    """A damaged record is measured again; a part whose training fails is left out."""
    whole, _ = plain()
    trainings.sizes.clear()
    store.put("curve/50.json", b"{")

    def fail(examples: int) -> None:
        if examples == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainings.act = fail
    made = Attempt(base, dataset, tmp_path, store).measure(whole)
    assert trainings.sizes == [4, 10]
    assert [point.examples for point in made.points] == [10, 20]
    assert made.sentence().startswith("No forecast for more examples: only 2 sizes")


def test_parts_are_computed_as_the_training_was(
    plain: Callable[[], tuple[Trained, Path]],
    trainings: Trainings,
    base: Path,
    dataset: Path,
    store: Store,
    tmp_path: Path,
) -> None:
    """A GPU without room for the training's activations has none for a part's either."""
    whole, _ = plain()
    trainings.checkpointing.clear()
    made = Attempt(base, dataset, tmp_path, store).measure(replace(whole, step=whole.step.with_least()))
    assert trainings.checkpointing == [True, True]
    assert [point.examples for point in made.points] == [4, 10, 20]
