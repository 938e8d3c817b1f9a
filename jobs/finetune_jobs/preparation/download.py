"""What prepare reads, on this machine: the sources' files and the pipeline that finds names, as a run found them."""

from pathlib import Path
from typing import Final

from finetune_api.dataset import Dataset, Pii
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.preparation.collect import Copy
from finetune_jobs.reading.inputs import find_names_model, inputs_digest
from finetune_jobs.reading.sources import find_sources
from finetune_jobs.runtime.runner import Context
from finetune_jobs.store.s3 import Store
from finetune_jobs.store.transfers import download_file
from finetune_jobs.text.pii.ner import package_folder

_NAMES_MODEL: Final = "names"
"""Folder in the scratch space with the pipeline that finds names."""


def download(context: Context, dataset: Dataset) -> list[Copy]:
    """Local copies of the sources' files and of the pipeline that finds names, as they were when the run began.

    Raises StageError (DatasetNotFound) when they changed meanwhile, and as ``inputs_digest``.
    """
    before = context.input.upstream.source or inputs_digest(context.places, dataset)
    files = find_sources(context.places, dataset)
    copies = []
    for index, file in enumerate(files):
        context.progress.report(0.2 * index / len(files), f"downloading {file.uri}")
        copies.append(Copy(file, context.scratch / f"source-{index}"))
        file.copy_to(copies[-1].path)
    names, pipeline = dataset.pii.ner, dataset.pii.ner.uri if dataset.pii.ner else None
    if names and pipeline:
        _download_names_model(context, context.places.open(pipeline, names.storage))
    if inputs_digest(context.places, dataset) != before:
        read = [*([pipeline] if pipeline else []), *(file.uri for file in files)]
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"The version of {', '.join(read[:3])}{', …' if read[3:] else ''} that this run started with no longer "
            "exists: a file was overwritten. Set spec.rerun to a new value to use the new version.",
        )
    return copies


def names_model(context: Context, pii: Pii) -> Path | None:
    """The folder of the pipeline that finds names, once it is downloaded. Raises StageError (SpecInvalid)."""
    if pii.ner is None:
        return None
    return package_folder(pii.ner.package) if pii.ner.package else context.scratch / _NAMES_MODEL


def _download_names_model(context: Context, place: Store) -> None:
    folder = context.scratch / _NAMES_MODEL
    for entry in find_names_model(place):
        download_file(place, entry.key, folder / entry.key)
