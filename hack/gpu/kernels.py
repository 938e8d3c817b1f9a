"""Can this environment compile what Triton runs on a GPU? It needs no GPU, no driver and no package of ours.

Triton compiles its driver, a C file, with the environment's compiler when it launches its first kernel, and the kernels
themselves for the card. Both are done here ahead of time, for cards of several generations. Run it in the jobs' image,
or anywhere with torch and TRL: ``python -m hack.gpu.kernels`` prints a line for each as JSON.
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
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver
from triton.compiler import ASTSource
from triton.runtime.build import _build
from trl.kernels import chunked_logprob

CAPABILITIES = (80, 89, 90, 100)
"""A100; L4 and RTX 40; H100 and H200; B200."""
LOGITS = {"mm_ptr": "*bf16", "mm_stride": "i32", "vocab_start": "i32", "n_cols": "i32", "targets_ptr": "*i64"}
FLAGS = {
    "_forward_kernel": {
        "HAS_SOFTCAP": False,
        "HAS_ENTROPY": True,
        "HAS_LOG_SUM_SQ_PROBS": False,
        "HAS_MEAN_LOGITS": False,
        "HAS_IS_TOP1": True,
        "BLOCK_SIZE": 1024,
    },
    "_backward_kernel": {
        "HAS_SOFTCAP": False,
        "HAS_LOGPROB_GRAD": True,
        "HAS_ENTROPY_GRAD": False,
        "BLOCK_SIZE": 1024,
    },
}
"""The kernels of TRL's loss, as the training of a mixture of experts calls them; no other launches one of Triton's."""


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
    """Compile a kernel of TRL's loss for cards of this compute capability; the bytes of its machine code."""
    kernel: Any = getattr(chunked_logprob, name)
    flags = FLAGS[name]
    numbers = ("logit_scale", "softcap", "inv_t")
    signature = {
        each: "constexpr" if each in flags else "fp32" if each in numbers else LOGITS.get(each, "*fp32")
        for each in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=flags)
    return len(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"])


def tasks() -> list[tuple[str, Callable[[], int]]]:
    """Everything that is compiled, with a name for it; each answers with bytes, or raises."""
    found: list[tuple[str, Callable[[], int]]] = [("driver", build_driver)]
    for name, capability in product(FLAGS, CAPABILITIES):
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
