"""The readiness report as one HTML page.

The page shows counts, kinds, labels and places, never the text of a row. Equal facts give equal bytes. This module
says which figures stand in which table; ``readiness.html.j2`` says where on the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from finetune_api.dataset import OnFinding
from finetune_jobs.examples.parts import Part
from finetune_jobs.readiness.checklist import Item, State, count_of, percent, summary, verdict
from finetune_jobs.readiness.facts import Counts, Facts, Findings, Rows
from finetune_jobs.reports import page
from finetune_jobs.reports.bins import Bins, quantile
from finetune_jobs.reports.charts import Bar, Histogram, Kind, Segment
from finetune_jobs.reports.page import Fact, Table, TableRow, uris
from finetune_jobs.text.language import UNKNOWN

TITLE: Final = "Readiness of the data set"
_CLASSES: Final = 30
_KINDS: Final = 15
_FAULTS: Final = 50
_SOURCES: Final = 16
_NAMES: Final = {Part.TRAIN: "training", Part.VALIDATION: "validation", Part.TEST: "test"}
_KIND_OF: Final = {Part.TRAIN: Kind.TRAIN, Part.VALIDATION: Kind.VALIDATION, Part.TEST: Kind.TEST}
_BADGES: Final = {State.PASS: "✓ pass", State.WARN: "! warning", State.FAIL: "✕ fail"}
_VERDICTS: Final = {
    State.PASS: "The data set is ready for training.",
    State.WARN: "The data set can be used for training; look at the warnings first.",
    State.FAIL: "The data set is not ready: fix what failed.",
}
_MODES: Final = {
    OnFinding.MASK: "replaced by placeholders",
    OnFinding.DROP: "examples that contain any dropped",
    OnFinding.REPORT: "reported only: still in the examples",
    OnFinding.OFF: "not searched for",
}


@dataclass(frozen=True)
class LengthSection:
    """Token lengths of each part: on one scale, so that they can be compared."""

    text: str
    histograms: Sequence[Histogram]
    table: Table


def render(facts: Facts, items: Sequence[Item], faults: Sequence[Mapping[str, str | int]]) -> str:
    """The page. ``faults`` are the first ones, as examples.validation.Faults.stored gives them."""
    state = verdict(items)
    return page.render(
        "readiness/readiness.html.j2",
        TITLE,
        _identity(facts),
        state=state,
        verdict=_VERDICTS[state],
        badges=_BADGES,
        summary=f"{summary(items)}.",
        items=items,
        rows=waterfall(facts.rows),
        losses=_losses(facts.rows),
        lengths=_lengths(facts),
        key=[(_KIND_OF[part], _NAMES[part]) for part in Part],
        classes=_classes(facts),
        findings=[finding("Personal data", facts.pii), finding("Keys, tokens and passwords", facts.secrets)],
        languages=languages(facts.languages),
        faults=_faults(faults[:_FAULTS]),
        shown_faults=count_of(min(len(faults), _FAULTS), "place"),
        origin=_origin(facts),
    )


def _identity(facts: Facts) -> list[Fact]:
    return [
        uris("Data", facts.sources, 1),
        Fact("Task", [facts.task]),
        Fact("Examples", [f"{facts.rows.kept:,} from {count_of(facts.rows.read, 'row')}"]),
    ]


def waterfall(rows: Rows) -> Table:
    """From rows to examples: a loss is drawn where the bar above it ends, and the parts fill what is left."""
    whole = max(1, rows.read + rows.added)

    def line(name: str, count: int, kind: Kind, begin: int) -> TableRow:
        cells = [f"{count:,}", percent(count, whole) if count >= 0 else ""]
        return TableRow(name, cells, Bar([Segment(kind, max(0, count) / whole, max(0, begin) / whole)]))

    lines = [line("rows read", rows.read, Kind.ASIDE, 0)]
    if rows.added:
        lines.append(line("added: pieces, repetitions, general data", rows.added, Kind.ASIDE, rows.read))
    end = rows.read + rows.added
    for name, count, kind in (
        ("invalid", sum(rows.invalid.values()), Kind.LOST),
        ("dropped by rules", sum(rows.dropped.values()), Kind.LOST),
        ("exact duplicates", rows.duplicates, Kind.LOST),
        ("near duplicates dropped", rows.near_dropped, Kind.LOST),
        ("not used by the pilot", rows.outside_pilot, Kind.ASIDE),
        ("unaccounted for", rows.unexplained, Kind.LOST),
    ):
        end -= count
        if count:
            lines.append(line(name, count, kind, end))
    begin = 0
    for part in Part:
        count = rows.parts.get(part, 0)
        lines.append(line(_NAMES[part], count, _KIND_OF[part], begin))
        begin += count
    return Table("Every row, from the sources to the three parts", ["", "rows", "share"], lines)


def _losses(rows: Rows) -> Table | None:
    why = {f"invalid: {kind}": count for kind, count in rows.invalid.items()}
    why |= {f"rule: {kind}": count for kind, count in rows.dropped.items()}
    return _count_table("Why rows were dropped", "kind", "rows", why, Kind.LOST) if why else None


def _lengths(facts: Facts) -> LengthSection | None:
    every = facts.lengths.histogram()
    if not every:
        return None
    limit = facts.lengths.max_length
    bins = Bins.of(every, limit)
    where = "the dashed line" if limit <= bins.end else "far to the right of the charts"
    text = f"Tokens of an example, instruction and answer included; maxLength ({limit:,}) is {where}."
    text += f" A bar is {count_of(bins.width, 'token')} wide."
    if gathered := bins.gathered(every):
        text += f" The last bar also holds {gathered:,} longer ones, up to {max(every):,} tokens."
    histograms, lines = [], []
    for part in Part:
        counts = facts.lengths.histogram(part)
        if not counts:
            continue
        numbers = [quantile(counts, share) for share in (0.5, 0.95, 1.0)]
        caption = f"{_NAMES[part].capitalize()}, up to {max(bins.counts(counts)):,} a bar"
        described = f"Token lengths, {_NAMES[part]}: half have {numbers[0]:,} or fewer, the longest {numbers[2]:,}."
        histograms.append(Histogram.of(counts, bins, _KIND_OF[part], limit, caption, described))
        lines.append(TableRow(_NAMES[part], [f"{counts.total():,}", *(f"{number:,}" for number in numbers)]))
    return LengthSection(text, histograms, Table("In tokens", ["", "examples", "median", "95 %", "longest"], lines))


def _classes(facts: Facts) -> Table | None:
    if not facts.labels:
        return None
    totals = {label: sum(counts.values()) for label, counts in facts.labels.items()}
    ordered = sorted(totals, key=lambda label: (-totals[label], label))
    largest = max(1, *totals.values())
    lines = [
        TableRow(
            label,
            [f"{totals[label]:,}", *(f"{facts.labels[label].get(part, 0):,}" for part in Part)],
            Bar([Segment(_KIND_OF[part], facts.labels[label].get(part, 0) / largest) for part in Part]),
        )
        for label in ordered[:_CLASSES]
    ]
    if rest := ordered[_CLASSES:]:
        by_part = [sum(facts.labels[label].get(part, 0) for label in rest) for part in Part]
        lines.append(
            TableRow(f"{len(rest):,} more classes", [f"{sum(by_part):,}", *(f"{count:,}" for count in by_part)])
        )
    caption = f"Examples of the {_CLASSES} largest of {len(ordered):,} classes" if rest else "Examples by class"
    return Table(caption, ["class", "all", "train", "valid.", "test"], lines, long=True)


def finding(what: str, findings: Findings) -> Table | str:
    """What was found of a kind: a table, or a sentence where nothing was found."""
    found = sum(findings.counts.values())
    if not found:
        return f"{what}: {'none found' if findings.mode is not OnFinding.OFF else _MODES[findings.mode]}."
    caption = f"{what}: {count_of(found, 'place')}, {_MODES[findings.mode]}"
    return _count_table(caption, "kind", "places", findings.counts, Kind.ASIDE)


def languages(counts: Counts) -> Table | None:
    """The rows by language; None if nobody looked."""
    if not counts:
        return None
    named = {("too short to tell" if code == UNKNOWN else code): count for code, count in counts.items()}
    caption = "Rows by ISO 639-1 code, including those dropped for their language"
    return _count_table(caption, "language", "rows", named, Kind.ASIDE)


def _faults(faults: Sequence[Mapping[str, str | int]]) -> list[Table]:
    """A table for each file."""
    by_file: dict[str, list[TableRow]] = {}
    for fault in faults:
        row = TableRow(f"{fault['line']}", [f"{fault['field']}", f"{fault['kind']}"])
        by_file.setdefault(f"{fault['file']}", []).append(row)
    return [Table(file, ["line", "field", "kind"], rows, words=True, of_place=True) for file, rows in by_file.items()]


def _origin(facts: Facts) -> list[Fact]:
    how = "provided by the sources" if facts.split_provided else f"split by hash, seed {facts.seed}"
    return [
        uris("Sources", facts.sources, _SOURCES),
        Fact("Source digest", [facts.source_digest or "unknown"], code=True),
        Fact("Dataset digest", [facts.dataset_digest or "unknown"], code=True),
        Fact("Parts", [how]),
    ]


def _count_table(caption: str, what: str, unit: str, counts: Counts, kind: Kind) -> Table:
    """Counts by kind with bars, the largest first."""
    ordered = sorted(((name, n) for name, n in counts.items() if n), key=lambda pair: (-pair[1], pair[0]))
    largest = max((n for _, n in ordered), default=1)
    lines = [TableRow(name, [f"{n:,}"], Bar([Segment(kind, n / largest)])) for name, n in ordered[:_KINDS]]
    if rest := ordered[_KINDS:]:
        lines.append(TableRow(f"{len(rest):,} more", [f"{sum(n for _, n in rest):,}"]))
    return Table(caption, [what, unit], lines)
