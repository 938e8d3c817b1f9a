"""What cards reach in training: the share of their peak by method, and how fast they read their memory.

Peaks (dense bfloat16 with float32 sums) and bandwidths are those of NVIDIA's data sheets. Shares are of the operations
of a training step, what checkpointing computes again included. They were chosen by some of the published measurements
in hack/benchmarks/fit_measurements.yaml, which says which; the others are only compared (docs/concepts/fit.md). A share
without a measurement is an assumption, and its source says so.
"""

from dataclasses import dataclass
from typing import Final

from finetune_api.budget import HardwareFacts
from finetune_api.cards import words_of
from finetune_api.training import Method, Quantization, Training

INT8_SHARE: Final = 0.6
"""Speed of a base in LLM.int8, compared with one in 16 bits: it multiplies in two parts, and decomposes for that. An
assumption; Hugging Face measured 0.77 to 0.85 for a model of 176 billion weights, and far less for small ones
(https://huggingface.co/blog/hf-bitsandbytes-integration)."""
OPERATIONS_PER_BYTE: Final = 250.0
"""Of a card that is not in the table: about the middle of those that are (75 to 420)."""


@dataclass(frozen=True)
class Speed:
    """A GPU."""

    words: str
    """What its name holds; of two cards that fit a name, the one with more words is meant."""
    tflops: float
    """Dense peak in TFLOP/s, bfloat16 (of older ones float16) with float32 sums."""
    bandwidth: float
    """Of its memory, in GB/s."""
    nf4: float
    """Share of the peak that QLoRA reaches, with a base in NF4."""
    lora: float
    """The same with a base in 16 bits."""
    full: float
    """The same when all weights are trained."""
    source: str
    """Where the shares are from."""

    def share(self, training: Training) -> float:
        """Share of the peak that such a training reaches."""
        if training.method is Method.FULL:
            return self.full
        return {Quantization.NF4: self.nf4, Quantization.INT8: INT8_SHARE * self.lora, None: self.lora}[
            training.base_quantization
        ]


_QWEN: Final = "https://github.com/QwenLM/Qwen (LoRA)"
_FACTORY: Final = "https://github.com/hiyouga/LLaMA-Factory/wiki/Performance-comparison (NF4)"
_SUROGATE: Final = (
    "https://github.com/invergent-ai/surogate/blob/main/docs/docs/reference/benchmarks.md (Unsloth: NF4, LoRA)"
)
_MOSAIC: Final = "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md"
_FSDP: Final = "https://github.com/AnswerDotAI/fsdp_qlora/blob/main/benchmarks_03_2024.md (without sharding)"
_FMS: Final = "https://github.com/foundation-model-stack/fms-acceleration/tree/main/scripts/benchmarks/refs"

CARDS: Final = (
    Speed("t4", 65, 320, 0.25, 0.25, 0.25, "An assumption: no measurement; models do not train on it (no bfloat16)."),
    Speed("a10", 125, 600, 0.35, 0.40, 0.40, "An assumption: as the A10G, held back by its 150 W."),
    Speed("a10g", 70, 600, 0.45, 0.50, 0.50, "An assumption: as the RTX 3090, the same chip, at less power."),
    Speed("l4", 121, 300, 0.18, 0.20, 0.20, "https://github.com/0xZee/finetune_llama3-1_unsloth (NF4); 72 W for all"),
    Speed("a40", 150, 696, 0.45, 0.50, 0.50, "An assumption: as the RTX 3090, the same chip."),
    Speed("a6000", 155, 768, 0.45, 0.50, 0.50, "An assumption: as the RTX 3090, the same chip."),
    Speed("6000 ada", 364, 960, 0.32, 0.35, 0.35, "An assumption: as the L40S, the same chip."),
    Speed("l40", 181, 864, 0.57, 0.60, 0.60, f"{_FMS} (NF4, LoRA)"),
    Speed("l40s", 362, 864, 0.36, 0.40, 0.40, "An assumption: a third faster than the L40 with the same memory."),
    Speed("3090", 71, 936, 0.65, 0.65, 0.65, f"{_FSDP} (NF4)"),
    Speed("4090", 165, 1008, 0.57, 0.60, 0.60, f"{_FSDP} (NF4)"),
    Speed("5090", 210, 1792, 0.62, 0.65, 0.65, _SUROGATE),
    Speed("a100", 312, 1555, 0.45, 0.48, 0.52, f"{_QWEN}; {_FACTORY}; {_FMS} (Full)"),
    Speed("a100 80gb", 312, 2039, 0.45, 0.48, 0.52, f"{_QWEN}; {_FACTORY}; {_FMS} (Full)"),
    Speed("a800", 312, 2039, 0.45, 0.48, 0.52, "As the A100, whose chip it has."),
    Speed("h100", 989, 3352, 0.33, 0.36, 0.43, f"{_SUROGATE}; {_MOSAIC} (Full)"),
    Speed("h100 pcie", 756, 2039, 0.33, 0.36, 0.43, "An assumption: as the H100 with SXM."),
    Speed("h100 nvl", 835, 3938, 0.33, 0.36, 0.43, "An assumption: as the H100 with SXM."),
    Speed("h800", 989, 3352, 0.33, 0.36, 0.43, "As the H100, whose chip it has."),
    Speed("h200", 989, 4800, 0.33, 0.36, 0.43, f"{_SUROGATE}; Full as the H100, whose chip it has"),
    Speed("b200", 2250, 8000, 0.26, 0.28, 0.28, _SUROGATE),
)


def card_of(hardware: HardwareFacts) -> Speed | None:
    """The card of a profile; None for one that is not in the table."""
    names = words_of(hardware.name)
    fitting = [card for card in CARDS if words_of(card.words) <= names]
    return max(fitting, key=lambda card: len(card.words.split()), default=None)


def unknown(hardware: HardwareFacts) -> Speed:
    """What is assumed of a card that is not in the table: the profile's peak, and a middling share and bandwidth."""
    bandwidth = 1e3 * hardware.peak_tflops / OPERATIONS_PER_BYTE
    return Speed(hardware.name, hardware.peak_tflops, bandwidth, 0.33, 0.36, 0.36, "An assumption.")


def caution(hardware: HardwareFacts) -> str:
    """What is to be known of the estimate of time, in a sentence; empty for a card of the table."""
    if not hardware.has_gpu or not hardware.peak_tflops or card_of(hardware):
        return ""
    return (
        f"What {hardware.name or 'the GPU'} reaches in training is not known: time and cost assume "
        f"{unknown(hardware).lora:.0%} of its peak, and may be wrong by a factor of two until the training measures it."
    )
