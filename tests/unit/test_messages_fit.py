"""What a user is told where a training does not fit, or where nothing is known about that: place, value and remedy.

Each row's message is made once, for its own test and for the one that no sentence is untested.
"""

from functools import cache
from typing import Any, Final

import pytest

from finetune_api.budget import HardwareFacts
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.admission import admit, admit_rest
from finetune_jobs.fit.fitting import After
from finetune_jobs.fit.steps import BF16
from tests.support.fit import LLAMA_8B, LLAMA_70B, MIXTRAL, MXFP4
from tests.support.sentences import assert_says, unsaid

pytestmark = pytest.mark.unit

L4: Final = HardwareFacts(profile="gpu-l4", name="NVIDIA L4", count=1, memory_gib=22, peak_tflops=121)
A100: Final = HardwareFacts(profile="gpu-a100", name="NVIDIA A100", count=1, memory_gib=39, peak_tflops=312)
TIGHT: Final = A100.model_copy(update={"count": 8, "pod_memory_gib": 30})
ROOMY: Final = TIGHT.model_copy(update={"profile": "gpu-a100x8", "pod_memory_gib": 400})
PAIR: Final = A100.model_copy(update={"count": 2})
CPU: Final = HardwareFacts(profile="cpu-small", memory_gib=8, cpus=2)
ROOM: Final = CPU.model_copy(update={"memory_gib": 16})
SMALL: Final = L4.model_copy(update={"memory_gib": 16})
AFTERWARDS: Final = (Stage.EXPORT, Stage.EVALUATE)
LORA: Final = Training(method=Method.LORA, batch_size=1, max_length=8192)
FULL: Final = Training(method=Method.FULL, batch_size=1, gradient_accumulation=16)
LOAD: Final = "Full needs … 35.5 GiB … pod memory … first process loads"
EXPORT: Final = "Export needs … 15.7 GiB … pod memory … 16 bits"
FLOOR: Final = "LoRA needs at least … 16.4 GiB … (weights 15.0, optimiser 0.7, activations 0.0, other 0.7 … more than"

