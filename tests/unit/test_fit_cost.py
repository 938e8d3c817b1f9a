"""How fast a profile trains and runs a model, by its card, and what a run costs at most."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.budget import FitStatus, HardwareFacts, dollars
from finetune_api.cards import generation_of
from finetune_api.dataset import TaskType
from finetune_api.evaluation import Examination
from finetune_api.timing import Examples, Pace, evaluate_seconds, export_seconds, train_seconds
from finetune_api.training import Method, Quantization, Training
from finetune_jobs.fit.admission import admit
from finetune_jobs.fit.asked import asking
from finetune_jobs.fit.cards import CARDS, Speed, card_of, caution
from finetune_jobs.fit.cost import forecast
from finetune_jobs.fit.duration import operations, pace
from finetune_jobs.fit.fitting import After
from finetune_jobs.fit.memory import INT8
from finetune_jobs.fit.preflight import facts
from finetune_jobs.fit.steps import KEPT, ON_CPU, ON_GPU, SELECTIVE, Step
from tests.support.fit import A100, CPU, GEMMA2_9B, L4, LLAMA_8B, SMOLLM, shape_of
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit


def speed(hardware: HardwareFacts, config: dict[str, Any] = LLAMA_8B, **training: Any) -> Pace:
    """The pace that is expected."""
    settings = Training(**training)
    asked = asking(TaskType.TEXT, Examination(), settings)
    found = pace(shape_of(config), settings, ON_GPU if hardware.has_gpu else ON_CPU, hardware, asked=asked)
    assert found is not None
    return found


@pytest.mark.parametrize("step", [ON_GPU, SELECTIVE, KEPT])
def test_attention_without_a_kernel_takes_longer(step: Step) -> None:
    """It computes all scores of Gemma 2 9B, twice as many as are looked at, without a kernel that is twice as fast as
    the rest; and an A100 writes and reads 8 bytes of each, and 6 in its backward pass."""
    training = Training(method=Method.LORA, max_length=8192)
    shape, card = shape_of(GEMMA2_9B), A100.model_copy(update={"count": 1})
    (kind,) = shape.kinds
    kernel = replace(shape, kinds=(replace(kind, score_bytes=0),))
    forward = 42 * 4 * 16 * 256 * 8192
    more = operations(shape, training, step, 8192) - operations(kernel, training, step, 8192)
    passes, by_kernel = (4 if step.checkpointing else 3), (3 if step.keeps_least else 2)
    assert more == pytest.approx(forward * (passes - by_kernel / 4))

    slow, fast = (pace(each, training, step, card) for each in (shape, kernel))
    assert slow
    assert fast
    reached = card_of(card)
    assert reached
    moved = 42 * 16 * 8192 * ((3 if step.checkpointing else 2) * 8 + 2 * 6) / (reached.bandwidth * 1e9)
    computed = more / (card.peak_tflops * 1e12 * reached.share(training))
    assert 1 / slow.tokens_per_second - 1 / fast.tokens_per_second == pytest.approx(moved + computed)
    assert 1.3 < fast.tokens_per_second / slow.tokens_per_second < 2


def test_operations() -> None:
    """Six a weight with an adapter and checkpointing, two less for a weight whose product that keeps; eight for all
    weights; an embedding is only looked up."""
    shape = shape_of(LLAMA_8B)
    weights = shape.parameters - 128256 * 4096
    assert operations(shape, Training(), ON_GPU, 0) == 6 * weights
    assert operations(shape, Training(method=Method.FULL), ON_GPU, 0) == 8 * weights
    assert operations(shape, Training(method=Method.FULL), ON_CPU, 0) == 6 * weights
    wide = weights - shape.layers * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 14336)
    assert operations(shape, Training(), SELECTIVE, 0) == 4 * weights + 2 * wide
    attention = operations(shape, Training(), ON_GPU, 8192) - 6 * weights
    assert operations(shape, Training(), SELECTIVE, 8192) == pytest.approx(4 * weights + 2 * wide + attention * 2 / 3)
    tied = shape_of(SMOLLM)
    assert operations(tied, Training(), ON_GPU, 0) == 6 * tied.parameters
    assert operations(shape, Training(), ON_GPU, 8192) == pytest.approx(6 * weights * 1.07, rel=0.01)


@pytest.mark.parametrize(
    ("card", "peak", "lowest", "highest"),
    [
        ("NVIDIA L4", 121, 400, 500),  # bound by 72 W and 300 GB/s
        ("NVIDIA A100-SXM4-40GB", 312, 2500, 3300),  # LLaMA-Factory: 2,926 for a 7B
        ("NVIDIA H100 80GB HBM3", 989, 6000, 8600),  # Unsloth, which is faster: 8,600
        ("NVIDIA GeForce RTX 4090", 165, 1700, 2400),  # torchtune, compiled: 2,413
    ],
)
def test_tokens_per_second_of_an_8b_with_qlora(card: str, peak: float, lowest: float, highest: float) -> None:
    assert lowest < speed(HardwareFacts(name=card, count=1, peak_tflops=peak)).tokens_per_second < highest


def test_a_small_pass_is_not_faster_than_its_launch() -> None:
    """32 layers of some ms, and on a slow memory what is read of each weight."""
    fast, slow = speed(A100), speed(L4)
    assert 0.19 < fast.pass_seconds < 0.3
    assert 0.45 < slow.pass_seconds < 0.6
    assert speed(A100, method="LoRA").pass_seconds < fast.pass_seconds
    assert speed(CPU, SMOLLM).pass_seconds == 0


def test_methods() -> None:
    """16 bits are faster than NF4, LLM.int8 is slower than both, and all weights are more work than an adapter."""
    settings: list[dict[str, Any]] = [
        {"method": "LoRA"},
        {"method": "QLoRA"},
        {"method": "QLoRA", "quantization": Quantization.INT8},
        {"method": "Full"},
    ]
    lora, nf4, int8, full = (speed(A100, **each).tokens_per_second for each in settings)
    assert lora > nf4 > int8
    assert lora > full


@pytest.mark.parametrize(("method", "faster"), [(Method.QLORA, 7.2), (Method.LORA, 7.2), (Method.FULL, 6.4)])
def test_eight_gpus_are_not_eight_times_as_fast(method: Method, faster: float) -> None:
    """Less so where the model is divided: its layers travel too."""
    alone, together = (
        speed(A100.model_copy(update={"count": count}), method=method).tokens_per_second for count in (1, 8)
    )
    assert together == pytest.approx(faster * alone)


def test_transfers_follow_the_size() -> None:
    """8-bit artifacts take half the time of 16-bit ones; a stage loads 16 GB through network and disk."""
    shape = shape_of(LLAMA_8B)
    half, whole = (pace(shape, Training(), ON_GPU, A100, exported=[each]) for each in (INT8, 2))
    assert half is not None
    assert whole is not None
    assert whole.transfer_seconds == pytest.approx(2 * half.transfer_seconds)
    assert 90 < whole.transfer_seconds < 100
    assert 90 + 80 < whole.load_seconds < 90 + 120


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100 80gb"),
        ("NVIDIA-A100-SXM4-40GB", "a100"),
        ("nvidia-tesla-a100", "a100"),
        ("NVIDIA H100 PCIe", "h100 pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA RTX 6000 Ada Generation", "6000 ada"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA L40S", "l40s"),
        ("nvidia-l4", "l4"),
        ("NVIDIA GeForce RTX 4090", "4090"),
    ],
)
def test_a_card_is_known_by_its_name(name: str, words: str) -> None:
    found = card_of(HardwareFacts(name=name, count=1))
    assert found is not None
    assert found.words == words


@pytest.mark.parametrize("card", CARDS, ids=[card.words for card in CARDS])
def test_a_row_is_complete(card: Speed) -> None:
    """Its numbers are possible, 16 bits are no slower than NF4, and its source or that it has none is named."""
    assert 0 < card.nf4 <= card.lora <= card.full < 0.8
    assert 50 < 1e3 * card.tflops / card.bandwidth < 450
    assert card.source.startswith(("https://", "An assumption", "As the"))
    assert generation_of(f"NVIDIA RTX {card.words}" if card.words[0].isdigit() else card.words) is not None


def test_an_unknown_card_is_cautioned_against() -> None:
    """Its peak counts; what it reaches of it is assumed, and that is said."""
    new = HardwareFacts(name="NVIDIA R200", count=1, peak_tflops=4000, memory_gib=200)
    assert card_of(new) is None
    assert speed(new).tokens_per_second > speed(A100).tokens_per_second
    assert speed(new).pass_seconds > 0
    assert_says(caution(new), "NVIDIA R200", "not known", "36% of its peak", "factor of two")
    assert caution(A100) == caution(L4) == caution(CPU) == ""
    assert pace(shape_of(LLAMA_8B), Training(), ON_GPU, HardwareFacts(name="x", count=1)) is None
    assert pace(shape_of(LLAMA_8B), Training(), ON_CPU, HardwareFacts()) is None


def test_a_slice_reads_a_part_of_the_memory() -> None:
    """Its admin gives the peak of the slice; its bandwidth shrinks with it."""
    whole, slice_ = (
        speed(HardwareFacts(name="NVIDIA A100-SXM4-40GB", count=1, peak_tflops=peak)) for peak in (312, 78)
    )
    assert slice_.tokens_per_second == pytest.approx(whole.tokens_per_second / 4)
    assert slice_.pass_seconds > whole.pass_seconds


def test_cost() -> None:
    """An upper bound with maxSteps, none without; training counts every GPU, export and evaluation one."""
    open_end = forecast(speed(A100), Training(), A100, 100)
    assert open_end is not None
    assert open_end.most_usd is None
    training = Training(max_steps=100)
    alone = forecast(speed(A100), training, A100, 100)
    pair = A100.model_copy(update={"nodes": 2})
    double = forecast(speed(pair), training, pair, 100)
    for found, hardware in ((alone, A100), (double, pair)):
        assert found is not None
        assert found.most_seconds is not None
        assert found.most_usd == pytest.approx(found.most_seconds * 2.1 / 3600)
        after = export_seconds(found.pace) + evaluate_seconds(found.pace, 100)
        trained = (found.most_seconds - after) / hardware.processes - found.pace.load_seconds
        tokens = 100 * 16 * 512 + 4 * 200_000 / 3
        assert tokens / found.pace.tokens_per_second < trained < 1.1 * tokens / found.pace.tokens_per_second
    assert forecast(None, training, A100, 100) is None


def test_the_example_of_the_page() -> None:
    """Fit and cost are those of the run that docs/concepts/fit.md names below them."""
    page = (Path(__file__).parents[2] / "docs/concepts/fit.md").read_text().splitlines()
    told, cost = (json.loads(line) for line in page if line.startswith("{"))
    training = Training()
    found = facts(admit(LLAMA_8B, training, L4, after=After(evaluation=Examination())), L4)
    assert sorted(map(str, told.values())) == sorted(found.values())
    example = Pace.of(FitStatus.model_validate(told), training, 1)
    assert example is not None
    seconds = train_seconds(training, Examples(4000, 340, 512, 400), example)
    seconds += export_seconds(example) + evaluate_seconds(example, 200)
    assert cost["forecast"] == dollars(seconds * L4.usd_per_gpu_second)


@given(amount=st.floats(0, 1e6))
def test_dollars(amount: float) -> None:
    """Two decimals, within half a cent."""
    assert abs(float(dollars(amount)) - amount) <= 0.005 + 1e-6
