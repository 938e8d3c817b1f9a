"""Rows out of source files, streamed, with an exact place for everything that is wrong.

A row that cannot be read is a Fault and the reading goes on; a file that cannot be read at all raises StageError.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune_api.dataset import DataFormat
from finetune_jobs.base.progress import Report
from finetune_jobs.reading.content import open_content
from finetune_jobs.reading.csv_rows import read_csv
from finetune_jobs.reading.json_list import read_json
from finetune_jobs.reading.lines import Lines
from finetune_jobs.reading.rows import Fault, Row, invalid


def read_rows(
    path: Path,
    uri: str,
    kind: DataFormat,
    columns: Sequence[str] | None = None,
    *,
    report: Report | None = None,
    may_be_empty: bool = False,
) -> Iterator[Row | Fault]:
    """Every row of ``path``, which is a copy of ``uri``.

    ``columns`` are those that every row needs, of a Parquet file the only ones that are read. An empty list: rows are
    in a form that needs no mapping. None: any columns will do. ``report`` is told how many bytes are read.

    Raises StageError (DatasetInvalid) for a file without a row (unless it ``may_be_empty``), in UTF-16, cut off,
    damaged or a decompression bomb, and for a table that lacks columns.
    """
    row = None
    for row in _rows(path, uri, kind, columns, report):
        yield row
    if row is None and not may_be_empty:
        raise invalid(uri, "the file is empty: it has no rows.")


def _rows(
    path: Path, uri: str, kind: DataFormat, columns: Sequence[str] | None, report: Report | None
) -> Iterator[Row | Fault]:
    """Other stages share this module in images without pyarrow and orjson: what needs them is imported where used."""
    if kind is DataFormat.PARQUET:
        from finetune_jobs.reading.parquet import read_parquet

        yield from read_parquet(path, uri, columns, report)
        return
    with open_content(path, uri) as content:
        if kind is DataFormat.CSV:
            yield from read_csv(Lines(content, report), uri, columns)
        elif kind is DataFormat.JSONL:
            from finetune_jobs.reading.jsonl import read_jsonl

            yield from read_jsonl(Lines(content, report))
        else:
            yield from read_json(content, report)
