"""Published measurements of training on GPUs: seconds, tokens per second and memory, with their sources. Data only.

``chosen``: by these the shares of ``finetune_jobs.fit.cards`` and the launch time were chosen. All others are only
compared with. What trainers do differently from this project's is set per table. Left out, each for its reason:

- LitGPT's times: the tokens of its examples (Alpaca, by default unpadded) are not published, only the longest.
- Qwen's Q-LoRA: its base is rounded by GPTQ, whose kernels are others than bitsandbytes'.
- ljm565/universal-llm-trainer: its LoRA takes longer than its full tuning, and its 4-bit LoRA five times as long.
- torchtune's RTX A6000: 4,699 tokens/s of LoRA are 135 % of the peak of the card that has this name.
- fsdp_qlora with a sharded base, CPU offloading: this project does neither.
- Vendors' ratios ("2 x faster") without the seconds they are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def _llama(hidden: int, layers: int, heads: int, intermediate: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
    } | more


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool = False) -> dict[str, Any]:
    return _llama(hidden, layers, heads, intermediate, 151936, num_key_value_heads=8, head_dim=128) | {
        "model_type": "qwen3",
        "tie_word_embeddings": tied,
    }


MODELS: dict[str, dict[str, Any]] = {
    "Llama-2-7B": _llama(4096, 32, 32, 11008, 32000),
    "Llama-2-13B": _llama(5120, 40, 40, 13824, 32000),
    "Llama-2-70B": _llama(8192, 80, 64, 28672, 32000, num_key_value_heads=8),
    "Llama-3-8B": _llama(4096, 32, 32, 14336, 128256, num_key_value_heads=8),
    "Llama-3.2-3B": _llama(3072, 28, 24, 8192, 128256, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True),
    "Mistral-7B": _llama(4096, 32, 32, 14336, 32000, num_key_value_heads=8),
    "Qwen-1.8B": _llama(2048, 24, 16, 5504, 151936),
    "Qwen-7B": _llama(4096, 32, 32, 11008, 151936),
    "Qwen-14B": _llama(5120, 40, 40, 13696, 152064),
    "Qwen2.5-7B": _llama(3584, 28, 28, 18944, 152064, num_key_value_heads=4) | {"model_type": "qwen2"},
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen3-8B": _qwen3(4096, 36, 32, 12288),
    "Qwen3-14B": _qwen3(5120, 40, 40, 17408),
    "Qwen3-32B": _qwen3(5120, 64, 64, 25600),
    "MPT-7B": _llama(4096, 32, 32, 16384, 50368) | {"model_type": "gpt_neox", "tie_word_embeddings": True},
    "MPT-13B": _llama(5120, 40, 40, 20480, 50368) | {"model_type": "gpt_neox", "tie_word_embeddings": True},
}
"""Configurations by name. Qwen's first models have Llama's layers under other names, MPT's those of GPT-NeoX."""

CARDS: dict[str, tuple[str, float]] = {
    "A100-40": ("NVIDIA A100-SXM4-40GB", 312),
    "A100-80": ("NVIDIA A100-SXM4-80GB", 312),
    "L4": ("NVIDIA L4", 121),
    "L40": ("NVIDIA L40", 181),
    "3090": ("NVIDIA GeForce RTX 3090", 71),
    "4090": ("NVIDIA GeForce RTX 4090", 165),
    "5090": ("NVIDIA GeForce RTX 5090", 210),
    "H100": ("NVIDIA H100 80GB HBM3", 989),
    "H200": ("NVIDIA H200", 989),
    "B200": ("NVIDIA B200", 2250),
}
"""Product name and dense bfloat16 peak in TFLOP/s."""


@dataclass(frozen=True)
class Measured:
    """One figure, or two of the same run."""

    length: int
    """Tokens per example."""
    seconds: float | None = None
    """Of a pass forward and backward."""
    gib: float | None = None
    """Of the whole process; of its tensors, where the table says so."""
    batch: int = 1
    model: str = ""
    """Another model than the table's."""
    chosen: bool = False


@dataclass(frozen=True)
class Table:
    """Measurements of one source."""

    name: str
    source: str
    card: str
    model: str
    training: dict[str, Any]
    rows: tuple[Measured, ...]
    checkpointing: bool = True
    fused_loss: bool = False
    """Logits are never held: TRL's, Liger's or Unsloth's loss."""
    fused: bool = False
    """Kernels fused by Unsloth, Liger or ``torch.compile``, which this project has not."""
    rounded_keep_inputs: bool = False
    """The product with rounded weights keeps its input, without need: bitsandbytes 0.41, LitGPT's, did."""
    tensors: bool = False
    """Memory is that of tensors: PyTorch's allocated bytes, not the process's."""
    processes: int = 1
    """GPUs that share a model (FSDP)."""