REFUSED: Final[list[tuple[dict[str, Any], Training, HardwareFacts, list[HardwareFacts], Reason, str]]] = [
    (
        LLAMA_8B,
        LORA,
        L4,
        [CPU, A100],
        Reason.FIT_REFUSED,
        "LoRA … batchSize 1 … maxLength 8192 needs … 23.3 GiB (weights 15.0, optimiser 0.7, activations 5.2, other 2.4"
        " … more than 92% … 22 GiB … NVIDIA L4 … profile gpu-l4. … method: QLoRA, quantization: NF4 (about 13.2 GiB … "
        "Unchanged … profile gpu-a100.",
    ),
    (
        MXFP4,
        LORA,
        L4,
        [A100],
        Reason.FIT_REFUSED,
        "quantised (mxfp4) … 16 bits to be trained … 39.0 GiB, more than … 22 GiB of NVIDIA L4 … profile gpu-l4. "
        "… Choose a profile … or a smaller model",
    ),
    (
        LLAMA_8B,
        Training(max_length=4096),
        L4,
        [],
        Reason.FIT_REFUSED,
        "QLoRA … batchSize 8 … maxLength 4096 needs … 30.6 GiB (weights 5.3, optimiser 0.7, activations 21.7, other 2.9"
        " … more than 92% … 22 GiB … NVIDIA L4 … profile gpu-l4. … batchSize: 4, gradientAccumulation: 4 … 19.2 GiB",
    ),
    (
        MIXTRAL,
        Training(batch_size=1),
        L4,
        [],
        Reason.FIT_REFUSED,
        "QLoRA … batchSize 1 … maxLength 512 needs … 91.4 GiB (weights 85.1, optimiser 0.2, activations 0.4, other 5.7"
        " … more than 92% … 22 GiB … NVIDIA L4 … profile gpu-l4. … No smaller setting … no other profile",
    ),
    (
        MIXTRAL,
        Training(batch_size=2),
        PAIR,
        [],
        Reason.FIT_REFUSED,
        "QLoRA … batchSize 2 … maxLength 512 needs … 55.4 GiB (weights 42.6, optimiser 0.1, activations 0.8, other 11.9"
        " … more than 92% … 39 GiB … each NVIDIA A100 (2 … profile gpu-a100. … No smaller setting … no other profile",
    ),
    (
        LLAMA_8B,
        FULL,
        TIGHT,
        [ROOMY],
        Reason.FIT_REFUSED,
        f"{LOAD} … more than … the 30 GiB … profile gpu-a100. … method: QLoRA, quantization: NF4. … Unchanged … "
        "profile gpu-a100x8.",
    ),
    (
        LLAMA_8B,
        FULL,
        TIGHT.model_copy(update={"pod_memory_gib": 2}),
        [],
        Reason.FIT_REFUSED,
        f"{LOAD} … more than … the 2 GiB … profile gpu-a100. … method: QLoRA, quantization: NF4.",
    ),
    (
        LLAMA_8B,
        FULL,
        A100.model_copy(update={"memory_gib": 79, "pod_memory_gib": 30}),
        [ROOMY],
        Reason.FIT_REFUSED,
        "Full needs … 30.6 GiB … pod memory … resumes reads the optimiser's state … more than … the 30 GiB … profile "
        "gpu-a100. … method: QLoRA, quantization: NF4. … Unchanged … profile gpu-a100x8.",
    ),
    (
        LLAMA_8B,
        FULL,
        CPU.model_copy(update={"memory_gib": 30, "nodes": 16}),
        [],
        Reason.FIT_REFUSED,
        "Full needs … 30.6 GiB … pod memory … first process … more than … the 30 GiB … profile cpu-small. … Choose "
        "a profile",
    ),
    (
        LLAMA_8B,
        LORA,
        CPU.model_copy(update={"memory_gib": 16}),
        [],
        Reason.FIT_REFUSED,
        f"{FLOOR} … the 16 GiB … profile cpu-small. … method: QLoRA, quantization: NF4.",
    ),
    (
        LLAMA_8B,
        LORA,
        CPU.model_copy(update={"memory_gib": 4}),
        [A100],
        Reason.FIT_REFUSED,
        f"{FLOOR} … the 4 GiB … profile cpu-small. … fits profile gpu-a100.",
    ),
    (
        LLAMA_8B,
        LORA,
        CPU.model_copy(update={"memory_gib": 4}),
        [],
        Reason.FIT_REFUSED,
        f"{FLOOR} … the 4 GiB … profile cpu-small. … Choose a profile",
    ),
    (
        LLAMA_8B,
        Training(batch_size=1),
        CPU,
        [],
        Reason.FIT_REFUSED,
        f"{EXPORT} … more than … the 8 GiB … profile cpu-small. … Choose a profile",
    ),
    (
        LLAMA_8B,
        Training(batch_size=1),
        SMALL.model_copy(update={"pod_memory_gib": 14}),
        [A100],
        Reason.FIT_REFUSED,
        f"{EXPORT} … GPU … more than … the 14 GiB … profile gpu-l4. … Unchanged … profile gpu-a100.",
    ),
    (
        LLAMA_70B,
        FULL.model_copy(update={"gradient_accumulation": 64}),
        A100.model_copy(update={"memory_gib": 79, "nodes": 64}),
        [],
        Reason.FIT_REFUSED,
        "Evaluation needs … 139.3 GiB … largest model … more than 92% … 79 GiB … NVIDIA A100 … profile gpu-a100. … "
        "method: QLoRA, quantization: NF4.",
    ),
    (
        LLAMA_70B,
        FULL.model_copy(update={"gradient_accumulation": 64}),
        A100.model_copy(update={"memory_gib": 60, "count": 2, "nodes": 32}),
        [],
        Reason.FIT_REFUSED,
        "Evaluation needs … 139.3 GiB … largest model … more than 92% … 60 GiB … each of the 2 NVIDIA A100 … profile "
        "gpu-a100. … method: QLoRA, quantization: NF4.",
    ),
    (
        LLAMA_8B,
        Training(batch_size=3, gradient_accumulation=1),
        PAIR,
        [],
        Reason.SPEC_INVALID,
        "spec.training.batchSize 3 × gradientAccumulation 1 … do not divide … 2 processes. … multiple of 2, e.g. 4.",
    ),
    (
        LLAMA_8B,
        FULL,
        A100.model_copy(update={"memory_gib": 200, "scratch_gib": 240}),
        [],
        Reason.FIT_REFUSED,
        "Stage train needs … 299 GiB … scratch … 3 checkpoints … the 240 GiB … profile gpu-a100. … method: QLoRA, "
        "quantization: NF4.",
    ),
    (
        LLAMA_8B,
        Training(batch_size=1),
        L4.model_copy(update={"scratch_gib": 20}),
        [],
        Reason.FIT_REFUSED,
        "Stage export needs … 24 GiB … scratch … the 20 GiB … profile gpu-l4. … Choose a profile",
    ),
]
"""config.json, the spec, the profile, the platform's other profiles, and why the training is refused."""
NEW: Final = A100.model_copy(update={"name": "NVIDIA R200"})
ADMITTED: Final[list[tuple[dict[str, Any], Training, HardwareFacts, str]]] = [
    (
        LLAMA_8B,
        Training(),
        NEW,
        "Needs … 15.2 GiB … What NVIDIA R200 reaches … not known … 36% of its peak … factor of two",
    ),
    (
        {"model_type": "mamba"},
        Training(),
        L4,
        "Memory and time … unknown: model_type 'mamba' … whose shape can be computed: … no num_attention_heads. … "
        "docs/reference/families.md",
    ),
    (LLAMA_8B, Training(), L4, "Needs … 15.2 GiB … 22 GiB … NVIDIA L4. … room for a part of the activations"),
    (LLAMA_8B, Training(batch_size=1), L4, "Needs … 12.1 GiB … 22 GiB … NVIDIA L4. … room for all activations"),
    (LLAMA_8B, Training(), A100, "Needs … 39 GiB … LoRA over the base in 16 bits fits too (about 25.2 GiB) … faster"),
    (
        LLAMA_8B,
        Training(method=Method.FULL),
        A100.model_copy(update={"memory_gib": 79}),
        "Needs … 69.8 GiB … 79 GiB … 16 bits, rounded stochastically … checkpoint of 90 GiB … 10 min … told to stop … "
        "40 s … 28 min apart",
    ),
    (
        LLAMA_8B,
        Training(method=Method.FULL),
        A100.model_copy(update={"memory_gib": 79, "count": 8, "nodes": 2}),
        "each NVIDIA A100 (16 … checkpoint of 90 GiB … each of 2 pods saves its share … 5 min … 40 s … 20 min apart",
    ),
    (LLAMA_8B, Training(), PAIR, "Needs … 15.2 GiB … 39 GiB … each NVIDIA A100 (2"),
    (
        LLAMA_70B,
        Training(batch_size=1, gradient_accumulation=4, max_length=16384),
        A100.model_copy(update={"memory_gib": 79, "count": 4}),
        "Needs … each NVIDIA A100 (4 … base model is divided … not fit each",
    ),
    (
        LLAMA_70B,
        Training(batch_size=1, gradient_accumulation=4),
        A100.model_copy(update={"memory_gib": 48, "count": 2}),
        "Needs … base model is divided … Evaluation takes 2 GPUs … fits no single",
    ),
    (LLAMA_8B, Training(), HardwareFacts(profile="mine"), "Needs … 40.3 GiB … profile's memory is unknown"),
    (
        LLAMA_8B,
        Training(batch_size=1, max_length=64),
        CPU.model_copy(update={"memory_gib": 16}),
        "maxLength examples … 7.4 GiB … pod's 16 GiB.",
    ),
    (
        LLAMA_8B,
        Training(),
        CPU.model_copy(update={"memory_gib": 16}),
        "maxLength examples … 40.3 GiB … pod's 16 GiB: … shorter examples … smaller batchSize.",
    ),
]
"""The same, and what is said of a training that may start."""

