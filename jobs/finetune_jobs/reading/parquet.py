"""Rows out of Parquet: only columns that are needed, page by page, so that a row group may be larger than memory."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from finetune_jobs.base.progress import Report
from finetune_jobs.reading.content import bomb, open_content, size_limit
from finetune_jobs.reading.rows import MAX_LINE, Fault, Row, invalid, require_columns, too_long

_BATCH: Final = 16
"""Rows in memory at a time: a dictionary page can make every row of a small file as large as its largest text. (To
leave texts in their dictionaries, Arrow would keep those of all other pages of a row group too.)"""
_PAGES: Final = 1 << 20
"""Bytes of a column that are read at a time."""
_REPORTED: Final = 1000
"""Rows between two reports of progress."""
_ERRORS: Final = (pa.ArrowException, OSError, IndexError)
"""What damaged files raise; the last one where a category is not in its dictionary."""
_SHOWN: Final = 80
"""Bytes of a name that an error shows."""
Sizes = npt.NDArray[np.int64]
_NO_VALUE: Final = (pa.ArrowException, ValueError, OverflowError)
"""What Arrow raises for cells that Python cannot hold, such as dates beyond the year 9999."""


def read_parquet(
    path: Path, uri: str, columns: Sequence[str] | None, report: Report | None = None
) -> Iterator[Row | Fault]:
    """Every row, counted from 1; with ``columns`` these only, and each must be text or a number.

    Raises StageError (DatasetInvalid) for a file that is not Parquet or is damaged (names the column), a column that is
    missing or of another type, and a decompression bomb.
    """
    with _plain(path, uri) as plain, _open(plain, uri) as parquet:
        _require_schema(parquet.schema_arrow, uri, columns)
        _require_size(parquet.metadata, uri, plain.stat().st_size)
        names = list(columns or dict.fromkeys(parquet.schema_arrow.names))
        size = path.stat().st_size
        total = parquet.metadata.num_rows
        for number, row in enumerate(_rows(parquet, uri, names), start=1):
            yield row
            if report and number % _REPORTED == 0:
                report(size * number // total, size)


def _rows(parquet: Any, uri: str, names: list[str]) -> Iterator[Row | Fault]:
    number = 0
    for group in range(parquet.num_row_groups):
        batches = parquet.iter_batches(_BATCH, row_groups=[group], columns=names, use_threads=False)
        while rows := _next(batches, number + 1, parquet, uri, group, names):
            yield from rows
            number += len(rows)


def _next(
    batches: Iterator[Any], number: int, parquet: Any, uri: str, group: int, names: Sequence[str]
) -> list[Row | Fault]:
    try:
        batch = next(batches, None)
        return [] if batch is None else list(_batch_rows(batch, number))
    except _ERRORS as error:
        column = next((name for name in names if _is_damaged(parquet, group, name)), names[0])
        problem = f"column {column!r} cannot be read in row group {group + 1} of {parquet.num_row_groups}"
        raise invalid(uri, f"{problem} ({_first_line(error)}). Write the file again.") from None


def _is_damaged(parquet: Any, group: int, name: str) -> bool:
    """Whether this column is the one that cannot be read: Arrow's errors do not say which."""
    try:
        for _ in parquet.iter_batches(_BATCH, row_groups=[group], columns=[name], use_threads=False):
            pass
    except _ERRORS:
        return True
    return False


def _batch_rows(batch: Any, number: int) -> Iterator[Row | Fault]:
    faults: dict[int, Fault] = {}
    values = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        found = _long_texts(column, name, number)
        values.append(_values(column, name, number, found))
        faults = found | faults
    for index, cells in enumerate(zip(*values, strict=True)):
        yield faults.get(index) or Row(number + index, dict(zip(batch.schema.names, cells, strict=True)))


