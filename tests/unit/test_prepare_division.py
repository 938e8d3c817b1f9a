"""Which part an example belongs to, through the real stage: near duplicates, groups, parts of one's own."""

import csv
import json
from typing import Any

import pytest

from finetune_api.dataset import (
    AcrossParts,
    Cleaning,
    Columns,
    Duplicates,
    OnNear,
    SourcePart,
    Task,
    TaskType,
    TooLong,
)
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from hack.data import data_file, missing
from tests.support.preparing import WORDS, Prepared, Row, rows, text
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_near_duplicates_stay_together_or_go(prepared: Prepared) -> None:
    long = [" ".join(f"{word}{n}" for word in WORDS) for n in range(40)]
    near = [{"text": f"{each} {end}", "label": "ab"[n % 2]} for n, each in enumerate(long) for end in ("now", "then")]
    source = prepared.put("rows.jsonl", rows() + near)
    prepared.run(source)
    places = {each: part for part in ("train", "validation", "test") for each in prepared.texts(part)}
    assert all(places[f"{each} now"] == places[f"{each} then"] for each in long)
    assert set(places.values()) == {"train", "validation", "test"}
    assert prepared.report["rows"]["nearDuplicates"] == 40
    scalars = prepared.run(source, duplicates=Duplicates(near=OnNear.DROP)).scalars
    assert (scalars["rowsDropped"], prepared.report["rows"]["nearDropped"]) == ("40", 40)
    assert "Rules dropped 40 (nearDuplicate 40)." in prepared.result.message


LONG = " ".join(f"rule{n}" for n in range(70))


@pytest.mark.parametrize(
    ("frame", "fields"),
    [
        ("template", {"columns": Columns(template=f"{LONG} {{text}} {LONG[::-1]}", label="label")}),
        ("instruction", {"columns": None}),
        ("messages", {"columns": None}),
    ],
)
def test_a_text_around_all_rows_makes_none_a_near_duplicate(
    prepared: Prepared, frame: str, fields: dict[str, Any]
) -> None:
    """What varies are a few words, some of which a tenth of the rows shares; only real near duplicates are found."""
    asked = [f"{text(n)} {'please help me' if n % 10 == 0 else ''}" for n in range(200)]
    long = [" ".join(f"{word}{n}" for word in (*WORDS, *reversed(WORDS), *WORDS)) for n in range(3)]
    asked += [f"{each} {end}" for each in long for end in ("now", "then")]
    given: list[Row] = [{"text": each, "label": "ab"[n % 2]} for n, each in enumerate(asked)]
    if frame == "instruction":
        given = [{"instruction": LONG, "input": row["text"], "output": row["label"]} for row in given]
    elif frame == "messages":
        turns = [(f"{LONG} {row['text']}", row["label"]) for row in given]
        roles = ("user", "assistant")
        given = [
            {"messages": [{"role": role, "content": each} for role, each in zip(roles, turn, strict=True)]}
            for turn in turns
        ]
    prepared.run(prepared.put("rows.jsonl", given), max_length=2048, **fields)
    assert prepared.report["rows"]["nearDuplicates"] == 3
    assert [prepared.report["rows"][part] for part in ("train", "validation", "test")] == [166, 20, 20]
    prepared.run(prepared.put("rows.jsonl", given), max_length=2048, duplicates=Duplicates(near=OnNear.DROP), **fields)
    assert prepared.report["rows"]["nearDropped"] == 3


