"""Stage export: base model and adapter in, quantised checkpoint of the tuned model out."""

from pathlib import Path

from finetune_api.layout import output_folder
from finetune_api.stages import Stage
from finetune_api.training import Method
from finetune_jobs.artifacts import folders
from finetune_jobs.base.errors import require
from finetune_jobs.base.progress import Progress
from finetune_jobs.base.versions import versions
from finetune_jobs.exporting.merge import merge
from finetune_jobs.exporting.quantize import quantize_int8
from finetune_jobs.exporting.transformers_v4 import write_transformers_v4
from finetune_jobs.modelling.base_model import fetch_base_model
from finetune_jobs.modelling.device import require_promised
from finetune_jobs.modelling.loading import copy_tokenizer, cuda_memory
from finetune_jobs.modelling.tokenizer import write_served_template
from finetune_jobs.modelling.tuning import Tuning, read_tuning
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage


def export(context: Context) -> StageOutput:
    """Merge and quantise as ``params.export`` says."""
    given = context.input
    require_promised(given.hardware)
    params = require(given.params.export, "params.export")
    base, adapter, out = (context.scratch / name for name in ("base", "adapter", "quantized"))
    folders.fetch_folder(context.store, output_folder(Stage.TRAIN, given.upstream.adapter), adapter)
    fetch_base_model(context, base)
    export_int8(base, adapter, out, read_tuning(adapter, Method(params.method)), context.progress)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return StageOutput(
        scalars={"format": params.export.format.value, "sizeBytes": str(size)},
        message=f"{params.export.format.value}, {size / 1e6:.0f} MB.",
        folder=out,
        tools=versions("torch", "transformers", "peft", "bitsandbytes", "llmcompressor", "compressed-tensors"),
    )


def export_int8(base: Path, tuned: Path, out: Path, tuning: Tuning, progress: Progress) -> None:
    """Write the tuned model to ``out`` as INT8 W8A8 for TGI 3.3, vLLM and transformers 4 and 5.

    Raises StageError: ModelUnsupported, CudaOutOfMemory.
    """
    with cuda_memory("the merged 16-bit model"):
        progress.report(0.1, "merging the adapter into the base model" if tuning.is_adapter else "loading the model")
        model = merge(base, tuned, tuning)
        progress.report(0.5, "quantising to INT8")
        quantize_int8(model, out)
    copy_tokenizer(base, out)
    write_served_template(out, thoughts=tuning.thoughts)
    write_transformers_v4(out)


def main() -> None:
    """Entry point of ``python -m finetune_jobs.export``."""
    run_stage(Stage.EXPORT, export)


if __name__ == "__main__":
    main()
