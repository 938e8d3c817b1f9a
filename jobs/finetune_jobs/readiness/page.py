"""The readiness report as one HTML page: no script, no other file, for screens, phones, paper and screen readers.

The page shows counts, kinds, labels and places, never the text of a row. Equal facts give equal bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from finetune_api.dataset import OnFinding
from finetune_jobs.examples.parts import Part
from finetune_jobs.readiness import charts
from finetune_jobs.readiness.charts import Kind, Segment
from finetune_jobs.readiness.checklist import Item, State, count_of, percent, quantile, summary, verdict
from finetune_jobs.readiness.document import (
    TableRow,
    bar_table,
    breakable,
    document,
    place,
    section,
    sentences,
    shown,
    table,
)
from finetune_jobs.readiness.facts import Counts, Facts, Findings, Rows
from finetune_jobs.text.language import UNKNOWN

_CLASSES: Final = 30
_KINDS: Final = 15
_FAULTS: Final = 50
_SOURCES: Final = 16
_NAMES: Final = {Part.TRAIN: "training", Part.VALIDATION: "validation", Part.TEST: "test"}
_KIND_OF: Final = {Part.TRAIN: Kind.TRAIN, Part.VALIDATION: Kind.VALIDATION, Part.TEST: Kind.TEST}
_BADGES: Final = {State.PASS: "✓ pass", State.WARN: "! warning", State.FAIL: "✕ fail"}
_VERDICTS: Final = {
    State.PASS: "The data set is ready for training.",
    State.WARN: "The data set can be trained on; look at the warnings first.",
    State.FAIL: "The data set is not ready: correct what fails.",
}
_MODES: Final = {
    OnFinding.MASK: "replaced by placeholders",
    OnFinding.DROP: "examples with any left out",
    OnFinding.REPORT: "reported only: still in the examples",
    OnFinding.OFF: "not looked for",
}


def render(facts: Facts, items: Sequence[Item], faults: Sequence[Mapping[str, str | int]]) -> str:
    """The page. ``faults`` are the first ones, as dataset.validation.Faults.stored gives them."""
    sections = [
        _checklist(items),
        _rows(facts),
        _lengths(facts),
        _classes(facts),
        _findings(facts),
        _languages(facts),
        _faults(facts, faults),
        _origin(facts),
    ]
    return document("Readiness of the data set", _head(facts, items), sections)


def _head(facts: Facts, items: Sequence[Item]) -> str:
    state = verdict(items)
    first, *others = facts.sources
    more = f" and {count_of(len(others), 'more source')}" if others else ""
    origin = f"{count_of(facts.rows.kept, 'example')} from {count_of(facts.rows.read, 'row')} of {place(first)}{more}"
    return (
        f'<p class="verdict">{_badge(state)} {_VERDICTS[state]}</p>\n'
        f"<p>{sentences(summary(items))}.</p>\n"
        f'<p class="quiet">{shown(facts.task)}: {origin}.</p>\n'
    )


def _checklist(items: Sequence[Item]) -> str:
    lines = "".join(
        f"<li>{_badge(item.state)}<h3>{shown(item.name.capitalize())}</h3><div><p>{sentences(item.evidence)}</p>"
        f"{f'<p class=remedy>{sentences(item.remedy)}</p>' if item.remedy else ''}</div></li>\n"
        for item in items
    )
    return section("Checklist", f'<ul class="checks">\n{lines}</ul>')


def _rows(facts: Facts) -> str:
    rows = facts.rows
    why = {f"invalid: {kind}": count for kind, count in rows.invalid.items()}
    why |= {f"rule: {kind}": count for kind, count in rows.dropped.items()}
    body = bar_table("Every row, from the sources to the three parts", ["", "rows", "share"], _waterfall(rows))
    body += _count_table("Why rows are no examples", "kind", "rows", why, Kind.LOST) if why else ""
    return section("What became of the rows", body)


def _waterfall(rows: Rows) -> list[TableRow]:
    """The rows' way: what is lost stands where the bar above it ends, and the parts fill what is left."""
    whole = max(1, rows.read + rows.added)

    def row(name: str, count: int, kind: Kind, begin: int) -> TableRow:
        cells = [f"{count:,}", sentences(percent(count, whole)) if count >= 0 else ""]
        return TableRow(name, cells, [Segment(kind, max(0, count) / whole, max(0, begin) / whole)])

    lines = [row("rows read", rows.read, Kind.ASIDE, 0)]
    if rows.added:
        lines.append(row("added: pieces, repetitions, general data", rows.added, Kind.ASIDE, rows.read))
    end = rows.read + rows.added
    for name, count, kind in (
        ("invalid", sum(rows.invalid.values()), Kind.LOST),
        ("left out by rules", sum(rows.dropped.values()), Kind.LOST),
        ("exact duplicates", rows.duplicates, Kind.LOST),
        ("near duplicates left out", rows.near_dropped, Kind.LOST),
        ("left aside by the pilot", rows.outside_pilot, Kind.ASIDE),
        ("not accounted for", rows.unexplained, Kind.LOST),
    ):
        end -= count
        if count:
            lines.append(row(name, count, kind, end))
    begin = 0
    for part in Part:
        count = rows.parts.get(part, 0)
        lines.append(row(_NAMES[part], count, _KIND_OF[part], begin))
        begin += count
    return lines


