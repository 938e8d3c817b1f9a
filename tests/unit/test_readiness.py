"""The readiness report: what each item of the checklist makes of the facts, and the page that people read."""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from finetune_api.dataset import OnFinding, TooLong
from finetune_api.readiness import MAX_SUMMARY, Readiness, completed
from finetune_jobs.dataset.readers import Fault
from finetune_jobs.dataset.split import Part
from finetune_jobs.dataset.validation import Faults
from finetune_jobs.evaluation.metrics import wilson
from finetune_jobs.readiness import charts, learning_curve, page
from finetune_jobs.readiness.charts import Bins
from finetune_jobs.readiness.checklist import Item, State, check, quantile, summary, verdict
from finetune_jobs.readiness.facts import Baseline, Beside, Facts, Findings, Lengths, Rows
from finetune_jobs.readiness.learning_curve import LearningCurve, Point, PowerLaw
from finetune_jobs.readiness.style import STYLE

pytestmark = pytest.mark.unit

PARTS = {Part.TRAIN: 800, Part.VALIDATION: 100, Part.TEST: 100}
MAX_BYTES = 300_000
NO_FAULTS = Faults().stored()
FACTS = TypeAdapter(Facts)


def by_part(train: int, validation: int, test: int) -> dict[Part, int]:
    return {Part.TRAIN: train, Part.VALIDATION: validation, Part.TEST: test}


GOOD = Facts(
    sources=["s3://data/good.csv"],
    task="Classification",
    rows=Rows(
        read=1070,
        parts=PARTS,
        invalid={"empty": 10},
        dropped={"language": 20},
        duplicates=30,
        near_duplicates=40,
        near_dropped=10,
    ),
    lengths=Lengths(512, TooLong.FAIL, {part: Counter({20: count}) for part, count in PARTS.items()}, longest=20),
    pii=Findings(OnFinding.MASK, {"EMAIL_ADDRESS": 7}, names=True),
    secrets=Findings(OnFinding.MASK),
    labels={"ham": by_part(480, 60, 60), "spam": by_part(320, 40, 40)},
    languages={"en": 990, "und": 10},
    leaks=0,
    source_digest="5" * 64,
    dataset_digest="d" * 64,
    baseline=Baseline("accuracy", 0.42, 100, (0.33, 0.52)),
)
"""Facts that pass everything; a test changes what it is about."""


def rows(**changes: Any) -> Facts:
    return replace(GOOD, rows=replace(GOOD.rows, **changes))


def lengths(**changes: Any) -> Facts:
    return replace(GOOD, lengths=replace(GOOD.lengths, **changes))


def item(facts: Facts, name: str) -> Item:
    (found,) = (each for each in check(facts) if each.name == name)
    return found


# The checklist


def test_good_data_pass() -> None:
    items = check(GOOD)
    assert {each.state for each in items} == {State.PASS}
    assert [each.name for each in items] == [
        *("examples", "structured", "cleaned", "duplicates", "anonymised", "secrets"),
        *("split", "leakage", "balance", "lengths", "versioned", "baseline"),
    ]
    assert summary(items) == "12 passed, 0 warnings, 0 failed"
    assert GOOD.rows.unexplained == 0


