"""Identity of the source files: what they were when a run began."""

from collections.abc import Sequence

from finetune_api.dataset import Source
from finetune_api.hashing import digest
from finetune_api.reasons import Reason
from finetune_jobs.errors import StageError
from finetune_jobs.store import Entry, Store


def find_sources(store: Store, sources: Sequence[Source]) -> list[Entry]:
    """Size and ETag of every source. Raises StageError: BucketNotFound, DatasetNotFound (names the URI), as Store."""
    found = []
    for source in sources:
        place = store.at(source.uri)
        entry = place.head()
        if entry is None:
            place.require_bucket()
            raise StageError(Reason.DATASET_NOT_FOUND, f"{source.uri} does not exist.")
        found.append(entry)
    return found


def source_digest(entries: Sequence[Entry]) -> str:
    """Identity of the files: another order, size or content gives another one."""
    return digest([[entry.uri, entry.size, entry.etag] for entry in entries])
