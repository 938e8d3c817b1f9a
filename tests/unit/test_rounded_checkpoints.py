"""Checkpoints that are already quantised: what preflight knows of them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

import pytest

from finetune_api.budget import HardwareFacts
from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.admission import admit
from finetune_jobs.fit.rounded import require_trainable
from finetune_jobs.fit.suitability import require_suitable
from tests.support.fit import CPU, L4, LLAMA_8B, MXFP4
from tests.support.sentences import assert_says, unsaid

pytestmark = pytest.mark.unit

A100: Final = L4.model_copy(update={"profile": "gpu-a100", "name": "NVIDIA A100-SXM4-40GB", "memory_gib": 39})
H100: Final = L4.model_copy(update={"profile": "gpu-h100", "name": "NVIDIA H100 80GB HBM3", "memory_gib": 79})
UNKNOWN: Final = L4.model_copy(update={"name": "my own card"})
LORA, FULL = Training(method=Method.LORA), Training(method=Method.FULL)


def rounded(how: Any, **more: Any) -> dict[str, Any]:
    return LLAMA_8B | {"quantization_config": {"quant_method": how} | more}


REFUSED: Final[list[tuple[dict[str, Any], Training, HardwareFacts, str]]] = [
    (rounded("mxfp4"), Training(), L4, "('mxfp4') … QLoRA cannot round it again"),
    (rounded("gptq"), LORA, A100, "('gptq') … no library to read"),
    (rounded("awq"), FULL, CPU, "('awq') … no library to read"),
    (rounded("fp8"), LORA, L4, "('fp8') … NVIDIA L4 of profile 'gpu-l4' would multiply it as it is … no kernels"),
    (rounded("fp8"), FULL, H100, "('fp8') … NVIDIA H100 80GB HBM3 of profile 'gpu-h100' … no kernels"),
    (rounded("compressed-tensors"), FULL, L4, "('compressed-tensors') … method Full does not train"),
    (rounded("bitsandbytes"), FULL, CPU, "('bitsandbytes') … method Full does not train"),
]
"""config.json, the training, the profile, and why nothing is trained."""


def refusal(row: int) -> StageError:
    config, training, hardware, _ = REFUSED[row]
    with pytest.raises(StageError) as error:
        require_suitable(config, training, "", hardware)
    return error.value


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_what_is_certain_not_to_train_is_refused_before_it_is_paid_for(row: int) -> None:
    assert (refusal(row).reason, refusal(row).retriable) == (Reason.MODEL_UNSUPPORTED, False)
    assert_says(refusal(row).message, "already quantised", *REFUSED[row][-1].split(" … "), "same model in 16 bits")


def test_every_sentence_about_quantised_checkpoints_is_in_the_table() -> None:
    said = [refusal(row).message for row in range(len(REFUSED))]
    assert unsaid("finetune_jobs.fit.rounded", said) == []


@pytest.mark.parametrize(
    ("config", "training", "hardware"),
    [
        (rounded("fp8"), LORA, A100),  # turned back into 16 bits
        (rounded("fp8"), FULL, A100),
        (rounded("fp8"), LORA, CPU),
        (rounded("fp8"), LORA, CPU.model_copy(update={"name": "NVIDIA L4"})),
        (rounded("fp8"), LORA, UNKNOWN),
        (rounded("fp8", dequantize=True), FULL, H100),
        (rounded("mxfp4"), LORA, H100),
        (rounded("mxfp4"), FULL, CPU),
        (rounded("compressed-tensors"), LORA, L4),
        (rounded("compressed-tensors", dequantize=True), FULL, L4),
        (rounded("bitsandbytes"), Training(), L4),
        (rounded("new"), LORA, L4),
        (rounded(["fp8"]), LORA, L4),
        (LLAMA_8B | {"quantization_config": "fp8"}, LORA, L4),
        (LLAMA_8B | {"quantization_config": None}, LORA, L4),
    ],
)
def test_what_may_train_is_not_refused(config: dict[str, Any], training: Training, hardware: HardwareFacts) -> None:
    require_trainable(config, training, hardware)


def test_of_mxfp4_only_its_weights_are_held_against_the_memory() -> None:
    """Where they do not fit, it is refused (test_messages_fit). What it takes on disk, for example, is not known."""
    several, no_limit = L4.model_copy(update={"count": 4}), L4.model_copy(update={"memory_gib": 0})
    for config, hardware in [(MXFP4, A100), (MXFP4, several), (MXFP4, no_limit), (rounded("new"), L4)]:
        assert_says(admit(config, LORA, hardware).message, "unknown", "already quantised")
    assert_says(admit(MXFP4 | {"hidden_size": "?"}, LORA, L4).message, "unknown")


def test_the_images_lack_what_would_compute_with_rounded_weights() -> None:
    """``fit.rounded`` rests on it: with these, FP8 would train on newer cards, and MXFP4 would not be turned back. What
    the libraries do without: test_precision."""
    assert [find_spec(name) for name in ("kernels", "gptqmodel", "fbgemm_gpu")] == [None, None, None]
