"""What preflight says of a model that nothing serves, of cards without bfloat16, and of experts without an adapter."""

from typing import Any, Final

import pytest

from finetune_api.budget import HardwareFacts
from finetune_api.reasons import Reason
from finetune_api.suitability import ServingFacts
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.suitability import Advice, joined, require_suitable
from tests.support.fit import CPU, L4, LLAMA_8B, MIXTRAL
from tests.support.sentences import assert_says, unsaid

pytestmark = pytest.mark.unit

QWEN3: Final = LLAMA_8B | {"model_type": "qwen3"}
MOE_30B: Final[dict[str, Any]] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
"""Qwen3-30B-A3B."""
T4: Final = L4.model_copy(update={"profile": "gpu-t4", "name": "NVIDIA T4", "memory_gib": 14.5})
ON_CPUS: Final = ServingFacts(name="tgi-cpu", engine="tgi")
VLLM_ON_CPUS: Final = ServingFacts(name="vllm-cpu", engine="vllm")
TGI: Final = ServingFacts(name="tgi", engine="tgi", gpu=True)
LARGE: Final = ServingFacts(name="tgi-large", engine="tgi", gpu=True)
NEW: Final = ServingFacts(name="new", engine="tgi", gpu=True, card="NVIDIA B200")
VLLM: Final = ServingFacts(name="vllm", engine="vllm", gpu=True)
EXPERTS: Final = "qwen3_moe … mixture of experts … no adapter … 0.91 of 30.5 billion … (3.0%) … Consider a dense model"

REFUSED: Final[list[tuple[dict[str, Any], HardwareFacts, list[ServingFacts], Reason, str]]] = [
    (LLAMA_8B, T4, [TGI], Reason.GPU_UNUSABLE, "bfloat16 … NVIDIA T4 … 'gpu-t4' … Turing … Choose a profile … Ampere"),
    (QWEN3, L4, [TGI], Reason.RUNTIME_UNSUITABLE, "No runtime … Runtime 'tgi' cannot serve … no qwen3 … INT8"),
    (
        QWEN3,
        L4,
        [ON_CPUS, TGI],
        Reason.RUNTIME_UNSUITABLE,
        "No runtime … 'tgi' cannot serve … no qwen3 … Runtime 'tgi-cpu' is only for trials without a GPU",
    ),
    (
        QWEN3,
        L4,
        [TGI, LARGE, NEW],
        Reason.RUNTIME_UNSUITABLE,
        "No runtime … Runtime 'tgi', 'tgi-large' cannot serve … no qwen3 … Runtime 'new' cannot serve … Blackwell",
    ),
    (
        {"model_type": "mistral3", "text_config": {"model_type": "ministral3"}},
        L4,
        [VLLM],
        Reason.MODEL_UNSUPPORTED,
        "model_type 'mistral3' … images and text … Take a checkpoint … text part alone, of model_type 'ministral3'",
    ),
    (
        {"model_type": "qwen2_vl", "text_config": {"model_type": []}},
        L4,
        [VLLM],
        Reason.MODEL_UNSUPPORTED,
        "'qwen2_vl' … Take a checkpoint … part alone.",
    ),
    (
        LLAMA_8B | {"quantization_config": {"quant_method": "fp8"}},
        L4,
        [VLLM],
        Reason.MODEL_UNSUPPORTED,
        "already quantised ('fp8') … QLoRA … Take the same model in 16 bits",
    ),
    (MOE_30B, L4, [VLLM], Reason.MODEL_UNSUPPORTED, f"INT8 export … (qwen3_moe) … Train a model without … {EXPERTS}"),
]
"""config.json, the profile, the platform's runtimes, and why nothing is trained."""
LLAMA4: Final = {
    "model_type": "llama4",
    "text_config": {"hidden_size": 5120, "num_hidden_layers": 48, "intermediate_size": 8192},
}
WARNED: Final[list[tuple[dict[str, Any], Training, str, list[ServingFacts], str]]] = [
    (
        LLAMA4,
        Training(),
        "INT8",
        [],
        "llama4 is a mixture of experts … no adapter … 9.1 of 108 billion … attention and what all tokens share only … "
        "Whether the INT8 export of llama4's experts can be read back is not known",
    ),
    (QWEN3, Training(), "INT8", [TGI, VLLM_ON_CPUS], "Runtime 'tgi' cannot serve the artifact … no qwen3"),
    (QWEN3, Training(), "INT8", [TGI, VLLM], "Runtime 'tgi' cannot serve the artifact … no qwen3"),
    (
        LLAMA_8B,
        Training(),
        "INT8",
        [LARGE, TGI, NEW],
        "Runtime 'new' cannot serve … Blackwell … / … Runtime 'tgi-large', 'tgi' … with a difference … in float16",
    ),
    (
        LLAMA_8B | {"model_type": "ministral"},
        Training(),
        "INT8",
        [VLLM, ON_CPUS],
        "Runtime 'vllm' is not known to serve … Whether vLLM serves ministral in INT8 … spec.source.artifact",
    ),
    (MOE_30B, Training(), "", [], EXPERTS),
    (MIXTRAL, Training(method=Method.LORA), "", [], "mixtral … 1.3 of 46.7 billion … (2.9%)"),
]
"""config.json, the training, the format, the platform's runtimes, and what to warn of."""


def refusal(row: int) -> StageError:
    """What a row of REFUSED ends in."""
    config, hardware, runtimes, _, _ = REFUSED[row]
    with pytest.raises(StageError) as error:
        require_suitable(config, Training(), "INT8", hardware, runtimes)
    return error.value


