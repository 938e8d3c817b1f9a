"""What is known of the rows that were read: equal ones, contradicting ones, and where they stand."""

import pytest

from finetune_api.dataset import TaskType
from finetune_jobs.examples.ledger import Ledger, Place
from finetune_jobs.examples.parts import Part
from finetune_jobs.examples.validation import Example
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit


def example(question: str, answer: str, group: str = "") -> Example:
    return Example([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], [], group)


def take(ledger: Ledger, *rows: tuple[str, str]) -> list[bool]:
    answers = []
    for line, row in enumerate(rows, start=1):
        place, found = Place(0, "a.csv", line), example(*row)
        ledger.read += 1
        answers.append(ledger.is_new(found, place))
        if answers[-1]:
            ledger.keep(found, place, 9, None)
    return answers


@pytest.mark.parametrize("task", list(TaskType))
def test_of_equal_rows_the_first_stays(task: TaskType) -> None:
    ledger = Ledger(task)
    assert take(ledger, ("Q", "a"), ("q ", "a"), ("other", "a")) == [True, False, True]
    assert (ledger.duplicates, ledger.faults.total, len(ledger.labels)) == (1, 0, 2)


@pytest.mark.parametrize("task", [TaskType.CLASSIFICATION, TaskType.EXTRACTION])
def test_of_contradicting_rows_none_stays_and_every_row_is_counted_once(task: TaskType) -> None:
    ledger = Ledger(task)
    take(ledger, ("q", "a"), ("q", "a"), ("q", "b"), ("q", "a"), ("other", "a"))
    assert (ledger.duplicates, ledger.faults.kinds["conflictingLabels"], len(ledger.labels)) == (0, 4, 1)
    assert ledger.read == ledger.duplicates + ledger.faults.total + len(ledger.labels)


def test_records_that_say_the_same_do_not_contradict_each_other() -> None:
    ledger = Ledger(TaskType.EXTRACTION)
    take(ledger, ("q", '{"a": 1, "b": "\u00fc"}'), ("q", '{"b":"\\u00fc","a":1}'), ("q", '{ "a" : 1, "b": "\u00fc" }'))
    assert (ledger.duplicates, ledger.faults.total, len(ledger.labels)) == (2, 0, 1)
    take(ledger, ("q", '{"a": "1", "b": "\u00fc"}'))
    assert (ledger.duplicates, ledger.faults.total, len(ledger.labels)) == (0, 4, 0)
    take(ledger, ("half", '"\\ud83d"'), ("half", '"\\ud83d"'))
    assert (ledger.duplicates, ledger.faults.total, len(ledger.labels)) == (1, 4, 1)


def test_contradictions_quote_no_personal_data() -> None:
    ledger = Ledger(TaskType.CLASSIFICATION)
    take(ledger, ("q", "ana@example.org"), ("q", "ben@example.org"))
    message = ledger.faults.sentences()
    assert_says(message, "a.csv line 2, label:", "('***************')", "one answer", "('***************')")
    assert "example" not in message


def test_another_answer_in_free_text_is_another_way_to_say_it() -> None:
    ledger = Ledger(TaskType.TEXT)
    assert take(ledger, ("q", "a"), ("q", "b")) == [True, False]
    assert (ledger.duplicates, ledger.faults.total) == (1, 0)


def test_an_example_is_found_again_by_file_and_line() -> None:
    ledger = Ledger()
    first, second = example("one", "a", "team"), example("two", "b")
    assert ledger.keep(first, Place(0, "a.csv", 7), 5, Part.TEST) == 0
    assert ledger.keep(second, Place(3, "b.csv", 9), 6, None) == 1
    assert ledger.identities() == [first.identity, second.identity]
    assert (ledger.place(second.identity), ledger.source_of(second.identity)) == ("b.csv line 9", 3)
    assert (ledger.given, ledger.groups) == ({first.identity: Part.TEST}, {first.identity: "team"})
    ledger.leave_out({first.identity})
    assert (list(ledger.labels), ledger.given, ledger.groups) == ([second.identity], {}, {})