CASES: Sequence[tuple[str, Facts, State, str]] = [
    ("examples", rows(parts=by_part(399, 50, 50)), State.WARN, "499 examples"),
    ("examples", rows(parts=by_part(400, 50, 50)), State.PASS, "500 examples"),
    ("examples", rows(parts=by_part(49, 300, 300)), State.FAIL, "49 of them for training"),
    ("examples", rows(parts=by_part(100, 50, 50), outside_pilot=500), State.PASS, "500 more training examples"),
    ("examples", rows(parts=by_part(500, 50, 50), added=300), State.WARN, "300 examples"),
    ("structured", rows(invalid={}), State.PASS, "Every row has the form"),
    ("structured", rows(invalid={"empty": 40, "ragged": 13}), State.PASS, "empty 40, ragged 13"),
    ("structured", rows(invalid={"empty": 40, "ragged": 14}), State.WARN, "54 of 1,070 rows"),
    ("structured", rows(invalid={"ragged": 1070}), State.FAIL, "100.0 %"),
    ("structured", rows(read=0, invalid={}), State.FAIL, "hold no row"),
    ("cleaned", rows(dropped={}), State.PASS, "no rule left an example out"),
    ("cleaned", rows(dropped={"language": 212}), State.PASS, "language 212"),
    ("cleaned", rows(dropped={"language": 213}), State.WARN, "213 of 1,060 examples"),
    ("duplicates", rows(near_duplicates=None), State.WARN, "Nobody looked for near duplicates"),
    ("duplicates", rows(near_duplicates=200, near_dropped=0), State.PASS, "200 kept"),
    ("duplicates", rows(near_duplicates=201, near_dropped=0), State.WARN, "20.1 %"),
    ("duplicates", rows(near_duplicates=500, near_dropped=500), State.PASS, "500 left out"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.OFF)), State.WARN, "Nobody looked for personal data"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.MASK)), State.WARN, "No language model looked for names"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.REPORT, {"EMAIL_ADDRESS": 2})), State.FAIL, "still in"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.REPORT, names=True)), State.PASS, "found none"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.DROP, {"IBAN": 1}, names=True)), State.PASS, "left out"),
    ("anonymised", replace(GOOD, pii=replace(GOOD.pii, only=["IBAN"])), State.PASS, "personal data (only IBAN)"),
    ("secrets", replace(GOOD, secrets=Findings(OnFinding.MASK, {"awsKey": 1})), State.PASS, "1 place: awsKey 1"),
    ("secrets", replace(GOOD, secrets=Findings(OnFinding.REPORT, {"awsKey": 1})), State.FAIL, "still in"),
    ("secrets", replace(GOOD, secrets=Findings(OnFinding.OFF)), State.WARN, "Nobody looked"),
    ("split", rows(parts=by_part(800, 100, 99)), State.WARN, "99 for test"),
    ("split", rows(parts=by_part(800, 10, 100)), State.PASS, "10 for validation"),
    ("split", rows(parts=by_part(800, 9, 100)), State.FAIL, "Too few for validation"),
    ("split", rows(parts={Part.TRAIN: 800}), State.FAIL, "Too few for validation and test"),
    ("split", replace(GOOD, split_provided=True), State.PASS, "as the sources say"),
    ("leakage", replace(GOOD, leaks=1), State.FAIL, "1 pair of"),
    ("leakage", replace(GOOD, leaks=None), State.WARN, "Nobody compared"),
    ("leakage", replace(GOOD, contaminated=0), State.PASS, "None shares 13 words"),
    ("leakage", replace(GOOD, contaminated=3), State.WARN, "3 examples share 13 words"),
    (
        "leakage",
        replace(GOOD, contaminated=0, tests_in_benchmark=9),
        State.PASS,
        "9 examples of your own test do; they",
    ),
    (
        "leakage",
        replace(GOOD, contaminated=0, benchmarks=Beside(4, {"empty": 1})),
        State.WARN,
        "Of the benchmark 1 of 4 rows (25.0 %) cannot be used: empty 1; nobody looked for their texts.",
    ),
    ("structured", replace(GOOD, replay=Beside(1000)), State.PASS, "10 of 1,070 rows (0.9 %): empty 10."),
    (
        "structured",
        replace(GOOD, replay=Beside(1000, {"empty": 1})),
        State.WARN,
        "Of the general data 1 of 1,000 rows (0.1 %) cannot be used: empty 1.",
    ),
    ("balance", replace(GOOD, labels={"a": by_part(90, 5, 5), "b": by_part(8, 1, 1)}), State.PASS, "10.0 : 1"),
    ("balance", replace(GOOD, labels={"a": by_part(91, 5, 5), "b": by_part(8, 1, 1)}), State.WARN, "10.1 : 1"),
    (
        "balance",
        replace(GOOD, labels={"a": by_part(9, 5, 5), "b": by_part(7, 1, 1)}),
        State.WARN,
        "than 10 examples: 'b'",
    ),
    (
        "balance",
        replace(GOOD, labels={"a": by_part(9, 5, 5), "b": by_part(9, 1, 0)}),
        State.WARN,
        "a test example: 'b'",
    ),
    ("balance", replace(GOOD, labels={"a": by_part(9, 5, 5), "b": by_part(0, 9, 9)}), State.FAIL, "example: 'b'"),
    ("balance", replace(GOOD, labels={"a": by_part(800, 100, 100)}), State.FAIL, "One class teaches nothing"),
    ("lengths", lengths(by_part={}), State.WARN, "Nobody counted"),
    ("lengths", lengths(over=1, longest=900), State.FAIL, "1 longer example (0.1 %)"),
    ("lengths", lengths(over=1, longest=900, rule=TooLong.TRUNCATE), State.WARN, "cut off"),
    ("lengths", lengths(over=10, longest=900, rule=TooLong.DROP), State.PASS, "left out"),
    ("lengths", lengths(over=11, longest=900, rule=TooLong.DROP), State.WARN, "11 longer examples (1.1 %)"),
    ("lengths", lengths(over=50, longest=900, rule=TooLong.SPLIT), State.PASS, "were split"),
    ("versioned", replace(GOOD, source_digest=""), State.WARN, "not known"),
    ("versioned", replace(GOOD, dataset_digest=""), State.WARN, "not known"),
    ("baseline", replace(GOOD, baseline=None), State.WARN, "most frequent label: accuracy 60.0 %"),
    ("baseline", replace(GOOD, baseline=Baseline("accuracy", 0.95, 100)), State.WARN, "little left to win"),
    (
        "baseline",
        replace(GOOD, baseline=Baseline("perplexity", 7.123, 100, share=False)),
        State.PASS,
        "perplexity 7.12",
    ),
]


