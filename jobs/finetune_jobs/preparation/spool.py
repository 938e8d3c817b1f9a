"""Examples between the first pass over the rows and the second: on disk, in Arrow's IPC format.

The first pass reads, checks and tokenises every row; only when all are known can they be divided. A set may be larger
than memory, so what the second pass writes waits here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from finetune_jobs.modelling.chat import Encoded
from finetune_jobs.preparation.batches import BatchWriter

BATCH: Final = 512
"""Rows that are held in memory at once, on both sides."""
_TOKENS: Final = pa.list_(pa.list_(pa.int32()))
_SCHEMA: Final = pa.schema({"index": pa.int64(), "text": pa.binary(), "input_ids": _TOKENS, "labels": _TOKENS})


@dataclass(frozen=True)
class Spooled:
    """One example."""

    index: int
    """Its number in the ledger."""
    text: bytes
    """Its line of the data set's JSONL file, without the line's end."""
    encoded: list[Encoded]
    """It as tokens: one piece, or several where the chat template asks for that."""


class SpoolWriter(BatchWriter):
    """A new spool; a context manager that completes the file."""

    def __init__(self, path: Path) -> None:
        file = pa.ipc.new_file(path, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        super().__init__(file, _SCHEMA, BATCH)

    def add(self, example: Spooled) -> None:
        """Append an example."""
        pieces = example.encoded
        input_ids, labels = [piece.input_ids for piece in pieces], [piece.labels for piece in pieces]
        self.append(example.index, example.text, input_ids, labels)


def read_texts(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and line of all examples, as ``Spooled`` has them, in their order; tokens are not read."""
    for rows in _batches(path, ["index", "text"]):
        for row in rows:
            yield row["index"], row["text"]


def read_spool(path: Path) -> Iterator[Spooled]:
    """All examples of a completed spool, in their order."""
    for rows in _batches(path, _SCHEMA.names):
        for row in rows:
            pieces = zip(row["input_ids"], row["labels"], strict=True)
            yield Spooled(row["index"], row["text"], [Encoded(*piece) for piece in pieces])


def _batches(path: Path, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    options = pa.ipc.IpcReadOptions(included_fields=[_SCHEMA.get_field_index(column) for column in columns])
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).to_pylist()