def _by_length(
    lengths: tuple[int, ...],
    seconds: tuple[float | None, ...],
    gib: tuple[float | None, ...],
    *,
    passes: int = 1,
    chosen: bool = False,
) -> tuple[Measured, ...]:
    """``seconds`` are those of so many passes."""
    return tuple(
        Measured(length, each / passes if each else None, memory, chosen=chosen)
        for length, each, memory in zip(lengths, seconds, gib, strict=True)
    )


def _speeds(length: int, batch: int, speeds: dict[str, float], chosen: tuple[str, ...] = ()) -> tuple[Measured, ...]:
    """Tokens per second by model."""
    return tuple(
        Measured(length, batch * length / speed, batch=batch, model=model, chosen=model in chosen)
        for model, speed in speeds.items()
    )


LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
NONE = (None,) * 6
_QWEN = "https://github.com/QwenLM/Qwen/blob/main/README.md (Profiling of Memory and Speed)"
_FACTORY = "https://github.com/hiyouga/LLaMA-Factory/wiki/Performance-comparison"
_FMS = "https://github.com/foundation-model-stack/fms-acceleration/tree/main/scripts/benchmarks/refs"
_VECTOR = "https://github.com/VectorInstitute/vectorlm/blob/master/docs/reference_throughput.md"
_TUNE = "https://github.com/pytorch/torchtune/blob/main/README.md (Memory and training speed)"
_SUROGATE = "https://github.com/invergent-ai/surogate/blob/main/docs/docs/reference/benchmarks.md (columns Unsloth)"
_FSDP = "https://github.com/AnswerDotAI/fsdp_qlora/blob/main/benchmarks_03_2024.md (rows DDP)"
_NEMO = "https://docs.nvidia.com/nemo/automodel/performance/performance-summary.md (Fine-Tuning (LoRA) Performance)"
_MOSAIC = "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md"
_LITGPT = "https://github.com/Lightning-AI/litgpt/blob/main/tutorials/resource-tables.md"
_L4 = "https://github.com/0xZee/finetune_llama3-1_unsloth (README: log of 444 steps of 8 rows of alpaca-cleaned)"
_LORA64 = {"method": "LoRA", "rank": 64}
_ALL = {"method": "LoRA", "rank": 16, "dropout": "0"}
_NF4 = {"method": "QLoRA", "rank": 16, "dropout": "0"}
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_FMS_LORA = {"method": "LoRA", "rank": 16, "dropout": "0", "target_modules": _ATTENTION}
_FMS_NF4 = {"method": "QLoRA", "rank": 16, "dropout": "0", "target_modules": _ATTENTION}
_LITGPT_LORA = {"rank": 8, "dropout": "0.05", "target_modules": ["q_proj", "v_proj"]}
MIB, GB = 1 / 1024, 1e9 / (1 << 30)