@pytest.mark.parametrize(("name", "facts", "state", "evidence"), CASES)
def test_an_item(name: str, facts: Facts, state: State, evidence: str) -> None:
    found = item(facts, name)
    assert found.state is state, found
    assert evidence in found.evidence
    assert bool(found.remedy) == (state is not State.PASS)
    others = [each.name for each in check(facts) if each.state is not State.PASS and each.name != name]
    assert name in ("examples", "structured", "split", "balance") or not others


def test_without_classes_there_is_no_balance() -> None:
    names = [each.name for each in check(replace(GOOD, labels={}, task="FreeText"))]
    assert "balance" not in names
    assert len(names) == len(check(GOOD)) - 1


def test_the_test_says_how_sure_its_scores_can_be() -> None:
    low, high = wilson(80, 100)
    assert f"anything from {low * 100:.1f} to {high * 100:.1f} %" in item(GOOD, "split").evidence


@pytest.mark.parametrize(
    ("states", "text", "worst"),
    [
        ("PPP", "3 passed, 0 warnings, 0 failed", State.PASS),
        ("PWP", "2 passed, 1 warning (b), 0 failed", State.WARN),
        ("WWF", "0 passed, 2 warnings (a, b), 1 failed (c)", State.FAIL),
        ("", "0 passed, 0 warnings, 0 failed", State.PASS),
    ],
)
def test_the_summary_names_what_needs_attention(states: str, text: str, worst: State) -> None:
    of_letter = {"P": State.PASS, "W": State.WARN, "F": State.FAIL}
    items = [Item(name, of_letter[letter], "…") for name, letter in zip("abc", states, strict=False)]
    assert (summary(items), verdict(items)) == (text, worst)


histograms = st.dictionaries(st.integers(0, 5000), st.integers(1, 100), min_size=1).map(Counter)


@given(histograms, st.floats(0.01, 1))
def test_a_quantile_is_what_sorting_gives(histogram: Counter[int], share: float) -> None:
    ordered = sorted(histogram.elements())
    value = quantile(histogram, share)
    assert sum(each <= value for each in ordered) >= share * len(ordered)
    assert sum(each < value for each in ordered) < share * len(ordered)


