"""What a judge said of an evaluation's answers as one HTML page, without the answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from finetune_jobs.evaluation.judging.comparison import Preference
from finetune_jobs.evaluation.judging.verdict import Judgement, agreement, in_words, meant
from finetune_jobs.reports import page
from finetune_jobs.reports.charts import Bar, Kind, Segment
from finetune_jobs.reports.page import Fact, Table, TableRow

TITLE: Final = "What a judge prefers"
_NAMES: Final = {
    Preference.ARTIFACT: "the artifact",
    Preference.BASE: "the base model",
    Preference.TIE: "neither",
    Preference.UNDECIDED: "no verdict",
}
_BASELINES: Final = {"base": "the base model's", "fewShot": "those of the base model with few-shot examples"}


def render_judgement(judgement: Judgement, voted: Mapping[str, float], identity: Sequence[Fact] = ()) -> str:
    """The page. ``voted``: as ``Tally.means``. Equal content gives equal bytes."""
    agreed, of = agreement(judgement, voted)
    tokens = f"{judgement.input_tokens:,} read, {judgement.output_tokens:,} written"
    asked = [
        Fact("Judge", [judgement.model]),
        Fact("URL", [judgement.url], code=True),
        Fact("Rubric", [judgement.rubric or "the default rubric"]),
        Fact("Requests", [f"{judgement.requests:,}"]),
        Fact("Tokens", [tokens]),
        Fact("Cost", [f"{judgement.cost_usd} USD" if judgement.cost_usd else "unknown: no prices are set"]),
    ]
    return page.render(
        "evaluation/judging/judged.html.j2",
        TITLE,
        identity,
        verdict=in_words(judgement, {}),
        against=f"The artifact's answers and {_BASELINES.get(judgement.baseline, 'others')}, where they differ.",
        preferences=_preferences(judgement),
        undecided=_undecided(judgement),
        people=_people(judgement, voted) if of else None,
        agreed=f"On {agreed} of {of} pairs, the judge agrees with most people.",
        asked=asked,
    )


def _preferences(judgement: Judgement) -> Table:
    total = max(1, len(judgement.preferences))
    rows = [
        TableRow(name, [f"{count:,}", f"{count / total:.1%}"], Bar([Segment(Kind.SCORE, count / total)]))
        for kind, name in _NAMES.items()
        for count in [judgement.counts[kind]]
    ]
    return Table("Pairs of answers", ["preferred", "pairs", "share"], rows)


def _undecided(judgement: Judgement) -> Table | None:
    rows = [TableRow(why, [f"{count:,}"]) for why, count in sorted(judgement.reasons.items())]
    return Table("Pairs without a verdict", ["why", "pairs"], rows) if rows else None


def _people(judgement: Judgement, voted: Mapping[str, float]) -> Table:
    kinds = [kind for kind in _NAMES if kind is not Preference.UNDECIDED]
    both = Counter((meant(voted[pair]), said) for pair, said in judgement.preferences.items() if pair in voted)
    rows = [TableRow(f"people: {_NAMES[theirs]}", [f"{both[theirs, its]:,}" for its in kinds]) for theirs in kinds]
    return Table(
        "Pairs by the preference of people and judge", ["", *(f"judge: {_NAMES[kind]}" for kind in kinds)], rows
    )