TABLES: tuple[Table, ...] = (
    Table(
        "Qwen-7B, LoRA",
        _QWEN,
        "A100-80",
        "Qwen-7B",
        _LORA64,
        _by_length(
            LENGTHS, (1.2, 1.5, 2.8, 5.2, 10.1, 21.3), (20.1, 20.4, 21.5, 23.8, 29.7, 36.6), passes=8, chosen=True
        ),
    ),
    Table(
        "Qwen-1.8B, LoRA",
        _QWEN,
        "A100-80",
        "Qwen-1.8B",
        _LORA64,
        _by_length(LENGTHS, (1.0, 1.0, 1.1, 1.7, 3.3, 6.8), (6.7, 7.4, 8.4, 11.0, 16.2, 21.8), passes=8),
    ),
    Table(
        "Qwen-14B, LoRA",
        _QWEN,
        "A100-80",
        "Qwen-14B",
        _LORA64,
        _by_length(LENGTHS, (1.6, 2.4, 4.4, 8.4, 17.0, 36.0), (34.6, 35.1, 35.3, 37.4, 42.5, 55.2), passes=8),
    ),
    Table(
        "Qwen-1.8B, Full",
        _QWEN,
        "A100-80",
        "Qwen-1.8B",
        {"method": "Full"},
        _by_length(LENGTHS, (2.1, 2.2, 2.2, 2.3, 2.8, 5.6), NONE, passes=8),
    ),
    Table(
        "Llama-2-7B, QLoRA",
        _FACTORY,
        "A100-40",
        "Llama-2-7B",
        {"method": "QLoRA", "rank": 8, "dropout": "0"},
        _by_length(
            (1024, 2048, 4096, 8192, 16384, 32768),
            (1024 / 2295, None, 4096 / 2926, None, 16384 / 3542, None),
            (6, 7, 9, 12, 19, 32),
            chosen=True,
        ),
    ),
    Table(
        "Llama-2-7B, QLoRA, Unsloth",
        _FACTORY,
        "A100-40",
        "Llama-2-7B",
        {"method": "QLoRA", "rank": 8, "dropout": "0"},
        (Measured(1024, 1024 / 2556), Measured(4096, 4096 / 3413), Measured(16384, 16384 / 4050)),
        fused=True,
    ),
    Table(
        "Llama-2-7B, LoRA, FlashAttention-2",
        _FACTORY,
        "A100-40",
        "Llama-2-7B",
        {"method": "LoRA", "rank": 8, "dropout": "0"},
        (Measured(1024, 4096 / 2954, 17, batch=4),),
    ),
    Table(
        "Llama-2-7B, LoRA, Unsloth",
        _FACTORY,
        "A100-40",
        "Llama-2-7B",
        {"method": "LoRA", "rank": 8, "dropout": "0"},
        (Measured(1024, 4096 / 4007, batch=4),),
        fused=True,
    ),
    Table(
        "Mistral-7B, LoRA on attention",
        f"{_FMS}/a100_80gb.csv",
        "A100-80",
        "Mistral-7B",
        _FMS_LORA,
        (
            Measured(4096, 16384 / 3597.6, 26108963328 / 2**30, batch=4),
            Measured(4096, 32768 / 3632.4, 37098695168 / 2**30, batch=8),
        ),
        tensors=True,
    ),
    Table(
        "Mistral-7B, QLoRA on attention",
        f"{_FMS}/a100_80gb.csv",
        "A100-80",
        "Mistral-7B",
        _FMS_NF4,
        (
            Measured(4096, 16384 / 3428.6, 15860019712 / 2**30, batch=4),
            Measured(4096, 32768 / 3514.4, 26849751552 / 2**30, batch=8),
        ),
        tensors=True,
    ),
    Table(
        "Llama-2-70B, QLoRA on attention",
        f"{_FMS}/a100_80gb.csv",
        "A100-80",
        "Llama-2-70B",
        _FMS_NF4,
        (Measured(4096, 16384 / 457.1, 68159977472 / 2**30, batch=4),),
        tensors=True,
    ),
    Table(
        "Mistral-7B, Full",
        f"{_FMS}/a100_80gb.csv",
        "A100-80",
        "Mistral-7B",
        {"method": "Full"},
        (Measured(4096, 16384 / 2775.2, batch=4, chosen=True), Measured(4096, 32768 / 3048.6, batch=8)),
    ),
    Table(
        "Llama-3-8B, LoRA on attention, Liger",
        f"{_FMS}/a100_80gb_liger.csv",
        "A100-80",
        "Llama-3-8B",
        _FMS_LORA,
        tuple(
            Measured(4096, batch * 4096 / speed, peak / 2**30, batch=batch)
            for batch, speed, peak in (
                (4, 3843.6, 24905936896),
                (8, 3878.7, 33567698944),
                (16, 3891.7, 50891223040),
            )
        ),
        fused=True,
        fused_loss=True,
        tensors=True,
    ),
    Table(
        "Llama-3-8B, QLoRA on attention, Liger",
        f"{_FMS}/a100_80gb_liger.csv",
        "A100-80",
        "Llama-3-8B",
        _FMS_NF4,
        tuple(
            Measured(4096, batch * 4096 / speed, peak / 2**30, batch=batch)
            for batch, speed, peak in (
                (4, 4009.2, 14411297792),
                (8, 4105.0, 22936744960),
                (16, 4140.2, 39987639296),
                (32, 4160.0, 74089427968),
            )
        ),
        fused=True,
        fused_loss=True,
        tensors=True,
    ),
    Table(
        "Llama-3-8B, Full, Liger",
        f"{_FMS}/a100_80gb_liger.csv",
        "A100-80",
        "Llama-3-8B",
        {"method": "Full"},
        (Measured(4096, 16384 / 3288.3, batch=4), Measured(4096, 32768 / 3408.7, batch=8)),
        fused=True,
    ),
    Table(
        "Mistral-7B, LoRA on attention",
        f"{_FMS}/l40_40gb.csv",
        "L40",
        "Mistral-7B",
        _FMS_LORA,
        (Measured(4096, 16384 / 2724.3, batch=4, chosen=True), Measured(4096, 32768 / 2715.7, batch=8)),
    ),
    Table(
        "Mistral-7B, QLoRA on attention",
        f"{_FMS}/l40_40gb.csv",
        "L40",
        "Mistral-7B",
        _FMS_NF4,
        (Measured(4096, 16384 / 2517.0, batch=4, chosen=True), Measured(4096, 32768 / 2521.8, batch=8)),
    ),
    Table(
        "Llama-3-8B, LoRA",
        _VECTOR,
        "A100-80",
        "Llama-3-8B",
        {"method": "LoRA", "rank": 8},
        (
            Measured(2048, 16384 / 4079.3, batch=8),
            Measured(4096, 16384 / 3682.2, batch=4),
            Measured(8192, 16384 / 3528.9, batch=2),
        ),
    ),
    Table(
        "Llama-3-8B, Full",
        _VECTOR,
        "A100-80",
        "Llama-3-8B",
        {"method": "Full"},
        (
            Measured(2048, 16384 / 3550.5, batch=8),
            Measured(4096, 16384 / 3461.6, batch=4),
            Measured(8192, 16384 / 3204.2, batch=2),
        ),
    ),
    Table(
        "Llama-3.2-3B, Full, packed",
        _TUNE,
        "A100-80",
        "Llama-3.2-3B",
        {"method": "Full"},
        (Measured(4096, 8192 / 7075, batch=2),),
        checkpointing=False,
    ),
    Table(
        "Llama-3.2-3B, Full, compiled",
        _TUNE,
        "A100-80",
        "Llama-3.2-3B",
        {"method": "Full"},
        (Measured(4096, 8192 / 8998, batch=2),),
        checkpointing=False,
        fused=True,
    ),
    Table(
        "Llama-3.2-3B, Full, compiled, checkpointing",
        _TUNE,
        "A100-80",
        "Llama-3.2-3B",
        {"method": "Full"},
        (Measured(4096, 8192 / 7210, batch=2),),
        fused=True,
    ),
    Table(
        "Llama-3.2-3B, LoRA, compiled",
        _TUNE,
        "A100-80",
        "Llama-3.2-3B",
        _ALL,
        (Measured(4096, 8192 / 8210, batch=2),),
        fused=True,
        fused_loss=True,
        tensors=True,
    ),
    Table(
        "Llama-3.2-3B, QLoRA, compiled",
        _TUNE,
        "A100-80",
        "Llama-3.2-3B",
        _NF4,
        (Measured(4096, 8192 / 8035, batch=2),),
        fused=True,
        fused_loss=True,
        tensors=True,
    ),
    Table(
        "Llama-3.1-8B, QLoRA, compiled",
        _TUNE,
        "4090",
        "Llama-3-8B",
        _NF4,
        (Measured(2048, 4096 / 2413, batch=2),),
        fused=True,
        fused_loss=True,
        tensors=True,
    ),
    Table(
        "Llama-3.1-8B, LoRA, compiled",
        _TUNE,
        "4090",
        "Llama-3-8B",
        _ALL,
        (Measured(2048, 4096 / 3083, batch=2),),
        fused=True,
        fused_loss=True,
        tensors=True,
    ),
    Table(
        "Llama-3.1-8B, Full, compiled",
        _TUNE,
        "4090",
        "Llama-3-8B",
        {"method": "Full"},
        (Measured(2048, 4096 / 1650, batch=2),),
        fused=True,
    ),
    Table(
        "Llama-2-7B, QLoRA",
        _FSDP,
        "4090",
        "Llama-2-7B",
        _NF4,
        (Measured(2048, 450 / 64, batch=8, chosen=True),),
    ),
    Table("Llama-2-7B, LoRA", _FSDP, "4090", "Llama-2-7B", _ALL, (Measured(2048, 437 / 128, batch=4),)),
    Table(
        "Llama-2-7B, QLoRA",
        _FSDP,
        "3090",
        "Llama-2-7B",
        _NF4,
        (Measured(2048, 875 / 64, batch=8, chosen=True),),
    ),
    Table("Llama-2-7B, LoRA", _FSDP, "3090", "Llama-2-7B", _ALL, (Measured(2048, 881 / 128, batch=4),)),
    Table(
        "Llama-3.1-8B, QLoRA, Unsloth: alpaca-cleaned, 190 tokens on average assumed",
        _L4,
        "L4",
        "Llama-3-8B",
        _NF4,
        (Measured(190, 1664.7 / 444 / 4, batch=2, chosen=True),),
        fused=True,
    ),
    *(
        Table(
            f"Qwen3, {name}, Unsloth",
            _SUROGATE,
            card,
            "Qwen3-8B",
            training,
            _speeds(
                2048,
                2,
                {f"Qwen3-{size}": speed for size, speed in speeds.items()},
                ("Qwen3-8B", "Qwen3-0.6B") if card == "H100" else ("Qwen3-8B",),
            ),
            fused=True,
        )
        for card, name, training, speeds in (
            ("H100", "QLoRA", _NF4, {"0.6B": 21e3, "1.7B": 20e3, "4B": 12.6e3, "8B": 8.6e3, "14B": 5.2e3}),
            ("H100", "LoRA", _ALL, {"0.6B": 24.5e3, "1.7B": 23e3, "4B": 13.1e3, "8B": 9.1e3, "14B": 5.6e3}),
            ("H200", "QLoRA", _NF4, {"0.6B": 18.3e3, "1.7B": 18.3e3, "4B": 12.1e3, "8B": 8.4e3}),
            ("H200", "LoRA", _ALL, {"0.6B": 21.7e3, "1.7B": 21.4e3, "4B": 12.8e3, "8B": 9.1e3}),
            ("B200", "QLoRA", _NF4, {"0.6B": 17e3, "1.7B": 16.7e3, "4B": 13.1e3, "8B": 11.3e3}),
            (
                "B200",
                "LoRA",
                _ALL,
                {"0.6B": 19.1e3, "1.7B": 20.3e3, "4B": 14.8e3, "8B": 12.4e3, "14B": 8.6e3, "32B": 4.2e3},
            ),
            ("5090", "QLoRA", _NF4, {"0.6B": 19.1e3, "1.7B": 12e3, "4B": 6e3, "8B": 3.4e3}),
            ("5090", "LoRA", _ALL, {"0.6B": 22.1e3, "1.7B": 12.6e3, "4B": 6.1e3, "8B": 3.5e3}),
        )
    ),
    Table(
        "Llama-3-8B and Qwen2.5-7B, LoRA",
        _NEMO,
        "H100",
        "Llama-3-8B",
        _ALL,
        _speeds(4096, 2, {"Llama-3-8B": 12472.9, "Qwen2.5-7B": 14110.1}),
        checkpointing=False,
        fused=True,
    ),
    *(
        Table(
            f"MPT, Full, 8 GPUs{', checkpointing' if again else ''}",
            _MOSAIC,
            card,
            "MPT-7B",
            {"method": "Full"},
            rows,
            checkpointing=again,
            fused=True,
            processes=8,
        )
        for card, again, rows in (
            (
                "H100",
                False,
                (
                    Measured(2048, 6 * 2048 / 10643, batch=6, chosen=True),
                    Measured(2048, 4096 / 4792, batch=2, model="MPT-13B"),
                ),
            ),
            (
                "H100",
                True,
                (Measured(4096, 65536 / 8611, batch=16), Measured(4096, 40960 / 4717, batch=10, model="MPT-13B")),
            ),
            (
                "A100-80",
                False,
                (Measured(2048, 6 * 2048 / 4641, batch=6), Measured(2048, 4096 / 2262, batch=2, model="MPT-13B")),
            ),
            (
                "A100-80",
                True,
                (Measured(4096, 65536 / 3684, batch=16), Measured(4096, 40960 / 2060, batch=10, model="MPT-13B")),
            ),
            (
                "A100-40",
                True,
                (
                    Measured(2048, 24576 / 3679, batch=12),
                    Measured(4096, 24576 / 3366, batch=6),
                    Measured(2048, 8192 / 1668, batch=4, model="MPT-13B"),
                    Measured(4096, 8192 / 1603, batch=2, model="MPT-13B"),
                ),
            ),
        )
    ),
    Table(
        "Llama 2, LoRA on q_proj and v_proj",
        _LITGPT,
        "A100-40",
        "Llama-2-7B",
        {"method": "LoRA", **_LITGPT_LORA},
        (
            Measured(1304, None, 21.30 * GB),
            Measured(1304, None, 29.07 * GB, batch=2),
            Measured(1304, None, 38.12 * GB, model="Llama-2-13B"),
        ),
        checkpointing=False,
    ),
    Table(
        "Llama 2, QLoRA on q_proj and v_proj",
        _LITGPT,
        "A100-40",
        "Llama-2-7B",
        {"method": "QLoRA", **_LITGPT_LORA},
        (Measured(1304, None, 13.84 * GB), Measured(1304, None, 22.55 * GB, model="Llama-2-13B")),
        checkpointing=False,
        rounded_keep_inputs=True,
    ),
)