counts = st.dictionaries(st.text(max_size=8), st.integers(0, 10**6), max_size=4)
part_counts = st.fixed_dictionaries({part: st.integers(0, 10**6) for part in Part})
findings = st.builds(Findings, st.sampled_from(OnFinding), counts, names=st.booleans())
any_facts = st.builds(
    Facts,
    sources=st.lists(st.text(), min_size=1, max_size=20),
    task=st.text(max_size=20),
    rows=st.builds(
        Rows,
        read=st.integers(0, 10**7),
        parts=part_counts,
        invalid=counts,
        dropped=counts,
        duplicates=st.integers(0, 10**6),
        near_duplicates=st.none() | st.integers(0, 10**6),
        added=st.integers(0, 10**6),
        outside_pilot=st.integers(0, 10**6),
    ),
    lengths=st.builds(
        Lengths,
        st.integers(16, 131072),
        st.sampled_from(TooLong),
        st.dictionaries(st.sampled_from(Part), histograms),
        st.integers(0, 1000),
        st.integers(0, 10**6),
    ),
    pii=findings,
    secrets=findings,
    labels=st.dictionaries(st.text(max_size=50), part_counts, max_size=5),
    languages=counts,
    leaks=st.none() | st.integers(0, 5),
    contaminated=st.none() | st.integers(0, 5),
)


@given(any_facts)
def test_any_facts_have_a_checklist_with_sentences(facts: Facts) -> None:
    for each in check(facts):
        assert each.evidence.endswith(".")
        assert (each.remedy == "") == (each.state is State.PASS)
        assert "nan" not in each.evidence


@given(any_facts)
@example(GOOD)
def test_facts_survive_json(facts: Facts) -> None:
    again = FACTS.validate_json(FACTS.dump_json(facts))
    assert page.render(again, check(again), ()) == page.render(facts, check(facts), ())


# The page

_VOID = {"meta", "br", "wbr"}
_FETCHING = {
    "script",
    "link",
    "img",
    "iframe",
    "object",
    "embed",
    "image",
    "use",
    "a",
    "base",
    "form",
    "audio",
    "video",
}


