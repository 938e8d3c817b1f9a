"""``review.html``: the page on which people vote.

One file that works without a network. Everything that it shows is rendered here and escaped; its script, which the
page's policy names by hash, only shows one pair at a time, takes votes and saves them as a file. Without scripts the
pairs can be read.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Final

from markupsafe import Markup, escape

from finetune_jobs.evaluation.review.sheet import ReviewSheet
from finetune_jobs.evaluation.review.votes import REVIEWER, VotesFile
from finetune_jobs.reports import page
from finetune_jobs.reports.page import Fact

TITLE: Final = "Human review"
_HERE: Final = Path(__file__).parent
_STYLE: Final = (_HERE / "review.css").read_text(encoding="utf-8")
_SCRIPT: Final = (_HERE / "review.js").read_text(encoding="utf-8")
_WORDS: Final = re.compile(r"\s+|\w+|[^\w\s]")


def _allowed(text: str) -> str:
    """A source of a Content Security Policy (W3C, level 3)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY: Final = (
    f"default-src 'none'; style-src {_allowed(page.STYLE)} {_allowed(_STYLE)}; script-src {_allowed(_SCRIPT)}; "
    "base-uri 'none'; form-action 'none'"
)
"""Nothing is loaded or sent, and only the page's own style and script count."""


def render_review(sheet: ReviewSheet, identity: Sequence[Fact]) -> str:
    """The page of a review; ``identity`` says of which job, model and data."""
    return page.render(
        "evaluation/review/review.html.j2",
        TITLE,
        identity,
        policy=POLICY,
        more_style=Markup(_STYLE),  # noqa: S704 # our own
        script=Markup(_SCRIPT),  # noqa: S704 # our own
        sheet=sheet,
        schema=VotesFile.SCHEMA,
        reviewer_pattern=REVIEWER.strip("^$"),
        pairs=[(pair, *marked(pair.left, pair.right)) for pair in sheet.pairs],
    )


def marked(left: str, right: str) -> tuple[Markup, Markup]:
    """Both texts, with ``<mark>`` around the words that the other does not have there."""
    words = _WORDS.findall(left), _WORDS.findall(right)
    # Its shortcut for frequent words stays on: a model that repeats itself would take minutes to compare.
    steps = SequenceMatcher(None, *words).get_opcodes()
    return (
        Markup().join(_piece(words[0][begin:end], kind != "equal") for kind, begin, end, _, _ in steps),
        Markup().join(_piece(words[1][begin:end], kind != "equal") for kind, _, _, begin, end in steps),
    )


def _piece(words: Sequence[str], differs: bool) -> Markup:
    """Escaped; line breaks are kept, and what no page can hold is replaced."""
    text = Markup("\n").join(escape(page.printable(line)) for line in "".join(words).split("\n"))
    return Markup("<mark>{}</mark>").format(text) if differs and text.strip() else text
