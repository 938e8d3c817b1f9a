"""How a person would read a wordy answer of a base model. Pure functions, no model.

A model that was not tuned writes "The label is refund." where the label is wanted. Whoever prompts it would take the
label out of the sentence, so the comparison with prompting does, too. The tuned model is read strictly: programs take
its answers as they are.
"""

import json
import re
from collections.abc import Sequence
from typing import Final

from finetune_api.dataset import TaskType

_GAP: Final = re.compile(r"[\s_-]+")
_OPENING: Final = re.compile(r"[{\[]")


def read(task: TaskType, text: str, labels: Sequence[str]) -> str:
    """The answer within a text: the label that is named first, or the first JSON object or list; the text itself where
    there is none, or any text will do."""
    if task is TaskType.CLASSIFICATION:
        return _named(text, labels)
    return _json_in(text) if task is TaskType.EXTRACTION else text


def _named(text: str, labels: Sequence[str]) -> str:
    """In any letter case, as whole words, with a space for an underscore. Where two begin at one place, the longer."""
    if text in labels:
        return text
    plain = _plain(text)
    found = [(place, -len(label), label) for label in labels if (place := _place(plain, _plain(label))) is not None]
    return min(found)[2] if found else text


def _plain(text: str) -> str:
    return _GAP.sub(" ", text).strip().casefold()


def _place(text: str, words: str) -> int | None:
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) if words else None
    return found.start() if found else None


def _json_in(text: str) -> str:
    for opening in _OPENING.finditer(text):
        try:
            _, end = json.JSONDecoder().raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            continue
        return text[opening.start() : end]
    return text
