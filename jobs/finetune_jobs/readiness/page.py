"""The readiness report as one HTML page: no script, no other file, for screens, phones, paper and screen readers.

The page shows counts, kinds, labels and places, never the text of a row. Equal facts give equal bytes.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from finetune_api.dataset import OnFinding
from finetune_jobs.dataset.split import Part
from finetune_jobs.dataset.validation import shorten
from finetune_jobs.readiness import charts
from finetune_jobs.readiness.charts import Kind, Segment
from finetune_jobs.readiness.checklist import Item, State, count_of, percent, quantile, summary, verdict
from finetune_jobs.readiness.facts import Counts, Facts, Findings, Rows
from finetune_jobs.readiness.learning_curve import LearningCurve
from finetune_jobs.readiness.style import STYLE

_CLASSES: Final = 30
_KINDS: Final = 15
_FAULTS: Final = 50
_SOURCES: Final = 16
_TEXT: Final = 80
"""Most characters of a label, a place or a kind."""
_PLACE: Final = 200
_SENTENCE: Final = 1000
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
_UNPRINTABLE: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufffe\\uffff]")
"""Characters that no page can hold or that would turn the text around them (Unicode UAX 9)."""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"
"""Content Security Policy (W3C, level 3): nothing is loaded, sent or run, and only this one style sheet counts."""


@dataclass(frozen=True)
class _Row:
    """A line of a table with bars."""

    name: str
    cells: Sequence[str]
    """As HTML."""
    segments: Sequence[Segment] = ()


def render(
    facts: Facts,
    items: Sequence[Item],
    faults: Sequence[Mapping[str, str | int]],
    curve: LearningCurve | None = None,
) -> str:
    """The page. ``faults`` are the first ones, as dataset.validation.Faults.stored gives them."""
    sections = [
        _head(facts, items),
        _checklist(items),
        _rows(facts),
        _lengths(facts),
        _classes(facts),
        _findings(facts),
        _languages(facts),
        _learning_curve(curve),
        _faults(facts, faults),
        _origin(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Readiness of the data set</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _head(facts: Facts, items: Sequence[Item]) -> str:
    state = verdict(items)
    first, *others = facts.sources
    more = f" and {count_of(len(others), 'more source')}" if others else ""
    origin = f"{count_of(facts.rows.kept, 'example')} from {count_of(facts.rows.read, 'row')} of {_place(first)}{more}"
    return (
        "<header>\n<h1>Readiness of the data set</h1>\n"
        f'<p class="verdict">{_badge(state)} {_VERDICTS[state]}</p>\n'
        f"<p>{_sentences(summary(items))}.</p>\n"
        f'<p class="quiet">{_shown(facts.task)}: {origin}.</p>\n</header>\n<main>\n'
    )


def _checklist(items: Sequence[Item]) -> str:
    lines = "".join(
        f"<li>{_badge(item.state)}<h3>{_shown(item.name.capitalize())}</h3><div><p>{_sentences(item.evidence)}</p>"
        f"{f'<p class=remedy>{_sentences(item.remedy)}</p>' if item.remedy else ''}</div></li>\n"
        for item in items
    )
    return _section("Checklist", f'<ul class="checks">\n{lines}</ul>')


def _rows(facts: Facts) -> str:
    rows = facts.rows
    why = {f"invalid: {kind}": count for kind, count in rows.invalid.items()}
    why |= {f"rule: {kind}": count for kind, count in rows.dropped.items()}
    body = _bar_table("Every row, from the sources to the three parts", ["", "rows", "share"], _waterfall(rows))
    body += _count_table("Why rows are no examples", "kind", "rows", why, Kind.LOST) if why else ""
    return _section("What became of the rows", body)


def _waterfall(rows: Rows) -> list[_Row]:
    """The rows' way: what is lost stands where the bar above it ends, and the parts fill what is left."""
    whole = max(1, rows.read + rows.added)

    def row(name: str, count: int, kind: Kind, begin: int) -> _Row:
        cells = [f"{count:,}", _sentences(percent(count, whole)) if count >= 0 else ""]
        return _Row(name, cells, [Segment(kind, max(0, count) / whole, max(0, begin) / whole)])

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
        return _section("Token lengths", "<p>Nobody counted tokens.</p>")
    limit = facts.lengths.max_length
    bins = charts.Bins.of(every, limit)
    where = "the dashed line" if limit <= bins.end else "far to the right of the charts"
    text = f"Tokens of an example, instruction and answer included; maxLength ({limit:,}) is {where}."
    text += f" A bar is {count_of(bins.width, 'token')} wide."
    if gathered := bins.gathered(every):
        text += f" The last bar also holds {gathered:,} longer ones, up to {max(every):,} tokens."
    figures, table = [], []
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
        table.append(_Row(_NAMES[part], [f"{counts.total():,}", *(f"{number:,}" for number in numbers)]))
    head = ["", "examples", "median", "95 %", "longest"]
    return _section("Token lengths", f"<p>{text}</p>\n{''.join(figures)}{_table('In tokens', head, table)}")


def _classes(facts: Facts) -> str:
    if not facts.labels:
        return ""
    totals = {label: sum(counts.values()) for label, counts in facts.labels.items()}
    ordered = sorted(totals, key=lambda label: (-totals[label], label))
    largest = max(totals.values())
    lines = [
        _Row(
            label,
            [f"{totals[label]:,}", *(f"{facts.labels[label].get(part, 0):,}" for part in Part)],
            [Segment(_KIND_OF[part], facts.labels[label].get(part, 0) / largest) for part in Part],
        )
        for label in ordered[:_CLASSES]
    ]
    if rest := ordered[_CLASSES:]:
        by_part = [sum(facts.labels[label].get(part, 0) for label in rest) for part in Part]
        lines.append(_Row(f"{len(rest):,} more classes", [f"{sum(by_part):,}", *(f"{count:,}" for count in by_part)]))
    key = "".join(f"<li>{charts.swatch(_KIND_OF[part])}{_NAMES[part]}</li>" for part in Part)
    caption = f"Examples of the {_CLASSES} largest of {len(ordered):,} classes" if rest else "Examples by class"
    head = ["class", "all", "train", "valid.", "test"]
    return _section("Classes", f'<ul class="key">{key}</ul>\n{_bar_table(caption, head, lines, long=True)}')


