"""Facts about data sets for tests of the readiness report, and its pages as a strict reader sees them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from hypothesis import strategies as st

from finetune_api.dataset import OnFinding, TooLong
from finetune_jobs.examples.parts import Part
from finetune_jobs.readiness import page
from finetune_jobs.readiness.checklist import check
from finetune_jobs.readiness.facts import Baseline, Facts, Findings, Lengths, Rows

PARTS = {Part.TRAIN: 800, Part.VALIDATION: 100, Part.TEST: 100}
MAX_BYTES = 300_000


def by_part(train: int, validation: int, test: int) -> dict[Part, int]:
    """A count for each part."""
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
    """Good facts but for what became of the rows."""
    return replace(GOOD, rows=replace(GOOD.rows, **changes))


histograms = st.dictionaries(st.integers(0, 5000), st.integers(1, 100), min_size=1).map(Counter)
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

_VOID = {"meta", "br", "wbr", "input"}
_FETCHING = {
    "script",
    "link",
    "img",
    "iframe",
    "object",
    "embed",
    "image",
    "use",
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
        """All that is read on the page."""
        return "".join(self.texts)

    def values(self, tag: str, attribute: str) -> list[str]:
        """The values of an attribute of all such tags."""
        return [value for t, name, value in self.attributes if (t, name) == (tag, attribute)]


def render(facts: Facts, faults: Sequence[Mapping[str, str | int]] = ()) -> Parsed:
    """The page of these facts."""
    return parsed_page(page.render(facts, check(facts), faults))


def parsed_page(html: str) -> Parsed:
    """A page that is small, loads nothing, and leads only to what lies beside it."""
    assert len(html.encode()) < MAX_BYTES
    parsed = Parsed(html)
    assert not _FETCHING & set(parsed.tags)
    assert not [target for target in parsed.values("a", "href") if ":" in target or target.startswith("/")]
    return parsed


def assert_accessible(parsed: Parsed) -> None:
    """Charts have a description, tables a caption and headers."""
    assert all(parsed.values("svg", "aria-label"))
    assert parsed.tags["caption"] == parsed.tags["table"] == parsed.tags["thead"]
    assert set(parsed.values("th", "scope")) == {"col", "row"}
    assert len(parsed.values("th", "scope")) == parsed.tags["th"]
