"""Loads base models, adapters and exported artifacts: safetensors only, never a checkpoint's code."""

import gc
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.integrations.bitsandbytes import dequantize_bnb_weight
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import logging as transformers_logging

from finetune_api.reasons import Reason
from finetune_api.training import Quantization
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.device import device, is_out_of_memory, precision
from finetune_jobs.modelling.tokenizer import readable, unsupported

DTYPE: Final = torch.bfloat16
"""Precision of everything that is written and not quantised, whatever computed it."""
EVERY_GPU: Final = "balanced"
"""accelerate's word for a model's layers one after the other on all GPUs, in parts of like size."""
DIVISIBLE: Final = torch.bfloat16
"""What 4-bit weights are packed into where they are sharded: FSDP takes floating-point numbers only. Nothing ever
computes with them as such."""


def rounding(quantization: Quantization, dtype: torch.dtype, storage: torch.dtype = torch.uint8) -> BitsAndBytesConfig:
    """How bitsandbytes rounds a base model that computes in ``dtype``; 4-bit weights are packed into numbers of the
    type ``storage``.

    NF4: 4-bit NormalFloat with double quantisation (QLoRA, Dettmers et al. 2023, arXiv 2305.14314). INT8: 8 bits per
    row, outliers of the activations apart (LLM.int8, Dettmers et al. 2022, arXiv 2208.07339).
    """
    if quantization is Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=storage,
    )


def load_base(
    folder: Path,
    quantization: Quantization | None = None,
    *,
    dtype: torch.dtype | None = None,
    where: str | None = None,
    divisible: bool = False,
) -> Any:
    """The base model, quantised if asked for; the rest in ``dtype``; on ``device()`` unless ``where`` is given.

    Without ``dtype``, its values are those of 16 bits, with which an adapter will be merged, and it computes in what is
    best there. ``divisible``: 4-bit weights are packed so that several processes can share them
    (``training.sharding``). Raises StageError(ModelUnsupported).
    """
    kept, computing = dtype or DTYPE, dtype or precision(where)
    where = where if dtype else where or _everywhere()
    storage = DIVISIBLE if divisible else torch.uint8
    options = {} if quantization is None else {"quantization_config": rounding(quantization, computing, storage)}
    model = _load(folder, kept, where, **options)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype is kept and not isinstance(tensor, Params4bit):
            tensor.data = tensor.data.to(computing)
    _keep_unpacked(model)
    return model