def narrow(hidden: int) -> dict[str, Any]:
    """A model of another width."""
    return LLAMA_8B | {"hidden_size": hidden, "num_attention_heads": hidden // 16, "num_key_value_heads": 1}


def test_groups_of_4_bit_weights_must_divide_every_layer() -> None:
    """Known from config.json, so before a GPU is asked for; of a model of unknown shape the export says it."""
    with pytest.raises(StageError) as error:
        require_suitable(narrow(2000), Training(), "INT4", L4, [])
    with pytest.raises(StageError, match="INT4AWQ needs layers"):
        require_suitable(narrow(2000), Training(), "INT4AWQ", L4, [])
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
    assert_says(error.value.message, *GROUPS_REFUSED.split(" … "))
    for config, export_format in ((narrow(2000), "INT8"), (narrow(2016), "INT4"), ({"model_type": "new"}, "INT4")):
        require_suitable(config, Training(), export_format, L4, [])


GROUPS_REFUSED: Final = "export.format INT4 … divisible by 128, 64, 32 … are 2000, 14336 … Choose INT8 or FP8"


@pytest.mark.parametrize(
    ("changes", "training"),
    [
        ({"model_type": "gemma4", "text_config": {"model_type": "gemma4_text"}}, Training()),  # it loads as a whole
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, Training()),  # as QLoRA would round it
        ({"quantization_config": {"quant_method": "mxfp4"}}, Training(method=Method.LORA)),  # may be turned back
        ({"quantization_config": ["mxfp4"]}, Training()),
        ({"model_type": ["mistral3"]}, Training()),
    ],
)
def test_what_may_load_is_not_refused(changes: dict[str, Any], training: Training) -> None:
    require_suitable(LLAMA_8B | changes, training, "", L4)


def warning(row: int) -> str:
    """What is said of a row of WARNED."""
    config, training, export_format, runtimes, _ = WARNED[row]
    advice = require_suitable(config, training, export_format, L4, runtimes)
    return f"{advice.warning} / {advice.note}"


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_what_would_be_in_vain_is_refused(row: int) -> None:
    *_, reason, parts = REFUSED[row]
    assert (refusal(row).reason, refusal(row).retriable) == (reason, False)
    assert_says(refusal(row).message, *parts.split(" … "))


@pytest.mark.parametrize("row", range(len(WARNED)))
def test_what_is_to_be_known_is_told(row: int) -> None:
    assert_says(warning(row), *WARNED[row][-1].split(" … "))


@pytest.mark.parametrize(
    ("config", "training", "hardware", "runtimes"),
    [
        (LLAMA_8B, Training(), L4, []),
        (LLAMA_8B, Training(), L4, [ON_CPUS]),
        (LLAMA_8B, Training(), CPU, [VLLM]),
        (LLAMA_8B, Training(), CPU.model_copy(update={"name": "NVIDIA T4"}), []),
        (LLAMA_8B, Training(), L4.model_copy(update={"name": "my own card"}), [VLLM]),
        (QWEN3, Training(), L4, []),
        ({"model_type": "mamba"}, Training(), L4, []),
        (LLAMA_8B, Training(), L4, [TGI]),
        ({"model_type": ["llama"]}, Training(), L4, [TGI]),
        ({}, Training(), L4, [TGI, VLLM]),
        (LLAMA_8B, Training(method=Method.FULL), L4, [VLLM]),
        (LLAMA_8B, Training(target_modules=["q_proj"]), L4, [VLLM]),
    ],
)
def test_nothing_is_guessed(
    config: dict[str, Any], training: Training, hardware: HardwareFacts, runtimes: list[ServingFacts]
) -> None:
    """A platform without runtimes, what is served, if with a difference, what nobody knows."""
    assert require_suitable(config, training, "INT8", hardware, runtimes).warning == ""


def test_the_stand_in_serves_what_was_trained_without_a_gpu() -> None:
    assert_says(require_suitable(QWEN3, Training(), "INT8", CPU, [TGI, ON_CPUS]).warning, "Runtime 'tgi' cannot serve")


def test_of_several_formats_each_sentence_is_said_once_and_names_its_format() -> None:
    """That experts get no adapter is true of all of them; which runtime serves it with what differs."""
    old = ServingFacts(name="old", engine="tgi", gpu=True, card="NVIDIA T4")
    found = {name: require_suitable(LLAMA4, Training(), name, L4, [old, VLLM]) for name in ("INT8", "FP8", "Merged")}
    advice = joined(found)
    assert advice.warning.count("mixture of experts") == 1
    assert_says(
        advice.warning,
        *("Runtime 'vllm' is not known", "llama4 in INT8", "9.1 of 108 billion", "INT8 export of llama4's experts"),
        *("As FP8: Runtime 'old' cannot serve", "no FP8 kernel for Turing", "As FP8: Runtime 'vllm' is not known"),
        *("As FP8: Whether the FP8 export", "As Merged: Runtime 'vllm' is not known"),
    )
    llama = {name: require_suitable(LLAMA_8B, Training(), name, L4, [TGI]) for name in ("INT8", "FP8")}
    assert joined(llama) == llama["INT8"]
    assert joined({}) == Advice()


def test_a_fully_tuned_mixture_of_experts_is_tuned_whole() -> None:
    assert require_suitable(MOE_30B, Training(method=Method.FULL), "", L4) == Advice()


def test_every_sentence_about_suitability_is_in_a_table() -> None:
    messages = [*(refusal(row).message for row in range(len(REFUSED))), *map(warning, range(len(WARNED)))]
    assert unsaid("finetune_jobs.fit.suitability", messages) == []