def _findings(facts: Facts) -> str:
    return _section(
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
    named = {("too short to tell" if code == "und" else code): count for code, count in facts.languages.items()}
    return _section("Languages", _count_table("Examples by ISO 639-1 code", "language", "examples", named, Kind.ASIDE))


def _learning_curve(curve: LearningCurve | None) -> str:
    if curve is None:
        return ""
    largest = max(point.examples for point in curve.points)
    lines = [
        _Row(f"{p.examples:,}", [f"{p.error:.3g}", f"{p.low:.3g} – {p.high:.3g}"])
        for p in (curve.predict(size) for size in sorted({largest, 2 * largest, curve.reach}))
    ]
    text = (
        f"Error of models trained on parts of the data (dots), the power law through them, and what it says of up to "
        f"{curve.reach:,} examples (dashed) with a 95 % interval. It holds for more data of the same kind only."
    )
    chart = charts.learning_curve(curve, f"Learning curve from {len(curve.points)} trainings; the table has its values")
    table = _table("Expected error", ["training examples", "error", "95 % interval"], lines)
    return _section("What more data would bring", f"<p>{text}</p>\n<figure>{chart}</figure>\n{table}")


def _faults(facts: Facts, faults: Sequence[Mapping[str, str | int]]) -> str:
    if not faults:
        return ""
    shown = faults[:_FAULTS]
    by_file: dict[str, list[_Row]] = {}
    for fault in shown:
        row = _Row(f"{fault['line']}", [_breakable(_shown(f"{fault[key]}")) for key in ("field", "kind")])
        by_file.setdefault(f"{fault['file']}", []).append(row)
    tables = "".join(_table(_place(file), ["line", "field", "kind"], rows, "places") for file, rows in by_file.items())
    text = (
        f"The first {count_of(len(shown), 'place')}, by file and line. Values are not shown: they may be personal data."
    )
    return _section("Faults", f"<p>{text}</p>\n{tables}")


def _origin(facts: Facts) -> str:
    how = "given by the sources" if facts.split_provided else f"divided by hash, seed {facts.seed}"
    entries = [
        ("Sources", "<br>".join(_place(source) for source in facts.sources[:_SOURCES])),
        ("Source digest", f"<code>{_shown(facts.source_digest) or 'unknown'}</code>"),
        ("Dataset digest", f"<code>{_shown(facts.dataset_digest) or 'unknown'}</code>"),
        ("Task", _shown(facts.task)),
        ("Parts", how),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in entries)
    return _section("Origin", f"<dl>\n{listed}</dl>")


def _count_table(caption: str, what: str, unit: str, counts: Counts, kind: Kind) -> str:
    """Counts by kind with bars, the largest first."""
    ordered = sorted(((name, n) for name, n in counts.items() if n), key=lambda pair: (-pair[1], pair[0]))
    largest = max((n for _, n in ordered), default=1)
    lines = [_Row(name, [f"{n:,}"], [Segment(kind, n / largest)]) for name, n in ordered[:_KINDS]]
    if rest := ordered[_KINDS:]:
        lines.append(_Row(f"{len(rest):,} more", [f"{sum(n for _, n in rest):,}"]))
    return _bar_table(caption, [what, unit], lines)


def _bar_table(caption: str, head: Sequence[str], rows: Iterable[_Row], *, long: bool = False) -> str:
    return _table(caption, head, rows, "bars long" if long else "bars")


def _table(caption: str, head: Sequence[str], rows: Iterable[_Row], kind: str = "plain") -> str:
    columns = "".join(f'<th scope="col">{name}</th>' if name else "<td></td>" for name in head)
    lines = "".join(
        f'<tr><th scope="row"><div><bdi>{_breakable(_shown(row.name))}</bdi>{_bar(row)}</div></th>'
        f"{''.join(f'<td>{cell}</td>' for cell in row.cells)}</tr>\n"
        for row in rows
    )
    return (
        f'<table class="{kind}"><caption>{caption}</caption>\n<thead><tr>{columns}</tr></thead>\n'
        f"<tbody>\n{lines}</tbody></table>\n"
    )


def _bar(row: _Row) -> str:
    return charts.bar(row.segments) if row.segments else ""


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>\n"


def _badge(state: State) -> str:
    return f'<span class="badge {state}">{_BADGES[state]}</span>'


def _shown(text: str, limit: int = _TEXT) -> str:
    """Foreign text as HTML: on one line, without characters that do harm."""
    return escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", shorten(text, limit)))


def _sentences(text: str) -> str:
    """Sentences of the checklist, in which a number and its percent sign stay on one line."""
    return _shown(text, _SENTENCE).replace(" %", "\N{NO-BREAK SPACE}%")


def _place(uri: str) -> str:
    return f"<code>{_breakable(_shown(uri, _PLACE))}</code>"


def _breakable(shown: str) -> str:
    """A name such as ``card_payment_fee`` or ``unknownLabel`` may be broken where a reader would break it."""
    return re.sub(r"(?<=[_/.:-])(?=\w)|(?<=[a-z])(?=[A-Z])", "<wbr>", shown)
