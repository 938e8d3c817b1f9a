"""What serves which artifact, and on what: engine × architecture × format × GPU generation × number format.

One table, read by the preflight of a FineTuneJob, before a GPU is asked for, and by an AdapterDeployment, before a pod
starts. Each row is a fact with its source. What no row speaks of is not known: an AdapterDeployment that follows a
FineTuneJob starts nothing for it, preflight warns, and of a pinned artifact the verification decides. The rows of an
engine are about its GPU pods; on CPUs, ``tgi`` is the stand-in, which serves what transformers reads.

vLLM's rows are for version 0.32, TGI's for 3.3.7, its last release.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from finetune_api.cards import NO_BFLOAT16, Generation

TGI: Final = "tgi"
VLLM: Final = "vllm"
TITLES: Final = {TGI: "Text Generation Inference", VLLM: "vLLM"}
"""Engines by their name in a runtime's ``engine``, as people call them."""
INT8: Final = "INT8"
QUANTIZED: Final = frozenset({INT8, "W8A16", "FP8", "FP8Static", "INT4", "INT4AWQ"})
"""Formats of artifacts that are rounded (ExportFormat): all but Merged and Adapter."""


class Level(StrEnum):
    """How well a combination works."""

    FINE = "fine"
    CAVEAT = "caveat"
    """It serves, and something is to be known about it."""
    UNKNOWN = "unknown"
    """Nothing is known of it."""
    REFUSED = "refused"


@dataclass(frozen=True)
class Row:
    """A fact about combinations: those that have one of each kind that it names. None: whatever it is."""

    level: Level
    source: str
    """Where it is from: a URL, or what was done here."""
    says: str = ""
    """For people: the fact, and of a refusal the remedy. Names in braces are those of ``suitability.Case``."""
    engine: str | None = None
    architectures: frozenset[str] | None = None
    """``model_type`` of the artifact's config.json."""
    formats: frozenset[str] | None = None
    generations: frozenset[Generation] | None = None
    dtypes: frozenset[str] | None = None
    """What the runtime's environment forces the engine to compute in; empty: the engine decides."""


