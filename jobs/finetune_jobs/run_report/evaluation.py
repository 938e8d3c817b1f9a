"""What the page of a run takes over from the page of its evaluation (pure).

The evaluation's page is made where the answers and the models are. Making its tables once more, from what was stored,
would be a second way to do the same; so its parts are taken as they stand there, between marks.
"""

from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

_SUMMARY: Final = ("<!-- summary -->", "<!-- end of summary -->")
_FIGURES: Final = ("<!-- figures -->", "<!-- end of figures -->")
"""Places of ``evaluation.html.j2``. No foreign text holds them: what is quoted is escaped."""


@dataclass(frozen=True)
class Taken:
    """Parts of the evaluation's page, as HTML of our own."""

    summary: Markup
    figures: Markup


def taken_from(page: str) -> Taken | None:
    """The parts of a page whose bytes its manifest lists. None: an earlier version made it, without the marks."""
    summary, figures = _between(page, *_SUMMARY), _between(page, *_FIGURES)
    return Taken(Markup(summary), Markup(figures)) if summary and figures else None  # noqa: S704 # our own page


def _between(page: str, begin: str, end: str) -> str:
    _, found, rest = page.partition(begin)
    inner, ended, _ = rest.partition(end)
    return inner.strip() if found and ended else ""
