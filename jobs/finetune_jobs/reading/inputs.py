"""Everything that prepare reads besides the base model, as one digest by which earlier results are found."""

from itertools import islice

from finetune_api.dataset import Dataset
from finetune_api.hashing import digest
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.reading.sources import find_sources, source_digest
from finetune_jobs.store.copyable import MAX_FILES, require_copyable
from finetune_jobs.store.places import Places
from finetune_jobs.store.s3 import Store, StoredObject


def inputs_digest(places: Places, dataset: Dataset) -> str:
    """Identity of the sources' files, and of the files of the named-entity pipeline if it is in S3.

    Raises StageError as ``find_sources`` and ``find_names_model``.
    """
    sources = source_digest(find_sources(places, dataset))
    if dataset.pii.ner is None or dataset.pii.ner.uri is None:
        return sources
    pipeline = find_names_model(places.open(dataset.pii.ner.uri, dataset.pii.ner.storage))
    return digest([sources, [[entry.key, entry.size, entry.etag] for entry in pipeline]])


def find_names_model(place: Store) -> list[StoredObject]:
    """The files of a pipeline that finds names, in its folder. Raises StageError: ModelNotFound, SpecInvalid as
    ``require_copyable``, as Store."""
    entries = list(islice((entry for entry in place.list() if entry.size), MAX_FILES + 1))
    if not entries:
        problem = f"{place.uri()} contains no files: spec.dataset.pii.ner needs a spaCy pipeline."
        raise StageError(Reason.MODEL_NOT_FOUND, problem)
    require_copyable(place.uri(), entries, "spec.dataset.pii.ner.uri")
    return entries
