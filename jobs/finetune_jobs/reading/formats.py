"""What a file is, as its name says: format and compression (pure)."""

from enum import StrEnum
from typing import Final

from finetune_api.dataset import DataFormat
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

FORMATS: Final = {
    ".csv": DataFormat.CSV,
    ".jsonl": DataFormat.JSONL,
    ".ndjson": DataFormat.JSONL,
    ".json": DataFormat.JSON,
    ".parquet": DataFormat.PARQUET,
}
"""Formats by ending; each may be followed by an ending of ``COMPRESSIONS``."""


class Compression(StrEnum):
    """How a whole file is compressed; the values are the names of Arrow's codecs."""

    GZIP = "gzip"
    ZSTD = "zstd"


COMPRESSIONS: Final = {".gz": Compression.GZIP, ".zst": Compression.ZSTD}
_MAGIC: Final = {b"\x1f\x8b": Compression.GZIP, b"\x28\xb5\x2f\xfd": Compression.ZSTD}
"""First bytes (RFC 1952 and RFC 8878). No UTF-8 text starts with them."""


def format_of(uri: str, declared: DataFormat | None) -> DataFormat:
    """The format that a source declares, or that the file's name ends with. Raises StageError (SpecInvalid)."""
    name = uri.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    found = declared or next((each for ending, each in FORMATS.items() if name.endswith(ending)), None)
    if found is None:
        endings = f"{', '.join(FORMATS)} (each also with {' or '.join(COMPRESSIONS)})"
        raise StageError(
            Reason.SPEC_INVALID,
            f"{uri}: unknown file name extension; supported: {endings}. Set spec.dataset.sources[].format, or remove "
            "the file.",
        )
    return found


def compression_of(uri: str, begin: bytes) -> Compression | None:
    """The compression by file name extension; without one, by the first bytes."""
    by_name = next((each for ending, each in COMPRESSIONS.items() if uri.lower().endswith(ending)), None)
    return by_name or next((each for magic, each in _MAGIC.items() if begin.startswith(magic)), None)