class Parsed(HTMLParser):
    """Tags, texts and the nesting of a page; fails where a tag is not closed by its own end."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def values(self, tag: str, attribute: str) -> list[str]:
        return [value for t, name, value in self.attributes if (t, name) == (tag, attribute)]


def render(facts: Facts, faults: Sequence[Mapping[str, str | int]] = ()) -> Parsed:
    return parsed_page(page.render(facts, check(facts), faults))


def parsed_page(html: str) -> Parsed:
    """A page that is small and loads nothing."""
    assert len(html.encode()) < MAX_BYTES
    parsed = Parsed(html)
    assert not _FETCHING & set(parsed.tags)
    return parsed


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
        *("Checklist", "What became of the rows", "Token lengths", "Classes", "Personal data and secrets"),
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


def assert_accessible(parsed: Parsed) -> None:
    """Charts have a description, tables a caption and headers."""
    assert all(parsed.values("svg", "aria-label"))
    assert parsed.tags["caption"] == parsed.tags["table"] == parsed.tags["thead"]
    assert set(parsed.values("th", "scope")) == {"col", "row"}
    assert len(parsed.values("th", "scope")) == parsed.tags["th"]


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


@given(any_facts)
@settings(max_examples=40, deadline=None)
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
    assert "not accounted for" not in render(GOOD).text
    assert "not accounted for" in render(rows(read=1075)).text


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for marks (1.4.11)."""
    blocks = re.findall(r":root\{([^}]*--paper[^}]*)\}", STYLE)
    colours = dict(re.findall(r"--(\w+):(#[0-9a-f]{3,6})", blocks[theme]))
    for name in ("ink", "quiet", "pass", "warn", "fail", "mark"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in ("train", "validation", "test", "lost", "aside"):
        assert contrast(colours[name], colours["paper"]) >= 3, name


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
    drawn = charts.histogram(histogram, bins, charts.Kind.TRAIN, limit, "…")
    assert drawn.count('class="limit"') == lines
    assert drawn.count("<rect") == 2


# The learning curve


def measured(law: PowerLaw, sizes: Sequence[int], noise: Callable[[], float] = lambda: 0.0) -> list[Point]:
    return [Point(size, max(0.0, law.at(size) + noise())) for size in sizes]


@cache
def fitted() -> LearningCurve:
    return learning_curve.fit(measured(PowerLaw(0.1, 2, 0.5), [100, 200, 400, 800]))


@given(st.floats(0, 0.5), st.floats(0.5, 5), st.floats(0.2, 1))
@settings(max_examples=10, deadline=None)
def test_a_power_law_is_found_again(a: float, b: float, c: float) -> None:
    law = PowerLaw(a, b, c)
    curve = learning_curve.fit(measured(law, [100, 250, 500, 750, 1000]))
    for size in (100, 1000, 4000):
        predicted = curve.predict(size)
        assert predicted.error == pytest.approx(law.at(size), rel=0.01, abs=1e-3)
        assert predicted.low <= predicted.error <= predicted.high


def test_data_that_do_not_help_give_a_flat_curve() -> None:
    curve = learning_curve.fit([Point(size, error) for size, error in ((100, 0.2), (200, 0.21), (400, 0.22))])
    assert curve.predict(1600).error == pytest.approx(0.21, abs=0.001)


def test_the_interval_holds_the_truth_in_most_simulations() -> None:
    chance = random.Random(7)
    hits = 0
    for seed in range(25):
        law = PowerLaw(chance.uniform(0, 0.3), chance.uniform(1, 4), chance.uniform(0.2, 0.7))
        points = measured(law, [125, 250, 500, 750, 1000], lambda: chance.gauss(0, 0.01))
        predicted = learning_curve.fit(points, seed=seed).predict(2000)
        hits += predicted.low <= law.at(2000) <= predicted.high
    assert hits >= 19


def test_equal_points_give_equal_curves_in_any_order() -> None:
    points = measured(PowerLaw(0.1, 2, 0.5), [100, 200, 400])
    assert learning_curve.fit(points) == learning_curve.fit(points[::-1])


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([(100, 0.3), (200, 0.2)], "2 sizes: a learning curve needs 3"),
        ([(100, 0.3), (100, 0.31), (200, 0.2)], "2 sizes"),
        ([(0, 0.3), (100, 0.3), (200, 0.2)], "must be 1 or more"),
        ([(50, -0.1), (100, 0.3), (200, 0.2)], "0 or more"),
        ([(50, float("nan")), (100, 0.3), (200, 0.2)], "0 or more"),
    ],
)
def test_what_no_curve_goes_through(points: list[tuple[int, float]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        learning_curve.fit([Point(*point) for point in points])


@pytest.mark.parametrize("size", [0, 3201, 10**9])
def test_nobody_extrapolates_beyond_two_doublings(size: int) -> None:
    assert fitted().predict(3200).error > 0
    with pytest.raises(ValueError, match="measured up to 800 speaks of 1 to 3200"):
        fitted().predict(size)


# The summary, and what completes it


NAMES = st.lists(st.from_regex(r"[a-z]{1,12}", fullmatch=True), max_size=13, unique=True).map(tuple)


@given(st.integers(0, 20), NAMES, NAMES)
def test_a_summary_is_read_as_it_was_written(passed: int, warned: tuple[str, ...], failed: tuple[str, ...]) -> None:
    written = Readiness(passed, warned, failed)
    assert Readiness.parse(str(written)) == written


def test_the_longest_summary_fits_the_status() -> None:
    """Every item warns, and the base model's score is known."""
    names = tuple(each.name for each in check(GOOD))
    assert len(completed(str(Readiness(0, names)), "accuracy", 0.991, 100_000)) <= MAX_SUMMARY


def test_a_summary_is_completed_once() -> None:
    once = completed(summary(check(replace(GOOD, baseline=None))), "accuracy", 0.42, 100)
    assert once == f"{summary(check(GOOD))}; base model: accuracy 42.0 % on 100 test examples"
    assert completed(once, "accuracy", 0.42, 100) == once