REST: Final[list[tuple[dict[str, Any], HardwareFacts, list[HardwareFacts], str]]] = [
    (
        LLAMA_8B,
        SMALL,
        [CPU, A100],
        "Evaluation needs … 92% … 16 GiB … profile gpu-l4. … training is done … export.format: INT8 alone … "
        "onRegression: Fail. … Unchanged … profile gpu-a100.",
    ),
    (MIXTRAL, L4, [A100], "Evaluation needs … 22 GiB … training is done … Choose a profile"),
    (LLAMA_8B, CPU, [], "Export needs … 15.7 GiB … 8 GiB … training is done … Choose a profile"),
]
"""config.json, the profile, the platform's other profiles, and what is said if a training is done that is exported as
Merged."""


@cache
def refusal(row: int) -> StageError:
    """What a row of REFUSED ends in."""
    config, training, hardware, others, _, _ = REFUSED[row]
    with pytest.raises(StageError) as error:
        admit(config, training, hardware, others)
    return error.value


@cache
def admitted(row: int) -> str:
    """What is said of a row of ADMITTED."""
    config, training, hardware, _ = ADMITTED[row]
    return admit(config, training, hardware).message


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_a_training_that_does_not_fit(row: int) -> None:
    *_, reason, parts = REFUSED[row]
    assert refusal(row).reason is reason
    assert_says(refusal(row).message, *parts.split(" … "))


