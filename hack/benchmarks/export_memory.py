"""Peak memory of an export, by format, as a multiple of the model's size in 16 bits.

A random Llama of 0.6 billion weights, its adapter over 4 bits, is exported to every format, each in a process of its
own. What counts is the process's own memory, Python and torch included (0.5 to 0.8 GB, which weigh more here than with
a larger model); the goal of 2.2 leaves room for the model in 16 bits once, and as much for everything else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.export import WHOLE_MODELS, ExportFormat
from finetune_api.training import Method, Quantization
from hack.benchmarks.exported import export
from hack.benchmarks.result import Result
from hack.cluster.console import say
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2

GOAL = 2.2
ROWS = 32
"""Examples to calibrate on: their number decides time, not the peak."""


@dataclass(frozen=True)
class Size:
    """Of a random Llama."""

    hidden: int = 1536
    layers: int = 16
    intermediate: int = 6144


def run(formats: Sequence[ExportFormat] = WHOLE_MODELS) -> Result:
    """Export to each of these formats; the value is the largest multiple."""
    with tempfile.TemporaryDirectory(prefix="finetune-memory-") as folder:
        work = Path(folder)
        found = measure(work, ensure_smollm2(cache_directory()), Size(), formats)
    worst = max(found["multiples"].values())
    return Result(
        name="export_memory",
        value=worst,
        unit="× the model in bf16",
        baseline=None,
        goal=f"≤ {GOAL}",
        details=found,
    )


def measure(
    work: Path, like: Path, size: Size, formats: Sequence[ExportFormat], python: Path | None = None
) -> dict[str, Any]:
    """Bytes of the model in 16 bits, and the peak of each format as a multiple of it. ``like``: a model whose
    tokenizer and further settings it has."""
    base, tuned, dataset = work / "base", work / "tuned", work / "dataset"
    weights = _write_model(like, base, tuned, size)
    dataset.mkdir()
    turns = [{"role": "user", "content": "what is it worth"}, {"role": "assistant", "content": "as much as it says"}]
    line = json.dumps({"messages": turns}) + "\n"
    (dataset / "train.jsonl").write_text(line * ROWS, encoding="utf-8")
    multiples: dict[str, float] = {}
    for kind in formats:
        peak = export(base, tuned, dataset, work / kind.value, kind, python)
        multiples[kind.value] = round(peak / weights, 3)
        say(f"    {kind.value}: {peak / 2**20:.0f} MiB, {multiples[kind.value]:.2f} × {weights / 2**20:.0f} MiB")
        for file in (work / kind.value).iterdir():
            file.unlink()
    return {"bytes": weights, "multiples": multiples}


def _write_model(like: Path, base: Path, tuned: Path, size: Size) -> int:
    """A random model, and a random adapter over 4 bits; returns the model's bytes in 16 bits."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from finetune_jobs.modelling.loading import copy_tokenizer
    from finetune_jobs.modelling.tuning import Tuning, write_tuning

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(
        like,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        intermediate_size=size.intermediate,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 64,
        head_dim=64,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(base)
    copy_tokenizer(like, base)
    weights: int = sum(2 * each.numel() for each in model.parameters())
    adapter = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    adapter.save_pretrained(tuned)
    write_tuning(tuned, Tuning(method=Method.QLORA, quantization=Quantization.NF4))
    return weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", type=ExportFormat, default=list(WHOLE_MODELS), help="formats")
    result = run(parser.parse_args().only)
    result.write()
    say(json.dumps(result.details, indent=1))
