"""What counts as a right answer in each task."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.dataset import TaskType
from finetune_jobs.evaluation.tasks import field_overlap, right_for, score_task, word_overlap

pytestmark = pytest.mark.unit

EXTRACTION = [
    ('{"a": 1, "b": "x"}', '{"b":"x","a":1}', True, 1.0),
    ('{"a": 1, "b": "x"}', '{"a": 1}', False, 2 / 3),
    ('{"a": 1, "b": "x"}', '{"a": 1, "b": "y"}', False, 0.5),
    ('{"a": 1}', '{"a": "1"}', False, 0.0),
    ('{"a": 1}', '{"a": true}', False, 0.0),
    ('{"a": [1, 2]}', '{"a": [2, 1]}', False, 0.0),
    ('{"a": {"b": [1]}}', ' {"a": {"b": [1]}}\n', True, 1.0),
    ('{"a": {}}', '{"a": []}', False, 0.0),
    ('{"a.b": 1}', '{"a": {"b": 1}}', False, 0.0),
    ("{}", "{}", True, 1.0),
    ('{"a": 1}', 'Here it is: {"a": 1}', False, 0.0),
    ('{"a": 1}', "", False, 0.0),
]

TEXT = [
    ("Restart the router.", "restart  router", True, 1.0),
    ("Restart the router.", "Restart the modem.", False, 0.5),
    ("yes", "no", False, 0.0),
    ("The", "a", False, 0.0),
    ("!", "!", True, 1.0),
    ("yes", "", False, 0.0),
]


@pytest.mark.parametrize(("truth", "answer", "right", "f1"), EXTRACTION)
def test_an_extraction_is_right_as_a_value_and_scored_by_its_fields(
    truth: str, answer: str, right: bool, f1: float
) -> None:
    assert right_for(TaskType.EXTRACTION)(truth, answer) is right
    assert field_overlap(truth, answer).f1 == pytest.approx(f1)


@pytest.mark.parametrize(("truth", "answer", "right", "f1"), TEXT)
def test_a_text_is_right_by_its_words(truth: str, answer: str, right: bool, f1: float) -> None:
    assert right_for(TaskType.TEXT)(truth, answer) is right
    assert word_overlap(truth, answer).f1 == pytest.approx(f1)


def test_scores_are_means_over_the_examples_and_count_what_is_no_json() -> None:
    scores = score_task(TaskType.EXTRACTION, ['{"a": 1, "b": 2}'] * 3, ['{"a": 1}', "no", '{"b": 2, "a": 1}'], [])
    assert (scores.accuracy, scores.unknown_answers, scores.labels) == (1 / 3, 1, {})
    assert [scores.precision, scores.recall] == pytest.approx([2 / 3, 0.5])
    assert score_task(TaskType.TEXT, ["a b"], ["a b"], []).unknown_answers == 0


def test_a_classification_is_scored_by_its_labels() -> None:
    scores = score_task(TaskType.CLASSIFICATION, ["a", "b"], ["a", "c"], ["a", "b"])
    assert (scores.accuracy, scores.unknown_answers, set(scores.labels)) == (0.5, 1, {"a", "b"})


@pytest.mark.parametrize("task", list(TaskType))
def test_nothing_to_score_is_an_error(task: TaskType) -> None:
    with pytest.raises(ValueError, match="no examples"):
        score_task(task, [], [], [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
def test_full_overlap_is_equality(left: Any, right: Any) -> None:
    one, other = json.dumps(left), json.dumps(right, indent=2)
    assert (field_overlap(one, other).f1 == 1.0) is right_for(TaskType.EXTRACTION)(one, other)
    assert field_overlap(one, other).f1 == pytest.approx(field_overlap(other, one).f1)
