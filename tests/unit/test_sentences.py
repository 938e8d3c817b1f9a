"""The helper of the message tests finds parts as whole words and numbers, in their order."""

import pytest

from tests.support.sentences import Saying, assert_says

pytestmark = pytest.mark.unit

MESSAGE = "s3://data/rows.jsonl line 10, label: 1.5 of 40 rows ('refund'). Set spec.task.labels."


@pytest.mark.parametrize(
    "parts",
    [
        ("s3://data/rows.jsonl line 10", "label", "'refund'", "Set spec.task.labels"),
        ("1.5 of 40", "rows"),
        ("s3://", "labels."),
    ],
)
def test_parts_that_a_message_says(parts: tuple[str, ...]) -> None:
    assert_says(MESSAGE, *parts)


@pytest.mark.parametrize(
    "parts", [("line 1",), ("5 of 40",), ("1",), ("task.label",), ("row",), ("'refund'", "label:"), ("10", "10")]
)
def test_parts_that_a_message_does_not_say(parts: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="is missing in"):
        assert_says(MESSAGE, *parts)


def test_no_parts_are_no_test() -> None:
    with pytest.raises(AssertionError):
        assert_says(MESSAGE)


def test_a_saying_stands_for_a_text_in_a_comparison() -> None:
    assert Saying("line 10", "'refund'") == MESSAGE
    assert (Saying("line 10"), 7) == (MESSAGE, 7)
    assert Saying("line 1") != MESSAGE
