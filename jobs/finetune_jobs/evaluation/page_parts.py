"""What the page of an evaluation is made of, kept beside it: other programs show the parts too, or add one.

The parts are rendered where the answers and the models are. The page of the run shows them in its own frame, and metric
containers' figures become a part of their own; each renders a page from the same parts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from markupsafe import Markup

from finetune_api.base import WireModel
from finetune_api.layout import EVALUATION_PAGE
from finetune_jobs.evaluation.conclusion import Conclusion
from finetune_jobs.reports import page
from finetune_jobs.reports.page import Fact

PARTS: Final = "report_parts.json"
"""The file in an evaluation's folder."""
TITLE: Final = "Evaluation"


class PageParts(WireModel):
    """The page but for its goals, which every run has of its own. Those in HTML are rendered by this package: foreign
    text in them is escaped."""

    identity: list[Fact] = []
    """Job, model and data."""
    summary: str
    right: str
    """When an answer counts as right."""
    scores: str
    """HTML: the verdict and the tables of scores."""
    custom: str = ""
    """HTML: what metric containers measured; empty without any."""
    details: str
    """HTML: what follows: labels, fields, the worst answers, behaviour."""
    origin: list[Fact] = []
    """Digests."""

    @property
    def figures(self) -> Markup:
        """All sections with what was measured."""
        return Markup(f"{self.scores}{self.custom}{self.details}")  # noqa: S704 # rendered by this package


def write_page(folder: Path, parts: PageParts, goals: Sequence[Conclusion]) -> None:
    """The page and its parts, into an evaluation's folder."""
    (folder / PARTS).write_text(parts.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    (folder / EVALUATION_PAGE).write_text(render_page(parts, goals), encoding="utf-8")


def render_page(parts: PageParts, goals: Sequence[Conclusion] = ()) -> str:
    """The page; ``goals``: what was reached of them."""
    return page.render(
        "evaluation/evaluation.html.j2",
        TITLE,
        parts.identity,
        summary=parts.summary,
        right=parts.right,
        goals=goals,
        figures=parts.figures,
        origin=parts.origin,
    )
