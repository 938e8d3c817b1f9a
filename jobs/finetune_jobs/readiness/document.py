"""The look of the reports: one HTML page without scripts, for screens, phones, paper and screen readers.

Foreign text comes in through ``shown`` and its like, and in no other way. Equal content gives equal bytes.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from finetune_jobs.base.wording import shorten
from finetune_jobs.readiness import charts
from finetune_jobs.readiness.charts import Segment
from finetune_jobs.readiness.style import STYLE

_TEXT: Final = 80
"""Most characters of a label, a place or a kind."""
_PLACE: Final = 200
_SENTENCE: Final = 1000
_UNPRINTABLE: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufffe\\uffff]")
"""Characters that no page can hold or that would turn the text around them (Unicode UAX 9)."""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"
"""Content Security Policy (W3C, level 3): nothing is loaded, sent or run, and only this one style sheet counts."""


@dataclass(frozen=True)
class TableRow:
    """A line of a table with bars."""

    name: str
    cells: Sequence[str]
    """As HTML."""
    segments: Sequence[Segment] = ()


def document(title: str, header: str, sections: Iterable[str]) -> str:
    """The page. ``header`` and ``sections`` are HTML, the title plain words of our own."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{title}</h1>\n{header}</header>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def bar_table(caption: str, head: Sequence[str], rows: Iterable[TableRow], *, long: bool = False) -> str:
    """A table whose rows have a bar beside their name; a ``long`` one may be broken between pages."""
    return table(caption, head, rows, "bars long" if long else "bars")


def table(caption: str, head: Sequence[str], rows: Iterable[TableRow], kind: str = "plain") -> str:
    """A table with a caption; ``head`` names its columns, ``kind`` is a class of the style sheet."""
    columns = "".join(f'<th scope="col">{name}</th>' if name else "<td></td>" for name in head)
    lines = "".join(
        f'<tr><th scope="row"><div><bdi>{breakable(shown(row.name))}</bdi>{_bar(row)}</div></th>'
        f"{''.join(f'<td>{cell}</td>' for cell in row.cells)}</tr>\n"
        for row in rows
    )
    return (
        f'<table class="{kind}"><caption>{caption}</caption>\n<thead><tr>{columns}</tr></thead>\n'
        f"<tbody>\n{lines}</tbody></table>\n"
    )


def _bar(row: TableRow) -> str:
    return charts.bar(row.segments) if row.segments else ""


def section(title: str, body: str) -> str:
    """A part of the page under a heading; ``body`` is HTML."""
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>\n"


def shown(text: str, limit: int = _TEXT) -> str:
    """Foreign text as HTML: on one line, without characters that do harm."""
    return escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", shorten(text, limit)))


def sentences(text: str) -> str:
    """Sentences of a report, in which a number and its percent sign stay on one line."""
    return shown(text, _SENTENCE).replace(" %", "\N{NO-BREAK SPACE}%")


def place(uri: str) -> str:
    """A URI as HTML."""
    return f"<code>{breakable(shown(uri, _PLACE))}</code>"


def breakable(shown: str) -> str:
    """A name such as ``card_payment_fee`` or ``unknownLabel`` may be broken where a reader would break it."""
    return re.sub(r"(?<=[_/.:-])(?=\w)|(?<=[a-z])(?=[A-Z])", "<wbr>", shown)
