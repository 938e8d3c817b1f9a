"""Rows out of CSV (RFC 4180, strict): the first line is the header."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from finetune_jobs.reading.lines import Lines
from finetune_jobs.reading.rows import MAX_LINE, Fault, Row, invalid, require_columns, too_long


def read_csv(lines: Lines, uri: str, columns: Sequence[str] | None) -> Iterator[Row | Fault]:
    """Every row; empty lines do not count.

    Raises StageError (DatasetInvalid) for a header that cannot be read or lacks ``columns`` (as ``require_columns``).
    """
    feed = _Feed(lines)
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(feed, strict=True)
    header = _header(reader, feed, uri, columns)
    while True:
        begin = lines.number + 1
        feed.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield replace(feed.fault or _malformed(begin, error), rows=lines.number - begin + 1)
            continue
        if feed.fault:
            yield feed.fault
        elif cells and len(cells) != len(header):
            yield Fault(begin, "", "ragged", f"has {len(cells)} fields, the header has {len(header)}", ",".join(cells))
        elif cells:
            yield Row(begin, dict(zip(header, cells, strict=True)))


def _malformed(begin: int, error: csv.Error) -> Fault:
    return Fault(begin, "", "malformedCsv", _problem(error))


def _problem(error: csv.Error) -> str:
    """In the words of CSV where the parser's are about its own settings."""
    said = str(error)
    if "unexpected end" in said:
        return "has an unclosed quotation mark"
    if "new-line character" in said:
        return "has a carriage return (CR) outside of quotation marks: end lines with LF or CRLF"
    return f"is not valid CSV: {said}"


def _header(reader: Any, feed: "_Feed", uri: str, columns: Sequence[str] | None) -> list[str]:
    try:
        header = [cell.strip() for cell in next(reader)]
    except StopIteration:
        raise invalid(uri, "the file is empty: it has no header and no rows.") from None
    except csv.Error as error:
        problem = feed.fault.problem if feed.fault else _problem(error)
        raise invalid(uri, f"line 1 (header) {problem}.") from None
    if fault := feed.fault:
        value = f" ({fault.value})" if fault.value else ""
        raise invalid(uri, f"line 1 (header) {fault.problem}{value}.")
    require_columns(uri, "CSV", header, columns)
    return header


class _Feed:
    """Feeds csv.reader the text of lines and keeps the first fault of the lines in the current row."""

    def __init__(self, lines: Lines) -> None:
        self._lines, self._next = lines, iter(lines).__next__
        self.begin_row()

    def begin_row(self) -> None:
        """Forget the row before."""
        self.fault: Fault | None = None
        self._size = 0

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        raw = self._next()
        if isinstance(raw, Fault):
            self.fault = self.fault or raw
            return "\n"
        self._size += len(raw)
        if self._size > MAX_LINE:  # a quote that is never closed would gather the whole file
            self.fault = self.fault or too_long(self._lines.number, verb="ends a row")
            raise csv.Error(self.fault.problem)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.fault = self.fault or self._lines.not_utf8(raw, error)
            return raw.decode(errors="replace")