def build_base(folder: Path, quantization: Quantization | None = None, *, dtype: torch.dtype) -> Any:
    """The same model as ``load_base(..., divisible=True)`` without its weights, which have a shape and a type only
    (PyTorch's meta device): for a process that gets its share of them from another one."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model.tie_weights()  # every weight was registered on its own
    if quantization is None:
        return model
    model.hf_quantizer = AutoHfQuantizer.from_config(rounding(quantization, dtype, DIVISIBLE), pre_quantized=False)
    model.hf_quantizer.preprocess_model(model, dtype=dtype, device_map={"": "cpu"})
    model.hf_quantizer.postprocess_model(model)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            given = module.weight
            packed = (given.numel() + 1) // 2 // DIVISIBLE.itemsize
            module.weight = Params4bit(
                torch.empty(packed, 1, dtype=DIVISIBLE, device="meta"),
                blocksize=given.blocksize,
                compress_statistics=given.compress_statistics,
                quant_type=given.quant_type,
                quant_storage=DIVISIBLE,
                module=module,
                bnb_quantized=True,
            )
    _keep_unpacked(model)
    return model


def _everywhere() -> str | None:
    """Where a model runs without being trained: on all GPUs, layer after layer, if a process has several to itself, as
    evaluation has where one is too small (``fit.afterwards``); otherwise on ``device()``."""
    return EVERY_GPU if torch.cuda.device_count() > 1 and not torch.distributed.is_initialized() else None


def _keep_unpacked(model: Any) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks the weights when the model computes in eval mode: that rounds
    their scales to bfloat16, and the packed path has no backward pass, so training would continue with wrong gradients
    after the first validation."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def unpacked(base: Any) -> Any:
    """A model of ``load_base`` that is to be asked much: on a CPU its 4-bit weights are turned back into numbers once.
    Otherwise every pass does that, for one token as for a thousand. They are the same numbers.

    A GPU, which may be too small for more, keeps them packed, and is quick at it. Without one, pods have the memory:
    exported models take as much.
    """
    packed = any(isinstance(module, Linear4bit) for module in base.modules())
    return plain(base) if packed and base.device.type == "cpu" else base


def plain(base: Any) -> Any:
    """A model of ``load_base`` with its rounded weights as numbers of 16 bits, or of what 4-bit ones compute in. Each
    layer's packed weights are gone once it is unpacked: transformers' own ``dequantize`` keeps all of them to its end,
    and unpacks each twice."""
    names = [name for name, module in base.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)]
    if not names:
        return base
    for name in names:
        base.set_submodule(name, _plain(base.get_submodule(name)))
    base.hf_quantizer.remove_quantization_config(base)
    return base


def _plain(packed: Linear4bit | Linear8bitLt) -> torch.nn.Linear:
    """A layer of rounded weights with its weights as numbers."""
    with torch.device("meta"):
        layer = torch.nn.Linear(packed.in_features, packed.out_features, bias=False)
    layer.weight = torch.nn.Parameter(_numbers(packed), requires_grad=False)
    layer.bias = packed.bias
    packed.weight = None  # it may refer to its layer, so that both would wait for the garbage collector
    return layer


def _numbers(packed: Linear4bit | Linear8bitLt) -> torch.Tensor:
    if isinstance(packed, Linear8bitLt):
        return dequantize_bnb_weight(packed.weight, packed.state).to(DTYPE)
    state = packed.weight.quant_state
    state.dtype = packed.compute_dtype  # which a pass without gradients turns them into as well
    return dequantize_4bit(packed.weight.data, state)


def load_checkpoint(folder: Path, *, dtype: torch.dtype | None = None, where: str | None = None) -> Any:
    """A checkpoint with the values that its files hold, e.g. an exported artifact with its own quantisation; to compute
    in ``dtype``, or what is best there; on ``device()`` unless ``where`` is another one."""
    return _load(folder, dtype or precision(where), where if dtype else where or _everywhere())


def load_adapter(base: Any, folder: Path) -> Any:
    """``base`` with the adapter of ``folder`` on it, for inference."""
    return PeftModel.from_pretrained(base, folder).eval()


TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Every file that a tokenizer of transformers may consist of."""


def copy_tokenizer(base: Path, out: Path) -> None:
    """The base model's tokenizer, byte for byte: tuning does not change how text is encoded and decoded."""
    for name in TOKENIZER_FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, out / name)


@contextmanager
def cuda_memory(load: str) -> Iterator[None]:
    """Turns CUDA's out-of-memory error into StageError(CudaOutOfMemory); ``load`` is what did not fit."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(Reason.CUDA_OUT_OF_MEMORY, f"The GPU's memory is too small for {load}.") from error


def make_room() -> None:
    """A deleted model may survive in reference cycles, and its memory in the allocator."""
    gc.collect()
    torch.cuda.empty_cache()


def _load(folder: Path, dtype: torch.dtype, where: str | None = None, **options: Any) -> Any:
    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()  # its records go into this stage's log, as they are
    transformers_logging.enable_propagation()
    with readable("config.json", folder):
        config = json.loads((folder / "config.json").read_text())
        if "auto_map" in config and "model_type" not in config:
            raise unsupported("config.json", "it requires code from the checkpoint, which is never run")
    with readable("weights", folder):
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map=where if where == EVERY_GPU else {"": where or device()},
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
            **options,
        )
    _require_all(loaded)
    # Of a checkpoint's generation settings only its tokens are kept: transformers and vLLM would otherwise sample or
    # penalise repetition wherever a caller leaves that open, so that served, evaluated and greedy answers differ.
    settings = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=settings.bos_token_id, eos_token_id=settings.eos_token_id, pad_token_id=settings.pad_token_id
    )
    return model


def _require_all(loaded: dict[str, Any]) -> None:
    """transformers fills in what a checkpoint lacks with random values and a warning."""
    if lacking := sorted(loaded["missing_keys"]):
        raise unsupported("weights", f"the files lack {_some(lacking)}, which config.json requires")
    if others := sorted(name for name, *_ in loaded["mismatched_keys"]):
        raise unsupported("weights", f"config.json gives another size for {_some(others)}")


def _some(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