@pytest.mark.parametrize("row", range(len(ADMITTED)))
def test_a_training_that_may_start(row: int) -> None:
    assert_says(admitted(row), *ADMITTED[row][-1].split(" … "))


@cache
def on_an_old_cpu() -> str:
    """What is said of a training on a CPU without bfloat16."""
    roomy = ROOM.model_copy(update={"memory_gib": 32})
    return admit(LLAMA_8B, Training(batch_size=1, max_length=64), roomy, bfloat16=False).message


@cache
def unevaluable() -> str:
    """What is said where the export fits such a CPU's pod, and neither does the training without rounded weights nor
    the evaluation, which computes from whole numbers."""
    return admit(LLAMA_8B, LORA, ROOM.model_copy(update={"memory_gib": 18}), bfloat16=False).warning


def test_an_evaluation_in_float32() -> None:
    assert_says(
        unevaluable(), "AVX512-BF16", "LoRA needs at least", "Evaluation needs", "30.6 GiB", "32 bits", "18 GiB"
    )


def test_a_training_in_float32() -> None:
    assert_says(on_an_old_cpu(), "10.0 GiB", "pod's 32 GiB", "lacks AVX512-BF16", "float32", "7.4 GiB with bfloat16")


@cache
def rest(row: int) -> StageError:
    """What a row of REST ends in."""
    config, hardware, others, _ = REST[row]
    with pytest.raises(StageError) as error:
        admit_rest(config, Training(), hardware, others, after=After(exported=[BF16], stages=AFTERWARDS))
    return error.value


@pytest.mark.parametrize("row", range(len(REST)))
def test_what_follows_a_training_does_not_fit(row: int) -> None:
    assert rest(row).reason is Reason.FIT_REFUSED
    assert_says(rest(row).message, *REST[row][-1].split(" … "))


@pytest.mark.parametrize("module", ["admission", "afterwards", "interruptions", "recipe", "disk"])
def test_every_sentence_about_the_fit_is_in_a_table(module: str) -> None:
    messages = [*(refusal(row).message for row in range(len(REFUSED))), *map(admitted, range(len(ADMITTED)))]
    messages += [on_an_old_cpu(), unevaluable(), *(rest(row).message for row in range(len(REST)))]
    assert unsaid(f"finetune_jobs.fit.{module}", messages) == []
