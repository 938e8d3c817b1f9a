"""Rows into a file of Arrow's columns, in batches: only one batch is in memory at once."""

from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa


class BatchFile(Protocol):
    """An open file that takes batches: Parquet, or Arrow's IPC format."""

    def write_batch(self, batch: Any, /) -> None:
        """Append a batch."""

    def close(self) -> None:
        """Complete the file."""


class BatchWriter:
    """Collects rows of a schema and writes them to a file; a context manager that completes the file."""

    def __init__(self, file: BatchFile, schema: Any, rows: int) -> None:
        """``rows``: how many make a batch."""
        self._file, self._schema, self._rows = file, schema, rows
        self._waiting: list[tuple[Any, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def append(self, *row: Any) -> None:
        """Append a row: its values in the order of the schema."""
        self._waiting.append(row)
        if len(self._waiting) == self._rows:
            self._flush()

    def _flush(self) -> None:
        columns = {name: [row[place] for row in self._waiting] for place, name in enumerate(self._schema.names)}
        self._file.write_batch(pa.record_batch(columns, schema=self._schema))
        self._waiting = []
