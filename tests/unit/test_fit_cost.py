"""How long a training takes and what it costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.budget import (
    dollars,
    most_tokens,
    remaining_seconds,
    trained_tokens,
)
from finetune_api.training import Method, Training
from finetune_jobs.fit.cost import forecast
from finetune_jobs.fit.duration import flops_per_token, tokens_per_second
from finetune_jobs.fit.memory import (
    ON_CPU,
    ON_GPU,
)
from tests.support.fit import A100, LLAMA_8B, shape_of

pytestmark = pytest.mark.unit


def test_duration() -> None:
    """Llama-2-7B with QLoRA on an A100: LLaMA-Factory measured 2,295 to 3,542 tokens/s (0.30 to 0.46 of the peak)."""
    llama2 = LLAMA_8B | {"num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000}
    shape = shape_of(llama2)
    assert flops_per_token(shape, Training(), ON_GPU) == 6 * shape.parameters
    assert flops_per_token(shape, Training(method=Method.FULL), ON_CPU) == 6 * shape.parameters
    speed = tokens_per_second(shape, Training(), ON_GPU, A100)
    assert speed is not None
    assert 2295 < speed < 3542


@pytest.mark.parametrize(("method", "faster"), [(Method.QLORA, 7.2), (Method.LORA, 7.2), (Method.FULL, 6.4)])
def test_eight_gpus_are_not_eight_times_as_fast(method: Method, faster: float) -> None:
    """Less so where the model is divided: its layers travel too."""
    shape, training = shape_of(LLAMA_8B), Training(method=method)
    alone, together = (
        tokens_per_second(shape, training, ON_GPU, A100.model_copy(update={"count": count})) for count in (1, 8)
    )
    assert alone is not None
    assert together == pytest.approx(faster * alone)


def test_cost() -> None:
    """An upper bound with maxSteps, none without. Twice the GPUs train 1.8 times as fast at twice the price, in one pod
    or in two; export and evaluation get, and cost, one of them all the same."""
    shape = shape_of(LLAMA_8B)
    open_end = forecast(shape, Training(), ON_GPU, A100, 100)
    bounded = forecast(shape, Training(max_steps=100), ON_GPU, A100, 100)
    double, pair = (
        forecast(shape, Training(max_steps=100), ON_GPU, A100.model_copy(update={field: 2}), 100)
        for field in ("count", "nodes")
    )
    assert open_end is not None
    assert open_end.most_usd is None
    assert bounded is not None
    assert bounded.most_usd is not None
    assert bounded.most_seconds is not None
    assert bounded.most_usd == pytest.approx(bounded.most_seconds * 2.1 / 3600)
    assert double is not None
    assert double.most_seconds is not None
    assert double.tokens_per_second == pytest.approx(1.8 * bounded.tokens_per_second)
    training, asking = (tokens / bounded.tokens_per_second for tokens in (100 * 16 * 512, 3 * 100 * 512))
    shared = training / 1.8 + asking / 0.9  # a share of the common speed stands for that of one GPU alone
    both = shared + bounded.load_seconds + training / 1.8  # the other GPU loads and trains too
    assert double.most_seconds == pytest.approx(bounded.most_seconds - training - asking + both)
    assert double.most_usd == pytest.approx(double.most_seconds * 2.1 / 3600)
    assert pair == double


def test_tokens() -> None:
    """Epochs count, maxSteps ends them; the bound holds before the data are known."""
    assert trained_tokens(Training(epochs=3), 100, 5000) == 15000
    limited = Training(epochs=3, max_steps=5, batch_size=4, gradient_accumulation=2, max_length=512)
    assert trained_tokens(limited, 100, 5000) == 5 * 8 * 50
    assert trained_tokens(limited, 0, 0) == 0
    assert most_tokens(limited) == 5 * 8 * 512
    assert most_tokens(Training()) is None
    assert remaining_seconds(tokens=1000, samples=10, max_length=100, speed=10, load=60, stages=3) == 180 + 100 + 300


@given(amount=st.floats(0, 1e6))
def test_dollars(amount: float) -> None:
    """Two decimals, within half a cent."""
    assert abs(float(dollars(amount)) - amount) <= 0.005 + 1e-6
