"""Every row that goes in comes out once: as an example of a part, or as one of the named ways out."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.dataset import (
    AcrossParts,
    Cleaning,
    Duplicates,
    OnFinding,
    OnNear,
    Pii,
    Pilot,
    Source,
    Task,
    TaskType,
    TooLong,
)
from finetune_api.stages import PrepareParams
from finetune_jobs.base.errors import StageError
from finetune_jobs.examples.ledger import Ledger, Place
from finetune_jobs.examples.parts import Part
from finetune_jobs.examples.validation import Example
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.preparation.collect import Collected, Collector
from finetune_jobs.preparation.tokens import Encoder
from finetune_jobs.readiness.preparation_report import PreparationReport, require_enough
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.splitting.contamination import Reference
from finetune_jobs.splitting.division import divide
from finetune_jobs.splitting.near_duplicates import Near
from tests.support.fast import share
from tests.support.preparing import intake_of, source_file
from tests.support.sentences import assert_says
from tests.support.stages import prepare_params
from tests.support.tiny_model import build_tiny_llama

pytestmark = pytest.mark.unit

MAX_LENGTH = 220
BENCHMARK = " ".join(f"bench{n}" for n in range(14))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    base = build_tiny_llama(tmp_path_factory.mktemp("account") / "base")
    found = load_tokenizer(base)
    return found, stop_token(base, found)


def params_of(**fields: Any) -> PrepareParams:
    sources = [Source(uri="s3://data/often.jsonl", weight="1.5"), Source(uri="s3://data/seldom.jsonl", weight="0.5")]
    return prepare_params(**{"sources": sources, "max_length": MAX_LENGTH, "task": Task(type=TaskType.TEXT)} | fields)


def collect(tokenizer: tuple[Any, int], spool: Path, params: PrepareParams, rows: list[Any]) -> Collected:
    """Rows alternate between the sources."""
    benchmark = Reference([BENCHMARK])
    with Collector(intake_of(params), Encoder(*tokenizer, params), spool, benchmark) as collector:
        files = [source_file(origin) for origin in params.dataset.all_sources]
        for number, fields in enumerate(rows):
            collector.take(files[number % len(files)], Row(number + 1, fields))
    return collector.made


def report_of(made: Collected, params: PrepareParams) -> PreparationReport:
    near = made.near(params.dataset.duplicates.sought_percent)
    return PreparationReport.of(made, divide(made.ledger, near, made.texts, params.dataset), params, "")


def chat(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]}


def words(name: str, count: int = 12) -> str:
    return " ".join(f"{name}{n}" for n in range(count))


NAMES = st.sampled_from([*"abcdef", *(f"row{n}" for n in range(90))])
ANSWERS = st.sampled_from(["yes", "no", "maybe not"])
ROWS = st.one_of(
    st.builds(lambda name, answer: chat(words(name), answer), NAMES, ANSWERS),
    st.builds(lambda name, answer: chat(f"{words(name, 20)} {answer}", answer), NAMES, ANSWERS),
    st.builds(lambda name, answer: chat(words(name, 90), answer), st.sampled_from("abc"), ANSWERS),
    st.builds(
        lambda names, answer: chat(*(text for name in names for text in (words(name), answer))),
        st.lists(st.sampled_from("abcdef"), min_size=2, max_size=9),
        ANSWERS,
    ),
    st.sampled_from([chat(f"As they ask: {BENCHMARK}?", "yes"), chat("Write to ana@example.org", "no"), {}, chat("q")]),
)


@given(
    rows=st.lists(ROWS, max_size=120),
    task=st.sampled_from(list(TaskType)),
    too_long=st.sampled_from(list(TooLong)),
    pii=st.sampled_from(list(OnFinding)),
    duplicates=st.builds(Duplicates, near=st.sampled_from(OnNear)),
    pilot=st.sampled_from([None, Pilot(examples=50)]),
    least=st.integers(1, 2),
)
@settings(deadline=None, max_examples=share(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_row_is_lost_or_counted_twice(
    tokenizer: tuple[Any, int],
    tmp_path: Path,
    rows: list[Any],
    task: TaskType,
    too_long: TooLong,
    pii: OnFinding,
    duplicates: Duplicates,
    pilot: Pilot | None,
    least: int,
) -> None:
    params = params_of(
        task=Task(type=task),
        cleaning=Cleaning(too_long=too_long, min_answer_words=least),
        pii=Pii(mode=pii),
        duplicates=duplicates,
        pilot=pilot,
    )
    made = collect(tokenizer, tmp_path / "spool.arrow", params, rows)
    counted = report_of(made, params).facts.rows
    assert counted.read == len(rows)
    assert counted.unexplained == 0
    assert sum(counted.parts.values()) >= counted.distinct - counted.outside_pilot >= 0
    assert min([counted.added, counted.duplicates, counted.near_dropped, counted.outside_pilot]) >= 0


def test_a_contradiction_of_what_a_rule_left_out_counts_each_row_once(
    tokenizer: tuple[Any, int], tmp_path: Path
) -> None:
    params = params_of(task=Task(), cleaning=Cleaning(too_long=TooLong.DROP))
    rows = [chat(words("long", 90), answer) for answer in ("yes", "yes", "no", "yes")]
    ledger = collect(tokenizer, tmp_path / "spool.arrow", params, rows).ledger
    assert (dict(ledger.dropped), dict(ledger.faults.kinds), ledger.duplicates) == (
        {"tooLong": 1},
        {"conflictingLabels": 3},
        0,
    )


def test_what_was_cut_goes_too_when_its_row_is_contradicted(tokenizer: tuple[Any, int], tmp_path: Path) -> None:
    params = params_of(task=Task(), cleaning=Cleaning(too_long=TooLong.TRUNCATE))
    rows = [chat(words("long", 90), answer) for answer in ("yes", "no")]
    ledger = collect(tokenizer, tmp_path / "spool.arrow", params, rows).ledger
    assert (ledger.faults.total, ledger.labels) == (2, {})


def test_pieces_that_say_the_same_are_counted_but_make_the_set_no_smaller(
    tokenizer: tuple[Any, int], tmp_path: Path
) -> None:
    sources = [Source(uri="s3://data/rows.jsonl")] * 2
    params = params_of(
        sources=sources, cleaning=Cleaning(too_long=TooLong.SPLIT), duplicates=Duplicates(near=OnNear.IGNORE)
    )
    turns = [(words(f"row{n}", 25), "first", words("same", 25), "second", words("end", 25), "third") for n in range(4)]
    made = collect(tokenizer, tmp_path / "spool.arrow", params, [chat(*each) for each in turns])
    assert (made.added, made.repeated_pieces, made.ledger.duplicates, len(made.ledger.labels)) == (8, 6, 6, 6)
    assert report_of(made, params).facts.rows.distinct == 4


def test_exchanges_that_are_left_out_of_a_split_are_told(tokenizer: tuple[Any, int], tmp_path: Path) -> None:
    params = params_of(cleaning=Cleaning(too_long=TooLong.SPLIT))
    turns = (words("first", 5), "yes", words("long", 90), "no")
    found = report_of(collect(tokenizer, tmp_path / "spool.arrow", params, [chat(*turns)]), params)
    assert found.report()["tokens"]["exchangesLeftOut"] == 1
    assert "left out of conversations that were split: 1 exchange." in found.message()


def test_lines_that_a_wrong_quote_took_in_are_rows(tokenizer: tuple[Any, int], tmp_path: Path) -> None:
    params = params_of()
    with Collector(intake_of(params), Encoder(*tokenizer, params), tmp_path / "spool.arrow") as collector:
        file = source_file(params.dataset.all_sources[0])
        collector.take(file, Fault(3, "", "malformedCsv", "opens a quotation mark", rows=51))
    assert (collector.made.ledger.read, collector.made.ledger.faults.total) == (51, 51)


def test_a_near_duplicate_of_your_test_is_told_as_such_where_others_are_dropped() -> None:
    """``near: Drop`` says what becomes of near duplicates, ``acrossParts`` of those between training and test."""
    params = params_of(duplicates=Duplicates(near=OnNear.DROP))
    parts = (Part.TEST, Part.TRAIN, Part.TRAIN, Part.TRAIN)
    ledger, names = Ledger(TaskType.TEXT), []
    for line, part in enumerate(parts, start=1):
        found = Example([{"role": "user", "content": words(f"row{line}")}, {"role": "assistant", "content": "yes"}])
        ledger.keep(found, Place(0, f"{part}.csv", line), 9, part)
        names.append(found.identity)
    near = Near({names[0]: "one", names[1]: "one", names[2]: "two", names[3]: "two"})
    failing = params.dataset.model_copy(
        update={"duplicates": Duplicates(near=OnNear.DROP, across_parts=AcrossParts.FAIL)}
    )
    with pytest.raises(StageError) as caught:
        divide(ledger, near, lambda _: iter(()), failing)
    assert_says(caught.value.message, "test.csv line 1 (test) and train.csv line 2 (training)")
    division = divide(ledger, near, lambda _: iter(()), params.dataset)
    assert (division.near, division.near_dropped, dict(ledger.dropped)) == (2, 1, {"inTest": 1})
    assert ledger.across == [("test.csv line 1", "train.csv line 2")]


def test_too_few_examples_are_refused_with_every_way_out(tokenizer: tuple[Any, int], tmp_path: Path) -> None:
    params = params_of(duplicates=Duplicates(near=OnNear.DROP))
    rows = [chat(f"{words('near', 20)} {end}", "yes") for end in ("now", "then", "now")] + [{}]
    ledger = (made := collect(tokenizer, tmp_path / "spool.arrow", params, rows)).ledger
    near = made.near(params.dataset.duplicates.sought_percent)
    with pytest.raises(StageError) as caught:
        require_enough(ledger, divide(ledger, near, made.texts, params.dataset), params.dataset.split)
    assert_says(caught.value.message, "4 rows", "1 were invalid", "1 duplicates", "1 dropped", "rules", "1 examples")
