"""Will it fit: what is admitted, what is refused, and the smallest change that helps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_api.budget import (
    HardwareFacts,
)
from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.admission import admit
from finetune_jobs.fit.fitting import smallest_change
from finetune_jobs.fit.memory import GIB, USABLE
from finetune_jobs.fit.steps import BF16
from tests.support.fast import share
from tests.support.fit import A100, CONFIGS, CPU, L4, LLAMA_8B, LLAMA_70B, MIXTRAL, SMOLLM, TRAININGS, shape_of
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit


def test_a_whole_model_that_fits_no_gpu_fits_eight_together() -> None:
    """Llama-3-8B has 120 GiB of weights, gradients and moments: 15 of them on each of eight."""
    training = Training(method=Method.FULL, batch_size=8, max_length=1024)
    eight = A100.model_copy(update={"profile": "gpu-a100-40x8", "count": 8})
    with pytest.raises(StageError, match=r"Unchanged, .* profile gpu-a100-40x8\."):
        admit(LLAMA_8B, training, A100, [eight])

    admission = admit(LLAMA_8B, training, eight)

    assert admission.memory is not None
    assert_says(admission.message, "39 GiB", "each NVIDIA A100 40GB (8")
    assert admission.memory.weights + admission.memory.state == pytest.approx(15 * GIB, rel=0.01)


@pytest.mark.parametrize(("count", "memory", "most"), [(4, 24, 22.1), (2, 48, 44.2)])
def test_a_model_of_70_billion_fits_where_all_share_it(count: int, memory: float, most: float) -> None:
    """QLoRA on four cards of 24 GB, or two of 48: the base is divided while it is trained, and spread over the same
    cards for the evaluation. One card less is too few."""
    training = Training(batch_size=1, gradient_accumulation=12, max_length=2048)
    cards = L4.model_copy(update={"profile": "many", "count": count, "memory_gib": memory, "pod_memory_gib": 160})

    admission = admit(LLAMA_70B, training, cards)

    assert admission.memory is not None
    assert admission.memory.gib < most
    assert admission.evaluation_gpus == count
    assert_says(admission.message, "base model is divided", f"Evaluation takes {count} GPUs")
    with pytest.raises(StageError, match="needs about"):
        admit(LLAMA_70B, training, cards.model_copy(update={"count": count - 1}))
    with pytest.raises(StageError, match=r"Export needs about 132\.\d GiB of pod memory"):
        admit(LLAMA_70B, training, cards.model_copy(update={"pod_memory_gib": 120}))


def test_admitted() -> None:
    """An 8B model with QLoRA fits an L4, and the message has the numbers."""
    admission = admit(LLAMA_8B, Training(batch_size=1, max_length=2048), L4, [A100])
    assert admission.memory is not None
    assert admission.memory.gib < USABLE * L4.memory_gib
    assert_says(admission.message, "Needs", f"{admission.memory.gib:.1f} GiB", "22 GiB", "NVIDIA L4.")


REFUSED = {
    "smaller passes": (
        {"batch_size": 32, "max_length": 2048, "gradient_accumulation": 1},
        LLAMA_8B,
        ["batchSize: ", "gradientAccumulation: "],
        ["method", "maxLength: "],
    ),
    "a rounded base": (
        {"method": "LoRA", "batch_size": 1, "max_length": 8192},
        LLAMA_8B,
        ["method: QLoRA, quantization: NF4"],
        ["batchSize: ", "maxLength: "],
    ),
    "nf4 instead of int8": (
        {"quantization": "INT8", "batch_size": 1, "max_length": 16384},
        LLAMA_8B,
        ["quantization: NF4"],
        ["method: ", "maxLength: "],
    ),
    "shorter examples": (
        {"batch_size": 1, "max_length": 65536},
        LLAMA_8B,
        ["maxLength: "],
        ["batchSize: ", "method: "],
    ),
    "nothing": ({"batch_size": 1}, MIXTRAL, ["No smaller setting and no other profile"], ["It fits"]),
}


@pytest.mark.parametrize(("spec", "config", "named", "unnamed"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_smallest_change(
    spec: dict[str, Any], config: dict[str, Any], named: list[str], unnamed: list[str]
) -> None:
    """The message names the change; with that change the training is admitted."""
    training = Training.model_validate(spec)
    with pytest.raises(StageError) as refusal:
        admit(config, training, L4)
    assert refusal.value.reason is Reason.FIT_REFUSED
    advice = refusal.value.message.partition("profile gpu-l4. ")[2]
    assert all(each in advice for each in named)
    assert not any(each in advice for each in unnamed)
    changed = smallest_change(shape_of(config), training, L4)
    if changed is None:
        assert "It fits" not in advice
    else:
        assert admit(config, changed, L4).memory is not None


def test_refusal_names_the_profile_that_fits() -> None:
    """The smallest GPU that holds it as it is; never one without a GPU."""
    training = Training(method=Method.LORA, batch_size=1, max_length=8192)
    with pytest.raises(StageError, match=r"Unchanged, .* profile gpu-a100-40\.$"):
        admit(LLAMA_8B, training, L4, [CPU, A100, L4])


@settings(max_examples=share(40), deadline=None)
@example(config=SMOLLM, training=Training(method=Method.FULL, batch_size=2, max_length=16), gib=4.0)  # fits if rounded
@given(config=CONFIGS, training=TRAININGS, gib=st.floats(1, 80))
def test_the_proposed_change_keeps_the_optimiser_step(config: dict[str, Any], training: Training, gib: float) -> None:
    """What is proposed fits, trains the same examples per step, and is never larger than what was asked for."""
    hardware = L4.model_copy(update={"memory_gib": gib})
    changed = smallest_change(shape_of(config), training, hardware)
    if changed is None:
        return
    assert admit(config, changed, hardware).memory is not None
    examples = [each.batch_size * each.gradient_accumulation for each in (training, changed)]
    assert examples[0] == examples[1]
    assert changed.batch_size <= training.batch_size
    assert changed.max_length <= training.max_length


def test_pods_without_a_gpu() -> None:
    """Refused only for what no data can change; longer examples are told of, not refused."""
    fine = admit(SMOLLM, Training(batch_size=1, max_length=128), CPU)
    assert fine.message.endswith("of the pod's 8 GiB.")
    told = admit(SMOLLM, Training(batch_size=64, max_length=2048), CPU)
    assert_says(told.message, "the pod's 8 GiB:", "shorter examples", "smaller batchSize.")
    sixteen = CPU.model_copy(update={"memory_gib": 16})
    with pytest.raises(StageError, match=r"at least about 1\d\.\d GiB .* the 16 GiB of a pod .* It fits with"):
        admit(LLAMA_8B, Training(method=Method.LORA), sixteen)
    small = CPU.model_copy(update={"memory_gib": 4})
    with pytest.raises(StageError, match=r"at least .* It fits profile gpu-l4 or gpu-a100-40\."):
        admit(LLAMA_8B, Training(method=Method.LORA, batch_size=1), small, [L4, A100])


QWEN3 = {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 5120, "vocab_size": 151936}
QWEN3_32B = QWEN3 | {"num_hidden_layers": 64, "num_attention_heads": 64, "intermediate_size": 25600}
QWEN3_14B = QWEN3 | {"num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 17408}


@pytest.mark.parametrize(
    ("config", "gpu_gib", "merged_gib"),
    [(LLAMA_70B, 79, 131.4), (QWEN3_32B, 39, 61.0), (QWEN3_14B, 22, 27.5)],
    ids=["Llama-70B on an A100-80", "Qwen3-32B on an A100-40", "Qwen3-14B on an L4"],
)
def test_what_is_trained_on_4_bits_of_each_weight_is_merged_in_16(
    config: dict[str, Any], gpu_gib: float, merged_gib: float
) -> None:
    """In the memory of a pod that has it, where the GPU has not; otherwise it is refused before the training."""
    assert BF16 * shape_of(config).parameters / GIB == pytest.approx(merged_gib, abs=0.05)
    training, gpu = Training(batch_size=1), L4.model_copy(update={"memory_gib": gpu_gib})
    for pod_gib in (0, merged_gib + 1):
        assert admit(config, training, gpu.model_copy(update={"pod_memory_gib": pod_gib})).memory is not None
    tight = gpu.model_copy(update={"pod_memory_gib": merged_gib})
    roomy = tight.model_copy(update={"profile": "gpu-roomy", "pod_memory_gib": 2 * merged_gib})
    with pytest.raises(StageError, match=r"^Export needs .* Unchanged, .* profile gpu-roomy\.$"):
        admit(config, training, tight, [roomy])


def test_hardware_that_says_nothing() -> None:
    """Without a limit there is nothing to compare with, and without a speed no time."""
    admission = admit(SMOLLM, Training(), HardwareFacts(profile="mine"))
    assert admission.forecast is None
    assert "profile's memory is unknown" in admission.message
