"""Golden prompts: the test examples by which a server is asked whether it runs an artifact. Pure.

Each choice follows from the examples' content alone, so equal evaluations give an artifact with the same bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from finetune_api.hashing import canonical_json
from finetune_jobs.artifacts.artifact import Answer


def choose_golden(answers: Sequence[Answer], count: int) -> list[Answer]:
    """The prompts that best prove that the fine-tune is active: those where artifact and base differ come first, spread
    over the labels; within that the order is that of a hash, so the choice is the same everywhere."""
    turn: Counter[tuple[bool, str]] = Counter()
    ranked: list[tuple[bool, int, int, Answer]] = []
    for answer in in_stable_order(answers):
        group = (not answer.distinguishes_base, answer.label)
        ranked.append((group[0], turn[group], len(ranked), answer))
        turn[group] += 1
    return [answer for *_, answer in sorted(ranked, key=lambda entry: entry[:3])[:count]]


def in_stable_order(answers: Iterable[Answer]) -> list[Answer]:
    """By a hash of the prompts: unrelated to what they say, and the same everywhere."""
    return sorted(answers, key=_rank)


def _rank(answer: Answer) -> bytes:
    return hashlib.sha256(canonical_json(answer.messages)).digest()
