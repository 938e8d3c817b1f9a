"""The lines of a text file as bytes, each with its number and place, none longer than MAX_LINE."""

from collections.abc import Iterator
from typing import Final

from finetune_jobs.base.progress import Report
from finetune_jobs.reading.content import Content
from finetune_jobs.reading.rows import MAX_LINE, Fault, invalid, too_long

_REPORTED: Final = 1000
"""Lines between two reports of progress."""
_BOM: Final = b"\xef\xbb\xbf"


def skip_bom(content: Content) -> int:
    """Skip a byte order mark and return its length. Raises StageError (DatasetInvalid) for UTF-16."""
    begin = content.stream.peek(3)
    if begin[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise invalid(content.uri, "the file is encoded as UTF-16. Save it as UTF-8.")
    return len(content.stream.read(3)) if begin[:3] == _BOM else 0


class Lines:
    """Iterates over the lines of a file. A line that is too long is a Fault, and never in memory as a whole."""

    def __init__(self, content: Content, report: Report | None = None) -> None:
        self._content, self._report = content, report
        self.number = 0
        """Number of the line that was given last, from 1."""
        self._begin = 0

    def __iter__(self) -> Iterator[bytes | Fault]:
        read = self._content.stream.readline
        end = skip_bom(self._content)
        while raw := read(MAX_LINE + 1):
            self.number += 1
            self._begin, end = end, end + len(raw)
            if len(raw) > MAX_LINE:
                while not raw.endswith(b"\n") and (raw := read(MAX_LINE)):
                    end += len(raw)
                yield too_long(self.number)
            else:
                yield raw
            if self._report and self.number % _REPORTED == 0:
                self._report(self._content.position(), self._content.size)

    def not_utf8(self, raw: bytes, error: UnicodeDecodeError) -> Fault:
        """The fault of the line that was given last, which could not be decoded. Counts decompressed bytes."""
        place = f"byte {self._begin + error.start} of the file, {error.start + 1} of the line"
        return Fault(self.number, "", "notUtf8", f"is not valid UTF-8 at {place}", f"0x{raw[error.start]:02x}")
