"""Can this environment compile what Triton runs on a GPU? It needs no GPU, no driver and no package of ours.

Triton compiles its driver, a C file, with the environment's compiler when it launches its first kernel, and the kernels
themselves for the card. Both are done here ahead of time, for cards of several generations. Run it in the jobs' image,
or anywhere with torch, TRL and Liger: ``python -m hack.gpu.kernels`` prints a line for each as JSON.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import triton
from liger_kernel.ops import geglu, rms_norm, rope, swiglu
from liger_kernel.ops.utils import calculate_settings
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver
from triton.compiler import ASTSource
from triton.language import bfloat16
from triton.runtime.build import _build
from trl.kernels import chunked_logprob

CAPABILITIES = (80, 89, 90, 100)
"""A100; L4 and RTX 40; H100 and H200; B200."""
LOGITS = {"mm_ptr": "*bf16", "mm_stride": "i32", "vocab_start": "i32", "n_cols": "i32", "targets_ptr": "*i64"}
"""What TRL's loss reads; what it keeps is in float32."""
PRECISE = {"RSTD_ptr", "dW_ptr"}
"""Where they keep numbers in float32 that are in bfloat16 otherwise."""
FRACTIONS = {"eps", "offset", "gate_multiplier", "logit_scale", "softcap", "inv_t"}
POINTERS = {"a", "b", "c", "dc", "cos", "sin"}
"""Arguments that are addresses, beside those whose names end so."""
_NORM = {"casting_mode": 0, "elementwise_affine": True, "BLOCK_SIZE": 4096}
_HEADS = _NORM | {"BLOCK_SIZE": 128, "BLOCK_ROW": 16}
_BACK = {"X_dtype": bfloat16, "COMPUTE_DW": True}
_GATE = {"n_cols": 14336, "BLOCK_SIZE": 16384}
_ROTATION = {"bs": 1, "cos_bs": 1, "n_qh": 32, "n_kh": 8, "hd": 128, "rd": 128}
_ROTATION |= {"pad_n_qh": 32, "pad_n_kh": 8, "pad_hd": 128, "pad_rd": 128, "BLOCK_SIZE": 32}
_TRL = {"HAS_SOFTCAP": False, "BLOCK_SIZE": 1024}
KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "_forward_kernel": (
        chunked_logprob._forward_kernel,
        _TRL | {"HAS_ENTROPY": True, "HAS_LOG_SUM_SQ_PROBS": False, "HAS_MEAN_LOGITS": False, "HAS_IS_TOP1": True},
    ),
    "_backward_kernel": (
        chunked_logprob._backward_kernel,
        _TRL | {"HAS_LOGPROB_GRAD": True, "HAS_ENTROPY_GRAD": False},
    ),
    "_rms_norm_forward_kernel": (rms_norm._rms_norm_forward_kernel, _NORM),
    "_rms_norm_backward_kernel": (rms_norm._rms_norm_backward_kernel, _NORM | _BACK),
    "_block_rms_norm_forward_kernel": (rms_norm._block_rms_norm_forward_kernel, _HEADS),
    "_block_rms_norm_backward_kernel": (rms_norm._block_rms_norm_backward_kernel, _HEADS | _BACK),
    "_swiglu_forward_kernel": (swiglu._swiglu_forward_kernel, _GATE),
    "_swiglu_backward_kernel": (swiglu._swiglu_backward_kernel, _GATE),
    "_swiglu_forward_kernel_tiled": (swiglu._swiglu_forward_kernel_tiled, {"BLOCK_SIZE": 1024}),
    "_swiglu_backward_kernel_tiled": (swiglu._swiglu_backward_kernel_tiled, {"BLOCK_SIZE": 1024}),
    "_geglu_tanh_forward_kernel": (geglu._geglu_tanh_forward_kernel, _GATE),
    "_geglu_tanh_backward_kernel": (geglu._geglu_tanh_backward_kernel, _GATE),
    "_triton_rope forward": (rope._triton_rope, _ROTATION | {"BACKWARD_PASS": False}),
    "_triton_rope backward": (rope._triton_rope, _ROTATION | {"BACKWARD_PASS": True}),
}
"""TRL's loss, as the training of a mixture of experts calls it, and Liger's kernels of the sizes of a Llama of 8
billion weights; nothing else launches one of Triton's. With what is fixed when each is compiled."""


def build_driver() -> int:
    """Compile Triton's driver; the bytes of the library. It is linked with the driver's own library, of which an empty
    one will do. Raises RuntimeError without a compiler, subprocess.CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        compiler = shutil.which("gcc") or shutil.which("clang")
        if compiler:
            subprocess.run([compiler, "-shared", "-x", "c", "/dev/null", "-o", place / "libcuda.so.1"], check=True)
        source = Path(driver.dirname, "driver.c")
        libraries = [driver.libdevice_dir, folder]
        return (
            Path(_build("cuda_utils", str(source), folder, libraries, driver.include_dirs, driver.libraries, []))
            .stat()
            .st_size
        )


def compile_kernel(name: str, capability: int) -> int:
    """Compile a kernel for cards of this compute capability; the bytes of its machine code."""
    kernel, fixed = KERNELS[name]
    typed = _logits if kernel.__module__ == chunked_logprob.__name__ else _type
    signature = {each: "constexpr" if each in fixed else typed(each) for each in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    _, warps = calculate_settings(fixed["BLOCK_SIZE"])  # as it is launched, TRL's too; fewer take longer to compile
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": warps}
    return len(triton.compile(source, target=target, options=options).asm["cubin"])


def _type(name: str) -> str:
    """Of an argument of one of Liger's kernels."""
    if name in POINTERS or name.endswith("_ptr"):
        return "*fp32" if name in PRECISE else "*bf16"
    return "fp32" if name in FRACTIONS else "i32"


def _logits(name: str) -> str:
    """Of an argument of TRL's."""
    return "fp32" if name in FRACTIONS else LOGITS.get(name, "*fp32")


def tasks() -> list[tuple[str, Callable[[], int]]]:
    """Everything that is compiled, with a name for it; each answers with bytes, or raises."""
    found: list[tuple[str, Callable[[], int]]] = [("driver", build_driver)]
    for name, capability in product(KERNELS, CAPABILITIES):
        found.append((f"{name} sm_{capability}", partial(compile_kernel, name, capability)))
    return found


def main() -> None:
    """Entry point; the exit code is 1 if anything does not compile."""
    failed = False
    for what, build in tasks():
        try:
            found: dict[str, Any] = {"compiled": what, "bytes": build()}
        except Exception as error:  # noqa: BLE001 # whatever it is, it is the answer
            failed, found = True, {"failed": what, "why": f"{type(error).__name__}: {error}"}
        print(json.dumps(found))
    sys.exit(failed)


if __name__ == "__main__":
    main()
