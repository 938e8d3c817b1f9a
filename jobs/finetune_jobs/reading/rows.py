"""What readers yield: a row with its place in the file, or a fault that describes the problem."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import did_you_mean
from finetune_jobs.text.redaction import redacted

MAX_LINE: Final = 1 << 20
"""Longest line, row or text of a source in bytes; longer ones are not useful as examples."""

CHAT_FORMS: Final = (
    ("messages",),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("conversations",),
)
"""Columns by which the forms that need no spec.dataset.columns are recognised (``examples.shapes``)."""


@dataclass(frozen=True)
class Row:
    """One row of a source and its place."""

    line: int
    """The line where it starts (CSV, JSONL), or the number of the row (JSON, Parquet); both count from 1."""
    fields: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """Something wrong with a row."""

    line: int
    """As ``Row.line``."""
    field: str
    kind: str
    """Name of the class of faults, for counting."""
    problem: str
    value: str = ""
    """Part of the row; shown to people in short, and never stored."""
    begin: int = 0
    """Start of the part of ``value`` that is shown; the text before it tells whether that part is a secret."""
    rows: int = 1
    """Rows that are lost with it: a wrong quotation mark in CSV takes in lines that may all be rows."""
    hint: str = ""
    """What may have been meant, as ``did_you_mean`` says it."""


def too_long(line: int, field: str = "", verb: str = "is") -> Fault:
    """The fault of a line or field that ``verb`` longer than ``MAX_LINE``."""
    return Fault(line, field, "lineTooLong", f"{verb} longer than {MAX_LINE} bytes")


def invalid(uri: str, problem: str) -> StageError:
    """The error of a file that cannot be read."""
    return StageError(Reason.DATASET_INVALID, f"{uri}: {problem}")


def require_columns(uri: str, kind: str, have: Sequence[str], needed: Sequence[str] | None) -> None:
    """Raises StageError (DatasetInvalid) unless a table has each needed column once.

    When none is needed it must have the columns of one of ``CHAT_FORMS``, each once; None: any columns will do.
    ``kind`` is the format's display name.
    """
    if needed is None:
        return
    form = next((form for form in CHAT_FORMS if set(form) <= set(have)), ())
    if not needed and not form:
        problem = f"a {kind} needs spec.dataset.columns; the file has the columns {quoted(have)}."
        raise invalid(uri, problem)
    for name in needed or form:
        if name not in have:
            hint = did_you_mean(name, have)
            raise invalid(uri, f"column {name!r} does not exist; the file has {quoted(have)}.{hint}")
        if have.count(name) > 1:
            raise invalid(uri, f"column {name!r} appears more than once; the file has {quoted(have)}.")


def quoted(names: Sequence[str]) -> str:
    """Names for messages: at most twelve, each cut to 40 characters; without a header they are a row's data."""
    shown = ", ".join(repr(redacted(name[:200])[:40]) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
