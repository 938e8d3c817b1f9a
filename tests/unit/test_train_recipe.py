"""The numbers of a training, and the settings that are known to do badly: tables and properties."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.timing import FORWARD_SHARE, MOST_VALIDATIONS, VALIDATION_SHARE, planned_steps
from finetune_api.training import Method, Quantization, Training, training_warnings
from finetune_jobs.fit.recipe import Batch, learning_rate, schedule

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("settings", "billions", "rate"),
    [
        ({}, 8, 2e-4),
        ({}, 14, 2e-4),
        ({}, 32, 1e-4),
        ({"method": "LoRA"}, 70, 1e-4),
        ({"method": "Full"}, 8, 2e-5),
        ({"method": "Full"}, 32, 1e-5),
        ({"learning_rate": "1e-3"}, 70, 1e-3),
        ({"method": "Full", "learning_rate": "5e-6"}, 8, 5e-6),
    ],
)
def test_the_learning_rate_suits_method_and_size(settings: dict[str, Any], billions: int, rate: float) -> None:
    assert learning_rate(Training(**settings), billions * 10**9) == pytest.approx(rate)


@given(size=st.integers(1, 512), passes=st.integers(1, 512))
def test_a_smaller_batch_holds_the_same_examples_in_passes_of_at_most_half(size: int, passes: int) -> None:
    batch = Batch(size, passes)
    smaller = batch.smaller()
    if size == 1:
        assert smaller is None
    else:
        assert smaller is not None
        assert smaller.size * smaller.passes == size * passes
        assert 1 <= smaller.size <= size // 2


@pytest.mark.parametrize(
    ("batch", "smaller"),
    [((8, 2), (4, 4)), ((6, 1), (3, 2)), ((3, 2), (1, 6)), ((5, 2), (2, 5)), ((7, 1), (1, 7)), ((2, 3), (1, 6))],
)
def test_a_smaller_batch_is_as_large_as_it_can_be(batch: tuple[int, int], smaller: tuple[int, int]) -> None:
    assert Batch(*batch).smaller() == Batch(*smaller)


@pytest.mark.parametrize(
    ("examples", "changes", "steps"),
    [
        (16, {"batch_size": 4, "gradient_accumulation": 1, "epochs": 1}, 4),
        (17, {"batch_size": 4, "gradient_accumulation": 1, "epochs": 2}, 10),
        (17, {"batch_size": 4, "gradient_accumulation": 2, "epochs": 2}, 6),
        (400, {"batch_size": 8, "gradient_accumulation": 2, "epochs": 3}, 75),
        (400, {"batch_size": 8, "gradient_accumulation": 2, "epochs": 3, "max_steps": 40}, 40),
        (16, {"batch_size": 8, "gradient_accumulation": 1, "epochs": 2, "max_steps": 40}, 4),
    ],
)
def test_planned_steps(examples: int, changes: dict[str, Any], steps: int) -> None:
    assert planned_steps(examples, Training(**changes)) == steps


@given(
    examples=st.integers(1, 5000),
    size=st.integers(1, 64),
    passes=st.integers(1, 16),
    epochs=st.integers(1, 5),
)
def test_the_steps_are_the_same_however_a_step_is_divided(examples: int, size: int, passes: int, epochs: int) -> None:
    """The trainer counts passes, then steps; a halved batch must resume at the same step."""
    steps = planned_steps(examples, Training(batch_size=size, gradient_accumulation=passes, epochs=epochs))
    batch: Batch | None = Batch(size, passes)
    while batch:
        assert math.ceil(math.ceil(examples / batch.size) / batch.passes) * epochs == steps
        batch = batch.smaller()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, None),
        ({"learning_rate": "2e-4"}, None),
        ({"learning_rate": "5e-5"}, None),
        ({"learning_rate": "3e-5"}, ("spec.training.learningRate 3e-5", "QLoRA", "set 2e-4")),
        ({"learning_rate": "0", "method": "LoRA"}, ("spec.training.learningRate 0", " LoRA", "set 2e-4")),
        ({"method": "Full", "learning_rate": "2e-5"}, None),
        ({"method": "Full", "learning_rate": "2e-4"}, ("spec.training.learningRate 2e-4", "method Full", "Set 1e-5")),
        ({"target_modules": ["q_proj", "v_proj"]}, ("spec.training.targetModules", "(q_proj, v_proj)", "Omit")),
        ({"target_modules": ["self_attn.q_proj"]}, ("spec.training.targetModules", "(self_attn.q_proj)", "Omit")),
        ({"target_modules": ["q_proj", "up_proj"]}, None),
        ({"method": "Full", "target_modules": ["q_proj"], "rank": 256}, None),
        ({"rank": 64}, ("spec.training.rank 64", "LoRA", "Set scaling: RootOfRank")),
        ({"rank": 64, "scaling": "RootOfRank"}, None),
        ({"batch_size": 32, "gradient_accumulation": 4}, None),
        ({"batch_size": 64, "gradient_accumulation": 4}, ("spec.training.batchSize", "is 256", "Set 16 to 32")),
    ],
)
def test_settings_that_are_known_to_do_badly_are_named(settings: dict[str, Any], says: tuple[str, ...] | None) -> None:
    """With the place, the value, and what to set instead."""
    warnings = training_warnings(Training(**settings))
    assert len(warnings) == (says is not None)
    assert [part for part in says or () if part not in warnings[0]] == []


def test_the_guides_own_values_are_accepted_with_two_warnings() -> None:
    guide = Training(target_modules=["q_proj", "v_proj"], rank=16, alpha=32, dropout="0.05", learning_rate="3e-5")
    assert len(training_warnings(guide)) == 2


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rank": 513}, "rank"),
        ({"dropout": "1"}, "dropout"),
        ({"dropout": "5e-2"}, "dropout"),
        ({"targetModules": ["q_proj; x"]}, "targetModules"),
        ({"targetModules": ["a"] * 65}, "targetModules"),
        ({"quantization": "FP4"}, "quantization"),
        ({"method": "Prompt"}, "method"),
    ],
)
def test_what_no_training_can_mean_is_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Training(**settings)
    assert raised.value.errors()[0]["loc"][0] == field


def test_only_qlora_rounds_its_base() -> None:
    rounded = {method: Training(method=method, quantization=Quantization.INT8).base_quantization for method in Method}
    assert rounded == {Method.QLORA: Quantization.INT8, Method.LORA: None, Method.FULL: None}


@pytest.mark.parametrize(
    ("given", "examples", "validated", "expected"),
    [
        pytest.param({"max_steps": 100}, 1100, 140, (25, 3), id="the demo"),
        pytest.param({"max_steps": 10}, 1100, 140, (3, 23), id="short: four looks, and none ends it"),
        pytest.param({}, 800, 100, (38, 3), id="1,000 examples"),
        pytest.param({}, 4000, 500, (188, 3), id="5,000 examples: as seldom as five percent ask for"),
        pytest.param({}, 40_000, 500, (375, 7), id="50,000 examples: twenty times"),
        pytest.param({"checkpoint_steps": 10, "patience": 2}, 4000, 500, (10, 2), id="as the spec says"),
        pytest.param({"max_steps": 7, "checkpoint_steps": 50}, 4000, 500, (7, 36), id="at the end at least"),
    ],
)
def test_a_training_looks_back_as_often_as_it_can_afford(
    given: dict[str, Any], examples: int, validated: int, expected: tuple[int, int]
) -> None:
    training = Training(**given)
    plan = schedule(training, 10**9, examples, validated)
    assert (plan.interval, plan.patience) == expected
    assert (plan.steps, plan.rate) == (planned_steps(examples, training), 2e-4)


@given(st.integers(1, 200_000), st.integers(1, 500), st.integers(1, 5))
def test_validations_cost_five_percent_or_are_four(examples: int, validated: int, epochs: int) -> None:
    training = Training(epochs=epochs)
    plan = schedule(training, 10**9, examples, validated)
    times = math.ceil(plan.steps / plan.interval)
    cost = times * validated * FORWARD_SHARE / (plan.steps * 16)
    assert 1 <= plan.interval <= plan.steps
    assert times <= MOST_VALIDATIONS
    assert times <= 4 or cost <= VALIDATION_SHARE * times / (times - 1)
    assert plan.patience >= 3