def test_groups_are_never_torn_apart(prepared: Prepared) -> None:
    grouped = [row | {"ticket": n // 5} for n, row in enumerate(rows(300))]
    prepared.run(prepared.put("rows.jsonl", grouped), group_by="ticket")
    part_of = {each: part for part in ("train", "validation", "test") for each in prepared.texts(part)}
    parts = [{part_of[row["text"]] for row in grouped[n : n + 5]} for n in range(0, 300, 5)]
    assert all(len(each) == 1 for each in parts)


def groups_of(prepared: Prepared, part: str) -> list[str | None]:
    return [json.loads(line).get("group") for line in prepared.file(f"{part}.jsonl").splitlines()]


def test_rows_of_one_group_say_so_where_they_are_tested(prepared: Prepared) -> None:
    """By a name that is not the user's; a row that is alone in its part, and what is trained, has none."""
    given = [row | {"ticket": f"customer {n // 5 if n < 250 else n}"} for n, row in enumerate(rows(300))]
    prepared.run(prepared.put("rows.jsonl", given), group_by="ticket")
    ticket = {row["text"]: row["ticket"] for row in given}
    assert set(groups_of(prepared, "train")) == {None}
    for part in ("validation", "test"):
        names: dict[str, set[str | None]] = {}
        for each, name in zip(prepared.texts(part), groups_of(prepared, part), strict=True):
            names.setdefault(ticket[each], set()).add(name)
        together = [name for found in names.values() for name in found if name]
        assert all(len(found) == 1 for found in names.values())
        assert len(together) == len(set(together)) >= 2
        assert b"customer" not in prepared.file(f"{part}.jsonl")
        alone = {name for each, found in names.items() for name in found if int(each.split()[1]) >= 250}
        assert alone <= {None}


def test_without_groups_no_row_has_one(prepared: Prepared) -> None:
    prepared.run(prepared.put("rows.jsonl", rows()))
    assert all(set(groups_of(prepared, part)) == {None} for part in ("train", "validation", "test"))


def test_pieces_of_a_conversation_are_never_torn_apart(prepared: Prepared) -> None:
    turns = [[f"{text(n)} {turn}" for turn in range(6)] for n in range(120)]
    given = [
        {"messages": [{"role": ("user", "assistant")[n % 2], "content": each} for n, each in enumerate(conversation)]}
        for conversation in turns
    ]
    task, cleaning = Task(type=TaskType.TEXT), Cleaning(too_long=TooLong.SPLIT)
    prepared.run(prepared.put("rows.jsonl", given), columns=None, task=task, cleaning=cleaning, max_length=60)
    assert prepared.report["rows"]["added"] >= 120
    words = {part: {asked.split()[0] for asked in prepared.texts(part)} for part in ("train", "validation", "test")}
    assert not words["train"] & words["test"]
    assert not words["train"] & words["validation"]


def test_parts_that_sources_provide_are_respected(prepared: Prepared) -> None:
    own, test = prepared.put("own.jsonl", rows()), prepared.put("test.jsonl", rows(30, 900), part=SourcePart.TEST)
    prepared.run(own, test)
    assert prepared.texts("test") == [row["text"] for row in rows(30, 900)]
    assert len(prepared.texts("validation")) == 23


def test_a_test_that_is_trained_is_refused(prepared: Prepared) -> None:
    shared = " ".join(f"{word}x" for word in WORDS)
    own = prepared.put("own.jsonl", [*rows(), {"text": f"{shared} now", "label": "a"}], part=SourcePart.TRAIN)
    tested = [*rows(30, 900), {"text": f"{shared} then", "label": "a"}]
    test = prepared.put("test.jsonl", tested, part=SourcePart.TEST)
    validation = prepared.put("validation.jsonl", rows(30, 1800), part=SourcePart.VALIDATION)
    with pytest.raises(StageError) as caught:
        prepared.run(own, test, validation, duplicates=Duplicates(across_parts=AcrossParts.FAIL))
    assert caught.value.reason is Reason.DATASET_INVALID
    pair = f"{test.uri} line 31 (test) and {own.uri} line 201 (training). "
    assert_says(caught.value.message, "1 test examples", "training examples", pair, "score")


@pytest.mark.parametrize("test_first", [False, True])
@pytest.mark.parametrize("task", [TaskType.CLASSIFICATION, TaskType.TEXT])
def test_your_own_test_stays_whole_when_its_rows_stand_in_another_source_too(
    prepared: Prepared, test_first: bool, task: TaskType
) -> None:
    """As all.csv and test.csv, a part of it: what is in the test is not trained, with the answers that the test has."""
    tested = [row | ({} if task is TaskType.CLASSIFICATION else {"label": "another way to say it"}) for row in rows(20)]
    test = prepared.put("test.jsonl", tested, part=SourcePart.TEST)
    sources = [prepared.put("all.jsonl", rows()), prepared.put("known.jsonl", rows(25, 10), part=SourcePart.VALIDATION)]
    prepared.run(*([test, *sources] if test_first else [*sources, test]), task=Task(type=task))
    assert prepared.texts("test") == [row["text"] for row in rows(20)]
    assert prepared.texts("validation") == [row["text"] for row in rows(15, 20)]
    assert prepared.texts("train") == [row["text"] for row in rows(165, 35)]
    assert prepared.report["rows"]["duplicates"] == 45
    answers = [json.loads(line)["messages"][-1]["content"] for line in prepared.file("test.jsonl").splitlines()]
    assert answers == [row["label"] for row in tested]


@pytest.mark.parametrize("near", [OnNear.IGNORE, OnNear.GROUP])
@pytest.mark.parametrize("test_first", [False, True])
def test_a_row_for_training_and_for_the_test_is_refused(prepared: Prepared, test_first: bool, near: OnNear) -> None:
    own = prepared.put("own.jsonl", [*rows(), *rows(2, 901)], part=SourcePart.TRAIN)
    test = prepared.put("test.jsonl", rows(30, 900), part=SourcePart.TEST)
    duplicates = Duplicates(near=near, across_parts=AcrossParts.FAIL)
    with pytest.raises(StageError) as caught:
        prepared.run(*([test, own] if test_first else [own, test]), duplicates=duplicates)
    assert caught.value.reason is Reason.DATASET_INVALID
    pairs = f"{test.uri} line 2 (test) and {own.uri} line 201 (training); {test.uri} line 3 (test) and"
    assert_says(caught.value.message, "2 test examples", "training examples", pairs)


def test_of_near_duplicates_that_of_your_own_test_is_kept(prepared: Prepared) -> None:
    long = [" ".join(f"{word}{n}" for word in WORDS) for n in range(30)]
    own = [{"text": f"{each} now", "label": "a"} for each in long]
    tested = [{"text": f"{each} then", "label": "a"} for each in long]
    sources = [prepared.put("own.jsonl", rows() + own), prepared.put("test.jsonl", tested, part=SourcePart.TEST)]
    prepared.run(*sources, duplicates=Duplicates(near=OnNear.DROP))
    assert prepared.texts("test") == [row["text"] for row in tested]
    assert prepared.report["rows"]["nearDropped"] == 30


@pytest.mark.parametrize("sought", [OnNear.IGNORE, OnNear.GROUP])
def test_what_your_test_holds_too_is_dropped_from_training_counted_and_listed(
    prepared: Prepared, sought: OnNear
) -> None:
    long = [" ".join(f"{word}{n}" for word in WORDS) for n in range(3)]
    both = rows(2, 901)
    own = prepared.put(
        "own.jsonl",
        [*rows(), *both, *both[:1], *({"text": f"{each} now", "label": "a"} for each in long)],
        part=SourcePart.TRAIN,
    )
    tested = [*rows(30, 900), *({"text": f"{each} then", "label": "a"} for each in long)]
    test = prepared.put("test.jsonl", tested, part=SourcePart.TEST)
    validation = prepared.put("validation.jsonl", rows(30, 1800), part=SourcePart.VALIDATION)
    result = prepared.run(own, test, validation, duplicates=Duplicates(near=sought))
    near = 0 if sought is OnNear.IGNORE else 3
    assert prepared.texts("test") == [row["text"] for row in tested]
    kept = [] if near else [f"{each} now" for each in long]
    assert prepared.texts("train") == [*(row["text"] for row in rows()), *kept]
    report = prepared.report
    assert (report["filters"], report["rows"]["duplicates"]) == ({"inTest": 3 + near}, 0)
    assert report["acrossParts"]["rows"] == 3 + near
    pairs = [(f"{test.uri} line {line}", f"{own.uri} line {at}") for line, at in ((2, 201), (3, 202), (2, 203))]
    listed = [(pair["test"], pair["training"]) for pair in report["acrossParts"]["first"]]
    assert sorted(listed[:3]) == sorted(pairs)
    assert result.scalars["rowsDropped"] == str(3 + near)
    counts = (f"dropped {3 + near}", f"inTest {3 + near}")
    assert_says(result.message, *counts, f"{own.uri} line 201", f"{test.uri} line 2")


def test_a_group_of_your_test_is_dropped_from_training(prepared: Prepared) -> None:
    given = {
        SourcePart.TRAIN: [row | {"ticket": n // 5} for n, row in enumerate(rows())],
        SourcePart.TEST: [row | {"ticket": n} for n, row in enumerate(rows(30, 900))],
        SourcePart.VALIDATION: [row | {"ticket": f"v{n}"} for n, row in enumerate(rows(30, 1800))],
    }
    prepared.run(*(prepared.put(f"{part}.jsonl", each, part=part) for part, each in given.items()), group_by="ticket")
    assert prepared.report["filters"] == {"inTest": 150}
    assert prepared.texts("train") == [row["text"] for row in rows(50, 150)]


BANKING77 = "banking77/train.csv"


@pytest.mark.skipif(not data_file(BANKING77).exists(), reason=missing(BANKING77))
def test_published_parts_that_share_a_row_are_trained_without_it(prepared: Prepared) -> None:
    """As BANKING77's own files, of whose 5,000 training rows one stands in the test too."""
    with data_file(BANKING77).open(encoding="utf-8") as file:
        published = [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]
    train, test = published[:1500], [*published[1500:2000], published[7]]
    sources = [
        prepared.put("train.jsonl", train, part=SourcePart.TRAIN),
        prepared.put("test.jsonl", test, part=SourcePart.TEST),
        prepared.put("validation.jsonl", published[2000:2200], part=SourcePart.VALIDATION),
    ]
    prepared.run(*sources)
    assert published[7]["text"] in prepared.texts("test")
    assert published[7]["text"] not in prepared.texts("train")
    assert prepared.report["filters"]["inTest"] >= 1