def _long_texts(column: Any, name: str, number: int) -> dict[int, Fault]:
    """Faults of the cells of a batch with too much text, by their place in the batch."""
    long = np.flatnonzero(_text_sizes(column) > MAX_LINE).tolist()
    return {index: too_long(number + index, name) for index in long}


def _text_sizes(column: Any) -> Sizes:
    """Bytes of text in each cell, at any depth."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        sizes = np.append(_text_sizes(column.dictionary), 0)  # the last one for cells without a value
        found: Sizes = sizes[column.indices.cast(pa.int64()).fill_null(len(sizes) - 1).to_numpy(zero_copy_only=False)]
        return found
    if _is_text(kind):
        lengths = pc.binary_length(column.cast(pa.large_string())).fill_null(0)
        return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)
    if pa.types.is_struct(kind):
        total = np.zeros(len(column), dtype=np.int64)
        for each in column.flatten():
            total += _text_sizes(each)
        return total
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(_text_sizes(column.values))])
        ends = before[column.offsets.to_numpy()]
        cells: Sizes = ends[1:] - ends[:-1]
        return cells
    return np.zeros(len(column), dtype=np.int64)


def _values(column: Any, name: str, number: int, faults: dict[int, Fault]) -> list[Any]:
    """The cells of a batch; adds the fault of each that is not UTF-8, for which Arrow does not look before. What Python
    cannot hold is None: all columns of a conversation are read, and none of these is part of it."""
    if not faults:
        with suppress(*_NO_VALUE):
            values: list[Any] = column.to_pylist()
            return [_without_nulls(value) for value in values] if pa.types.is_nested(column.type) else values
    return [None if index in faults else _value(column, name, number, index, faults) for index in range(len(column))]


def _value(column: Any, name: str, number: int, index: int, faults: dict[int, Fault]) -> Any:
    try:
        return _without_nulls(column[index].as_py())
    except UnicodeDecodeError as error:
        problem = f"is not valid UTF-8 at byte {error.start + 1} of a text value"
        faults[index] = Fault(number + index, name, "notUtf8", problem, f"0x{error.object[error.start]:02x}")
        return None
    except _NO_VALUE:
        return None


def _without_nulls(value: Any) -> Any:
    """Objects without keys that are null: a Parquet struct has all keys in all rows, JSON only those that are set."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _require_schema(schema: Any, uri: str, columns: Sequence[str] | None) -> None:
    require_columns(uri, "Parquet file", schema.names, columns)
    for name in columns or ():
        kind = schema.field(name).type
        if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            problem = f"column {name!r} has type {str(kind)[:80]}, must be text (string) or a number"
            raise invalid(uri, f"{problem}. Convert it, or name another column in spec.dataset.columns.")


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _require_size(metadata: Any, uri: str, stored: int) -> None:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    if sum(group.total_byte_size for group in groups) > size_limit(stored):
        raise invalid(uri, bomb(stored))


@contextmanager
def _plain(path: Path, uri: str) -> Iterator[Path]:
    """The file without a compression around it: Parquet is read from its end, which a stream cannot do."""
    with open_content(path, uri) as content:
        if not content.compressed:
            yield path
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".parquet") as plain:
            shutil.copyfileobj(content.stream, plain)
            plain.flush()
            yield Path(plain.name)


@contextmanager
def _open(path: Path, uri: str) -> Iterator[Any]:
    try:
        # Without pre_buffer and with a buffer, a column is read by pages instead of by row groups.
        parquet = pq.ParquetFile(path, pre_buffer=False, buffer_size=_PAGES)
    except _ERRORS as error:
        raise invalid(uri, f"is not a readable Parquet file ({_first_line(error)}).") from None
    except UnicodeDecodeError as error:
        name = repr(error.object[:_SHOWN]).removeprefix("b")
        problem = f"the column name {name} in the footer is not valid UTF-8 at byte {error.start + 1}"
        raise invalid(uri, f"{problem}. Write the file again.") from None
    with parquet:
        yield parquet


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