_TGI_SOURCE: Final = "https://github.com/huggingface/text-generation-inference/blob/v3.3.7"
_TGI_MODELS: Final = f"{_TGI_SOURCE}/server/text_generation_server/models"
_VLLM: Final = "https://github.com/vllm-project/vllm"
_VLLM_MODELS: Final = "https://docs.vllm.ai/en/v0.32.0/models/supported_models/"
_VLLM_DTYPES: Final = f"{_VLLM}/blob/v0.32.0/vllm/config/model.py"
_INT8: Final = frozenset({INT8})
_FLOAT16: Final = frozenset({"float16"})
_CHOSEN_BY_ENGINE: Final = frozenset({""})
_FP8: Final = frozenset({"FP8", "FP8Static"})
_MERGED: Final = frozenset({"Merged"})
ADAPTER: Final = "Adapter"
_ADAPTERS: Final = frozenset({ADAPTER})
_AWQ: Final = frozenset({"INT4AWQ"})
_WEIGHTS_ONLY: Final = frozenset({"W8A16", "INT4"}) | _AWQ
_BLACKWELL: Final = frozenset({Generation.BLACKWELL})
_EXPERTS: Final = frozenset({"mixtral", "qwen3_moe"})
_CONV1D: Final = frozenset({"gpt2", "openai-gpt"})
"""Language models of transformers whose layers are Conv1D, which llm-compressor does not round."""
_GEMMAS: Final = frozenset({"gemma", "gemma2", "gemma3_text"})
_PARTLY_BY_AWQ: Final = frozenset({"glm4", "gpt_neox", "olmo", "olmo2", "olmo3", "phi", "starcoder2"})
_WIDE: Final = frozenset({"gemma2", "gemma3_text", "glm4"})
"""What is not computed in float16, in which it overflows or becomes unstable."""
_VLLM_OWN: Final = frozenset(
    {
        *("llama", "mistral", "ministral3", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma", "phi3", "granite"),
        "cohere2",
    }
)
"""What vLLM computes itself."""
_VLLM_BORROWED: Final = frozenset({"phi", "gpt_neox", "olmo", "olmo2", "olmo3", "smollm3", "starcoder2"})
"""What it has transformers compute."""
_VLLM_16: Final = _VLLM_OWN | _VLLM_BORROWED
"""What vLLM serves in bfloat16 or float16."""
_VLLM_ONLY_16: Final = QUANTIZED | _ADAPTERS
"""What vLLM's kernels compute in bfloat16 or float16 only: everything but whole models as they were trained."""
_VLLM_ONLY_16_SOURCE: Final = (
    f"{_VLLM}/blob/v0.32.0/vllm/_custom_ops.py (cutlass_scaled_mm answers in float16 or bfloat16), "
    "vllm/model_executor/layers/quantization/utils/marlin_utils_fp8.py (FP8 before Ada: scales in either), marlin.cu "
    f"(packed integers: {_VLLM}/issues/28843) and vllm/lora/ops/triton_ops/lora_shrink_op.py (inputs in either)"
)

ROWS: Final[Sequence[Row]] = (
    # The artifact itself
    Row(
        Level.REFUSED,
        "Exported here with llm-compressor 0.14 (tiny models of both families, INT8): it stores every expert apart, as "
        "gate_proj, up_proj and down_proj, and transformers 5.24 cannot load the result.",
        "The {format} export of a mixture of experts ({architecture}) cannot be read back, so that its evaluation "
        "would fail after the training. Train a model without experts.",
        architectures=_EXPERTS,
        formats=QUANTIZED,
    ),
    Row(
        Level.REFUSED,
        "Tried here with llm-compressor 0.14 and transformers 5 (tiny GPT-2, every such format): it rounds layers of "
        "type Linear, and those of this family are Conv1D, https://github.com/huggingface/transformers/blob/v5.24.0/"
        "src/transformers/pytorch_utils.py",
        "No layer of a {architecture} can be rounded to {format}: its layers are of another kind (Conv1D), so that the "
        "export would fail after the training. Choose Merged for spec.export.format, or another base model.",
        architectures=_CONV1D,
        formats=QUANTIZED,
    ),
    Row(
        Level.REFUSED,
        "Tried here with llm-compressor 0.14 (tiny model): norms of this family add one to their weights, and it does "
        "so in 16 bits while it rescales, "
        "https://github.com/vllm-project/llm-compressor/blob/0.14.0.1/src/llmcompressor/modeling/offset_norm.py",
        "AWQ ({format}) rounds the norms of a {architecture}, so that the export would fail after the training. Choose "
        "INT4 for spec.export.format.",
        architectures=_GEMMAS,
        formats=_AWQ,
    ),
    Row(
        Level.REFUSED,
        "Tried here with llm-compressor 0.14 (tiny models): "
        "https://github.com/vllm-project/llm-compressor/blob/0.14.0.1/src/llmcompressor/modifiers/transform/awq/"
        "mappings.py has no names, or not all, for these layers",
        "AWQ ({format}) does not calibrate all layers of a {architecture}, so that the export would fail after the "
        "training. Choose INT4 for spec.export.format.",
        architectures=_PARTLY_BY_AWQ,
        formats=_AWQ,
    ),
    # Text Generation Inference
    Row(
        Level.FINE,
        f"{_TGI_SOURCE}/server/text_generation_server/layers/compressed_tensors/w8a8_int.py",
        engine=TGI,
        formats=_INT8,
    ),
    Row(
        Level.FINE,
        f"{_TGI_SOURCE}/server/text_generation_server/layers/compressed_tensors/w8an_fp.py (static scales of inputs "
        "too: load_input_scale) and wna16_int.py",
        engine=TGI,
        formats=_FP8 | _WEIGHTS_ONLY,
    ),
    Row(
        Level.FINE,
        f"{_TGI_MODELS}/__init__.py (no quantizer: a model of 16 bits)",
        engine=TGI,
        formats=_MERGED,
    ),
    Row(
        Level.REFUSED,
        f"{_TGI_SOURCE}/router/src/server.rs (an adapter that it does not know is answered by the base model)",
        "Text Generation Inference is given no adapters here. Choose a runtime with vLLM, or another "
        "spec.export.format.",
        engine=TGI,
        formats=_ADAPTERS,
    ),
    Row(
        Level.CAVEAT,
        f"{_TGI_MODELS}/flash_causal_lm.py (default_dtype) and __init__.py, which sets another one for Gemma only; "
        f"{_TGI_SOURCE}/launcher/src/main.rs passes --quantize for such artifacts, beside which dtype is refused",
        "Text Generation Inference computes {architecture} in float16, the evaluation did in bfloat16: some answers "
        "may differ, and very large activations overflow.",
        engine=TGI,
        architectures=frozenset({"llama", "mistral", "qwen2", "phi", "phi3", "granite"}),
    ),
    Row(
        Level.FINE,
        f"{_TGI_MODELS}/__init__.py (default_dtype=torch.bfloat16)",
        engine=TGI,
        architectures=_GEMMAS,
    ),
    Row(
        Level.REFUSED,
        f"{_TGI_MODELS}/__init__.py (ModelType has neither; what is left to transformers has none of its quantized "
        "layers); https://github.com/huggingface/text-generation-inference/issues/3226",
        "Text Generation Inference has no {architecture} among the models that it serves in {format}. Choose a runtime "
        "with another engine, or train a Llama, Mistral, Qwen2 or Gemma.",
        engine=TGI,
        architectures=frozenset({"qwen3", "qwen3_moe"}),
        formats=QUANTIZED,
    ),
    Row(
        Level.REFUSED,
        f"{_TGI_MODELS}/custom_modeling/flash_neox_modeling.py (load_qkv reorders the weights of query, key and value "
        "if they are not quantized, their biases always)",
        "Text Generation Inference mixes up the attention weights of a quantized {architecture}, so that its answers "
        "are wrong. Choose a runtime with another engine, or train another base model.",
        engine=TGI,
        architectures=frozenset({"gpt_neox"}),
        formats=QUANTIZED,
    ),
    Row(
        Level.REFUSED,
        f"{_TGI_SOURCE}/server/text_generation_server/layers/compressed_tensors/w8a8_int.py multiplies by "
        f"cutlass_scaled_mm, taken from vLLM, which lacks it there: {_VLLM}/pull/25935",
        "Text Generation Inference has no {format} kernel for {generation} GPUs. Choose a runtime on an older "
        "generation: Ampere, Ada or Hopper.",
        engine=TGI,
        formats=_INT8,
        generations=_BLACKWELL,
    ),
    Row(
        Level.REFUSED,
        f"{_TGI_SOURCE}/server/text_generation_server/layers/marlin/util.py (capability 8.0 or later; of packed "
        "integers the only kernel) and fp8.py beside it (Marlin on 8, otherwise torch._scaled_mm, which needs 8.9)",
        "Text Generation Inference has no {format} kernel for {generation} GPUs. Choose a runtime on a newer "
        "generation: Ampere, Ada or Hopper.",
        engine=TGI,
        formats=_FP8 | _WEIGHTS_ONLY,
        generations=NO_BFLOAT16,
    ),
    Row(
        Level.CAVEAT,
        f"{_TGI_SOURCE}/server/text_generation_server/layers/fp8.py (get_fp8_linear: Marlin, which does not quantize "
        "inputs)",
        "Text Generation Inference does not round activations on {generation} GPUs ({format}), the evaluation did: "
        "some answers may differ.",
        engine=TGI,
        formats=_FP8,
        generations=frozenset({Generation.AMPERE, Generation.ADA}),
    ),
    Row(
        Level.REFUSED,
        f"{_TGI_SOURCE}/server/text_generation_server/cli.py (dtype and quantize exclude each other); the launcher "
        "passes the latter for every artifact that is quantized",
        "Text Generation Inference does not start with a quantized model and a DTYPE ({dtype}). Remove DTYPE from env "
        "of the runtime in the chart's values.",
        engine=TGI,
        formats=QUANTIZED,
        dtypes=frozenset({"float16", "bfloat16"}),
    ),
    Row(
        Level.REFUSED,
        f"{_TGI_MODELS}/__init__.py (default_dtype=torch.bfloat16); bfloat16 needs Ampere: "
        "https://github.com/Dao-AILab/flash-attention#nvidia-cuda-support",
        "Text Generation Inference computes {architecture} in bfloat16, which {generation} GPUs lack. Choose a runtime "
        "on a newer generation: Ampere, Ada or Hopper.",
        engine=TGI,
        architectures=_GEMMAS,
        generations=NO_BFLOAT16,
    ),
    # vLLM
    Row(
        Level.FINE,
        _VLLM_MODELS,
        engine=VLLM,
        architectures=_VLLM_OWN | _WIDE,
    ),
    Row(
        Level.CAVEAT,
        f"{_VLLM}/blob/v0.32.0/vllm/model_executor/models/registry.py (_TRANSFORMERS_SUPPORTED_MODELS)",
        "vLLM has no {architecture} of its own and runs that of transformers, which may be slower.",
        engine=VLLM,
        architectures=_VLLM_BORROWED,
    ),
    Row(
        Level.FINE,
        f"{_VLLM}/blob/v0.32.0/vllm/model_executor/layers/quantization/compressed_tensors/schemes/"
        "compressed_tensors_w8a8_int8.py; its CPU build served such an artifact here",
        engine=VLLM,
        formats=_INT8,
    ),
    Row(
        Level.FINE,
        f"{_VLLM}/blob/v0.32.0/vllm/model_executor/layers/quantization/compressed_tensors/schemes/"
        "compressed_tensors_w8a8_fp8.py (static scales of inputs too: is_static_input_scheme) and "
        "compressed_tensors_wNa16.py",
        engine=VLLM,
        formats=_FP8 | _WEIGHTS_ONLY,
    ),
    Row(
        Level.FINE,
        f"{_VLLM_MODELS} (as they are)",
        engine=VLLM,
        formats=_MERGED,
    ),
    Row(
        Level.FINE,
        "https://docs.vllm.ai/en/v0.32.0/features/lora/",
        engine=VLLM,
        formats=_ADAPTERS,
    ),
    Row(
        Level.CAVEAT,
        f"{_VLLM_DTYPES} (dtype that is asked for)",
        "vLLM is told to compute in {dtype}, the evaluation did in bfloat16: some answers may differ, and very large "
        "activations overflow.",
        engine=VLLM,
        architectures=_VLLM_16,
        dtypes=_FLOAT16,
    ),
    Row(
        Level.REFUSED,
        f"{_VLLM_DTYPES} (_FLOAT16_NOT_SUPPORTED_MODELS)",
        "vLLM does not start {architecture} in {dtype}, which has too small a range for it. Remove --dtype from args "
        "of the runtime in the chart's values.",
        engine=VLLM,
        architectures=_WIDE,
        dtypes=_FLOAT16,
    ),
    Row(
        Level.REFUSED,
        _VLLM_ONLY_16_SOURCE,
        "vLLM's {format} kernels answer in 16 bits, not in {dtype}. Remove --dtype from args of the runtime in the "
        "chart's values.",
        engine=VLLM,
        formats=_VLLM_ONLY_16,
        dtypes=frozenset({"float32"}),
    ),
    Row(
        Level.REFUSED,
        f"{_VLLM}/pull/25935 (says so at startup); {_VLLM}/issues/54311 (the Triton kernel is never asked)",
        "vLLM has no {format} kernel for {generation} GPUs. Choose a runtime on an older generation: Ampere, Ada or "
        "Hopper.",
        engine=VLLM,
        formats=_INT8,
        generations=_BLACKWELL,
    ),
    Row(
        Level.REFUSED,
        "https://docs.vllm.ai/en/v0.14.0/features/quantization/ (Supported hardware: INT8 from Turing on)",
        "vLLM has no {format} kernel for {generation} GPUs. Choose a runtime on a newer generation: Ampere, Ada or "
        "Hopper.",
        engine=VLLM,
        formats=_INT8,
        generations=frozenset({Generation.VOLTA}),
    ),
    Row(
        Level.REFUSED,
        "https://docs.vllm.ai/en/v0.14.0/features/quantization/ (Supported hardware: no Marlin on Volta)",
        "vLLM has no {format} kernel for {generation} GPUs. Choose a runtime on a newer generation: Ampere, Ada or "
        "Hopper.",
        engine=VLLM,
        formats=_FP8 | _WEIGHTS_ONLY,
        generations=frozenset({Generation.VOLTA}),
    ),
    Row(
        Level.CAVEAT,
        "https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/ (weight-only below capability 8.9)",
        "vLLM does not round activations on {generation} GPUs ({format}), the evaluation did: some answers may differ.",
        engine=VLLM,
        formats=_FP8,
        generations=frozenset({Generation.TURING, Generation.AMPERE}),
    ),
    Row(
        Level.CAVEAT,
        f"{_VLLM_DTYPES} (falls back to the first supported dtype)",
        "vLLM computes in float16 on {generation} GPUs, which lack bfloat16, the evaluation did in bfloat16: some "
        "answers may differ, and very large activations overflow.",
        engine=VLLM,
        architectures=_VLLM_16,
        generations=NO_BFLOAT16,
        dtypes=_CHOSEN_BY_ENGINE,
    ),
    Row(
        Level.REFUSED,
        f"{_VLLM_DTYPES} (_FLOAT16_NOT_SUPPORTED_MODELS: what remains is float32); {_VLLM_ONLY_16_SOURCE}",
        "vLLM computes {architecture} in {format} with bfloat16 only, which {generation} GPUs lack. Choose a runtime "
        "on a newer generation: Ampere, Ada or Hopper.",
        engine=VLLM,
        architectures=_WIDE,
        formats=_VLLM_ONLY_16,
        generations=NO_BFLOAT16,
    ),
    Row(
        Level.REFUSED,
        f"{_VLLM}/issues/1157 (asking for bfloat16 ends the server)",
        "{generation} GPUs lack {dtype}. Choose a runtime on a newer generation: Ampere, Ada or Hopper.",
        engine=VLLM,
        generations=NO_BFLOAT16,
        dtypes=frozenset({"bfloat16"}),
    ),
)
"""Every fact that is known."""
