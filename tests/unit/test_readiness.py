"""The readiness report: what each item of the checklist makes of the facts, and the summary of all of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from finetune_api.dataset import OnFinding, TooLong
from finetune_api.readiness import MAX_SUMMARY, Readiness, completed
from finetune_jobs.evaluation.metrics import wilson
from finetune_jobs.examples.parts import Part
from finetune_jobs.readiness import page
from finetune_jobs.readiness.checklist import Item, State, check, summary, verdict
from finetune_jobs.readiness.facts import Baseline, Beside, Facts, Findings
from finetune_jobs.reports.bins import quantile
from tests.support.readiness import GOOD, any_facts, by_part, histograms, rows

pytestmark = pytest.mark.unit

FACTS = TypeAdapter(Facts)


def lengths(**changes: Any) -> Facts:
    return replace(GOOD, lengths=replace(GOOD.lengths, **changes))


def item(facts: Facts, name: str) -> Item:
    (found,) = (each for each in check(facts) if each.name == name)
    return found


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
    ("thoughts", replace(GOOD, thoughts=by_part(800, 100, 100)), State.PASS, "1,000 examples have thoughts, all"),
    ("thoughts", replace(GOOD, thoughts=by_part(1, 0, 0), without_thoughts=999), State.WARN, "999 have none"),
    ("examples", rows(parts=by_part(399, 50, 50)), State.WARN, "499 examples"),
    ("examples", rows(parts=by_part(400, 50, 50)), State.PASS, "500 examples"),
    ("examples", rows(parts=by_part(49, 300, 300)), State.FAIL, "49 of them for training"),
    ("examples", rows(parts=by_part(100, 50, 50), outside_pilot=500), State.PASS, "500 more training examples"),
    ("examples", rows(parts=by_part(500, 50, 50), added=300), State.WARN, "300 examples"),
    ("structured", rows(invalid={}), State.PASS, "Every row is valid"),
    ("structured", rows(invalid={"empty": 40, "ragged": 13}), State.PASS, "empty 40, ragged 13"),
    ("structured", rows(invalid={"empty": 40, "ragged": 14}), State.WARN, "54 of 1,070 rows"),
    ("structured", rows(invalid={"ragged": 1070}), State.FAIL, "100.0 %"),
    ("structured", rows(read=0, invalid={}), State.FAIL, "no rows"),
    ("cleaned", rows(dropped={}), State.PASS, "no example was dropped"),
    ("cleaned", rows(dropped={"language": 212}), State.PASS, "language 212"),
    ("cleaned", rows(dropped={"language": 213}), State.WARN, "213 of 1,060 examples"),
    ("duplicates", rows(near_duplicates=None), State.WARN, "Near duplicates"),
    ("duplicates", rows(near_duplicates=200, near_dropped=0), State.PASS, "200 kept"),
    ("duplicates", rows(near_duplicates=201, near_dropped=0), State.WARN, "20.1 %"),
    ("duplicates", rows(near_duplicates=500, near_dropped=500), State.PASS, "500 dropped"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.OFF)), State.WARN, "No search for personal data"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.MASK)), State.WARN, "Names and addresses"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.REPORT, {"EMAIL_ADDRESS": 2})), State.FAIL, "remain in"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.REPORT, names=True)), State.PASS, "found none"),
    ("anonymised", replace(GOOD, pii=Findings(OnFinding.DROP, {"IBAN": 1}, names=True)), State.PASS, "dropped"),
    ("anonymised", replace(GOOD, pii=replace(GOOD.pii, only=["IBAN"])), State.PASS, "personal data (only IBAN)"),
    ("secrets", replace(GOOD, secrets=Findings(OnFinding.MASK, {"awsKey": 1})), State.PASS, "1 place: awsKey 1"),
    ("secrets", replace(GOOD, secrets=Findings(OnFinding.REPORT, {"awsKey": 1})), State.FAIL, "remain in"),
    ("secrets", replace(GOOD, secrets=Findings(OnFinding.OFF)), State.WARN, "No search for keys"),
    ("split", rows(parts=by_part(800, 100, 99)), State.WARN, "99 for test"),
    ("split", rows(parts=by_part(800, 10, 100)), State.PASS, "10 for validation"),
    ("split", rows(parts=by_part(800, 9, 100)), State.FAIL, "Too few for validation"),
    ("split", rows(parts={Part.TRAIN: 800}), State.FAIL, "Too few for validation and test"),
    ("split", replace(GOOD, split_provided=True), State.PASS, "provided by the sources"),
    ("leakage", replace(GOOD, leaks=1), State.FAIL, "1 pair of"),
    ("leakage", replace(GOOD, leaks=None), State.WARN, "not compared"),
    ("leakage", replace(GOOD, contaminated=0), State.PASS, "No example shares 13"),
    ("leakage", replace(GOOD, contaminated=3), State.WARN, "3 examples share 13"),
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
        "1 of 4 rows (25.0 %) invalid, dropped: empty 1; ",
    ),
    (
        "structured",
        replace(GOOD, replay=Beside(1000)),
        State.PASS,
        "10 of 1,070 rows (0.9 %)",
    ),
    (
        "structured",
        replace(GOOD, replay=Beside(1000, {"empty": 1})),
        State.WARN,
        "1 of 1,000 rows (0.1 %) invalid, dropped: empty 1.",
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
        "No test example: 'b'",
    ),
    ("balance", replace(GOOD, labels={"a": by_part(9, 5, 5), "b": by_part(0, 9, 9)}), State.FAIL, "example: 'b'"),
    ("balance", replace(GOOD, labels={"a": by_part(800, 100, 100)}), State.FAIL, "single class"),
    ("lengths", lengths(by_part={}), State.WARN, "not counted"),
    ("lengths", lengths(over=1, longest=900), State.FAIL, "1 longer example (0.1 %)"),
    ("lengths", lengths(over=1, longest=900, rule=TooLong.TRUNCATE), State.WARN, "truncated"),
    ("lengths", lengths(over=10, longest=900, rule=TooLong.DROP), State.PASS, "dropped"),
    ("lengths", lengths(over=11, longest=900, rule=TooLong.DROP), State.WARN, "11 longer examples (1.1 %)"),
    ("lengths", lengths(over=50, longest=900, rule=TooLong.SPLIT), State.PASS, "were split"),
    (
        "lengths",
        lengths(over=9, longest=900, left_out=3, rule=TooLong.SPLIT),
        State.WARN,
        "left out of those: 3 exchanges.",
    ),
    ("versioned", replace(GOOD, source_digest=""), State.WARN, "unknown"),
    ("versioned", replace(GOOD, dataset_digest=""), State.WARN, "unknown"),
    ("baseline", replace(GOOD, baseline=None), State.WARN, "most frequent label: accuracy 60.0 %"),
    ("baseline", replace(GOOD, baseline=Baseline("accuracy", 0.95, 100)), State.WARN, "little room"),
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
    assert f"{low * 100:.1f} to {high * 100:.1f} %" in item(GOOD, "split").evidence


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


@given(histograms, st.floats(0.01, 1))
def test_a_quantile_is_what_sorting_gives(histogram: Counter[int], share: float) -> None:
    ordered = sorted(histogram.elements())
    value = quantile(histogram, share)
    assert sum(each <= value for each in ordered) >= share * len(ordered)
    assert sum(each < value for each in ordered) < share * len(ordered)


@pytest.mark.slow
@given(any_facts)
def test_any_facts_have_a_checklist_with_sentences(facts: Facts) -> None:
    for each in check(facts):
        assert each.evidence.endswith(".")
        assert (each.remedy == "") == (each.state is State.PASS)
        assert "nan" not in each.evidence


@pytest.mark.slow
@given(any_facts)
@example(GOOD)
def test_facts_survive_json(facts: Facts) -> None:
    again = FACTS.validate_json(FACTS.dump_json(facts))
    assert page.render(again, check(again), ()) == page.render(facts, check(facts), ())


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
