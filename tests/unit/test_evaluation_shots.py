"""The few-shot prompt: which examples are shown, and where they stand."""

import random

import pytest

from finetune_api.dataset import TaskType
from finetune_jobs.evaluation.shots import MOST_CHARACTERS, SHOTS, choose_shots, with_shots
from finetune_jobs.modelling.token_files import Conversation

pytestmark = pytest.mark.unit


def example(question: str, answer: str, *before: dict[str, str]) -> Conversation:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation([*before, *turns])


SYSTEM = {"role": "system", "content": "Answer with a label."}
TRAIN = [example(f"question {n}", "abc"[n % 3] if n % 10 else "rare", SYSTEM) for n in range(100)]


def test_labels_take_turns_and_the_order_of_the_rows_does_not_count() -> None:
    shots = choose_shots(TRAIN, TaskType.CLASSIFICATION)
    assert len(shots) == SHOTS
    assert sorted(shot.label for shot in shots) == ["a", "a", "b", "b", "c", "c", "rare", "rare"]
    mixed = random.Random(1).sample(TRAIN, len(TRAIN))
    assert choose_shots(mixed, TaskType.CLASSIFICATION) == shots
    assert len(choose_shots(TRAIN, TaskType.TEXT)) == SHOTS


def test_only_one_question_with_a_text_as_its_answer_is_shown() -> None:
    earlier = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}
    others = [example("q", "a", *earlier), Conversation(example("q", "a").messages, [{"type": "function"}])]
    assert choose_shots([*others, example("q", " ")], TaskType.TEXT) == []
    assert choose_shots([*others, TRAIN[0]], TaskType.TEXT) == [TRAIN[0]]


def test_long_examples_leave_room_for_the_question() -> None:
    """Of 2,000 characters and an answer, one fits into 4,000 beside no second."""
    long = [example("word " * 400, str(n)) for n in range(5)] + [example("x" * MOST_CHARACTERS, "a")]
    assert [shot.prompt[0]["content"] for shot in choose_shots(long, TaskType.TEXT)] == ["word " * 400]


def test_examples_stand_between_the_system_message_and_the_question() -> None:
    asked = {"role": "user", "content": "mine"}
    shots = [example("one", "a", SYSTEM), example("two", "b")]
    said = [turn["content"] for turn in with_shots([SYSTEM, asked], shots)]
    assert said == ["Answer with a label.", "one", "a", "two", "b", "mine"]
    assert [turn["content"] for turn in with_shots([asked], shots)] == ["one", "a", "two", "b", "mine"]
