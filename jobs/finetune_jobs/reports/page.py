"""How a report becomes a page: one HTML file without scripts, for screens, phones, paper and screen readers.

A room that reports lays its figures out as plain data (``Table``, ``Fact``, the charts of ``reports.charts``); its
template, beside its code, says in which order they stand. The template of a page extends ``reports/frame.html.j2``.

Foreign text is escaped by Jinja wherever it stands, and ``printable`` takes out what escaping does not: a page cannot
be changed by what it shows. Equal content gives equal bytes.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from finetune_jobs.base.wording import shorten
from finetune_jobs.reports.charts import Bar

_NAME: Final = 80
"""Most characters of a label, a kind or a cell."""
_PLACE: Final = 200
_SENTENCE: Final = 1000
_UNPRINTABLE: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufffe\\uffff]")
"""Characters that no page can hold or that would turn the text around them (Unicode UAX 9)."""
_BREAKS: Final = re.compile(r"(?<=[_/.:-])(?=\w)|(?<=[a-z])(?=[A-Z])")
_ROOT: Final = Path(__file__).parents[1]

STYLE: Final = (_ROOT / "reports/style.css").read_text(encoding="utf-8")
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"
"""Content Security Policy (W3C, level 3): nothing is loaded, sent or run, and only this one style sheet counts."""


@dataclass(frozen=True)
class Fact:
    """A line of a page's identity: what it is about."""

    name: str
    values: Sequence[str]
    code: bool = False
    """Whether the values are URIs or digests."""
    more: int = 0
    """Values that are left out."""


@dataclass(frozen=True)
class TableRow:
    """A line of a table."""

    name: str
    cells: Sequence[str]
    bar: Bar | None = None


@dataclass(frozen=True)
class Table:
    """A table with a caption."""

    caption: str
    head: Sequence[str]
    """Names of the columns; the first one may be empty."""
    rows: Sequence[TableRow]
    long: bool = False
    """Whether the table may be broken between two sheets of paper; on a phone its rows are folded."""
    words: bool = False
    """Whether its cells are words, not numbers."""
    of_place: bool = False
    """Whether its caption is a URI."""

    @property
    def style(self) -> str:
        """Its classes in the style sheet."""
        kind = "words" if self.words else "bars" if any(row.bar for row in self.rows) else "plain"
        folded = ["long", f"cells-{len(self.head) - 1}"] if self.long else []
        return " ".join([kind, *folded, *(["of-place"] if self.of_place else [])])


def render(template: str, title: str, identity: Sequence[Fact], **content: object) -> str:
    """The page of a template, which is named by its path in this package.

    ``identity``: job, model and data, as far as the page's maker knows them.
    """
    return _ENVIRONMENT.get_template(template).render(title=title, identity=identity, **content)


def render_part(template: str, **content: object) -> str:
    """A part of a page, without a frame: HTML that stands on pages as it is."""
    return _ENVIRONMENT.get_template(template).render(**content)


def uris(name: str, places: Sequence[str], most: int) -> Fact:
    """Several URIs, of which the first ``most`` are shown."""
    return Fact(name, places[:most], code=True, more=max(0, len(places) - most))


def printable(value: Any) -> Any:
    """What an expression of a template puts on the page."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    return value


def _name(text: str, limit: int = _NAME) -> Markup:
    """On one line; a name such as ``card_payment_fee`` or ``unknownLabel`` may be broken where a reader would."""
    return Markup(_BREAKS.sub("<wbr>", str(escape(printable(shorten(text, limit))))))  # noqa: S704 # escaped


def _place(uri: str) -> Markup:
    return _name(uri, _PLACE)


def _sentences(text: str) -> str:
    """A number and its percent sign stay on one line."""
    return shorten(text, _SENTENCE).replace(" %", "\N{NO-BREAK SPACE}%")


def _quote(text: str, limit: int) -> Markup:
    """What a person or a model wrote, with its line breaks."""
    cut = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return Markup("\n").join(escape(printable(line)) for line in cut.expandtabs(2).splitlines())


def _percent(share: float) -> str:
    """A place along the width of a chart."""
    return f"{share * 100:.2f}%"


_ENVIRONMENT: Final = Environment(
    loader=FileSystemLoader(_ROOT),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=printable,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {
    "name": _name,
    "place": _place,
    "sentences": _sentences,
    "quote": _quote,
    "percent": _percent,
    "short": shorten,
}
_ENVIRONMENT.globals |= {"style": Markup(STYLE), "policy": POLICY}  # noqa: S704 # our own
