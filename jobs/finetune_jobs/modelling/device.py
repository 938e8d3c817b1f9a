"""Where models run, and in which precision; a pod whose GPU is not what was promised ends here."""

import ctypes
import logging
import platform
from collections.abc import Sequence
from typing import Final

import torch

from finetune_api.budget import HardwareFacts
from finetune_api.reasons import Reason
from finetune_api.training import Quantization
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.cards import Card, Found, described, differences, unusable

log = logging.getLogger(__name__)

_NO_MEMORY: Final = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""In the words of the driver, of Triton and NCCL, which repeat them, and of NVIDIA's libraries."""


def device() -> str:
    """Where models run: this process's GPU (the first one, unless several processes train together), or the CPU."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def precision(where: str | None = None) -> torch.dtype:
    """What a model computes in on ``where`` (``device()`` unless given): bfloat16, which its files hold, where the
    hardware has it. A CPU without it emulates it, which takes many times longer than float32 (docs/benchmarks.md).
    Files are written in bfloat16 in any case.
    """
    if (where or device()) != "cpu" or _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def require_promised(hardware: HardwareFacts | None, own: int = 0) -> None:
    """Log what models run on; ``hardware`` is what the profile has, as far as known, ``own`` the number of the GPU that
    this process uses if there are several.

    Raises StageError (GpuUnusable) if it has GPUs but CUDA cannot be used (torch would silently use the CPUs, and take
    days at the price of the GPUs), if the GPU is not what the work needs (``modelling.cards``), or if it computes
    nothing.
    """
    found = reported()
    if fault := unusable(found, hardware):
        raise StageError(Reason.GPU_UNUSABLE, fault)
    if found.cards:
        _require_answer(found.cards, own)
        log.info("models run on %s, with CUDA %s", described(found.cards), found.cuda)
        for difference in differences(found, hardware):
            log.warning("%s", difference)
        return
    log.info(
        "models run on the CPU, in %s threads and %s",
        torch.get_num_threads(),
        "bfloat16" if _cpu_has_bfloat16() else "float32 (this CPU would have to emulate bfloat16)",
    )


def reported() -> Found:
    """What torch and the driver report of GPUs."""
    cuda = torch.version.cuda or ""
    if not torch.cuda.is_available():
        return Found(cuda=cuda, driver=_driver(), why_not=_why_not())
    cards = tuple(_card(number) for number in range(torch.cuda.device_count()))
    return Found(cards, cuda, _driver(), tuple(torch.cuda.get_arch_list()))


def _require_answer(cards: Sequence[Card], own: int) -> None:
    """Multiply two small matrices. A GPU that fell off its bus, that another process has for itself, or of which the
    node's driver is broken in part is listed like any other, and fails at the first number: after all downloads. Raises
    StageError (GpuUnusable); another pod may get another card."""
    try:
        torch.cuda.set_device(own)  # nothing of this process may take memory of another one's GPU
        ones = torch.ones(64, 64, dtype=torch.bfloat16, device=device())
        found = float((ones @ ones)[0, 0])
    except RuntimeError as error:
        if is_out_of_memory(error):  # others have taken it; what follows says what it lacks room for
            return
        said = " ".join(str(error).splitlines()[0].split())[:300].rstrip(".")
        raise StageError(
            Reason.GPU_UNUSABLE, f"Nothing can be computed on {described(cards)}: {said}.", retriable=True
        ) from error
    if found != len(ones):
        raise StageError(
            Reason.GPU_UNUSABLE, f"{described(cards)} multiplies wrongly: {found:g}, not 64.", retriable=True
        )


def described_device() -> str:
    """What computes, as far as the last digits of a result depend on it."""
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's memory is too small. PyTorch's allocator has a class for that; what takes
    memory beside it only says so: a kernel that is loaded, a library that starts."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def log_peak() -> None:
    """Log the most memory of its GPU that this process has taken, CUDA's own included; nothing without a GPU."""
    if not torch.cuda.is_available():
        return
    free, total = torch.cuda.mem_get_info()
    own = total - free - torch.cuda.memory_reserved()
    most = own + torch.cuda.max_memory_reserved()
    found = (each / 2**30 for each in (most, total, torch.cuda.max_memory_allocated()))
    log.info("the GPU's memory: at most %.2f GiB of %.1f were taken, %.2f by tensors", *found)


def require_kernels(quantization: Quantization | None) -> None:
    """Compile Triton's driver now if there is a GPU, and for a quantised base compute something small as bitsandbytes
    does; otherwise that happens after the model was downloaded. Raises StageError (GpuUnusable)."""
    if not torch.cuda.is_available():
        return
    try:
        from triton.backends.nvidia.driver import CudaUtils  # a second, which only GPUs need

        CudaUtils()
    except Exception as error:  # anything: a compiler that is missing or fails, a library, a driver that is too old
        raise StageError(
            Reason.GPU_UNUSABLE,
            f"The GPU's kernels cannot be compiled in this pod: {' '.join(str(error).split()) or type(error).__name__}",
        ) from error
    require_quantization(quantization)


def require_quantization(quantization: Quantization | None) -> None:
    """Of that, what a stage needs that computes with such a base and does not train. Raises StageError
    (GpuUnusable)."""
    if quantization is None or not torch.cuda.is_available():
        return
    try:
        from bitsandbytes import functional  # seconds, which data stages need not spend

        ones = torch.ones(64, 64, dtype=torch.float16, device=device())
        if quantization is Quantization.INT8:  # a product of its own, which NF4 does without
            rounded, _, _ = functional.int8_vectorwise_quant(ones)
            functional.int8_linear_matmul(rounded, rounded)
        else:
            functional.quantize_4bit(ones.bfloat16(), quant_type="nf4")
        torch.cuda.synchronize()
    except Exception as error:  # its library was not made for this CUDA, or has no kernel for this card
        if is_out_of_memory(error):
            return
        raise StageError(
            Reason.GPU_UNUSABLE,
            f"bitsandbytes cannot compute in {quantization} on this GPU: {' '.join(str(error).split())[:300]}",
        ) from error


def _cpu_has_bfloat16() -> bool:
    """By the library that computes, and by the CPU's instructions: oneDNN also accepts AVX512 without the BF16
    extension, where a product of matrices takes four times as long as in float32 (docs/benchmarks.md)."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    x86 = platform.machine() == "x86_64"
    return not x86 or bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _card(number: int) -> Card:
    properties = torch.cuda.get_device_properties(number)
    return Card(properties.name, properties.total_memory / 2**30, (properties.major, properties.minor))


def _driver() -> str:
    """The newest CUDA that the driver supports, asked of the driver itself: torch does not start with one that is too
    old, and says its version in a number only. Empty without one."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return ""
    except (OSError, AttributeError):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _why_not() -> str:
    """The first sentence of torch's own explanation."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"{str(error).splitlines()[0].partition('. ')[0].rstrip('.')}."
    return "torch gives no reason."
