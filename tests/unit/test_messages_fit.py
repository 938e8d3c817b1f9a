"""What a user is told where a training does not fit, or where nothing can be said about that: exact messages."""

from typing import Any, Final

import pytest

from finetune_api.budget import HardwareFacts
from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.admission import admit
from tests.support.sentences import unsaid

pytestmark = pytest.mark.unit

LLAMA_8B: Final[dict[str, Any]] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
LLAMA_70B: Final = LLAMA_8B | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "intermediate_size": 28672,
}
MIXTRAL: Final = LLAMA_8B | {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
L4: Final = HardwareFacts(profile="gpu-l4", name="NVIDIA L4", count=1, memory_gib=22, peak_tflops=121)
A100: Final = HardwareFacts(profile="gpu-a100", name="NVIDIA A100", count=1, memory_gib=39, peak_tflops=312)
TIGHT: Final = A100.model_copy(update={"count": 8, "pod_memory_gib": 140})
ROOMY: Final = TIGHT.model_copy(update={"profile": "gpu-a100x8", "pod_memory_gib": 400})
PAIR: Final = A100.model_copy(update={"count": 2})
CPU: Final = HardwareFacts(profile="cpu-small", memory_gib=8, cpus=2)
SMALL: Final = L4.model_copy(update={"memory_gib": 16})
LORA: Final = Training(method=Method.LORA, batch_size=1, max_length=8192)
FULL: Final = Training(method=Method.FULL, batch_size=1, gradient_accumulation=16)
LOAD: Final = "Full needs about 244.9 GiB of the pod's own memory, where each of its processes"
EXPORT: Final = "Export needs about 15.7 GiB of the pod's own memory for the tuned model in 16 bits"
FLOOR: Final = (
    "LoRA needs at least about 16.4 GiB for the shortest examples (weights 15.0, optimiser 0.7, activations 0.0, other "
    "0.7), more than"
)

REFUSED: Final[list[tuple[dict[str, Any], Training, HardwareFacts, list[HardwareFacts], Reason, str]]] = [
    (
        LLAMA_8B,
        LORA,
        L4,
        [CPU, A100],
        Reason.FIT_REFUSED,
        "LoRA with batchSize 1 and maxLength 8192 needs about 23.3 GiB (weights 15.0, optimiser 0.7, activations 5.2, "
        "other 2.4), more than 92% of the 22 GiB of NVIDIA L4 in profile gpu-l4. It fits with method: QLoRA, "
        "quantization: NF4 (about 13.2 GiB). As it is, it fits profile gpu-a100.",
    ),
    (
        LLAMA_8B,
        Training(max_length=4096),
        L4,
        [],
        Reason.FIT_REFUSED,
        "QLoRA with batchSize 8 and maxLength 4096 needs about 30.6 GiB (weights 5.3, optimiser 0.7, activations 21.7, "
        "other 2.9), more than 92% of the 22 GiB of NVIDIA L4 in profile gpu-l4. It fits with batchSize: 4, "
        "gradientAccumulation: 4 (about 19.2 GiB).",
    ),
    (
        MIXTRAL,
        Training(batch_size=1),
        L4,
        [],
        Reason.FIT_REFUSED,
        "QLoRA with batchSize 1 and maxLength 512 needs about 91.4 GiB (weights 85.1, optimiser 0.2, activations 0.4, "
        "other 5.7), more than 92% of the 22 GiB of NVIDIA L4 in profile gpu-l4. No smaller setting and no other "
        "profile of this platform would hold it.",
    ),
    (
        MIXTRAL,
        Training(batch_size=2),
        PAIR,
        [],
        Reason.FIT_REFUSED,
        "QLoRA with batchSize 2 and maxLength 512 needs about 91.8 GiB (weights 85.1, optimiser 0.2, activations 0.8, "
        "other 5.7), more than 92% of the 39 GiB of each NVIDIA A100 (2 train together) in profile gpu-a100. No "
        "smaller setting and no other profile of this platform would hold it.",
    ),
    (
        LLAMA_8B,
        FULL,
        TIGHT,
        [ROOMY],
        Reason.FIT_REFUSED,
        f"{LOAD} (8) loads the whole model before it is divided, more than the 140 GiB of profile gpu-a100. It fits "
        "with method: QLoRA, quantization: NF4. As it is, it fits profile gpu-a100x8.",
    ),
    (
        LLAMA_8B,
        FULL,
        TIGHT.model_copy(update={"pod_memory_gib": 2}),
        [],
        Reason.FIT_REFUSED,
        f"{LOAD} (8) loads the whole model before it is divided, more than the 2 GiB of profile gpu-a100. It fits with "
        "method: QLoRA, quantization: NF4.",
    ),
    (
        LLAMA_8B,
        FULL,
        CPU.model_copy(update={"memory_gib": 30, "nodes": 16}),
        [],
        Reason.FIT_REFUSED,
        "Full needs about 30.6 GiB of the pod's own memory, where each of its processes (1) loads the whole model "
        "before it is divided, more than the 30 GiB of profile cpu-small. Choose a profile whose pods have more "
        "memory.",
    ),
    (
        LLAMA_8B,
        LORA,
        CPU.model_copy(update={"memory_gib": 16}),
        [],
        Reason.FIT_REFUSED,
        f"{FLOOR} the 16 GiB of a pod of profile cpu-small. It fits with method: QLoRA, quantization: NF4.",
    ),
    (
        LLAMA_8B,
        LORA,
        CPU.model_copy(update={"memory_gib": 4}),
        [A100],
        Reason.FIT_REFUSED,
        f"{FLOOR} the 4 GiB of a pod of profile cpu-small. It fits profile gpu-a100.",
    ),
    (
        LLAMA_8B,
        LORA,
        CPU.model_copy(update={"memory_gib": 4}),
        [],
        Reason.FIT_REFUSED,
        f"{FLOOR} the 4 GiB of a pod of profile cpu-small. Choose a profile with more memory.",
    ),
    (
        LLAMA_8B,
        Training(batch_size=1),
        CPU,
        [],
        Reason.FIT_REFUSED,
        f"{EXPORT}, more than the 8 GiB of a pod of profile cpu-small. Choose a profile whose pods have more memory.",
    ),
    (
        LLAMA_8B,
        Training(batch_size=1),
        SMALL.model_copy(update={"pod_memory_gib": 14}),
        [A100],
        Reason.FIT_REFUSED,
        f"{EXPORT}, which its GPU does not hold, more than the 14 GiB of a pod of profile gpu-l4. As it is, it fits "
        "profile gpu-a100.",
    ),
    (
        LLAMA_70B,
        FULL.model_copy(update={"gradient_accumulation": 64}),
        A100.model_copy(update={"memory_gib": 79, "count": 8, "nodes": 8}),
        [],
        Reason.FIT_REFUSED,
        "Evaluation needs about 139.3 GiB for the largest model that it asks, more than 92% of the 79 GiB of NVIDIA "
        "A100 in profile gpu-a100. It fits with method: QLoRA, quantization: NF4.",
    ),
    (
        LLAMA_8B,
        Training(batch_size=3, gradient_accumulation=1),
        PAIR,
        [],
        Reason.SPEC_INVALID,
        "spec.training.batchSize 3 × gradientAccumulation 1 examples a step do not divide among the 2 processes of the "
        "profile. Make their product a multiple of 2, e.g. 4.",
    ),
]
"""config.json, the spec, the profile, the platform's other profiles, and why the training is refused."""
ADMITTED: Final[list[tuple[dict[str, Any], Training, HardwareFacts, str]]] = [
    (
        {"model_type": "mamba"},
        Training(),
        L4,
        "Memory and time are unknown: config.json does not tell the shape (hidden_size: Field required; "
        "num_hidden_layers: Field required; num_attention_heads: Field required).",
    ),
    (LLAMA_8B, Training(), L4, "Needs about 10.6 GiB of the 22 GiB of NVIDIA L4."),
    (LLAMA_8B, Training(), PAIR, "Needs about 10.6 GiB of the 39 GiB of each NVIDIA A100 (2 train together)."),
    (LLAMA_8B, Training(), HardwareFacts(profile="mine"), "Needs about 47.7 GiB; what the profile has is unknown."),
    (
        LLAMA_8B,
        Training(batch_size=1, max_length=64),
        CPU.model_copy(update={"memory_gib": 16}),
        "Batches of examples of maxLength need about 7.4 GiB of the pod's 16 GiB.",
    ),
    (
        LLAMA_8B,
        Training(),
        CPU.model_copy(update={"memory_gib": 16}),
        "Batches of examples of maxLength need about 47.7 GiB of the pod's 16 GiB: shorter ones fit, or a smaller "
        "batchSize.",
    ),
]
"""The same, and what is said of a training that may start."""


@pytest.mark.parametrize(
    ("config", "training", "hardware", "others", "reason", "message"), REFUSED, ids=map(str, range(len(REFUSED)))
)
def test_a_training_that_does_not_fit(
    config: dict[str, Any],
    training: Training,
    hardware: HardwareFacts,
    others: list[HardwareFacts],
    reason: Reason,
    message: str,
) -> None:
    with pytest.raises(StageError) as error:
        admit(config, training, hardware, others)
    assert (error.value.reason, error.value.message) == (reason, message)


@pytest.mark.parametrize(("config", "training", "hardware", "message"), ADMITTED, ids=map(str, range(len(ADMITTED))))
def test_a_training_that_may_start(
    config: dict[str, Any], training: Training, hardware: HardwareFacts, message: str
) -> None:
    assert admit(config, training, hardware).message == message


@pytest.mark.parametrize("module", ["fit.admission", "fit.afterwards", "fit.recipe"])
def test_every_sentence_about_the_fit_is_in_a_table(module: str) -> None:
    messages = [*(row[-1] for row in REFUSED), *(row[-1] for row in ADMITTED)]
    assert unsaid(f"finetune_jobs.{module}", messages) == []
