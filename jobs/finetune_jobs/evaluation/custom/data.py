"""The folders in stores that metric containers read: their identity, and copies of them.

resolve tells which version of the files a run starts with, without a download. The first part of the evaluation copies
them into the pod's volume, as they were then: it has the keys of their store, the containers have none.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from finetune_api.custom_metrics import DataFolder, MetricData, MetricRun
from finetune_api.hashing import digest
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime.runner import Context
from finetune_jobs.store.copyable import MAX_FILES, require_copyable
from finetune_jobs.store.places import Places
from finetune_jobs.store.s3 import StoredObject
from finetune_jobs.store.transfers import TransferError, Wanted, download_files


def data_digest(places: Places, runs: Sequence[MetricRun]) -> str:
    """Identity of all files that these containers read, in the order of the containers; empty where none reads any.

    Raises StageError: MetricDataNotFound, BucketNotFound, SpecInvalid as ``require_copyable``, or as Store.
    """
    return _digest({run.name: _find(places, run.name, run.data) for run in runs if run.data})


def fetch_data(context: Context, runs: Sequence[MetricRun], target: Path) -> dict[str, DataFolder]:
    """Copy what these containers read, each to a folder named after it; by container, what it was given.

    Raises StageError as ``data_digest``, and MetricDataNotFound for files that are no longer those with which the run
    started.
    """
    found = {run.name: _find(context.places, run.name, run.data) for run in runs if run.data}
    expected = context.input.upstream.metrics
    if expected and _digest(found) != expected:
        raise _changed(", ".join(run.data.uri for run in runs if run.data))
    return {run.name: _fetch(context, run.data, found[run.name], target / run.name) for run in runs if run.data}


def _find(places: Places, metric: str, data: MetricData) -> list[StoredObject]:
    place, field = places.open(data.uri, data.storage), f"spec.evaluation.metrics, {metric!r}, data.uri"
    listed = (entry for entry in place.list() if not entry.key.endswith("/"))  # consoles of stores make folders of them
    entries = sorted(islice(listed, MAX_FILES + 1), key=lambda entry: entry.key)
    if not entries:
        place.require_bucket()
        raise StageError(Reason.METRIC_DATA_NOT_FOUND, f"{field}: {data.uri} contains no files.")
    require_copyable(data.uri, entries, field)
    return entries


def _digest(found: dict[str, list[StoredObject]]) -> str:
    files = [[name, [[each.key, each.size, each.etag] for each in entries]] for name, entries in found.items()]
    return digest(files) if files else ""


def _fetch(context: Context, data: MetricData, entries: Sequence[StoredObject], folder: Path) -> DataFolder:
    place = context.places.open(data.uri, data.storage)
    size, copied = sum(entry.size for entry in entries), 0

    def advance(count: int) -> None:
        nonlocal copied
        copied += count
        context.progress.report(0.99, f"downloading {data.uri}: {copied >> 20} of {size >> 20} MiB")

    wanted = [Wanted(entry.key, folder / entry.key, entry.size, entry.etag) for entry in entries]
    try:
        hashes = download_files(place, wanted, advance, hashing=True)
    except TransferError:
        raise _changed(data.uri) from None
    listed = [[entry.key, entry.size, hashes[entry.key]] for entry in entries]
    return DataFolder(uri=data.uri, sha256=digest(listed), files=len(entries), size=size)


def _changed(uris: str) -> StageError:
    return StageError(
        Reason.METRIC_DATA_NOT_FOUND,
        f"The version of {uris} that this run started with is gone: its files have changed. Set spec.rerun to a new "
        "value to use the new version.",
    )
