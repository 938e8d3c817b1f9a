"""How many tokens a validation's pass has: those that take no more memory than a pass of training."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from finetune_api.training import Method, Training
from finetune_jobs.fit.activations import activations
from finetune_jobs.fit.steps import KEPT, ON_CPU, ON_GPU, ROUNDED, SELECTIVE, Step
from finetune_jobs.fit.validating import ENOUGH_ON_CPU, ENOUGH_ON_GPU, forward_memory, validation_tokens
from tests.support.fast import share
from tests.support.fit import CONFIGS, LLAMA_8B, SMALL, TRAININGS, shape_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("training", "step", "times"),
    [
        (Training(batch_size=1, max_length=1024), ON_GPU, 4.3),
        (Training(batch_size=1, max_length=1024, method=Method.FULL), ON_GPU, 28),
        (Training(batch_size=4, max_length=512), ON_GPU, 4.4),
    ],
)
def test_passes_have_several_times_the_tokens_of_training(training: Training, step: Step, times: float) -> None:
    """An 8B. What a training keeps is what a validation has room for; of a whole model, also the output layer's
    gradient."""
    found = validation_tokens(shape_of(LLAMA_8B), training, step)
    assert found / (training.batch_size * training.max_length) == pytest.approx(times, rel=0.05)
    for card in (KEPT, SELECTIVE):
        assert validation_tokens(shape_of(LLAMA_8B), training, card) == found, "whatever the card has room for"


def test_more_tokens_than_enough_are_never_taken_for_their_room() -> None:
    """A pass of minutes would be taken for one that hangs."""
    shape, training = shape_of(LLAMA_8B), Training(batch_size=16, max_length=512)
    assert validation_tokens(shape, training, KEPT) == ENOUGH_ON_GPU
    assert validation_tokens(shape, Training(batch_size=4, max_length=512), ON_CPU) == ENOUGH_ON_CPU
    assert validation_tokens(shape, training, ON_CPU) == 16 * 512


@settings(max_examples=share(60), deadline=None)
@given(config=CONFIGS, training=TRAININGS)
def test_a_validation_takes_no_more_memory_than_a_training(config: dict[str, Any], training: Training) -> None:
    """Nor fewer tokens; and no room is left for a token more, unless they are enough."""
    shape, trained = shape_of(config), training.batch_size * training.max_length
    for step, enough in ((ON_GPU, ENOUGH_ON_GPU), (KEPT, ENOUGH_ON_GPU), (ON_CPU, ENOUGH_ON_CPU)):
        room, tokens = activations(shape, training, step.with_least()), validation_tokens(shape, training, step)
        assert tokens >= trained
        if tokens > trained:
            assert forward_memory(shape, training, step, tokens) <= room
        if trained <= tokens < enough:
            assert forward_memory(shape, training, step, tokens + 1) > room


@pytest.mark.slow
@pytest.mark.parametrize("wide", [1408, 4096])
@pytest.mark.parametrize(
    ("how", "step"),
    [
        ({"method": "LoRA"}, ON_GPU),
        ({}, ON_GPU),
        ({"quantization": "INT8"}, ON_GPU),
        ({"method": "LoRA", "adapter": "DoRA"}, ON_GPU),
        ({"method": "Full"}, ON_GPU),
        ({"method": "Full"}, ROUNDED),
    ],
)
def test_the_estimate_holds_against_pytorchs_memory_tracker(how: dict[str, str], step: Step, wide: int) -> None:
    """Of passes whose feed-forward part decides: without gradients the tracker's attention is not the kernel's. A
    rounded matrix in 16 bits, and autocast's copies, are counted elsewhere."""
    from hack.benchmarks.memory_tracker import tracked_validation

    config = SMALL | {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 2, "intermediate_size": wide}
    training, shape = Training.model_validate({"batch_size": 64, "max_length": 64, **how}), shape_of(config)
    casts = 2 * shape.linear_parameters if training.method is Method.FULL and not step.rounded else 0
    measured = tracked_validation(config, training, step) - casts
    assert 0 <= forward_memory(shape, training, step, 64 * 64) / measured - 1 <= 0.4
