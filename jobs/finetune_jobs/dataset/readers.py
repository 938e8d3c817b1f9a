"""Rows out of CSV and JSONL files, streamed, with an exact place for everything that is wrong.

A row that cannot be read is a Fault and the reading goes on; a file that cannot be read at all raises StageError.
"""

import csv
import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from finetune_api.dataset import Columns, DataFormat, Source
from finetune_api.reasons import Reason
from finetune_jobs.errors import StageError
from finetune_jobs.progress import Report

MAX_LINE: Final = 1 << 20
"""Longest line of a source in bytes; longer ones are no examples for a language model."""
_ENDINGS: Final = {".csv": DataFormat.CSV, ".jsonl": DataFormat.JSONL, ".ndjson": DataFormat.JSONL}
_REPORTED: Final = 1000
"""Lines between two reports of progress."""
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One row of a source and the line where it begins (from 1)."""

    line: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """Something wrong with a row. ``value`` is shown to people in short, and never stored."""

    line: int
    field: str
    kind: str
    """Name of the class of faults, for counting."""
    problem: str
    value: str = ""


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    fault: Fault | None = None


def format_of(source: Source) -> DataFormat:
    """The format that a source says, or that its name ends with. Raises StageError (SpecInvalid)."""
    found = source.format or next((f for ending, f in _ENDINGS.items() if source.uri.lower().endswith(ending)), None)
    if found is None:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{source.uri}: the name ends with none of {', '.join(_ENDINGS)}. Set spec.dataset.sources[].format.",
        )
    return found


def read_rows(
    path: Path, source: Source, columns: Columns | None, report: Report | None = None
) -> Iterator[Row | Fault]:
    """Every row of the file ``path``, which is a copy of ``source``. ``report`` is told how many bytes are read.

    Raises StageError (DatasetInvalid) for an empty file, one in UTF-16, and a CSV without the columns of ``columns``.
    """
    with path.open("rb") as file:
        begin = file.read(3)
        if begin[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise _invalid(source, "the file is in UTF-16. Save it as UTF-8.")
        file.seek(3 if begin == _BOM else 0)
        lines = _lines(file, file.tell(), path.stat().st_size, report)
        rows = _csv(lines, source, columns) if format_of(source) is DataFormat.CSV else _jsonl(lines)
        count = 0
        for count, row in enumerate(rows, start=1):  # noqa: B007 - the count is needed after the loop
            yield row
    if count == 0:
        raise _invalid(source, "the file is empty: it holds no row.")


def _lines(file: BinaryIO, offset: int, size: int, report: Report | None) -> Iterator[_Line]:
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            while not raw.endswith(b"\n") and (raw := file.readline(MAX_LINE)):
                pass
            yield _Line(number, "", Fault(number, "", "lineTooLong", f"the line is longer than {MAX_LINE} bytes"))
        else:
            yield _decode(raw, number, offset)
        offset = file.tell()
        if report and number % _REPORTED == 0:
            report(offset, size)


def _decode(raw: bytes, number: int, offset: int) -> _Line:
    try:
        return _Line(number, raw.decode())
    except UnicodeDecodeError as error:
        place = f"byte {offset + error.start} of the file, {error.start + 1} of the line"
        fault = Fault(number, "", "notUtf8", f"is not UTF-8 at {place}", f"0x{raw[error.start]:02x}")
        return _Line(number, raw.decode(errors="replace"), fault)


def _jsonl(lines: Iterable[_Line]) -> Iterator[Row | Fault]:
    for line in lines:
        if line.fault:
            yield line.fault
        elif line.text.strip():
            yield _parse_json(line)


def _parse_json(line: _Line) -> Row | Fault:
    text = line.text.rstrip("\r\n")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"is not JSON at column {error.colno}: {error.msg}"
        return Fault(line.number, "", "malformedJson", problem, text[max(0, error.pos - 10) :])
    except (RecursionError, ValueError) as error:
        return Fault(line.number, "", "malformedJson", f"is not JSON that can be read: {type(error).__name__}")
    if not isinstance(value, dict):
        return Fault(line.number, "", "notAnObject", "is not a JSON object", text)
    return Row(line.number, value)


def _csv(lines: Iterable[_Line], source: Source, columns: Columns | None) -> Iterator[Row | Fault]:
    feed = _CsvFeed(lines)
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(feed, strict=True)
    header = _header(reader, feed, source, columns)
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield feed.take_fault() or Fault(begin, "", "malformedCsv", f"is not CSV: {error}")
            continue
        if fault := feed.take_fault():
            yield fault
        elif cells and len(cells) != len(header):
            yield Fault(begin, "", "ragged", f"has {len(cells)} fields, the header has {len(header)}", ",".join(cells))
        elif cells:
            yield Row(begin, dict(zip(header, cells, strict=True)))


def _header(reader: Any, feed: "_CsvFeed", source: Source, columns: Columns | None) -> list[str]:
    try:
        header = [cell.strip() for cell in next(reader)]
    except StopIteration:
        raise _invalid(source, "the file is empty: it holds no header and no row.") from None
    except csv.Error as error:
        raise _invalid(source, f"line 1, the header, is not CSV: {error}.") from None
    if fault := feed.take_fault():
        raise _invalid(source, f"line 1, the header, {fault.problem} ({fault.value}).")
    if columns is None:
        raise _invalid(source, f"a CSV needs spec.dataset.columns; the file has the columns {_quoted(header)}.")
    for name in columns.names:
        if name not in header:
            hint = did_you_mean(name, header)
            raise _invalid(source, f"column {name!r} does not exist; the file has {_quoted(header)}.{hint}")
        if header.count(name) > 1:
            raise _invalid(source, f"column {name!r} exists more than once; the file has {_quoted(header)}.")
    return header


class _CsvFeed:
    """Gives csv.reader the text of lines and keeps the fault of any that went into the current row."""

    def __init__(self, lines: Iterable[_Line]) -> None:
        self._lines = iter(lines)
        self._fault: Fault | None = None

    def __iter__(self) -> "_CsvFeed":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._fault = self._fault or line.fault
        return line.text or "\n"

    def take_fault(self) -> Fault | None:
        """The first fault since the last call."""
        fault, self._fault = self._fault, None
        return fault


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The known name that is closest to a wrong one, as a question, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _quoted(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _invalid(source: Source, problem: str) -> StageError:
    return StageError(Reason.DATASET_INVALID, f"{source.uri}: {problem}")