def _lengths(facts: Facts) -> str:
    every = facts.lengths.histogram()
    if not every:
        return section("Token lengths", "<p>Nobody counted tokens.</p>")
    limit = facts.lengths.max_length
    bins = charts.Bins.of(every, limit)
    where = "the dashed line" if limit <= bins.end else "far to the right of the charts"
    text = f"Tokens of an example, instruction and answer included; maxLength ({limit:,}) is {where}."
    text += f" A bar is {count_of(bins.width, 'token')} wide."
    if gathered := bins.gathered(every):
        text += f" The last bar also holds {gathered:,} longer ones, up to {max(every):,} tokens."
    figures, lines = [], []
    for part in Part:
        counts = facts.lengths.histogram(part)
        if not counts:
            continue
        numbers = [quantile(counts, share) for share in (0.5, 0.95, 1.0)]
        described = f"Token lengths, {_NAMES[part]}: half have {numbers[0]:,} or fewer, the longest {numbers[2]:,}."
        figures.append(
            f"<figure><figcaption>{_NAMES[part].capitalize()}, up to {max(bins.counts(counts)):,} a bar</figcaption>"
            f"{charts.histogram(counts, bins, _KIND_OF[part], limit, described)}</figure>\n"
        )
        lines.append(TableRow(_NAMES[part], [f"{counts.total():,}", *(f"{number:,}" for number in numbers)]))
    head = ["", "examples", "median", "95 %", "longest"]
    return section("Token lengths", f"<p>{text}</p>\n{''.join(figures)}{table('In tokens', head, lines)}")


def _classes(facts: Facts) -> str:
    if not facts.labels:
        return ""
    totals = {label: sum(counts.values()) for label, counts in facts.labels.items()}
    ordered = sorted(totals, key=lambda label: (-totals[label], label))
    largest = max(1, *totals.values())
    lines = [
        TableRow(
            label,
            [f"{totals[label]:,}", *(f"{facts.labels[label].get(part, 0):,}" for part in Part)],
            [Segment(_KIND_OF[part], facts.labels[label].get(part, 0) / largest) for part in Part],
        )
        for label in ordered[:_CLASSES]
    ]
    if rest := ordered[_CLASSES:]:
        by_part = [sum(facts.labels[label].get(part, 0) for label in rest) for part in Part]
        cells = [f"{sum(by_part):,}", *(f"{count:,}" for count in by_part)]
        lines.append(TableRow(f"{len(rest):,} more classes", cells))
    key = "".join(f"<li>{charts.swatch(_KIND_OF[part])}{_NAMES[part]}</li>" for part in Part)
    caption = f"Examples of the {_CLASSES} largest of {len(ordered):,} classes" if rest else "Examples by class"
    head = ["class", "all", "train", "valid.", "test"]
    return section("Classes", f'<ul class="key">{key}</ul>\n{bar_table(caption, head, lines, long=True)}')


def _findings(facts: Facts) -> str:
    return section(
        "Personal data and secrets",
        _finding("Personal data", facts.pii) + _finding("Keys, tokens and passwords", facts.secrets),
    )


def _finding(what: str, findings: Findings) -> str:
    found = sum(findings.counts.values())
    if not found:
        return f"<p>{what}: {'none found' if findings.mode is not OnFinding.OFF else _MODES[findings.mode]}.</p>\n"
    caption = f"{what}: {count_of(found, 'place')}, {_MODES[findings.mode]}"
    return _count_table(caption, "kind", "places", findings.counts, Kind.ASIDE)


def _languages(facts: Facts) -> str:
    if not facts.languages:
        return ""
    named = {("too little to tell" if code == UNKNOWN else code): count for code, count in facts.languages.items()}
    caption = "Rows by ISO 639-1 code, those left out for their language included"
    return section("Languages", _count_table(caption, "language", "rows", named, Kind.ASIDE))


def _faults(facts: Facts, faults: Sequence[Mapping[str, str | int]]) -> str:
    if not faults:
        return ""
    first = faults[:_FAULTS]
    by_file: dict[str, list[TableRow]] = {}
    for fault in first:
        row = TableRow(f"{fault['line']}", [breakable(shown(f"{fault[key]}")) for key in ("field", "kind")])
        by_file.setdefault(f"{fault['file']}", []).append(row)
    tables = "".join(table(place(file), ["line", "field", "kind"], rows, "places") for file, rows in by_file.items())
    text = (
        f"The first {count_of(len(first), 'place')}, by file and line. Values are not shown: they may be personal data."
    )
    return section("Faults", f"<p>{text}</p>\n{tables}")


def _origin(facts: Facts) -> str:
    how = "given by the sources" if facts.split_provided else f"divided by hash, seed {facts.seed}"
    entries = [
        ("Sources", "<br>".join(place(source) for source in facts.sources[:_SOURCES])),
        ("Source digest", f"<code>{shown(facts.source_digest) or 'unknown'}</code>"),
        ("Dataset digest", f"<code>{shown(facts.dataset_digest) or 'unknown'}</code>"),
        ("Task", shown(facts.task)),
        ("Parts", how),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in entries)
    return section("Origin", f"<dl>\n{listed}</dl>")


def _count_table(caption: str, what: str, unit: str, counts: Counts, kind: Kind) -> str:
    """Counts by kind with bars, the largest first."""
    ordered = sorted(((name, n) for name, n in counts.items() if n), key=lambda pair: (-pair[1], pair[0]))
    largest = max((n for _, n in ordered), default=1)
    lines = [TableRow(name, [f"{n:,}"], [Segment(kind, n / largest)]) for name, n in ordered[:_KINDS]]
    if rest := ordered[_KINDS:]:
        lines.append(TableRow(f"{len(rest):,} more", [f"{sum(n for _, n in rest):,}"]))
    return bar_table(caption, [what, unit], lines)


def _badge(state: State) -> str:
    return f'<span class="badge {state}">{_BADGES[state]}</span>'
