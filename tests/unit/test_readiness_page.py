"""The readiness report as people read it: one small page that loads nothing, and its charts."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.dataset import OnFinding
from finetune_jobs.examples.validation import Faults
from finetune_jobs.readiness import page
from finetune_jobs.readiness.checklist import check
from finetune_jobs.readiness.facts import Facts, Findings, Rows
from finetune_jobs.reading.rows import Fault
from finetune_jobs.reports.bins import Bins
from finetune_jobs.reports.charts import Bar, Histogram, Kind, Segment
from finetune_jobs.reports.page import STYLE
from tests.support.fast import share
from tests.support.readiness import GOOD, any_facts, assert_accessible, by_part, histograms, render, rows

pytestmark = pytest.mark.unit

NO_FAULTS = Faults().stored()


def wide(classes: int) -> Facts:
    """Facts with many classes, large numbers, and every kind of finding."""
    return replace(
        GOOD,
        labels={f"class_{n:03}": by_part(8000 + n, 1000, 1000) for n in range(classes)},
        rows=Rows(read=1_000_000, parts=by_part(800_000, 100_000, 100_000), invalid={f"kind{n}": n for n in range(40)}),
    )


def test_the_page_has_a_section_for_everything_and_says_every_item() -> None:
    parsed = render(GOOD, [{"file": "s3://data/good.csv", "line": 7, "field": "label", "kind": "empty"}])
    for heading in (
        *("Checklist", "What happened to the rows", "Token lengths", "Classes", "Personal data and secrets"),
        *("Languages", "Faults", "Origin"),
    ):
        assert heading in parsed.texts
    for each in check(GOOD):
        assert each.evidence in parsed.text.replace("\N{NO-BREAK SPACE}", " ")
    assert parsed.tags["h1"] == parsed.tags["main"] == parsed.tags["title"] == 1
    assert "en" in parsed.values("html", "lang")


def test_charts_are_described_and_tables_have_headers() -> None:
    parsed = render(GOOD)
    assert parsed.values("svg", "role") == ["img"] * 3
    assert_accessible(parsed)


def test_nothing_may_be_loaded_or_run_but_the_one_style_sheet() -> None:
    parsed = render(GOOD)
    (policy,) = (value for value in parsed.values("meta", "content") if "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not any(name == "style" or name.startswith("on") for _, name, _ in parsed.attributes)
    assert not re.search(r"url\(|@import", STYLE)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><iframe src=//evil.example>",
    "' onmouseover='alert(1)",
    "&lt;b&gt;",
    "\u202egnp.exe\u2066",
    "nul\x00 bell\x07 half\ud800",
    "x" * 5000,
]


def test_hostile_names_stay_text() -> None:
    facts = replace(
        GOOD,
        sources=HOSTILE,
        task=HOSTILE[0],
        labels={name: by_part(0 if n % 2 else 5, 5, 5) for n, name in enumerate(HOSTILE)},
        pii=Findings(OnFinding.REPORT, dict.fromkeys(HOSTILE, 3)),
        languages=dict.fromkeys(HOSTILE, 2),
        source_digest=HOSTILE[1],
    )
    facts = replace(facts, rows=replace(facts.rows, invalid=dict.fromkeys(HOSTILE, 40)))
    faults: list[dict[str, str | int]] = [{"file": h, "line": 1, "field": h, "kind": h} for h in HOSTILE]
    parsed = render(facts, faults)
    plain = render(GOOD, faults=[{"file": "f", "line": 1, "field": "f", "kind": "k"}])
    assert set(parsed.tags) - {"br", "wbr"} <= set(plain.tags)
    assert {name for _, name, _ in parsed.attributes} == {name for _, name, _ in plain.attributes}
    for text in ("<script>alert(1)</script>", "&lt;b&gt;", "\N{REPLACEMENT CHARACTER}gnp.exe"):
        assert text in parsed.text
    assert not set("\u202e\u2066\x00\x07\ud800") & set(parsed.text)


@pytest.mark.slow
@given(any_facts)
@settings(max_examples=share(40), deadline=None)
def test_any_facts_make_a_page(facts: Facts) -> None:
    render(facts)


@pytest.mark.parametrize("classes", [0, 1, 2, 30, 31, 500])
def test_pages_stay_small_and_show_the_largest_classes(classes: int) -> None:
    parsed = render(wide(classes))
    shown = {text for text in parsed.texts if text.startswith("class_")}
    assert ("Classes" in parsed.texts) == (classes > 0)
    assert f"class_{classes - 1:03}" in parsed.text or classes == 0
    assert len(re.findall(r"class_\d{3}", parsed.text)) <= 30 + 3 or not shown
    if classes > 30:
        assert f"{classes - 30} more classes" in parsed.text


def test_values_of_rows_are_never_shown() -> None:
    faults = Faults()
    faults.add("s3://data/good.csv", Fault(3, "text", "unknownLabel", "is not one of", "jane.doe@example.org"))
    parsed = render(GOOD, faults.stored())
    assert "jane" not in parsed.text
    assert "unknownLabel" in parsed.text


def test_equal_facts_give_equal_bytes_whatever_the_order_of_their_counts() -> None:
    def backwards(counts: Mapping[Any, Any]) -> dict[Any, Any]:
        return dict(reversed(list(counts.items())))

    facts = wide(40)
    other = replace(
        facts,
        labels={label: backwards(counts) for label, counts in backwards(facts.labels).items()},
        languages=backwards(facts.languages),
        rows=replace(facts.rows, invalid=backwards(facts.rows.invalid), parts=backwards(facts.rows.parts)),
        lengths=replace(facts.lengths, by_part=backwards(facts.lengths.by_part)),
    )
    assert page.render(facts, check(facts), NO_FAULTS) == page.render(other, check(other), NO_FAULTS)


def test_rows_that_were_forgotten_are_shown() -> None:
    assert "unaccounted for" not in render(GOOD).text
    assert "unaccounted for" in render(rows(read=1075)).text


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for marks (1.4.11)."""
    blocks = re.findall(r":root\{([^}]*--paper[^}]*)\}", STYLE)
    colours = dict(re.findall(r"--(\w+):(#[0-9a-f]{3,6})", blocks[theme]))
    for name in ("ink", "quiet", "pass", "warn", "fail", "mark"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for kind in Kind:
        assert contrast(colours[kind], colours["paper"]) >= 3, kind


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_neighbours_are_told_apart_without_colour(theme: int) -> None:
    """In grey print and by the colour-blind: by lightness, a border, and for two of three a texture."""
    blocks = re.findall(r":root\{([^}]*--paper[^}]*)\}", STYLE)
    colours = dict(re.findall(r"--(\w+):(#[0-9a-f]{3,6})", blocks[theme]))
    for first, second in ((Kind.TRAIN, Kind.VALIDATION), (Kind.VALIDATION, Kind.TEST)):
        assert contrast(colours[first], colours[second]) >= 1.7, (first, second)
    assert len({Kind.TRAIN.texture, Kind.VALIDATION.texture, Kind.TEST.texture}) == 3
    bar = Bar([Segment(Kind.TRAIN, 0.5), Segment(Kind.VALIDATION, 0.0), Segment(Kind.TEST, 0.25)])
    assert bar.borders == [0.5]


def test_every_texture_that_is_used_is_defined_on_the_page() -> None:
    parsed = render(GOOD)
    used = {value for value in parsed.values("rect", "fill") if value}
    assert used == {f"url(#{name})" for name in parsed.values("pattern", "id")}


def contrast(first: str, second: str) -> float:
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# The charts


@given(histograms, st.integers(16, 131072))
def test_bins_hold_every_case_once(histogram: Counter[int], limit: int) -> None:
    bins = Bins.of(histogram, limit)
    assert sum(bins.counts(histogram)) == histogram.total()
    assert 1 <= bins.number <= 41
    assert bins.gathered(histogram) <= histogram.total() / 100


def test_a_long_tail_does_not_hide_the_rest() -> None:
    assert Bins.of(Counter({**dict.fromkeys(range(20, 60), 10), 100_000: 2}), 512).width <= 5


@pytest.mark.parametrize(("limit", "lines"), [(30, 1), (512, 0)])
def test_the_limit_is_marked_where_it_is_near(limit: int, lines: int) -> None:
    histogram = Counter({20: 5, 25: 5})
    bins = Bins.of(histogram, limit)
    drawn = Histogram.of(histogram, bins, Kind.TRAIN, limit, "…", "…")
    assert (drawn.limit is not None) == bool(lines)
    assert len(drawn.columns) == 2
