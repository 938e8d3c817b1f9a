"""Stage export: base model and adapter in, a checkpoint of the tuned model in the format that is served out."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_api.export import CALIBRATED, ExportFormat
from finetune_api.layout import Lineage, output_folder
from finetune_api.stages import Stage, Upstream
from finetune_api.training import Method
from finetune_api.usage import usage_of
from finetune_jobs.artifacts import folders
from finetune_jobs.artifacts.formats import ExportedFormat, write_alternatives
from finetune_jobs.base.errors import require
from finetune_jobs.base.progress import Progress
from finetune_jobs.base.versions import versions
from finetune_jobs.exporting.adapter import require_plain, write_adapter, write_base
from finetune_jobs.exporting.calibration import Tokens, calibration_rows
from finetune_jobs.exporting.checkpoint import complete, save_16_bits
from finetune_jobs.exporting.comparison import Compared, require_same
from finetune_jobs.exporting.merge import merge
from finetune_jobs.exporting.quantize import quantize
from finetune_jobs.exporting.rescaling import rescale
from finetune_jobs.fit.exported import require_rounded
from finetune_jobs.modelling.base_model import fetch_base_model
from finetune_jobs.modelling.device import require_promised
from finetune_jobs.modelling.loading import cuda_memory, make_room
from finetune_jobs.modelling.tuning import Tuning, read_tuning
from finetune_jobs.runtime.logs import process_age
from finetune_jobs.runtime.runner import Context, StageOutput, cpu_seconds, lineage, run_stage

TOOLS: Final = ("torch", "transformers", "peft", "bitsandbytes", "llmcompressor", "compressed-tensors")


def export(context: Context) -> StageOutput:
    """Merge and quantise as ``params.export`` says. The first format is the stage's output, the others are put beside
    it, one after the other: scratch never holds two of them."""
    given = context.input
    require_promised(given.hardware)
    params = require(given.params.export, "params.export")
    formats, out = params.export.formats, context.scratch / "quantized"
    base, adapter = context.scratch / "base", context.scratch / "adapter"
    folders.fetch_folder(context.store, output_folder(Stage.TRAIN, given.upstream.adapter), adapter)
    fetch_base_model(context, base)
    parts = TunedParts(base, adapter, read_tuning(adapter, Method(params.method)))
    calibration = _calibration(context, parts) if CALIBRATED.intersection(formats) else ()
    alternatives: list[ExportedFormat] = []
    compared: Compared | None = None
    for number, kind in enumerate([*formats[1:], formats[0]]):
        progress = context.progress.within(number / len(formats), (number + 1) / len(formats))
        if kind is ExportFormat.ADAPTER:
            write_adapter(parts.tuned, out, parts.tuning, _publish_base(context, parts, progress))
            compared = None  # a copy of a file, the same in every byte
        else:
            compared = export_model(parts, out, kind, progress, calibration)
        if kind is not formats[0]:
            alternatives.append(_publish_beside(context, out, kind, compared))
    if alternatives:
        write_alternatives(out, alternatives)
    scalars = _scalars(out, formats[0], compared)
    also = f" Beside it: {', '.join(each.format for each in alternatives)}." if alternatives else ""
    return StageOutput(
        scalars=scalars,
        message=f"{formats[0].value}, {int(scalars['sizeBytes']) / 1e6:.0f} MB.{also}",
        folder=out,
        tools=versions(*TOOLS),
    )


@dataclass(frozen=True)
class TunedParts:
    """What a tuned model is made of."""

    base: Path
    tuned: Path
    """train's output."""
    tuning: Tuning
    """What that is."""


def export_model(
    parts: TunedParts, out: Path, kind: ExportFormat, progress: Progress, calibration: Tokens = ()
) -> Compared:
    """Write the tuned model to ``out`` for TGI 3.3, vLLM and transformers 4 and 5, and compare what was written with
    it; ``calibration``: token ids of training examples, for the formats of CALIBRATED.

    Raises StageError: ModelUnsupported, CudaOutOfMemory, ExportMismatch.
    """
    with cuda_memory("the merged 16-bit model"):
        merging = "merging the adapter into the base model" if parts.tuning.is_adapter else "loading the model"
        progress.report(0.1, merging)
        model = merge(parts.base, parts.tuned, parts.tuning)
        if kind is ExportFormat.MERGED:
            save_16_bits(model, out)
        else:
            progress.report(0.4, f"quantising to {kind.value}")
            rescalings = quantize(model, out, kind, calibration)
            # Rounding has changed the model in place. A second one beside it would take its memory twice.
            del model
            make_room()
            progress.report(0.7, f"{merging} again, to compare the files with it")
            model = merge(parts.base, parts.tuned, parts.tuning)
            rescale(model, rescalings, calibration)
        complete(parts.base, out, parts.tuning)
        progress.report(0.8, "comparing the files with the tuned model")
        compared = require_same(out, model)
    if kind is not ExportFormat.MERGED:
        require_rounded(kind, compared.rounded)
    return compared


def _publish_base(context: Context, parts: TunedParts, progress: Progress) -> str:
    """Put the base of an adapter into the store, where it may be already; its digest."""
    require_plain(parts.tuned, parts.tuning)  # before anything large is written
    folder = context.scratch / "shared-base"
    progress.report(0.1, "writing the base model in 16 bits")
    compared = write_base(parts.base, folder, parts.tuning)
    facts = _scalars(folder, ExportFormat.MERGED, compared)
    # Nothing of the data set is in it, and other adapters share it: whoever traces or erases the data must not meet it.
    history = _history(context).model_copy(update={"upstream": Upstream(model=context.input.upstream.model)})
    digest = folders.publish_folder(context.store, folder, Stage.EXPORT, facts=facts, lineage=history)
    shutil.rmtree(folder)
    return digest


def _publish_beside(context: Context, folder: Path, kind: ExportFormat, compared: Compared | None) -> ExportedFormat:
    """Put one of several formats into the store, and remove it here."""
    facts = _scalars(folder, kind, compared)
    digest = folders.publish_folder(context.store, folder, Stage.EXPORT, facts=facts, lineage=_history(context))
    shutil.rmtree(folder)
    return ExportedFormat(format=kind.value, digest=digest)


def _history(context: Context) -> Lineage:
    """How a folder that is put beside the output comes to be, and what the stage has used until then: it may be what is
    served in the end."""
    given = context.input
    return lineage(given, versions(*TOOLS), usage_of(given.hardware, process_age(), cpu_seconds()))


def _scalars(folder: Path, kind: ExportFormat, compared: Compared | None) -> dict[str, str]:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {"format": kind.value, "sizeBytes": str(size), **(compared.facts() if compared else {})}


def _calibration(context: Context, parts: TunedParts) -> Tokens:
    """Of the rows that the adapter was trained on, which its digest stands for: another data set that gave the very
    same adapter has the same rows."""
    dataset, digest = context.scratch / "dataset", require(context.input.upstream.dataset or None, "upstream.dataset")
    folders.fetch_folder(context.store, output_folder(Stage.PREPARE, digest), dataset)
    return calibration_rows(dataset, parts.base, thoughts=parts.tuning.thoughts)


def main() -> None:
    """Entry point of ``python -m finetune_jobs.export``."""
    run_stage(Stage.EXPORT, export)


if __name__ == "__main__":
    main()
