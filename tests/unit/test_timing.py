"""How long a run takes: the one formula that preflight, the operator's cost and the budget read."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.budget import FitStatus
from finetune_api.timing import (
    VALIDATION_SHARE,
    Examples,
    Pace,
    evaluate_seconds,
    export_seconds,
    padding,
    planned_steps,
    train_seconds,
    training_seconds,
    validation_interval,
)
from finetune_api.training import Method, Packing, Quantization, Training, Validation

pytestmark = pytest.mark.unit

PACE = Pace(tokens_per_second=1000, load_seconds=100)


def test_large_passes_take_their_tokens_small_ones_their_launch() -> None:
    """Near each other both count; far apart, the larger one does."""
    training, pace = Training(epochs=1), Pace(1000, 0, pass_seconds=0.4)
    for tokens, seconds in ((1, 0.4), (50, math.hypot(0.4, 0.4)), (5000, 40)):
        one = training_seconds(training, Examples(800, tokens, tokens, 0), pace) / 100
        assert one == pytest.approx(seconds, rel=0.01)


def test_epochs_count_until_max_steps_end_them() -> None:
    examples = Examples(100, 50, 50, 0)
    assert training_seconds(Training(epochs=3), examples, PACE) == pytest.approx(15)
    limited = Training(epochs=3, max_steps=5, batch_size=4, gradient_accumulation=2)
    assert training_seconds(limited, examples, PACE) == pytest.approx(5 * 8 * 50 / 1000)
    assert training_seconds(limited, Examples(0, 0, 0, 0), PACE) == 0


@pytest.mark.parametrize(("most", "steps"), [(None, 39), (5, 5), (39, 39), (50, 39)])
def test_steps_are_batches_of_each_pass_and_no_more_than_max_steps(most: int | None, steps: int) -> None:
    assert planned_steps(100, Training(epochs=3, max_steps=most, batch_size=4, gradient_accumulation=2)) == steps


def test_processes_share_the_examples() -> None:
    """The pace in tokens is that of all together; of passes, each makes its share at the same time."""
    training = Training(epochs=1, batch_size=4, gradient_accumulation=8)
    for pace, share in ((PACE, 1), (Pace(1e12, 0, pass_seconds=0.4), 1 / 8)):
        alone, together = (training_seconds(training, Examples(3200, 50, 50, 0), pace, count) for count in (1, 8))
        assert together == pytest.approx(share * alone)


def test_the_most_before_the_data_are_known() -> None:
    """Every example as long as it may be, and validations of as many as they take; nothing without maxSteps."""
    assert Examples.at_most(Training()) is None
    limited = Training(max_steps=5, batch_size=4, gradient_accumulation=2, max_length=512)
    most = Examples.at_most(limited)
    assert most is not None
    trained = 5 * 8 * 512 / 1000
    validated = 200_000 / 512
    assert training_seconds(limited, most, PACE) == pytest.approx(trained + 3 * validated * 512 / 3 / 1000)
    for count, tokens, split in ((40, 512, 500), (40, 300, 100_000), (40, 512, 3)):
        seconds = training_seconds(limited, Examples(count, tokens, tokens, split), PACE)
        assert seconds <= training_seconds(limited, most, PACE) * 1.001
    counted = Examples.at_most(Training(), 300)
    assert counted is not None
    assert (counted.count, counted.validated) == (300, 500)
    known = Examples.at_most(Training(), 300, 30)
    assert known is not None
    assert known.validated == 30


@given(
    rows=st.integers(100, 100_000),
    validated=st.integers(1, 100_000),
    tokens=st.integers(20, 2000),
    most=st.sampled_from([10, 500, 100_000]),
)
def test_validations_take_a_small_share(rows: int, validated: int, tokens: int, most: int) -> None:
    """Of a long run about the share that they may have; a short run has its four, of 200,000 tokens at most."""
    training = Training(validation=Validation(max_examples=most))
    plain, whole = (training_seconds(training, Examples(rows, tokens, tokens, count), PACE) for count in (0, validated))
    looked_at = min(validated, most, 200_000 / tokens)
    steps = planned_steps(rows, training)
    times = math.ceil(steps / validation_interval(training, steps, math.ceil(looked_at)))
    assert whole - plain == pytest.approx(times * looked_at * tokens / 3 / 1000, rel=1e-6)
    assert whole <= plain * (1 + VALIDATION_SHARE) * 1.02 + 5 * looked_at * tokens / 3 / 1000


@pytest.mark.parametrize(("tokens", "passes"), [(0, 13), (800, 13), (4_000, 3), (32_768, 1)])
def test_a_validation_launches_as_many_passes_as_its_tokens_fill(tokens: int, passes: int) -> None:
    """A hundred examples of 100 tokens, where launching is all that counts; unknown, passes are as large as
    training's."""
    training, pace = Training(epochs=1), Pace(1e12, 0, pass_seconds=0.3, validation_tokens=tokens)
    plain, whole = (training_seconds(training, Examples(100, 100, 100, count), pace) for count in (0, 100))
    times = math.ceil(planned_steps(100, training) / validation_interval(training, planned_steps(100, training), 100))
    assert whole - plain == pytest.approx(times * passes * 0.1)


