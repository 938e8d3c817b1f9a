"""A few-shot prompt: what a person would try before tuning a model. Pure functions, no model.

The base model is shown examples of the training data as earlier turns of the conversation. Which ones, the hash of
their content decides, and labels take turns, so that the prompt is the same each time and shows as many kinds as it
can.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.hashing import digest
from finetune_jobs.modelling.chat import Message
from finetune_jobs.modelling.token_files import Conversation

SHOTS: Final = 8
"""Examples in a prompt."""
PLAIN: Final = frozenset({"role", "content"})
"""Keys of a message without tools and thoughts."""
MOST_CHARACTERS: Final = 4000
"""Longest text of all examples together, about 1,000 tokens: so much fits beside a question into any model."""


def choose_shots(train: Iterable[Conversation], task: TaskType) -> list[Conversation]:
    """At most SHOTS examples with one question and a text as its answer; none where there are no such."""
    best: dict[str, list[tuple[str, Conversation]]] = defaultdict(list)
    for example in train:
        if _is_simple(example):
            kind = best[example.label if task is TaskType.CLASSIFICATION else ""]
            kind.append((digest(example.messages), example))
            kind.sort(key=lambda entry: entry[0])
            del kind[SHOTS:]
    ranked = [(place, *entry) for kind in best.values() for place, entry in enumerate(kind)]
    turns = sorted(ranked, key=lambda entry: entry[:2])
    chosen: list[Conversation] = []
    room = MOST_CHARACTERS
    for _, _, example in turns:
        length = sum(len(str(message["content"])) for message in example.messages)
        if len(chosen) < SHOTS and length <= room:
            chosen.append(example)
            room -= length
    return chosen


def with_shots(prompt: Sequence[Message], shots: Sequence[Conversation]) -> list[Message]:
    """The prompt with the examples as turns before it, behind its system message."""
    turns = [turn for shot in shots for turn in shot.messages if turn["role"] != "system"]
    system = [message for message in prompt[:1] if message["role"] == "system"]
    return [*system, *turns, *prompt[len(system) :]]


def _is_simple(example: Conversation) -> bool:
    roles = [message["role"] for message in example.messages if message["role"] != "system"]
    return roles == ["user", "assistant"] and not example.tools and bool(example.label.strip())
