"""Parquet files made in tests."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(columns: dict[str, Any] | pa.Table, **options: Any) -> bytes:
    """A file with these columns; ``options`` as for ``pyarrow.parquet.write_table``."""
    sink = pa.BufferOutputStream()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), sink, **options)
    return bytes(sink.getvalue().to_pybytes())