def test_only_what_is_padded_costs_more() -> None:
    """Packed examples, single ones and equal ones have no padding; a sharded model pads, and LLM.int8."""
    examples = Examples(1000, 150, 1024, 0)
    off = Training(packing=Packing.OFF)
    assert padding(Training(), examples) == 1
    assert padding(off.model_copy(update={"batch_size": 1}), examples) == 1
    assert padding(off, Examples(1000, 150, 150, 0)) == 1
    assert padding(off, examples) > 1.2
    full = Training(method=Method.FULL)
    assert padding(full, examples) == 1
    assert padding(full, examples, processes=2) == padding(off, examples)
    assert padding(Training(quantization=Quantization.INT8), examples) == padding(off, examples)


@pytest.mark.parametrize(("median", "sigma"), [(120, 0.8), (300, 0.4), (60, 1.1)])
@pytest.mark.parametrize(("size", "passes"), [(8, 2), (4, 8), (16, 1)])
def test_padding_is_that_of_drawn_lengths(median: float, sigma: float, size: int, passes: int) -> None:
    """Within an eighth of what drawing log-normal lengths, step by step in their order, gives."""
    draw = random.Random(7)
    lengths = [median * math.exp(sigma * draw.gauss(0, 1)) for _ in range(4000)]
    step = size * passes
    padded = 0.0
    for start in range(0, len(lengths) // step * step, step):
        ordered = sorted(lengths[start : start + step])
        padded += sum(size * ordered[end - 1] for end in range(size, step + 1, size))
    drawn = padded / sum(lengths[: len(lengths) // step * step])
    training = Training(packing=Packing.OFF, batch_size=size, gradient_accumulation=passes)
    examples = Examples(len(lengths), sum(lengths) / len(lengths), max(lengths), 0)
    assert padding(training, examples) == pytest.approx(drawn, rel=0.125)


def test_stages() -> None:
    """A whole model goes to the store after training, an adapter does not count; export writes, evaluation fetches."""
    pace = Pace(1000, 100, 0, answer_seconds=0.5, beside_seconds=30, transfer_seconds=40)
    examples = Examples(100, 50, 50, 0)
    assert train_seconds(Training(epochs=1), examples, pace) == pytest.approx(105)
    assert train_seconds(Training(epochs=1, method=Method.FULL), examples, pace) == pytest.approx(145)
    assert export_seconds(pace) == 140
    assert evaluate_seconds(pace, 200) == 140 + 200 * 0.5 + 30


def test_the_pace_is_as_preflight_reported_it() -> None:
    """Older ones reported one answer of one of three models, or none, as long as training on maxLength tokens."""
    training = Training(max_length=512)
    assert Pace.of(None, training, 1) is None
    assert Pace.of(FitStatus(load_seconds="90"), training, 1) is None
    older = Pace.of(FitStatus(tokens_per_second="1024", load_seconds="90"), training, 4)
    assert older == Pace(1024, 90, 0, answer_seconds=3 * 2, transfer_seconds=0)
    exact = FitStatus(
        tokens_per_second="1024", load_seconds="90", pass_seconds="0.2", answer_seconds="0.3", transfer_seconds="40"
    )
    old = Pace.of(exact, training, 4)
    assert old is not None
    assert old.answer_seconds == pytest.approx(3 * 0.3)
    assert old.beside_seconds == 0
    for beside in (0.0, 12.5):
        now = exact.model_copy(update={"beside_seconds": f"{beside:.1f}"})
        assert Pace.of(now, training, 4) == Pace(1024, 90, 0.2, 0.3, beside, 40)
